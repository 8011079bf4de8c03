"""Drafters in formats that other engines read: what is written loads by its path with equal tensors, drafts and tokens,
whatever spelling it came from; what a format has no place for is said.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import GRID, image_target, llama, plain, prompts, text_target
from tiny import drafter as tiny_drafter
from tiny_layouts import LAYER_CONFIG, D, V, check_equal, layer_shapes, write
from tiny_released import (
    AUX,
    DEEPSPEC_EAGLE3,
    EAGLE3,
    MARKOV,
    MASK,
    MEDUSA,
    SPECULATORS_DFLASH,
    SPECULATORS_EAGLE3,
    VD,
    ZLAB,
    dflash_weights,
    eagle3_weights,
    eagle_weights,
    medusa_weights,
)
from tiny_vlm import built
from torch import Tensor

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.export import check_folder, check_format, export, verifier_of
from mmspec.drafters.facts import drafter_facts
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.drafters.registry import by_name, find
from mmspec.drafters.release import Release, layer_settings
from mmspec.drafters.shapes import layer_shape
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget

EMBEDDING = {"embed_tokens.weight": (V, D)}
PEAGLE = SPECULATORS_EAGLE3 | AUX | {"speculators_model_type": "peagle", "ptd_token_id": 0, "para_depths": 4}
PEAGLE |= {"transformer_layer_config": LAYER_CONFIG | {"num_hidden_layers": 2}}
SECOND = layer_shapes("layers.1.") | {"layers.1.input_layernorm.weight": (D,), "mask_hidden": (1, 1, 3 * D)}
DSPARK = SPECULATORS_DFLASH | MARKOV | {"speculators_model_type": "dspark"}
SCALED = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0}

# What others publish: configuration, weights, and what nothing of the drafter has a place for in speculators.
PUBLIC: dict[str, tuple[dict, dict[str, Tensor]]] = {
    "EAGLE-3 of its authors": (EAGLE3 | AUX, eagle3_weights("midlayer.", **EMBEDDING)),
    "EAGLE-3, other positions": (EAGLE3 | AUX | SCALED, eagle3_weights("midlayer.")),
    "EAGLE-3.1": (
        EAGLE3 | AUX | {"fc_norm": True, "norm_output": True},
        eagle3_weights("midlayer.", **{f"fc_norm.{i}.weight": (D,) for i in range(3)}),
    ),
    "EAGLE-3 of speculators": (
        SPECULATORS_EAGLE3 | AUX | {"norm_before_fc": True},
        eagle3_weights("layers.0.", 16, True, **{"input_norm.weight": (3 * D,)}),
    ),
    "EAGLE-3 of DeepSpec": (DEEPSPEC_EAGLE3 | AUX, eagle3_weights("layers.0.", 16, True, V)),
    "P-EAGLE": (PEAGLE, eagle3_weights("layers.0.", **SECOND)),
    "DFlash of its authors": (ZLAB, dflash_weights()),
    "DFlash of speculators": (SPECULATORS_DFLASH | {"sample_from_anchor": True}, dflash_weights(12)),
    "DSpark, vanilla": (DSPARK | {"markov_head_type": "vanilla"}, dflash_weights(12, "vanilla")),
    "DSpark, gated": (DSPARK | {"markov_head_type": "gated"}, dflash_weights(12, "gated")),
    "DSpark, rnn": (DSPARK | {"markov_head_type": "rnn", "sample_from_anchor": True}, dflash_weights(12, "rnn")),
}


def exported(name: str, target: CausalTarget, out: Path, form: str) -> Release:
    """Written by name or path, as the command does it."""
    stored = find(name, None)
    assert check_format(stored, None) == check_format(stored, form) == form
    check_folder(out)
    return export(stored, target, verifier_of(target, "some/model"), out)


def check_round_trip(name: str, target: CausalTarget, out: Path) -> None:
    """What was written is the drafter: the same class, tensors and trees; and the tokens are plain decoding's."""
    first, second = by_name(name, None, target), by_name(str(out), None, target)
    assert isinstance(first, TrainedDrafter) and isinstance(second, TrainedDrafter)
    weights, again = first.state_dict(), second.state_dict()
    assert type(first) is type(second) and weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    for temperature in (0.0, 1.0):
        runs = []
        for drafter in (by_name(name, None, target), by_name(str(out), None, target)):
            sampling = SamplingOptions(temperature)
            drafted = generate(target, prompts(), 3, Stop(14), drafter, sampling=sampling, seeds=4)
            assert drafted.tokens == plain(target, 14, sampling, 4)
            runs.append(drafted.stats.runs)
        assert runs[0] == runs[1]


