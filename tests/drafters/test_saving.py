"""Drafters that were saved load from folders of any name, by `from_pretrained` and by `--drafter FOLDER`."""

import json
from pathlib import Path

import huggingface_hub.hub_mixin as hub
import pytest
import torch
from huggingface_hub import ModelCard
from tiny import drafter as tiny_drafter
from tiny import image_target, plain, prompts, text_target
from tiny_layouts import LAYER_CONFIG, D, check_equal, layer_shapes, write
from tiny_released import (
    AUX,
    EAGLE3,
    MARKOV,
    MEDUSA,
    SPECULATORS_DFLASH,
    SPECULATORS_EAGLE3,
    dflash_weights,
    eagle3_weights,
    eagle_weights,
    medusa_weights,
)
from tiny_vlm import built

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.registry import by_name
from mmspec.drafters.table import TABLE
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.train.drafter import drafter_class

TRAINED = [name for name, entry in TABLE.items() if entry.trained]


def trained(kind: str) -> TrainedDrafter:
    """A random drafter of a kind, with calibrated values that are not those of a new one."""
    if kind == "msd":
        drafter: TrainedDrafter = built(tokens=range(0, 40, 3), decoupled=False, layer="qwen2")
        drafter.greedy = [1.0 + depth / 8 for depth in range(len(drafter.greedy))]
    elif kind in ("dflash", "dspark"):
        drafter = drafter_class(kind).build(text_target(), block=3)
        drafter.greedy = [1.0 + depth / 8 for depth in range(len(drafter.greedy))]
    else:
        drafter = tiny_drafter(kind, image_target())
    if kind == "vadusa":
        drafter.calibrated([[0.5, 0.25]] * 4)
    drafter.beta = [0.9 - depth / 16 for depth in range(len(drafter.beta))]
    drafter.coupling = [0.5 + depth / 16 for depth in range(len(drafter.coupling))]
    drafter.target_hash = "abc"
    return drafter


@pytest.mark.parametrize("kind", TRAINED)
def test_every_trained_kind(kind: str, tmp_path: Path) -> None:
    """Weights and calibrated values come back, and the output is plain decoding's (fp64)."""
    drafter, folder = trained(kind), tmp_path / "any name"
    drafter.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["kind"] == kind
    target = text_target() if kind in ("msd", "dflash", "dspark") else image_target()
    target.weights_hash = "abc"
    for loaded in (type(drafter).from_pretrained(folder), by_name(str(folder), None, target)):
        assert type(loaded) is type(drafter)
        assert loaded.constructor_arguments() == json.loads(json.dumps(drafter.constructor_arguments()))
        weights = loaded.state_dict()
        assert weights.keys() == drafter.state_dict().keys()
        for name, value in drafter.state_dict().items():
            assert torch.equal(weights[name].double(), value)
    for temperature in (0.0, 1.0):
        sampling = SamplingOptions(temperature)
        drafted = generate(target, prompts(), 3, Stop(12), loaded, sampling=sampling, seeds=5)
        assert drafted.tokens == plain(target, 12, sampling)


def released(kind: str) -> tuple[dict, dict[str, torch.Tensor], str]:
    """Configuration and weights of a drafter as others publish it, and its file."""
    plain_layer = LAYER_CONFIG | {"model_type": "llama"}
    extra = layer_shapes("layers.1.") | {"layers.1.input_layernorm.weight": (D,), "mask_hidden": (1, 1, 3 * D)}
    peagle = SPECULATORS_EAGLE3 | AUX | {"speculators_model_type": "peagle", "ptd_token_id": 0, "para_depths": 4}
    peagle |= {"transformer_layer_config": LAYER_CONFIG | {"num_hidden_layers": 2}}
    cases: dict = {
        "public-medusa": (MEDUSA, medusa_weights()),
        "eagle": (plain_layer, eagle_weights(True, False)),
        "eagle3": (EAGLE3 | AUX, eagle3_weights("midlayer.")),
        "peagle": (peagle, eagle3_weights("layers.0.", **extra)),
        "dflash": (SPECULATORS_DFLASH, dflash_weights(12)),
        "dspark": (
            SPECULATORS_DFLASH | MARKOV | {"speculators_model_type": "dspark", "markov_head_type": "rnn"},
            dflash_weights(12, "rnn"),
        ),
        "vispec": (plain_layer | {"num_key_value_heads": 4}, eagle_weights(True, True, vispec=True)),
    }
    return *cases[kind], "medusa_lm_head.pt" if kind == "public-medusa" else "model.safetensors"


@pytest.mark.parametrize("kind", ["public-medusa", "eagle", "eagle3", "peagle", "dflash", "dspark", "vispec"])
def test_what_was_read_from_a_public_layout(kind: str, tmp_path: Path) -> None:
    """Saved anew it is a folder of mmspec's, whose trees are those of what others published."""
    target = text_target()
    config, weights, file = released(kind)
    drafter = by_name(str(write(tmp_path / "theirs", config, weights, file)), None, target)
    drafter.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["kind"] == kind
    again = by_name(str(tmp_path / "ours"), None, target)
    assert type(again) is type(drafter) and type(type(drafter).from_pretrained(tmp_path / "ours")) is type(drafter)
    first, second = (generate(target, prompts(), 3, Stop(16), each, seeds=3) for each in (drafter, again))
    assert first.tokens == second.tokens and first.stats.runs == second.stats.runs
    check_equal(target, tmp_path / "ours", reads=4 * (kind == "public-medusa"))


def test_the_card(tmp_path: Path) -> None:
    """It names the library, the kind and the target; one that is there is kept."""
    drafter = trained("medusa")
    drafter.save_pretrained(tmp_path, model_card_kwargs={"base_model": "some/model", "license": "apache-2.0"})
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("mmspec", "some/model", "apache-2.0")
    assert {"medusa", "speculative-decoding"} <= set(card.data.tags)
    assert "`some/model`" in card.text and "`abc`" in card.text and "mmspec info FOLDER --target MODEL" in card.text
    (tmp_path / "README.md").write_text("Mine.")
    drafter.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "Mine."


def test_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is uploaded is what `save_pretrained` writes; loading prints nothing."""
    seen = {}

    class Api:
        def __init__(self, token: str | None = None):
            pass

        def create_repo(self, repo_id: str, **options: object):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **options: object) -> str:
            seen.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return "done"

    monkeypatch.setattr(hub, "HfApi", Api)
    assert trained("vadusa").push_to_hub("me/mine", model_card_kwargs={"base_model": "a/b"}) == "done"
    assert seen.keys() == {"config.json", "model.safetensors", "README.md"}
    for name, content in seen.items():
        (tmp_path / name).write_bytes(content)
    assert by_name(str(tmp_path), None, image_target()).name == "vadusa"
    assert capsys.readouterr().out == ""


def test_what_does_not_load(tmp_path: Path) -> None:
    """A file of another kind, and one for a target of another size, are errors that name the folder."""
    drafter = trained("medusa")
    drafter.save_pretrained(tmp_path, config={"kind": "vadusa"})
    with pytest.raises(MmspecError, match="the files in .* are truncated or foreign"):
        by_name(str(tmp_path), None, image_target())
    drafter.save_pretrained(tmp_path, config={"kind": "medusa", "hidden_size": 64})
    with pytest.raises(MmspecError, match="its hidden_size is 64, this target's is 32"):
        by_name(str(tmp_path), None, image_target())
