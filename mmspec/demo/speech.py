"""The speech tab: sound that starts before all is said, and its text beside it."""

import base64
import html
import json
from pathlib import Path

import gradio as gr

from mmspec.demo import parts
from mmspec.demo.stage import Stage, as_seed
from mmspec.media import audio as sound
from mmspec.pipelines.phonemize import Sentence
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

EXAMPLES = [
    "Hello there. This voice starts before its sentence is finished.",
    "The train leaves at 7:45 and costs $12.50.",
    "Who is the fastest of them all? Nobody knows.",
]

# Plays pieces of sound one after the other, and marks the sentence that is heard. Every message repeats the last few
# pieces, so that one that the page skips is not missed.
PLAY = """
(message) => {
  if (!message) return;
  const {rate, first, pieces, sentences} = JSON.parse(message);
  const page = window.mmspec;
  if (!page) return;
  const mark = (sentence) => document.querySelectorAll(".spoken span").forEach((span, i) => {
    if (i === sentence) span.setAttribute("aria-current", "true");
    else span.removeAttribute("aria-current");
    span.classList.toggle("heard", i < sentence);
  });
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
    page.timers.push(setTimeout(mark, 1000 * (page.next - page.context.currentTime), sentences[i]));
    page.next += buffer.duration;
    clearTimeout(page.end);
    page.end = setTimeout(mark, 1000 * (page.next - page.context.currentTime), 1e9);
  });
}
"""
HUSH = """() => {
    const page = window.mmspec;
    if (!page || !page.context) return;
    if (page.context.state !== "closed") page.context.close();
    page.played = Infinity;
    [...page.timers, page.end].forEach(clearTimeout);
}"""
# A page may only make sound after a click, so that is when its context is made.
WAKE = f"""
() => {{
  ({HUSH})();
  window.mmspec = {{next: 0, played: 0, timers: [], end: 0, context: new AudioContext()}};
}}
"""

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
        f"| {'1 (exact)' if tau in ('1', 'exact') else tau} | {row['mean_acceptance_length']:.2f} "
        f"| {100 * row['word_error_rate']:.1f} % | {100 * row['over_ar']:+.1f} ± {100 * row['over_ar_error']:.1f} |"
        for tau, row in by_tolerance.items()
    ]
    head = (
        f"Measured on {results['sentences']} sentences with {drafter}. The last column is how many more words of a "
        "hundred are misheard than with plain decoding."
    )
    return "\n".join([head, "", "| tolerance | tokens per round | misheard | more |", "|---|---|---|---|", *lines])


def spoken(sentences: list[Sentence]) -> str:
    """The text, each sentence of it in a span that the page marks while it is heard."""
    spans = " ".join(f"<span>{html.escape(sentence.text)}</span>" for sentence in sentences)
    return f'<p class="spoken">{spans}</p>'


def rule(tolerance: float) -> str:
    """The acceptance rule of a tolerance: a tolerance of 1 is exact."""
    return f"tolerance:{int(tolerance)}" if tolerance > 1 else "exact"


def tab(stage: Stage) -> None:
    """Build the tab."""
    player = stage.player("text-to-speech")
    pipe = player.pipe
    assert isinstance(pipe, TextToSpeechPipeline)
    rate = pipe.codec.sampling_rate
    with gr.Row(elem_classes="stage"):
        with gr.Column(elem_classes="stage-input"):
            text = gr.Textbox(EXAMPLES[0], label="What to say", lines=3, max_length=2000)
            voice = gr.Radio(pipe.voices, value=pipe.voices[0], label="Voice")
            buttons = parts.Buttons.make("Speak", "Speaking …")
        with gr.Column(elem_classes="stage-output"):
            gr.Markdown("#### Text and sound", elem_classes="heading")
            shown = gr.HTML('<p class="spoken">The text appears here, and what is heard is marked.</p>', label="Text")
            progress = gr.Markdown("Sound starts as soon as its first tokens are verified.", label="Progress")
            full_audio = gr.Audio(label="All that was said", format="wav", interactive=False)
            numbers = gr.Markdown(label="Speed and acceptance")
            pieces = gr.Textbox(visible="hidden", label="Pieces of sound")
        with gr.Column(elem_classes="stage-settings"):
            gr.Examples(EXAMPLES, text, label="Examples")
            with gr.Accordion("Settings", open=False):
                tolerance = gr.Slider(
                    1,
                    8,
                    1,
                    step=1,
                    label="Tolerance",
                    info="1 is exact. Above, a drafted token is kept if it is among so many best: faster, and NOT the "
                    "same speech.",
                )
                seed = parts.seed_field("says it the same way")
                temperature = parts.temperature_field(pipe.temperature)
                drafter = parts.drafter_field(player)
            price = cost(pipe.folder, pipe.drafter)
            if price:
                with gr.Accordion("What tolerance gains and costs", open=False):
                    gr.Markdown(price, label="What tolerance gains and costs")
            fields = [text, voice, tolerance, seed, temperature, drafter]

            def code(
                text: str, voice: str, tolerance: float, seed: float | None, temperature: float, drafter: str
            ) -> str:
                lossy = rule(tolerance) if tolerance > 1 else None
                settings = dict(voice=voice, seed=as_seed(seed), temperature=temperature, drafter=drafter)
                return parts.call(
                    player,
                    "text-to-speech",
                    [parts.repr_code(text)],
                    {**settings, "acceptance": lossy},
                    'out.save("speech.wav")',
                )

            parts.python_code(fields, code)
            parts.terms()

    def speak(
        text: str,
        voice: str,
        tolerance: float,
        seed: float | None,
        temperature: float,
        drafter: str,
        request: gr.Request,
    ):
        with player.session(request.session_hash) as session:
            options = dict(voice=voice, temperature=temperature, drafter=drafter, acceptance=rule(tolerance))
            sent: list[tuple[str, int]] = []
            out = None
            for chunk in session.stream(text, seed=as_seed(seed), **options):
                piece = base64.b64encode(sound.pcm(chunk.audio).numpy().astype("<i2").tobytes()).decode()
                words = gr.skip() if out else spoken(chunk.output.sentences)
                sent.append((piece, chunk.sentence))
                first, out = max(0, len(sent) - REPEATED), chunk.output
                last, numbered = zip(*sent[first:])
                message = json.dumps({"rate": rate, "first": first, "pieces": last, "sentences": numbered})
                spent = sum(stats.total for stats in out.sentence_stats)
                line = (
                    f"{out.seconds:.1f} s of speech after {spent:.1f} s of work; "
                    f"the first sound came after {out.first_audio:.2f} s"
                )
                yield message, words, line, player.numbers(out.sentence_stats), gr.skip()
            if out is None:
                yield gr.skip(), gr.skip(), "Stopped.", gr.skip(), gr.skip()
                return
            line += f"; seed {out.seeds[0]}"
            yield gr.skip(), gr.skip(), line, player.numbers(out.sentence_stats), (rate, sound.pcm(out.audio).numpy())

    gr.on([buttons.start.click, text.submit], None, None, None, js=WAKE, api_visibility="private")
    buttons.connect(
        stage,
        speak,
        fields,
        [pieces, shown, progress, numbers, full_audio],
        [progress, numbers],
        "speak",
        [text.submit],
        hush=HUSH,
    )
    pieces.change(None, pieces, None, js=PLAY, api_visibility="private")
