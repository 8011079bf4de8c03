"""What several tests of recipes share: the model that the tiny recipe of magpie-135 makes."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def magpie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recipe.yaml`, the folder `work` and the model in `out`; only what would be fetched is replaced."""
    for package in ("peft", "inflect", "gguf"):
        pytest.importorskip(package)
    import yaml
    from tiny_art import write_art
    from tiny_smollm import recipe, replace_downloads

    from mmspec.train.recipe import train
    from mmspec.train.run import Run

    folder = tmp_path_factory.mktemp("vision")
    write_art(folder / "work" / "data", 64)
    # A random model would not come to an end.
    chats = [["What is a cat?", "An animal.", True], ["And a dog?", "An animal that", False]]
    Run(recipe(), folder / "work", folder, "cpu").file("text", 6).with_suffix(".json").write_text(json.dumps(chats))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    with pytest.MonkeyPatch.context() as patch:
        replace_downloads(patch)
        train(folder / "recipe.yaml", folder / "work", folder / "out", device="cpu")
    return folder
