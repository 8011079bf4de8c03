"""The ask tab: a picture and a chat about it, words as they are verified."""

from pathlib import Path
from typing import Any

import gradio as gr

from mmspec.demo.stage import Stage, as_seed
from mmspec.errors import MmspecError
from mmspec.media import image as picture
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

QUESTIONS = ["What is in the picture?", "How many are there?", "Describe the picture."]


def tab(stage: Stage) -> None:
    """Build the tab."""
    player = stage.player("image-text-to-text")
    pipe: ImageTextToTextPipeline = player.pipe  # type: ignore[assignment]
    with gr.Row():
        with gr.Column():
            image = gr.Image(label="Picture", type="filepath", height=320, sources=["upload", "clipboard"])
            pictures = examples(pipe.folder)
            if pictures:
                gr.Examples(pictures, image, label="Example pictures")
            with gr.Accordion("Settings", open=False):
                seed = gr.Number(
                    7,
                    label="Seed",
                    info="The same seed gives the same answer with any drafter; empty draws one",
                    precision=0,
                )
                temperature = gr.Slider(0, 1.5, pipe.temperature, step=0.1, label="Temperature", info="0 is greedy")
                length = gr.Slider(8, 512, pipe.max_new_tokens, step=8, label="Most new tokens")
                drafter = gr.Dropdown(
                    player.drafters, value=pipe.drafter, label="Drafter", info="changes the speed alone"
                )
        with gr.Column():
            talk = gr.Chatbot(label="Chat", height=300, sanitize_html=True, buttons=["copy"])
            question = gr.Textbox(QUESTIONS[0], label="Question", max_lines=3, max_length=1000)
            gr.Examples(QUESTIONS, question, label="Examples")
            with gr.Row():
                go, stop, clear = gr.Button("Ask", variant="primary"), gr.Button("Stop"), gr.Button("New chat")
            runs = gr.HighlightedText(
                label="Accepted runs of the last answer: what came in one round has one colour",
                color_map={"a": "#7dcf9f", "b": "#f9cf9a"},
                show_inline_category=False,
            )
            numbers = gr.Markdown(label="Live numbers")

    def ask(
        path: str | None,
        question: str,
        talk: list,
        seed: float,
        temperature: float,
        length: int,
        drafter: str,
        request: gr.Request,
    ):
        with player.session(request.session_hash) as session:
            if not question.strip():
                raise MmspecError("there is no question: type one, such as 'How many are there?'")
            history = [{"role": message["role"], "content": text_of(message["content"])} for message in talk]
            chat: list[dict] = [*history, {"role": "user", "content": question}]
            if path:
                chat[0] = {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": picture.read(path)},
                        {"type": "text", "text": chat[0]["content"]},
                    ],
                }
            talk = [*talk, {"role": "user", "content": question}, {"role": "assistant", "content": ""}]
            options = dict(temperature=temperature, max_new_tokens=int(length), drafter=drafter)
            coloured: list[tuple[str, str]] = []
            words = None
            for step, words in enumerate(session.stream(chat, seed=as_seed(seed), **options)):
                coloured.append((words.texts[0], "ab"[step % 2]))
                talk[-1] = {"role": "assistant", "content": words.output.text}
                yield talk, coloured, player.numbers(words.output.stats), gr.skip()
            if words is None:
                yield gr.skip(), gr.skip(), "Stopped.", gr.skip()
                return
            yield talk, coloured, player.numbers(words.output.stats), ""

    inputs = [image, question, talk, seed, temperature, length, drafter]
    outputs = [talk, runs, numbers, question]
    answering = gr.on(
        [go.click, question.submit], ask, inputs, outputs, concurrency_limit=8, api_name="ask", show_progress="hidden"
    )
    stop.click(stage.stop, api_visibility="private", queue=False)
    for event in (clear.click, image.change):
        event(stage.stop, cancels=answering, api_visibility="private", queue=False).then(
            lambda: ([], [], ""), None, [talk, runs, numbers], api_visibility="private"
        )


def text_of(content: Any) -> str:
    """The words of a message as the chat component gives it back."""
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def examples(folder: Path | None) -> list[str]:
    """Pictures that the model's folder brings."""
    return [str(path) for path in sorted((folder / "samples").glob("*.png"))[:4]] if folder else []
