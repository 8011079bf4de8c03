"""EAGLE-3 in its three spellings, and P-EAGLE: trees against a forward pass written from the description, tokens
against plain decoding.
"""

from pathlib import Path

import pytest
import torch
import vlm_families
from tiny import llama, prompts, text_target
from tiny_layouts import (
    LAYER_CONFIG,
    D,
    V,
    attend,
    check_equal,
    check_joining,
    check_refusals,
    check_trees,
    deep_target,
    feed,
    layer_shapes,
    rms,
    write,
)
from tiny_released import AUX, DEEPSPEC_EAGLE3, EAGLE3, SPECULATORS_EAGLE3, VD, eagle3_weights
from tiny_vlm import asked, model
from torch import Tensor

from mmspec.drafters.registry import by_name
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts


def eagle3(
    target, prefix: str, numbers, residual_after: bool = False, normed_back: bool = False, depth: int | None = None
):
    """Logits over the target's ids; `depth` 0 for EAGLE-3, else P-EAGLE, whose later entries are masked."""

    def head(w, out):
        logits = w["lm_head.weight"] @ rms(out, w["norm.weight"])
        ids = torch.arange(len(logits)) + w.get("d2t", torch.zeros(len(logits), dtype=torch.long))
        return torch.full((V,), -torch.inf, dtype=logits.dtype).index_put((ids,), logits)

    def run(w, entries, positions):
        e, h = (torch.stack(part) for part in zip(*entries))
        normed = rms(h, w[f"{prefix}hidden_norm.weight"])
        both = torch.cat([rms(e, w[f"{prefix}input_layernorm.weight"]), normed], -1)
        x = feed(w, prefix, (normed if residual_after else h) + attend(w, prefix, both, positions))
        for name in (f"layers.{i}." for i in range(1, 4)):
            if f"{name}norm" in w or f"{name}input_layernorm.weight" in w:
                x = feed(w, name, x + attend(w, name, rms(x, w[f"{name}input_layernorm.weight"]), positions))
        return x[-1]

    def project(w, states):
        if "input_norm.weight" in w:
            states = rms(states, w["input_norm.weight"])
        if "fc_norm.0.weight" in w:
            states = torch.cat([rms(part, w[f"fc_norm.{i}.weight"]) for i, part in enumerate(states.split(D, -1))], -1)
        return states @ w["fc.weight"].T

    def reference(w, ids, hidden, path):
        table = w.get("embed_tokens.weight", target.model.get_input_embeddings().weight)
        states = project(w, torch.cat([hidden[number] for number in numbers], -1))
        entries = [(table[token], state) for token, state in zip(ids[1:], states, strict=True)]
        for token in path:
            if not depth:
                out = run(w, entries, torch.arange(len(entries)))
                entries.append((table[token], rms(out, w["norm.weight"]) if normed_back else out))
            else:
                entries.append((table[0], project(w, w["mask_hidden"])[0, 0]))
        return head(w, run(w, entries, torch.arange(len(entries))))

    return reference


def test_official(tmp_path: Path) -> None:
    """`midlayer.`, a small vocabulary by d2t and t2d, an own embedding; layers 2, n // 2, n - 3 if none are named."""
    target, weights = deep_target(8), eagle3_weights("midlayer.", **{"embed_tokens.weight": (V, D)})
    folder = write(tmp_path / "e3", EAGLE3, weights, "pytorch_model.bin")
    check_trees(target, folder, weights, eagle3(target, "midlayer.", (2, 4, 5)))
    check_equal(target, folder)


@pytest.mark.slow
@pytest.mark.parametrize("before_fc", [False, True])
def test_speculators(tmp_path: Path, before_fc: bool) -> None:
    """A nested configuration, layers.0., the residual after the norm, norms of q and k, the target's embedding."""
    extra = {"input_norm.weight": (3 * D,)} if before_fc else {}
    target, weights = text_target(), eagle3_weights("layers.0.", 16, True, **extra)
    folder = write(tmp_path / "e3", SPECULATORS_EAGLE3 | AUX | {"norm_before_fc": before_fc}, weights)
    check_trees(target, folder, weights, eagle3(target, "layers.0.", (0, 1, 2), residual_after=True))
    check_equal(target, folder)


@pytest.mark.slow
def test_deepspec(tmp_path: Path) -> None:
    """The whole vocabulary, without maps."""
    target, weights = text_target(), eagle3_weights("layers.0.", 16, True, V)
    folder = write(tmp_path / "e3", DEEPSPEC_EAGLE3 | AUX, weights)
    check_trees(target, folder, weights, eagle3(target, "layers.0.", (0, 1, 2)))
    check_equal(target, folder)


