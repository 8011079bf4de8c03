"""The ask tab: a picture and a chat about it, words as they are verified."""

from pathlib import Path

import gradio as gr

from mmspec import zoo
from mmspec.demo import parts
from mmspec.demo.stage import Stage, as_seed
from mmspec.errors import MmspecError
from mmspec.media import image as picture
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.pipelines.session import Session

QUESTIONS = ["What is in the picture?", "How many are there?", "Describe the picture."]

NO_PICTURE = (
    "**No picture was given.** The answer comes from the words alone, and what it says of a picture is invented."
)


def tab(stage: Stage) -> None:
    """Build the tab."""
    player = stage.player("image-text-to-text")
    pipe = player.pipe
    assert isinstance(pipe, ImageTextToTextPipeline)
    pictures = examples(pipe.folder)
    with gr.Row(elem_classes="stage even"):
        with gr.Column(elem_classes="stage-input"):
            gr.Markdown("#### The picture", elem_classes="heading")
            image = gr.Image(
                pictures[0] if pictures else None,
                label="Picture",
                show_label=False,
                type="filepath",
                image_mode=None,
                height=240,
                elem_classes="asked",
                sources=["upload", "clipboard"],
                buttons=[],
            )
            question = gr.Textbox(QUESTIONS[0], label="Question", max_lines=3, max_length=1000)
            buttons = parts.Buttons.make("Ask", "Answering …")
        with gr.Column(elem_classes="stage-output"):
            gr.Markdown("#### The chat", elem_classes="heading")
            talk = gr.Chatbot(label="Chat", show_label=False, height=360, sanitize_html=True, buttons=["copy"])
            clear = gr.Button("New chat", size="sm")
            notice = gr.Markdown(label="Notice", elem_classes="notice")
            numbers = gr.Markdown(label="Speed and acceptance")
            runs = gr.HighlightedText(
                label="Rounds of the last answer, in two colours by turns",
                color_map={"a": "#7dcf9f", "b": "#f9cf9a"},
                show_inline_category=False,
            )
            # The picture that the chat is about.
            subject = gr.State(None)
        with gr.Column(elem_classes="stage-settings"):
            gr.Examples(QUESTIONS, question, label="Example questions")
            if pictures:
                gr.Examples(pictures, image, label="Example pictures")
            with gr.Accordion("Settings", open=False):
                seed = parts.seed_field("gives the same answer")
                temperature = parts.temperature_field(pipe.temperature)
                length = gr.Slider(
                    8,
                    512,
                    pipe.max_new_tokens,
                    step=8,
                    label="Longest answer",
                    info="In tokens; a word has one or more.",
                )
                drafter = parts.drafter_field(player)
            fields = [question, seed, temperature, length, drafter]

            def code(question: str, seed: float | None, temperature: float, length: float, drafter: str) -> str:
                settings = dict(
                    seed=as_seed(seed), temperature=temperature, max_new_tokens=int(length), drafter=drafter
                )
                arguments = ['"picture.png"', parts.repr_code(question)]
                return parts.call(player, "image-text-to-text", arguments, settings, "print(out.text)")

            parts.python_code(fields, code)
            parts.terms()

    # The pictures that visitors' running questions are about.
    asking: dict[str | None, str | None] = {}

    def ask(
        path: str | None,
        question: str,
        seed: float | None,
        temperature: float,
        length: float,
        drafter: str,
        talk: list,
        subject: str | None,
        request: gr.Request,
    ):
        options = dict(temperature=temperature, max_new_tokens=int(length), drafter=drafter)
        with player.session(request.session_hash) as session:
            if not question.strip():
                raise MmspecError("there is no question: type one, such as 'How many are there?'")
            asking[request.session_hash] = path
            try:
                yield from answer(session, path, question, as_seed(seed), options, talk if path == subject else [])
            finally:
                asking.pop(request.session_hash, None)

    def answer(session: Session, path: str | None, question: str, seed: int | None, options: dict, talk: list):
        """A question in a chat that may have begun already: what the page shows, round by round."""
        chat: list[dict] = [{"role": message["role"], "content": text_of(message["content"])} for message in talk]
        chat.append({"role": "user", "content": question})
        if path:
            image_part = {"type": "image", "image": picture.read(path)}
            chat[0]["content"] = [image_part, {"type": "text", "text": chat[0]["content"]}]
        talk = [*talk, {"role": "user", "content": question}, {"role": "assistant", "content": ""}]
        told = "" if path else NO_PICTURE
        yield talk, [], "", told, path, gr.skip()
        coloured: list[tuple[str, str]] = []
        words = None
        for step, words in enumerate(session.stream(chat, seed=seed, **options)):
            coloured.append((words.texts[0], "ab"[step % 2]))
            talk[-1] = {"role": "assistant", "content": words.output.text}
            yield talk, coloured, player.numbers([words.output.stats]), told, path, gr.skip()
        if session.interrupt or words is None:
            yield gr.skip(), gr.skip(), "Stopped.", *[gr.skip()] * 3
            return
        yield talk, coloured, player.numbers([words.output.stats]), told, path, ""

    def change(path: str | None, subject: str | None, request: gr.Request):
        """Another picture is there: begin anew, unless it is the one that is asked about already."""
        if path in (subject, asking.get(request.session_hash, "")):
            return [gr.skip()] * 7
        return empty(request)

    def empty(request: gr.Request):
        stage.stop(request)
        return [[], [], "", "", None, *buttons.state(False)]

    answering = buttons.connect(
        stage,
        ask,
        [image, *fields, talk, subject],
        [talk, runs, numbers, notice, subject, question],
        [numbers, notice],
        "ask",
        [question.submit],
    )
    everything = [talk, runs, numbers, notice, subject, buttons.start, buttons.stop]
    clear.click(empty, None, everything, cancels=answering, **parts.AT_ONCE)
    image.change(change, [image, subject], everything, **parts.AT_ONCE)


def text_of(content: str | list[str | dict[str, str]]) -> str:
    """The words of a message as the chat component gives it back."""
    pieces = content if isinstance(content, list) else [content]
    return "".join(piece if isinstance(piece, str) else piece.get("text", "") for piece in pieces)


def examples(folder: Path | None, count: int = 4) -> list[str]:
    """Pictures that the model's folder brings, those first of which its prompts ask what they show."""
    if folder is None:
        return []
    described = []
    if (folder / zoo.PROMPTS).is_file():
        rows = zoo.prompts(folder)
        described = [folder / row["image"] for row in rows if row.get("kind") == "what" and row.get("image")]
    paths = [*described, *sorted((folder / "samples").glob("*.png"))]
    return [str(path) for path in dict.fromkeys(paths) if path.is_file()][:count]
