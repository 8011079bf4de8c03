"""Scenes, the truth of their answers, and what the vision tower learns from them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

pytest.importorskip("inflect")

from mmspec.train.loop import Budget
from recipes.emoji_64.data import BACKGROUNDS, Picture
from recipes.magpie_135.questions import CELL_NAMES, KINDS, Studio
from recipes.magpie_135.scenes import Scene, Thing
from recipes.magpie_135.vision import STYLES, align, covers, scenes

SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, patch_size=32)


@pytest.fixture(scope="module")
def studio() -> Studio:
    rng = np.random.default_rng(0)
    names = ("cat", "dog", "apple", "fish", "sun")
    pictures = [
        Picture(name, style, False, "Animals & Nature") for name in names for style in ("3d", "flat", "cartoon")
    ]
    return Studio(rng.integers(0, 256, (len(pictures), 16, 16, 4), dtype=np.uint8), pictures)


def test_scenes(studio: Studio) -> None:
    """Things are in reading order at different places; held-out compositions are a twelfth, and none is in training."""
    rng = random.Random(0)
    scenes = [studio.scene(rng, False) for _ in range(300)]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4, 5, 6}
    for scene in scenes:
        places = [thing.cell for thing in scene.things]
        assert places == sorted(set(places)) and not studio.held_out(scene)
    assert all(studio.held_out(studio.scene(rng, True)) for _ in range(20))


def test_answers_are_true(studio: Studio) -> None:
    """What an answer says can be counted and found in the scene; yes and no are balanced; what a scene does not allow
    is not asked."""
    cat, dog, apple = 0, 3, 7
    scene = Scene((Thing(cat, 0, 40), Thing(dog, 2, 40), Thing(dog + 1, 4, 40), Thing(apple, 7, 40)), "blue")
    rng = random.Random(0)
    found = {kind: [studio.ask(scene, rng, kind) for _ in range(120)] for kind in KINDS}
    said = {
        kind: {turn for question in questions if question for turn in question.turns}
        for kind, questions in found.items()
    }
    assert ("Where is the cat?", "The cat is at the top left.") in said["where"]
    assert ("Where are the dogs?", "The dogs are at the top right and in the middle.") in said["where"]
    assert ("How many dogs?", "There are two dogs.") in said["count"] and (
        "Count the cats.",
        "There is one cat.",
    ) in said["count"]
    assert any(answer.startswith("There are no ") for _, answer in said["count"])
    assert {answer for _, answer in said["background"]} == {"The background is blue."} and not said["colour"]
    assert ("What is at the bottom?", "There is an apple at the bottom.") in said["place"]
    assert any(answer.startswith("There is nothing ") for _, answer in said["place"])
    assert ("Is the cat left of the apple?", "Yes, the cat is left of the apple.") in said["relation"]
    assert ("Is the cat below the apple?", "No, the cat is not below the apple.") in said["relation"]
    assert {("In which style is the cat drawn?", "It is drawn in the 3d style.")} <= said["style"]
    assert not any("dogs" in question for question, _ in said["style"])  # they are drawn in two
    assert ("Is there an apple in the picture?", "Yes, there is an apple.") in said["presence"]
    assert any(answer == "No, there is no fish." for _, answer in said["presence"])
    assert all(
        "four things on a blue background: one cat, two dogs and one apple." in answer for _, answer in said["describe"]
    )
    follow = {question.turns for question in found["follow-up"] if question}
    assert (("Is there a cat?", "Yes, there is a cat."), ("Where is it?", "It is at the top left.")) in follow
    assert all(len(turns) == 2 for turns in follow) and any(
        turns[1][0] == "How many things is that?" for turns in follow
    )
    yes = [studio.ask(scene, rng, "presence").turns[0][1].startswith("Yes") for _ in range(600)]
    assert 0.44 < np.mean(yes) < 0.56
    right = [studio.ask(scene, rng, "relation").turns[0][1].startswith("Yes") for _ in range(600)]
    assert 0.44 < np.mean(right) < 0.56
    assert (
        1
        <= min(len(studio.talk(scene, rng, 4)) for _ in range(50))
        < max(len(studio.talk(scene, rng, 4)) for _ in range(50))
    )


def test_coloured_things() -> None:
    """A red heart is a heart, and red; things that no number goes with are not in scenes."""
    names = ("red heart", "light blue heart", "cat", "butter")
    studio = Studio(np.zeros((4, 8, 8, 4), np.uint8), [Picture(name, "flat", False, "") for name in names])
    assert studio.names == ["cat", "light blue heart", "red heart"]
    rng, one = random.Random(0), Scene((Thing(0, 0, 40), Thing(2, 1, 40)), "white")
    two = Scene((Thing(0, 0, 40), Thing(1, 1, 40)), "white")
    assert studio.ask(one, rng, "colour").turns == (("What colour is the heart?", "The heart is red."),)
    assert studio.ask(two, rng, "colour") is None
    assert any("There are two hearts." in dict(studio.ask(two, rng, "count").turns).values() for _ in range(60))


def test_worn_pictures(studio: Studio) -> None:
    """A share of pictures is blurred or compressed; without rng a scene is drawn the same."""
    rng, scene = random.Random(0), Scene((Thing(0, 4, 128),), "blue")
    plain = np.asarray(studio.draw(scene), int)
    worn = [np.abs(np.asarray(studio.draw(scene, rng, 0.5), int) - plain).mean() > 1 for _ in range(40)]
    assert 8 < sum(worn) < 32 and (np.asarray(studio.draw(scene), int) == plain).all() and plain.shape == (128, 128, 3)


def test_patches_are_labelled(studio: Studio) -> None:
    """The frame of a thing covers its patches and no others."""
    found = covers(Scene((Thing(0, 0, 40), Thing(1, 8, 40)), "white"), 16)
    assert found[0] == found[9] == 0 and found[63] == found[54] == 1 and found[27] == -1 and len(found) == 64
    assert len(CELL_NAMES) == 9


def test_alignment(studio: Studio, tmp_path: Path) -> None:
    """The projector learns to say what patches show in the vectors of its words; the tower stays as it is."""
    rng = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(16, generator=rng) for name in (*studio.names, *STYLES, *BACKGROUNDS)}
    tower = SiglipVisionModel(SiglipVisionConfig(image_size=128, vision_use_head=False, **SHAPE))
    before, projector = {name: value.clone() for name, value in tower.state_dict().items()}, torch.nn.Linear(32, 16)
    config = {"lr": 1e-2, "batch": 4, "model": {"patch_size": 32}}

    def distance() -> float:
        images, things, styles, grounds = next(scenes(studio, 16, 32, 9))
        empty = things == 0
        assert bool((styles[empty] == -100).all()) and bool((styles[~empty] >= 0).all())
        said = projector(tower(images, output_hidden_states=True).hidden_states[-1])[empty]
        colours = torch.stack([vectors[name] for name in BACKGROUNDS])
        return float((said.detach() - 0.5 * colours[grounds][:, None].expand(-1, 16, -1)[empty]).square().mean())

    first = distance()
    align(studio, tower, projector, vectors.__getitem__, config, Budget(60), tmp_path / "align.pt", device="cpu")
    assert distance() < 0.6 * first
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
