"""Accuracy of answers: scores, the commonest answer, and a run on a random model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import llama
from tiny_art import write_art

pytest.importorskip("inflect")

from mmspec.errors import MmspecError
from recipes.emoji_64.data import Picture
from recipes.magpie_135 import judge as answers
from recipes.magpie_135.judge import majority, masked, questions, score
from recipes.magpie_135.questions import KINDS, Studio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio() -> Studio:
    names = ("cat", "dog", "apple", "fish", "sun", "red heart")
    return Studio(np.zeros((6, 8, 8, 4), np.uint8), [Picture(name, "flat", False, "") for name in names])


def test_scores() -> None:
    """Case and full stops do not matter; a description loses for what it lacks and for what it makes up."""
    assert (
        score("count", "there are two cats", "There are two cats.") == 1
        and score("count", "There are three cats.", "There are two cats.") == 0
    )
    true = "One. Two. Three."
    assert score("describe", "one. two. three", true) == 1 and score("describe", "One.", true) == pytest.approx(0.5)
    assert score("describe", "One. Two. Three. Four. Five. Six.", true) == pytest.approx(2 / 3)


def test_the_commonest_answer(studio: Studio) -> None:
    """The name that the question gives is taken out before answers are counted, and put back: yes and no are even,
    colours a sixth."""
    assert masked("How many dogs?", "There are two dogs.", studio.names) == ("There are two {many}.", "dog", "dogs")
    assert masked("Is there a red heart?", "No, there is no red heart.", studio.names)[0] == "No, there is no {one}."
    found = {
        kind: majority(studio, kind, questions(studio, kind, 200, True, 0))
        for kind in ("presence", "background", "what", "relation")
    }
    assert 0.4 < found["presence"] < 0.65 and found["background"] < 0.4 and found["what"] < 0.4


def test_run(vision_folder: Path, tmp_path: Path) -> None:
    """Every kind has its four figures, shares of one; the report is written."""
    folder = Path(shutil.copytree(vision_folder, tmp_path / "model"))
    write_art(tmp_path / "work" / "data", 64)
    settings = {"words": 2, "categories": ["Animals & Nature", "Smileys & Emotion"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": {"pictures": settings}, "target": {"text": 3}}))
    kinds = {kind: weight for kind, weight in KINDS.items() if kind in ("count", "follow-up")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "KINDS", kinds)
        patch.setattr(answers, "majority", lambda *given: 0.5)
        patch.setattr(answers.smollm, "load", lambda folder: llama(60, torch.float32))
        answers.main(str(folder), tmp_path / "work", tmp_path / "out", questions_a_kind=2, batch=2)
    report = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert report["text"]["own"] > 0 and report["text"]["ours"] > 0 and report["text"]["said"]
    found = report["kinds"]
    assert found.keys() == kinds.keys() and all(0 <= value <= 1 for row in found.values() for value in row.values())
    assert "| count |" in (tmp_path / "out" / "answers.md").read_text()
    (folder / "recipe.yaml").unlink()
    with pytest.raises(MmspecError, match="does not say which pictures the model knows"):
        answers.main(str(folder), tmp_path / "work", tmp_path / "out")


def test_questions_differ(studio: Studio) -> None:
    assert len({str(pair) for pair in questions(studio, "where", 30, False, 0)}) > 20
