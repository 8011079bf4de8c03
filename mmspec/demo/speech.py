"""The speech tab: sound that starts before all is said."""

import base64
import json
from pathlib import Path

import gradio as gr

from mmspec.demo.stage import Stage, as_seed
from mmspec.media import audio as sound
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

EXAMPLES = [
    "Hello there. This voice starts before its sentence is finished.",
    "The train leaves at 7:45 and costs $12.50.",
    "Who is the fastest of them all? Nobody knows.",
]

# Plays pieces of sound one after the other. Every message repeats the last few pieces, so that one that the page skips
# is not missed.
PLAY = """
(message) => {
  if (!message) return;
  const {rate, first, pieces} = JSON.parse(message);
  const page = window.mmspec;
  if (!page) return;
  pieces.forEach((piece, i) => {
    if (first + i < page.played) return;
    const bytes = Uint8Array.from(atob(piece), (c) => c.charCodeAt(0));
    const samples = Float32Array.from(new Int16Array(bytes.buffer), (v) => v / 32768);
    page.played = first + i + 1;
    if (!samples.length) return;
    const buffer = page.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = page.context.createBufferSource();
    source.buffer = buffer;
    source.connect(page.context.destination);
    page.next = Math.max(page.next, page.context.currentTime + 0.05);
    source.start(page.next);
    page.next += buffer.duration;
  });
}
"""
# A page may only make sound after a click, so that is when its context is made.
WAKE = """
() => {
  if (window.mmspec && window.mmspec.context) window.mmspec.context.close();
  window.mmspec = {next: 0, played: 0, context: new AudioContext()};
}
"""
HUSH = """() => {
    if (window.mmspec && window.mmspec.context) { window.mmspec.context.close(); window.mmspec.played = Infinity; }
}"""

# Pieces in one message.
REPEATED = 8


def cost(folder: Path | None, drafter: str) -> str:
    """What tolerance gains and costs with a drafter, as `recipes.wren_86.judge` measured it: a Markdown table, empty if
    it was not.
    """
    path = folder / "quality.json" if folder else None
    if path is None or not path.exists():
        return ""
    results = json.loads(path.read_text())
    by_tolerance: dict[str, dict] = {}
    for row in results["rows"]:
        if row.get("drafter") == drafter:
            by_tolerance.setdefault(row["acceptance"].removeprefix("tolerance:"), row)
    if not by_tolerance:
        return ""
    lines = [
        f"| {tau} | {row['mean_acceptance_length']:.2f} | {100 * row['word_error_rate']:.1f} % "
        f"| {100 * row['over_ar']:+.1f} ± {100 * row['over_ar_error']:.1f} |"
        for tau, row in by_tolerance.items()
    ]
    head = f"Measured on {results['sentences']} sentences with {drafter}:"
    return "\n".join(
        [head, "", "| tolerance | tokens a round | words misheard | points over exact |", "|---|---|---|---|", *lines]
    )


def tab(stage: Stage) -> None:
    """Build the tab."""
    player = stage.player("text-to-speech")
    pipe: TextToSpeechPipeline = player.pipe  # type: ignore[assignment]
    rate = pipe.codec.sampling_rate
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(EXAMPLES[0], label="What to say", lines=3, max_length=2000)
            gr.Examples(EXAMPLES, text, label="Examples")
            voice = gr.Radio(pipe.voices, value=pipe.voices[0], label="Voice")
            tolerance = gr.Slider(
                1,
                8,
                1,
                step=1,
                label="Tolerance",
                info="1 is exact. Above, tokens among so many best are accepted: faster, and NOT the same speech",
            )
            with gr.Row():
                go, stop = gr.Button("Speak", variant="primary"), gr.Button("Stop")
            price = cost(pipe.folder, pipe.drafter)
            gr.Markdown(price, visible=bool(price), label="What tolerance costs")
            with gr.Accordion("Settings", open=False):
                seed = gr.Number(
                    7,
                    label="Seed",
                    info="The same seed says it the same way with any drafter; empty draws one",
                    precision=0,
                )
                temperature = gr.Slider(0, 1.5, pipe.temperature, step=0.1, label="Temperature", info="0 is greedy")
                drafter = gr.Dropdown(
                    player.drafters, value=pipe.drafter, label="Drafter", info="changes the speed alone"
                )
        with gr.Column():
            progress = gr.Markdown("Sound starts as soon as its first tokens are verified.", label="Progress")
            full_audio = gr.Audio(label="All that was said", format="wav", interactive=False)
            numbers = gr.Markdown(label="Live numbers")
            pieces = gr.Textbox(visible="hidden", label="Pieces of sound")

    def speak(
        text: str, voice: str, tolerance: int, seed: float, temperature: float, drafter: str, request: gr.Request
    ):
        with player.session(request.session_hash) as session:
            options = dict(
                voice=voice, temperature=temperature, drafter=drafter, acceptance=f"tolerance:{int(tolerance)}"
            )
            sent: list[str] = []
            out = None
            for chunk in session.stream(text, seed=as_seed(seed), **options):
                sent.append(base64.b64encode(sound.pcm(chunk.audio).numpy().astype("<i2").tobytes()).decode())
                first, out = max(0, len(sent) - REPEATED), chunk.output
                message = json.dumps({"rate": rate, "first": first, "pieces": sent[first:]})
                spent = sum(stats.total for stats in out.sentence_stats)
                line = (
                    f"{out.seconds:.1f} s of speech after {spent:.1f} s of work; "
                    f"the first sound came after {out.first_audio:.2f} s"
                )
                yield message, line, player.numbers(out.stats), gr.skip()
            if out is None:
                yield gr.skip(), "Stopped.", gr.skip(), gr.skip()
                return
            yield gr.skip(), line, player.numbers(out.stats), (rate, sound.pcm(out.audio).numpy())

    inputs = [text, voice, tolerance, seed, temperature, drafter]
    outputs = [pieces, progress, numbers, full_audio]
    gr.on([go.click, text.submit], None, None, None, js=WAKE, api_visibility="private")
    gr.on(
        [go.click, text.submit], speak, inputs, outputs, concurrency_limit=8, api_name="speak", show_progress="hidden"
    )
    pieces.change(None, pieces, None, js=PLAY, api_visibility="private")
    stop.click(stage.stop, js=HUSH, api_visibility="private", queue=False)