@pytest.mark.parametrize("case", PUBLIC)
def test_speculators(case: str, tmp_path: Path) -> None:
    """Of every spelling that is read: no tensor of the file is changed, and no setting is lost."""
    target, (config, weights) = text_target(), PUBLIC[case]
    theirs = write(tmp_path / "theirs", config, weights)
    release = exported(str(theirs), target, tmp_path / "out", "speculators")
    assert release.lost == ["a head of confidence, if there was one: mmspec does not read it"] * ("DSpark" in case)
    file = load_file(tmp_path / "out" / "model.safetensors")
    spelled = {key.replace("midlayer.", "layers.0."): value for key, value in weights.items()}
    spelled = {key: value for key, value in spelled.items() if not key.startswith("confidence_head.")}
    assert file.keys() == spelled.keys() and all(torch.equal(file[key], value) for key, value in spelled.items())
    check_round_trip(str(theirs), target, tmp_path / "out")
    facts = drafter_facts(tmp_path / "out")
    assert facts["layout"] == case.split(" ")[0].rstrip(",").replace("EAGLE-3.1", "EAGLE-3")
    assert facts["for"] == "some/model" and facts["read"]


def test_what_the_configuration_says(tmp_path: Path) -> None:
    """What vLLM and speculators look for, all of it written out; flags too, of which vLLM takes one for granted."""
    target = text_target()
    exported(str(write(tmp_path / "a", *PUBLIC["EAGLE-3 of its authors"])), target, tmp_path / "b", "speculators")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["speculators_config"] == {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 6}],
        "default_proposal_method": "greedy",
        "verifier": {"name_or_path": "some/model", "architectures": ["LlamaForCausalLM"]},
    }
    assert config["speculators_model_type"] == "eagle3" and config["speculators_version"]
    assert config["draft_vocab_size"] == VD and config["torch_dtype"] == "float32"
    flags = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    assert not any(config[flag] for flag in flags) and config["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    layer = config["transformer_layer_config"]
    assert layer["model_type"] == "llama" and layer["vocab_size"] == V and layer["num_hidden_layers"] == 1
    assert layer["max_position_embeddings"] == 512 and layer["rope_theta"] == 10000.0
    exported(str(write(tmp_path / "c", *PUBLIC["DFlash of its authors"])), target, tmp_path / "d", "speculators")
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert config["aux_hidden_state_layer_ids"] == [1, 2]  # what enters layers, and not what leaves them
    assert config["mask_token_id"] == MASK and config["block_size"] == 5 and config["sample_from_anchor"] is False


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "mrope", "mrope_section": [1, 1, 2]},
        {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 1, 1]},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
)
def test_positions(rope: dict) -> None:
    """Of pictures and of long texts: what is written is read as what it came from."""
    names, nowhere = {"q_norm.weight"}, Path("nowhere")
    shape = layer_shape(LAYER_CONFIG | {"rope_scaling": rope, "rope_theta": 5e6, "head_dim": 16}, names, nowhere)
    written = layer_settings(shape, 1, V, 512)
    assert layer_shape(written, names, nowhere) == shape
    assert layer_shape({key: written[key] for key in written if key != "rope_parameters"}, names, nowhere) == shape


def test_what_mmspec_saved(tmp_path: Path) -> None:
    """A folder of mmspec's is exported, too, in its own dtype; calibrated values have no place and are named."""
    target = text_target()
    drafter = by_name(str(write(tmp_path / "theirs", *PUBLIC["EAGLE-3 of its authors"])), None, target)
    assert isinstance(drafter, TrainedDrafter)
    drafter.bfloat16().save_pretrained(tmp_path / "ours")
    assert exported(str(tmp_path / "ours"), target, tmp_path / "out", "speculators").lost == []
    file = load_file(tmp_path / "out" / "model.safetensors")
    assert file["fc.weight"].dtype == torch.bfloat16 and file["d2t"].dtype == torch.int64
    check_round_trip(str(tmp_path / "ours"), target, tmp_path / "out")
    drafter.beta, drafter.depth = [0.5] * 6, 4
    drafter.save_pretrained(tmp_path / "calibrated", config={"depth": 4})
    lost = exported(str(tmp_path / "calibrated"), target, tmp_path / "again", "speculators").lost
    assert "the calibration" in lost[0] and "the depth of its trees in mmspec, 4" in lost[1]


def test_a_target_that_generates_some_ids_alone(tmp_path: Path) -> None:
    """What it cannot say is left out, and the maps say what is left."""
    target = CausalTarget(llama(), range(8, V))
    theirs = write(tmp_path / "e3", *PUBLIC["EAGLE-3 of its authors"])
    exported(str(theirs), target, tmp_path / "out", "speculators")
    file = load_file(tmp_path / "out" / "model.safetensors")
    ids = [i for i in range(1, 36, 3) if i >= 8]
    assert (file["d2t"] + torch.arange(len(ids))).tolist() == ids == file["t2d"].nonzero()[:, 0].tolist()
    assert len(file["lm_head.weight"]) == len(ids)
    check_round_trip(str(theirs), target, tmp_path / "out")


