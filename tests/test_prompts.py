"""Files with prompts of one's own: lines of text or JSON, pictures beside the file, and what is wrong with others."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmspec.errors import MmspecError
from mmspec.pipelines.chats import example_chat
from mmspec.prompts import read_prompts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path in a folder with two pictures."""
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    return tmp_path / "prompts.txt"


def test_lines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and JSON may be mixed, with a byte-order mark and Windows' line ends; other keys are handed on."""
    file.write_bytes(
        b"\xef\xbb\xbfa red heart\r\n\r\n"
        b'{"prompt": "what?", "image": "a.png", "kind": "count"}\r\n'
        b'{"prompt": "which?", "images": ["a.png", "b.png"]}\n{"prompt": "a\xe2\x80\xa8b", "voice": "ada"}\n'
    )
    folder = file.parent
    assert read_prompts(file) == (
        {"prompt": "a red heart"},
        {"prompt": "what?", "image": str(folder / "a.png"), "kind": "count"},
        {"prompt": "which?", "images": [str(folder / "a.png"), str(folder / "b.png")]},
        {"prompt": "a\u2028b", "voice": "ada"},
    )
    monkeypatch.chdir(folder)
    assert read_prompts(Path("prompts.txt"))[1]["image"] == str(folder / "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"prompts.txt has no prompts: write one a line, as text or \{\"prompt\": ...\}"),
        ("\n \n", "has no prompts"),
        ("a cat\n{", "line 2 of .*prompts.txt is no JSON"),
        ('{"prompt": 3}', "line 1 of .*prompts.txt has no prompt"),
        ('{"prompt": " "}', "line 1 of .*prompts.txt has no prompt"),
        ('{"text": "a cat"}', "line 1 of .*prompts.txt has no prompt"),
        ('{"prompt": "?", "image": "a.png", "images": ["b.png"]}', "both image and images: give one of them"),
        ('{"prompt": "?", "image": 3}', "image is the path of a picture, and images a list of paths"),
        ('{"prompt": "?", "images": "a.png"}', "image is the path of a picture, and images a list of paths"),
        ('{"prompt": "?", "images": ["a.png", "c.png"]}', "line 1 of .*: there is no picture .*c.png; paths are"),
    ],
)
def test_errors(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(MmspecError, match=message):
        read_prompts(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MmspecError, match="cannot read .*: No such file or directory; give a text file"):
        read_prompts(tmp_path / "prompts.txt")


def test_pictures_of_a_chat(file: Path) -> None:
    """One picture or several stand in the first message, before its text, in the order of the line."""
    file.write_text(
        '{"prompt": "and now?", "before": [["what?", "a heart"]], "images": ["b.png", "a.png"]}\n'
        '{"prompt": "what?", "image": "a.png"}\nwhy?\n'
    )
    several, single, none = (example_chat(row, Path("elsewhere")) for row in read_prompts(file))
    blue, red, text = several[0]["content"]
    assert text == {"type": "text", "text": "what?"} and len(several) == 3
    assert [part["image"].getpixel((0, 0)) for part in (blue, red)] == [(0, 0, 255), (255, 0, 0)]
    assert [part["type"] for part in single[0]["content"]] == ["image", "text"]
    assert [part["type"] for part in none[0]["content"]] == ["text"]


def test_chats(file: Path) -> None:
    """The last message is the prompt, or the answer to it; system messages and pictures stay."""
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}
    answer = {"role": "assistant", "content": "A cat."}
    chats = [
        {"messages": [system, question]},
        {"messages": [question, answer, question, answer], "image": "a.png"},
    ]
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    first, second = read_prompts(file)
    assert first == {"messages": [system, question], "prompt": "What?"}
    assert second["messages"] == [question, answer, question] and second["answer"] == "A cat."
    roles = [(message["role"], len(message["content"])) for message in example_chat(second, Path())]
    assert roles == [("user", 2), ("assistant", 1), ("user", 1)]
    for wrong in ([], "hello", [answer], [{"role": "user", "content": [{"type": "image"}]}]):
        file.write_text(json.dumps({"messages": wrong}))
        with pytest.raises(MmspecError, match="messages is a list|the chat asks nothing"):
            read_prompts(file)


def test_datasets(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are as the keys of lines; pictures go to files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.parent / "cache"))
    picture = Image.open(file.parent / "a.png")
    rows = {"prompt": ["what?", "who?"], "image": [picture, None], "answer": [None, "you"]}
    features = {"prompt": datasets.Value("string"), "image": datasets.Image(), "answer": datasets.Value("string")}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    dataset.save_to_disk(str(file.parent / "data"))
    first, second = read_prompts(file.parent / "data")
    assert Image.open(first["image"]).getpixel((0, 0)) == (255, 0, 0) and first["prompt"] == "what?"
    assert second == {"prompt": "who?", "answer": "you"}
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(file.parent / "splits"))
    with pytest.raises(MmspecError, match="has the splits train: give the folder of one"):
        read_prompts(file.parent / "splits")


def test_folders_that_are_no_datasets(tmp_path: Path) -> None:
    with pytest.raises(MmspecError, match="the library datasets"):
        read_prompts(tmp_path)
