"""The words that a model was trained on: read from its folder, listed, and unknown ones warned of with near matches."""

import json
import shutil
import warnings
from pathlib import Path

import pytest

from mmspec import cli, zoo
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.pipelines.vocabulary import Vocabulary

WORDS = {
    "prompt": "a NAME[, STYLE style]",
    "words": ["a", "an", "style"],
    "names": ["heart", "red heart", "cat face"],
    "styles": ["3d", "flat"],
}


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (copy / zoo.VOCABULARY).write_text(json.dumps(WORDS))
    return copy


def test_words() -> None:
    """Words are compared whatever their case and whatever stands between them; near ones are offered."""
    vocabulary = Vocabulary("", WORDS["words"], {"names": WORDS["names"], "styles": WORDS["styles"]})
    assert vocabulary.unknown_words(["A RED heart, 3d style!", "a flat cat"]) == {}
    assert vocabulary.unknown_words(["ein rotes Herz", "a haert"]) == {
        "ein": [],
        "rotes": [],
        "herz": [],
        "haert": ["heart"],
    }


def test_files(tmp_path: Path) -> None:
    """A folder without the file has no vocabulary; a damaged file is named."""
    assert Vocabulary.of(tmp_path) is None and Vocabulary.of(None) is None
    for text in ("{", "[]", '{"names": 3}'):
        (tmp_path / zoo.VOCABULARY).write_text(text)
        with pytest.raises(MmspecError, match="vocabulary.json cannot be read"):
            Vocabulary.of(tmp_path)


def test_pipeline_warns(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """Unknown words are named once; a model that does not say what it knows warns of nothing; the file is saved too."""
    pipe = TextToImagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match=r"was not trained on 'haert' \(did you mean 'heart'\?\), 'quux': it draws"):
        pipe(["a haert, 3d style", "a quux"], seed=1)
    pipe.save_pretrained(tmp_path / "saved")
    assert Vocabulary.of(tmp_path / "saved") == pipe.vocabulary
    silent = TextToImagePipeline.from_pretrained(model_folder)
    silent.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a red heart, 3d style", seed=1)
        silent("a quux", seed=1)


def test_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """`--list` lists, and a picture with unknown words is drawn with a warning."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, model: Path = folder) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["image", *arguments, "--model", str(model), "--device", "cpu"])
        return int(end.value.code or 0), *capfd.readouterr()

    assert run("--list") == (
        0,
        "prompts: a NAME[, STYLE style]\nnames (3): heart, red heart, cat face\nstyles (2): 3d, flat\n",
        "",
    )
    code, _, err = run("a", "haert", "-o", "a.png", "--seed", "1")
    assert code == 0 and "mmspec: warning: the model was not trained on 'haert' (did you mean 'heart'?)" in err


def test_bundled_words() -> None:
    """emoji-64 knows every word of its own prompts, and not some others."""
    folder = zoo.bundled()["emoji-64"].folder
    vocabulary = Vocabulary.of(folder)
    assert vocabulary is not None and len(vocabulary.groups["names"]) == 314
    assert not vocabulary.unknown_words(line["prompt"] for line in zoo.prompts(folder))
    assert not vocabulary.unknown_words(["a butterfly on a blue background, flat style"])
    assert vocabulary.unknown_words(["a zorblax on a sofa"]).keys() == {"zorblax", "sofa"}
    with_list = cli.COMMANDS["image"](words=True).run()
    assert with_list == 0