@pytest.mark.slow
def test_the_edition_of_2026(tmp_path: Path) -> None:
    """EAGLE-3.1: each of the target's states is normed, and the normed state is fed back."""
    extra = {f"fc_norm.{i}.weight": (D,) for i in range(3)}
    target, weights = text_target(), eagle3_weights("midlayer.", **extra)
    folder = write(tmp_path / "e3", EAGLE3 | AUX | {"fc_norm": True, "norm_output": True}, weights)
    check_trees(target, folder, weights, eagle3(target, "midlayer.", (0, 1, 2), normed_back=True))
    check_equal(target, folder)


PEAGLE = SPECULATORS_EAGLE3 | AUX | {"speculators_model_type": "peagle", "ptd_token_id": 0, "para_depths": 4}
PEAGLE |= {"norm_before_residual": False, "transformer_layer_config": LAYER_CONFIG | {"num_hidden_layers": 2}}


def peagle_weights() -> dict[str, Tensor]:
    extra = layer_shapes("layers.1.") | {"layers.1.input_layernorm.weight": (D,), "mask_hidden": (1, 1, 3 * D)}
    return eagle3_weights("layers.0.", **extra)


def test_peagle(tmp_path: Path) -> None:
    """Two layers; after what is committed come mask tokens with `mask_hidden`, all at once."""
    target, weights = text_target(), peagle_weights()
    folder = write(tmp_path / "p", PEAGLE, weights)
    check_trees(target, folder, weights, eagle3(target, "layers.0.", (0, 1, 2), depth=4))
    check_equal(target, folder)
    check_joining(target, folder)


@pytest.mark.parametrize("kind", ["eagle3", "peagle"])
def test_guidance(tmp_path: Path, kind: str) -> None:
    """A prompt, states and a cache for each CFG branch, over a small drafting vocabulary."""
    target, given = text_target(), prompts([[1, 3, 4, 2], [1, 5, 9, 11, 7, 2], [1, 2]], 2.5)
    config, prefix = (EAGLE3 | AUX, "midlayer.") if kind == "eagle3" else (PEAGLE, "layers.0.")
    weights = eagle3_weights(prefix) if kind == "eagle3" else peagle_weights()
    folder = write(tmp_path / "d", config, weights)
    reference = eagle3(target, prefix, (0, 1, 2), depth=4 if kind == "peagle" else None)
    check_trees(target, folder, weights, reference, 2.5)
    check_equal(target, folder, given)
    check_joining(target, folder, given=given)


