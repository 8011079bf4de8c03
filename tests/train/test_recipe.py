"""Recipes: the module that one names is found and asked for its stages; what cannot work is refused by name."""

import sys
from pathlib import Path

import pytest
import yaml

from mmspec.errors import MmspecError
from mmspec.train import recipe as recipes
from mmspec.train.recipe import check_drafters, read, train

MODULE = """
def cook(run):
    (run.out / "made").write_text(run.recipe["data"])


def drafters(run, only=None):
    (run.out / f"drafters-{only}").touch()


def check(settings, path):
    pass


STAGES = {"data": lambda run: run.out.mkdir(), "cook": cook, "drafters": drafters}
NEEDED = ("data", "drafters")
"""


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of somebody's own, with a recipe that names its module."""
    package = tmp_path / "own_kitchen" / "soup"
    package.mkdir(parents=True)
    (package / "stages.py").write_text(MODULE)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    path = tmp_path / "models" / "soup" / "recipe.yaml"
    path.parent.mkdir(parents=True)
    settings = {"module": "own_kitchen.soup.stages", "data": "salt", "drafters": {"fast": {}}}
    path.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    for name in [name for name in sys.modules if name.startswith("own_kitchen")]:
        del sys.modules[name]


def test_a_module_of_ones_own(kitchen: Path, tmp_path: Path) -> None:
    """It is found above the recipe; its stages run in order, and one drafter alone by its name."""
    out = train(kitchen, tmp_path / "work", tmp_path / "out")
    assert (out / "made").read_text() == "salt" and (out / "drafters-None").exists()
    assert (out / "recipe.yaml").read_text() == kitchen.read_text()
    train(kitchen.parent, tmp_path / "work", tmp_path / "out", stages=["drafters.fast"])
    assert (out / "drafters-fast").exists()


def test_only_what_the_module_asks_for(kitchen: Path) -> None:
    """A section that another module needs may be missing."""
    settings, _ = read(kitchen)
    assert settings == {"data": "salt", "drafters": {"fast": {}}}
    kitchen.write_text(yaml.safe_dump({"module": "own_kitchen.soup.stages", "data": "salt"}))
    with pytest.raises(
        MmspecError, match="recipe.yaml lacks drafters: own_kitchen.soup.stages asks for data, drafters"
    ):
        read(kitchen)


def test_an_installed_wheel_has_no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder above holds the module, the error says what to do."""
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "site-packages" / "mmspec" / "train" / "recipe.py"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    for settings in ({"module": "recipes.emoji_64.stages"}, {"task": "text-to-image"}):
        path.write_text(yaml.safe_dump(settings))
        with pytest.raises(MmspecError, match="recipes are not part of the wheel; run it from a checkout"):
            read(path)


@pytest.mark.parametrize("name", ["emoji-64", "wren-86", "magpie-135"])
def test_bundled_recipes(name: str) -> None:
    """Each names its module and has what that asks for."""
    for package in ("peft", "inflect", "hibari", "gguf"):
        pytest.importorskip(package)
    settings, stages = read(Path(__file__).parents[2] / "models" / name / "recipe.yaml")
    assert list(stages.STAGES)[-1] == "drafters" and settings["drafters"] and "module" not in settings


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, "tokenizer, target, capture, drafters, pipeline"),
        ({"task": "text-to-image"}, "tokenizer, target, capture, drafters, pipeline"),
        ({"task": "text-to-speech"}, "codec, target, capture, drafters, pipeline"),
    ],
)
def test_recipes_that_name_a_task(tmp_path: Path, settings: dict, needed: str) -> None:
    """Older recipes have a task and no module, and are read as before; without a task they are of an image model."""
    pytest.importorskip("hibari")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | {"data": {}}))
    with pytest.raises(MmspecError, match=f"recipe.yaml lacks {needed}: recipes"):
        read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no recipe at .*: give the path of a recipe.yaml"),
        ("data: [", "is not valid YAML"),
        (
            "task: text-to-smell",
            "unknown task 'text-to-smell': did you mean .*known are image-text-to-text, text-to-image",
        ),
    ],
)
def test_recipes_that_do_not_work(tmp_path: Path, text: str | None, message: str) -> None:
    if text:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(MmspecError, match=message):
        read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("cok", "unknown stage 'cok': did you mean 'cook'"),
        ("drafters.fasd", "unknown stage 'drafters.fasd': did you mean 'drafters.fast'"),
    ],
)
def test_unknown_stages(kitchen: Path, tmp_path: Path, stage: str, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        train(kitchen, tmp_path / "work", tmp_path / "out", stages=[stage])


def test_one_gpu_of_several(kitchen: Path, tmp_path: Path) -> None:
    with pytest.raises(MmspecError, match="set CUDA_VISIBLE_DEVICES=1 and use --device cuda"):
        train(kitchen, tmp_path / "work", tmp_path / "out", device="cuda:1")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kind": "msd", "budget": {"steps": 998, "minutes": 9}}, "budget is none of kind, .*write steps: 1000"),
        ({"kind": "msd", "own_answers": False}, r"own_answers is none of .*\(write answers: own, or data\)"),
        ({"kind": "hawk-path", "anchors": 48}, r"anchors is none of .*\(write loss: \{noise: 0.05\}\)"),
        ({"steps": 9}, "there is no kind: write kind: medusa"),
        ({"kind": "jacobi"}, "no drafter of kind 'jacobi' can be trained"),
        ({"kind": "msd", "loss": {"nois": 0.1}}, "unknown option of the loss of msd 'nois': did you mean 'noise'"),
        ({"kind": "msd", "steps": 0}, "steps must be 1 or more, not 0"),
        ({"kind": "msd", "answers": "mine"}, "answers are own or data, not 'mine'"),
    ],
)
def test_drafters_that_cannot_be_trained(stage: dict, message: str) -> None:
    """What a recipe says of them is checked before anything is made; that of older recipes is refused with what to
    write instead.
    """
    with pytest.raises(MmspecError, match=f"^recipe.yaml: drafters.fast: {message}"):
        check_drafters({"capture": {"batch": 4}, "drafters": {"fast": stage}}, Path("recipe.yaml"))
