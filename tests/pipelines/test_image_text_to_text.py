"""Image and text to text: equal answers, chats, several pictures or none, streaming, saving, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmspec
from mmspec.errors import MmspecError
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (16, 64), "blue")
QUESTION = "what is this?"


@pytest.fixture(scope="module")
def pipe(vision_folder: Path) -> ImageTextToTextPipeline:
    return mmspec.pipeline("image-text-to-text", str(vision_folder), device="cpu", dtype="fp64")


def talk(*turns: str | tuple[Image.Image, str]) -> list[dict]:
    """A chat of questions and answers in turn; a question may bring a picture."""
    chat = []
    for i, turn in enumerate(turns):
        picture, text = turn if isinstance(turn, tuple) else (None, turn)
        parts = [{"type": "image", "image": picture}] if picture else []
        chat.append({"role": "assistant" if i % 2 else "user", "content": [*parts, {"type": "text", "text": text}]})
    return chat


CHATS = {
    "one picture": talk((RED, QUESTION)),
    "no picture": talk("hello there"),
    "two pictures": [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": RED},
                {"type": "image", "image": BLUE},
                {"type": "text", "text": "which?"},
            ],
        }
    ],
    "several turns": talk((BLUE, "colour?"), "blue.", (RED, "and this?"), "red.", "sure?"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("drafter", ["lookup", "jacobi", "msd"])
def test_equality(pipe, name: str, temperature: float, drafter: str) -> None:
    """The same seed gives the answer of plain decoding with every drafter (fp64), alone and in a batch of all chats."""
    plain = pipe(CHATS[name], seed=5, temperature=temperature, drafter="none")
    found = pipe(CHATS[name], seed=5, temperature=temperature, drafter=drafter)
    assert found.tokens == plain.tokens and found.text == plain.text and found.stats.lossless
    row = list(CHATS).index(name)
    seeds = [5 + 100 * abs(i - row) for i in range(len(CHATS))]
    batch = pipe(list(CHATS.values()), seed=seeds, temperature=temperature, drafter=drafter)
    assert batch.tokens[row] == plain.tokens[0] and batch.texts[row] == plain.text


@pytest.mark.parametrize("name", CHATS)
def test_greedy_equals_transformers_generate(pipe, name: str) -> None:
    """Greedy answers are those of `transformers.generate` on the processor's own input."""
    law = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    inputs = dict(pipe.processor.apply_chat_template(CHATS[name], **law))
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].double()
    out = pipe.transformer.generate(**inputs, do_sample=False, max_new_tokens=24)[
        0, inputs["input_ids"].shape[1] :
    ].tolist()
    found = pipe(CHATS[name], temperature=0.0)
    assert found.tokens[0] == [token for token in out if token != 2] and found.ended == [
        "end" if 2 in out else "length"
    ]


def test_the_picture_matters(pipe) -> None:
    """The negative control: another picture, another answer; another seed too."""
    answers = {pipe(picture, QUESTION, seed=seed, temperature=1.0).text for picture in (RED, BLUE) for seed in (1, 2)}
    assert len(answers) == 4


def test_forms_of_a_question(pipe, tmp_path: Path) -> None:
    """A picture, a path, bytes, a chat and a list of chats ask the same; strings are content too."""
    RED.save(tmp_path / "red.png")
    wanted = pipe(RED, QUESTION, seed=1).tokens
    chat = talk((RED, QUESTION))
    for given in (
        (str(tmp_path / "red.png"), QUESTION),
        ((tmp_path / "red.png").read_bytes(), QUESTION),
        (chat,),
        (None, chat),
        ([chat],),
        ([RED], QUESTION),
        (RED, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]),
    ):
        assert pipe(*given, seed=1).tokens == wanted
    assert pipe(images=[RED], text=QUESTION, seed=1).tokens == wanted
    path = [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(tmp_path / "red.png")}, {"type": "text", "text": QUESTION}],
        }
    ]
    assert pipe(path, seed=1).tokens == wanted
    assert pipe([{"role": "user", "content": "hello there"}], seed=1).tokens == pipe(None, "hello there", seed=1).tokens