@pytest.mark.parametrize(("bias", "qkv_bias"), [(True, False), (False, True)])
def test_eagle(tmp_path: Path, bias: bool, qkv_bias: bool) -> None:
    """EAGLE-1 and 2 from a pickle."""
    target, weights = text_target(), eagle_weights(bias, qkv_bias)
    theirs = write(tmp_path / "eagle", LAYER_CONFIG | {"model_type": "llama"}, weights, "pytorch_model.bin")
    lost = exported(str(theirs), target, tmp_path / "out", "eagle").lost
    assert lost == ["fc.bias in vLLM, whose EAGLE has none (that of SGLang and of its authors has)"] * bias
    file = load_file(tmp_path / "out" / "model.safetensors")
    assert file.keys() == weights.keys() and all(torch.equal(file[name], value) for name, value in weights.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kind = "Qwen2" if qkv_bias else "Llama"
    assert config["architectures"] == [f"{kind}ForCausalLM"] and (config["bias"], config["qkv_bias"]) == (
        bias,
        qkv_bias,
    )
    check_round_trip(str(theirs), target, tmp_path / "out")


def test_msd(tmp_path: Path) -> None:
    """The text path of MSD is EAGLE's: trees after text are the same, with the target's vectors as its own. What
    else MSD has is named.
    """
    target = text_target()
    built(torch.float32).save_pretrained(tmp_path / "plain")
    lost = exported(str(tmp_path / "plain"), target, tmp_path / "out", "eagle").lost
    assert ["decoupled path" in lost[0], "fc.bias" in lost[1], len(lost)] == [True, True, 2]
    file = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(file["embed_tokens.weight"], target.model.get_input_embeddings().weight.float())
    runs = []
    for name in ("plain", "out"):
        drafter = by_name(str(tmp_path / name), None, target)
        drafted = generate(target, prompts(), 3, Stop(14), drafter, seeds=4)
        assert drafted.tokens == plain(target, 14, seed=4)
        runs.append(drafted.stats.runs)
    assert runs[0] == runs[1]
    drafter = built(torch.float32, tokens=[1, 2, 3], depth=4, greedy=[1.5] * 4)
    drafter.save_pretrained(tmp_path / "more")
    lost = exported(str(tmp_path / "more"), target, tmp_path / "less", "eagle").lost
    assert [phrase.split(" ")[1] for phrase in lost] == ["calibration", "decoupled", "drafting", "depth", "in"]
    check_equal(target, tmp_path / "less")
    text = (tmp_path / "less" / "README.md").read_text()
    assert all(f"- {phrase}\n" in text for phrase in lost) and "base_model: some/model" in text


@pytest.mark.parametrize("layers", [1, 2])
def test_medusa(layers: int, tmp_path: Path) -> None:
    """Heads that share the target's output matrix get one each, behind their layers; the ids are the model's."""
    target = image_target()
    heads = MedusaDrafter(target.hidden_size, GRID.stride, [(0, 2), (0, 3), (0, 4)], layers=layers)
    for weight in heads.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    heads.save_pretrained(tmp_path / "ours")
    assert exported(str(tmp_path / "ours"), target, tmp_path / "out", "medusa").lost == []
    file = load_file(tmp_path / "out" / "medusa_lm_head.safetensors")
    assert len(file) == 3 * (1 + 2 * layers) and file[f"2.{layers}.weight"].shape == (40, 32)
    runs = []
    for name in ("ours", "out"):
        drafter = by_name(str(tmp_path / name), None, target)
        drafted = generate(target, prompts(guidance=2.0), 3, Stop(20), drafter, seeds=4)
        assert drafted.tokens == plain(target, 20, seed=4, guidance=2.0)
        runs.append(drafted.stats.runs)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("kind", ["hawk", "vadusa", "hawk-path"])
def test_kinds_without_a_format(kind: str, tmp_path: Path) -> None:
    tiny_drafter(kind, image_target()).save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(
        MmspecError, match=f"of the kind {kind} has no format .* give its folder away as it is .* medusa"
    ):
        check_format(find(str(tmp_path), None), None)


def test_what_is_refused(tmp_path: Path) -> None:
    medusa = write(tmp_path / "m", MEDUSA, medusa_weights(), "medusa_lm_head.pt")
    with pytest.raises(MmspecError, match="of the kind public-medusa has no format that other engines read"):
        check_format(find(str(medusa), None), "medusa")
    eagle3 = find(str(write(tmp_path / "e", *PUBLIC["EAGLE-3 of its authors"])), None)
    with pytest.raises(MmspecError, match="unknown format 'speculator': did you mean 'speculators'"):
        check_format(eagle3, "speculator")
    with pytest.raises(MmspecError, match="is written in the format speculators, and not eagle: give --format specul"):
        check_format(eagle3, "eagle")
    with pytest.raises(MmspecError, match="drafter 'jacobi' has no weights: there is nothing to export"):
        check_format(find("jacobi", None), None)
    with pytest.raises(MmspecError, match="is there already"):
        check_folder(tmp_path)
    with pytest.raises(MmspecError, match="make it first"):
        check_folder(tmp_path / "a" / "b")