def test_what_does_not_fit_peagle_is_named(tmp_path: Path) -> None:
    check_refusals(text_target(), tmp_path / "p", PEAGLE, peagle_weights(), "mask_hidden")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rope", "axis_of"),
    [
        ({"type": "mrope", "mrope_section": [1, 1, 2]}, [0, 1, 2, 2]),
        ({"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 1, 1]}, [0, 1, 2, 0]),
        (None, [0, 0, 0, 0]),
    ],
)
def test_pictures(tmp_path: Path, rope: dict | None, axis_of: list[int]) -> None:
    """On Qwen2.5-VL: positions of three axes in blocks or in turn, or plain ones; the target's vectors of pictures."""
    target = VisionLanguageTarget(model("qwen2_5_vl"))
    weights = eagle3_weights("midlayer.", **{"embed_tokens.weight": (V, D)})
    config = EAGLE3 | AUX | {"rope_scaling": rope, "target_model_type": "qwen2_5_vl", "modal_type": "VLM"}
    folder = write(tmp_path / "e3", config | {"image_token_id": 39}, weights)
    given = VisualPrompts.of([asked("qwen2_5_vl", [(32, 32)], 1), asked("qwen2_5_vl", [], 2)])
    drafter = by_name(str(folder), None, target)
    state = target.prefill(given, 60, (0, 1, 2))
    with torch.inference_mode():
        drafter.start(target, state, SamplingOptions(0), False)
        w = {name: value.double() if value.is_floating_point() else value for name, value in weights.items()}
        for row, (prompt, states) in enumerate(state.prompt_hidden):
            ids = torch.tensor(given.conditional[row])
            vectors = torch.where(prompt.is_text[:, None], w["embed_tokens.weight"][ids], prompt.vectors)[1:]
            h, positions = states @ w["fc.weight"].T, torch.arange(len(states))[:, None].expand(-1, 4)
            if rope:
                positions = prompt.position_ids.expand(3, -1)[axis_of, :-1].T
            normed = rms(h, w["midlayer.hidden_norm.weight"])
            both = torch.cat([rms(vectors, w["midlayer.input_layernorm.weight"]), normed], -1)
            out = feed(w, "midlayer.", h + attend(w, "midlayer.", both, positions))
            torch.testing.assert_close(drafter._last[row], out[-1], rtol=1e-5, atol=1e-5)
    check_equal(target, folder, given)


def test_a_target_that_generates_some_ids_alone(tmp_path: Path) -> None:
    """Such as a model of speech: what it cannot say is not drafted, and ids are the model's own."""
    weights = eagle3_weights("midlayer.", **{"embed_tokens.weight": (V, D)})
    folder, target = write(tmp_path / "e3", EAGLE3 | AUX, weights), CausalTarget(llama(), range(8, V))
    drafter = by_name(str(folder), None, target)
    assert drafter.tokens.tolist() == [i - 8 for i in range(1, 36, 3) if i >= 8] and len(drafter.lm_head.weight) == 9
    tokens = torch.tensor([0, 5, -3])
    assert torch.equal(drafter.embed(target, tokens), weights["embed_tokens.weight"].double()[[8, 13, 2]])
    check_equal(target, folder)


@pytest.mark.slow
def test_states_between_deep_stacked_layers(tmp_path: Path) -> None:
    """On Qwen3-VL, what enters a layer has the picture's features of the layer before added; tokens stay the same."""
    target = VisionLanguageTarget(vlm_families.model("qwen3_vl"))
    given = VisualPrompts.of([vlm_families.asked("qwen3_vl", [(4, 4)], 1), vlm_families.asked("qwen3_vl", [], 2)])
    state, entered = target.prefill(given, 60, (0, 1, 2)), []
    hook = target.decoder.layers[1].register_forward_pre_hook(lambda module, args: entered.append(args[0][0]))
    with torch.inference_mode():
        last = target.prefill(given, 60, True).prompt_hidden
    hook.remove()
    for row, (prompt, states) in enumerate(state.prompt_hidden):
        first, second, output = states.split(D, -1)
        assert torch.equal(first, prompt.vectors[:-1]) and torch.equal(second, entered[row][:-1])
        assert torch.equal(output, last[row][1])
    weights = eagle3_weights("midlayer.", **{"embed_tokens.weight": (64, D)})
    weights["t2d"] = torch.cat([weights["t2d"], torch.zeros(24, dtype=torch.bool)])
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 1, 1]}
    config = EAGLE3 | AUX | {"rope_scaling": rope, "vocab_size": 64, "target_model_type": "qwen3_vl"}
    check_equal(target, write(tmp_path / "e3", config, weights), given)


def test_rows_that_join_and_leave(tmp_path: Path) -> None:
    check_joining(text_target(), write(tmp_path / "d", EAGLE3 | AUX, eagle3_weights("midlayer.")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, w: c.update({"norm_output": True}), "sets norm_output without fc_norm: for SpecForge"),
        (lambda c, w: c.update({"eagle_aux_hidden_state_layer_ids": [0, 1, 9]}), r"reads hidden states \[0, 1, 9\]"),
        (lambda c, w: c.update({"parallel_drafting": True}), "sets parallel_drafting, which mmspec does not know"),
        (lambda c, w: c.update({"fc_norm": True}), "the file lacks fc_norm.0.weight"),
        (lambda c, w: c.update({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope of the type 'dynamic'"),
        (lambda c, w: c.update({"target_hidden_size": 64}), "its target_hidden_size is 64"),
        (lambda c, w: w.pop("midlayer.hidden_norm.weight"), "the file lacks layers.0.hidden_norm.weight"),
        (lambda c, w: w.update({"input_norm.weight": torch.ones(96)}), "the file has unexpected input_norm.weight"),
        (lambda c, w: w.update({"d2t": w["d2t"] + torch.arange(VD)}), "t2d does not mark the ids that d2t gives"),
        (lambda c, w: (w.pop("d2t"), w.pop("t2d")), "the head has 12 ids, the target 40, and there is no d2t"),
    ],
)
def test_traps_are_named(tmp_path: Path, change, message: str) -> None:
    config, weights = EAGLE3 | AUX, eagle3_weights("midlayer.")
    change(config, weights)
    with pytest.raises(MmspecError, match=message):
        by_name(str(write(tmp_path / "d", config, weights)), None, text_target())