def test_an_answer_that_is_gone_on_with(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does: the last message stays open."""
    monkeypatch.setattr(
        pipe.processor, "chat_template", pipe.processor.chat_template.replace("|lower", "").replace("| lower", "")
    )
    chat = talk((RED, QUESTION), "a red")
    law = dict(continue_final_message=True, tokenize=True, return_dict=True, return_tensors="pt")
    prompt = pipe.processor.apply_chat_template(chat, **law)
    wanted = pipe.transformer.generate(
        **prompt, do_sample=False, max_new_tokens=12, eos_token_id=sorted(pipe.ends), pad_token_id=0
    )
    found = pipe(chat, temperature=0.0, max_new_tokens=12)
    said = [token for token in wanted[0, prompt["input_ids"].shape[1] :].tolist() if token not in pipe.ends]
    assert found.tokens[0] == said and found.prompt_tokens == prompt["input_ids"].shape[1]


def test_several_questions(pipe) -> None:
    """Each with its own picture, or without any."""
    law = dict(temperature=0.0, max_new_tokens=8)
    assert pipe([RED, BLUE], [QUESTION, "colour?"], **law).texts == [
        pipe(RED, QUESTION, **law).text,
        pipe(BLUE, "colour?", **law).text,
    ]
    assert pipe(text=[QUESTION, "colour?"], **law).texts == [
        pipe(text=QUESTION, **law).text,
        pipe(text="colour?", **law).text,
    ]
    with pytest.raises(MmspecError, match="1 images were given for 2 questions"):
        pipe([RED], [QUESTION, QUESTION])


def test_streaming(pipe) -> None:
    """Words joined are the answer; every round brings its tokens; a chat goes on with its answer."""
    words = list(pipe.stream(RED, QUESTION, seed=3, temperature=1.0))
    out = words[-1].output
    assert "".join(part.texts[0] for part in words) == out.text == pipe(RED, QUESTION, seed=3, temperature=1.0).text
    assert [len(part.tokens[0]) for part in words] == out.stats.runs[0] and 0 < out.first_token < 60
    assert out.chat()[-1] == {"role": "assistant", "content": [{"type": "text", "text": out.text}]}
    follow = [*out.chat(), {"role": "user", "content": "sure?"}]
    assert pipe(follow, seed=1).text


def test_interrupt(pipe) -> None:
    """What was verified is kept, and is the beginning of the whole answer."""

    def watch(words) -> None:
        pipe.interrupt = len(words.output.tokens[0]) > 4

    whole, part = (
        pipe(RED, QUESTION, seed=3, temperature=1.0),
        pipe(RED, QUESTION, seed=3, temperature=1.0, callback=watch),
    )
    assert (
        part.ended == ["interrupted"]
        and whole.tokens[0][: len(part.tokens[0])] == part.tokens[0]
        and len(part.tokens[0]) > 4
    )


def test_letters_of_several_bytes(pipe, monkeypatch) -> None:
    """A character whose bytes come in different rounds is held back until it is whole."""
    honest = pipe.processor.tokenizer.decode
    monkeypatch.setattr(
        type(pipe.processor.tokenizer),
        "decode",
        lambda self, ids, **more: honest(ids, **more) + ("\ufffd" if len(ids) % 2 else ""),
    )
    words = list(pipe.stream(RED, QUESTION, seed=3, temperature=1.0, max_new_tokens=8))
    assert not any("\ufffd" in part.texts[0] for part in words[:-1])


def test_round_trip(pipe, tmp_path: Path) -> None:
    """A saved pipeline answers the same; drafters travel along; so does a folder of transformers itself, without an
    index.
    """
    pipe.save_pretrained(tmp_path / "saved")
    again = ImageTextToTextPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float64)
    assert (
        again(RED, QUESTION, seed=2, drafter="msd").tokens == pipe(RED, QUESTION, seed=2).tokens
        and again.max_new_tokens == 24
    )
    pipe.transformer.save_pretrained(tmp_path / "bare")
    pipe.processor.save_pretrained(tmp_path / "bare")
    bare = ImageTextToTextPipeline.from_pretrained(tmp_path / "bare", dtype=torch.float64)
    assert bare(RED, QUESTION, seed=2, max_new_tokens=24).tokens == pipe(RED, QUESTION, seed=2).tokens


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((RED,), "there is no question"),
        ((RED, " "), "there is no question"),
        ((RED, [{"role": "user", "content": QUESTION}]), "1 of the images have no place"),
        (([],), "a chat is a list of messages"),
        (([{"role": "user"}],), "a chat is a list of messages"),
        (([{"role": "user", "content": 7}],), "a string or a list of parts, not 7"),
        (([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}],), "videos and sounds are not supported"),
        (("nowhere.png", QUESTION), "no picture at nowhere.png"),
    ],
)
def test_questions_that_are_none(pipe, given: tuple, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        pipe(*given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: give a whole number from 1 up"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range"),
        ({"drafter": "mds"}, "unknown drafter 'mds'"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 chats"),
        ({"max_new_tokens": 4000}, "exceed the model's 512 positions"),
    ],
)
def test_settings_that_do_not_work(pipe, options: dict, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        pipe(RED, QUESTION, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "transformer" / "config.json").write_text("{"), "config.json cannot be read"),
        (
            lambda folder: (folder / "transformer" / "model.safetensors").write_bytes(b"x" * 50),
            "model.safetensors is truncated",
        ),
        (lambda folder: shutil.rmtree(folder / "processor"), "has no processor that loads"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "TextToSpeechPipeline"}'),
            "give an image-text-to-text model",
        ),
    ],
)
def test_damaged_folders(vision_folder: Path, tmp_path: Path, damage, message: str) -> None:
    folder = Path(shutil.copytree(vision_folder, tmp_path / "model"))
    damage(folder)
    with pytest.raises(MmspecError, match=message):
        ImageTextToTextPipeline.from_pretrained(folder)
