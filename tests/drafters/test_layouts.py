"""Published layouts: told by their files, read by their class, equal to forward passes written from the descriptions;
what is missing, unexpected or not understood is refused by name.
"""

import json
from pathlib import Path

import pytest
import torch
from tiny import prompts, text_target
from tiny_layouts import (
    LAYER_CONFIG,
    D,
    attend,
    check_equal,
    check_joining,
    check_refusals,
    check_trees,
    feed,
    write,
)
from tiny_released import MEDUSA, eagle_weights, medusa_weights
from tiny_vlm import asked, model
from torch import Tensor
from torch.nn import functional as F

from mmspec.drafters.registry import by_name
from mmspec.errors import MmspecError
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts


def test_medusa(tmp_path: Path) -> None:
    """medusa_lm_head.pt: residual layers and a matrix for each head."""
    weights = medusa_weights()
    folder = write(tmp_path / "medusa", MEDUSA, weights, "medusa_lm_head.pt")

    def reference(w, ids, hidden, path):
        x = hidden[-1][-1]
        for layer in range(2):
            part = f"{len(path)}.{layer}.linear."
            x = x + F.silu(w[f"{part}weight"] @ x + w[f"{part}bias"])
        return w[f"{len(path)}.2.weight"] @ x

    check_trees(text_target(), folder, weights, reference)
    check_equal(text_target(), folder, reads=4)


def eagle(head: Tensor):
    """EAGLE: fc of the embedding of the next token and the feature; one layer without a first norm; features go on."""

    def reference(w, ids, hidden, path):
        features, tokens = hidden[-1], ids[1:]
        inputs = F.linear(torch.cat([w["embed_tokens.weight"][tokens], features], -1), w["fc.weight"], w.get("fc.bias"))
        for token in [*path, None]:
            positions = torch.arange(len(inputs))
            predicted = feed(w, "layers.0.", inputs + attend(w, "layers.0.", inputs, positions))[-1]
            if token is not None:
                entry = torch.cat([w["embed_tokens.weight"][token], predicted])
                inputs = torch.cat([inputs, F.linear(entry, w["fc.weight"], w.get("fc.bias"))[None]])
        return head @ predicted

    return reference


@pytest.mark.slow
@pytest.mark.parametrize(("bias", "qkv_bias"), [(True, False), (False, True)])
def test_eagle(tmp_path: Path, bias: bool, qkv_bias: bool) -> None:
    """EAGLE-1 and 2, with and without biases; the trees and the tokens."""
    weights, target = eagle_weights(bias, qkv_bias), text_target()
    config = LAYER_CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bias": bias}
    folder = write(tmp_path / "eagle", config | {"qkv_bias": qkv_bias}, weights, "pytorch_model.bin")
    check_trees(target, folder, weights, eagle(target.head.weight))
    check_equal(target, folder)


def test_vispec(tmp_path: Path) -> None:
    """Pictures become one vector each, and another that every later hidden state is mixed with."""
    target = VisionLanguageTarget(model("llava"))
    weights = eagle_weights(True, True, vispec=True)
    folder = write(tmp_path / "vispec", LAYER_CONFIG | {"model_type": "llama", "num_key_value_heads": 4}, weights)
    drafter = by_name(str(folder), None, target)
    w = {name: value.double() for name, value in weights.items()}
    given = VisualPrompts.of([asked("llava", [(32, 32), (32, 32)], 1), asked("llava", [], 2)])
    state = target.prefill(given, 40, True)
    drafter.target = target
    for row, (prompt, features) in enumerate(state.prompt_hidden):
        vectors, is_text = prompt.vectors[1:].clone(), prompt.is_text[1:]
        ids = torch.tensor(state.prompt_ids[row])[1:]
        vectors[is_text] = w["embed_tokens.weight"][ids[is_text]]
        entries, positions, image, run = [], [], torch.zeros(D).double(), []
        for place, (vector, feature, text) in enumerate(zip(vectors, features, is_text)):
            if not text:
                run.append(vector)
            if text or place + 1 == len(vectors):
                if run:
                    keys, values = (
                        F.linear(torch.stack(run), w[f"imadpt.{n}_proj.weight"], w[f"imadpt.{n}_proj.bias"])
                        .view(-1, 4, 8)
                        .transpose(0, 1)
                        for n in "kv"
                    )
                    law = (w["imadpt.q"].transpose(0, 1) @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
                    adapted = (law @ values).transpose(0, 1).reshape(2, D) @ w["imadpt.o_proj.weight"].T
                    entries.append(adapted[0])
                    positions.append(place - 1)
                    image, run = adapted[1], []
                seen = F.linear(torch.cat([feature, image]), w["img_fc.weight"], w["img_fc.bias"])
                entries.append(F.linear(torch.cat([vector, seen]), w["fc.weight"], w["fc.bias"]))
                positions.append(place)
        drafter._images = getattr(drafter, "_images", {})
        read, where, shift = drafter.prompt_inputs(state, row)
        torch.testing.assert_close(read, torch.stack(entries))
        assert where.tolist() == positions and shift == len(features) - len(entries)
        torch.testing.assert_close(drafter._images[id(prompt)][0], image)
    check_equal(target, folder, given)


def test_msd(tmp_path: Path) -> None:
    """MSD on text is EAGLE; a picture's vectors are read as they are, and not through fc."""
    target, weights = text_target(), eagle_weights(True, False)
    config = LAYER_CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llava"}
    check_trees(target, write(tmp_path / "text", config, weights), weights, eagle(target.head.weight))
    reader, given = VisionLanguageTarget(model("llava")), VisualPrompts.of([asked("llava", [(32, 32)], 1)])
    folder = write(tmp_path / "pictures", config, weights)
    drafter, state = by_name(str(folder), None, reader), reader.prefill(given, 40, True)
    drafter.target, (prompt, features) = reader, state.prompt_hidden[0]
    w = {name: value.double() for name, value in weights.items()}
    embedding = w["embed_tokens.weight"][torch.tensor(state.prompt_ids[0])[1:]]
    fused = F.linear(torch.cat([embedding, features], -1), w["fc.weight"], w["fc.bias"])
    is_text = prompt.is_text[1:, None]
    assert not bool(is_text.all())
    with torch.inference_mode():
        read, _, _ = drafter.prompt_inputs(state, 0)
    torch.testing.assert_close(read, torch.where(is_text, fused, prompt.vectors[1:]))
    more = VisualPrompts.of([asked("llava", sizes, 1) for sizes in ([(32, 32)], [], [(32, 32), (32, 32)])])
    check_equal(reader, folder, more)


@pytest.mark.parametrize("kind", ["eagle", "msd", "vispec"])
def test_guidance(tmp_path: Path, kind: str) -> None:
    """A prompt, states and a cache for each CFG branch, whose logits are mixed as the target mixes its own: the trees,
    the tokens, and rows that come and go.
    """
    target, vispec = text_target(), kind == "vispec"
    config = LAYER_CONFIG | {"model_type": "llava" if kind == "msd" else "llama"}
    weights = eagle_weights(True, vispec, vispec)
    folder = write(tmp_path / "d", config | ({"num_key_value_heads": 4} if vispec else {}), weights)
    given = prompts([[1, 3, 4, 2], [1, 5, 9, 11, 7, 2], [1, 2]], 2.5)
    if not vispec:
        check_trees(target, folder, weights, eagle(target.head.weight), 2.5)
    check_equal(target, folder, given)
    check_joining(target, folder, given=given)


@pytest.mark.parametrize("kind", ["medusa", "eagle", "vispec", "msd"])
def test_rows_that_join_and_leave(tmp_path: Path, kind: str) -> None:
    target = text_target() if kind != "vispec" else VisionLanguageTarget(model("llava"))
    folder = tmp_path / "d"
    if kind == "medusa":
        write(folder, MEDUSA, medusa_weights(), "medusa_lm_head.pt")
    elif kind == "vispec":
        config = LAYER_CONFIG | {"model_type": "llama", "num_key_value_heads": 4}
        write(folder, config, eagle_weights(True, True, vispec=True))
    else:
        write(
            folder, LAYER_CONFIG | {"model_type": {"eagle": "llama", "msd": "llava"}[kind]}, eagle_weights(True, False)
        )
    check_joining(target, folder)


def test_what_does_not_fit_eagle_is_named(tmp_path: Path) -> None:
    config = LAYER_CONFIG | {"model_type": "llama"}
    name = "layers.0.mlp.up_proj.weight"
    check_refusals(text_target(), tmp_path / "d", config, eagle_weights(True, False), name, flags=False)


def test_what_does_not_fit_vispec_is_named(tmp_path: Path) -> None:
    config = LAYER_CONFIG | {"model_type": "llama", "num_key_value_heads": 4}
    weights, target = eagle_weights(True, True, vispec=True), VisionLanguageTarget(model("llava"))
    check_refusals(target, tmp_path / "d", config, weights, "img_fc.weight", flags=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, w: w.pop("1.2.weight"), "the file lacks heads.1.2.weight: it is no Medusa drafter"),
        (lambda c, w: w.update({"3.2.weight": w["2.2.weight"]}), "the file has unexpected 3.2.weight"),
        (
            lambda c, w: w.update({"1.1.linear.bias": torch.ones(3)}),
            r"1.1.linear.bias is \[3\] and should be \[32\]",
        ),
        (lambda c, w: c.update({"medusa_shared_head": True}), "sets medusa_shared_head, which mmspec does not know"),
        (lambda c, w: c.pop("medusa_num_layers"), "config.json lacks medusa_num_layers"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change, message: str) -> None:
    config, weights = dict(MEDUSA), medusa_weights()
    change(config, weights)
    with pytest.raises(MmspecError, match=message):
        by_name(str(write(tmp_path / "d", config, weights, "medusa_lm_head.pt")), None, text_target())


def test_pickles_hold_tensors_alone(tmp_path: Path) -> None:
    """Code in a pickle does not run."""
    folder = write(tmp_path / "d", MEDUSA, {}, "medusa_lm_head.pt")
    torch.save({"0.0.linear.weight": Path("code")}, folder / "medusa_lm_head.pt")
    with pytest.raises(MmspecError, match="medusa_lm_head.pt is truncated or foreign"):
        by_name(str(folder), None, text_target())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"speculators_model_type": "mtp"}, "of the kind speculators, other than .* are not read"),
        ({"model_type": "gemma4_unified_assistant"}, "of the kind assistant of the unified Gemma 4 are not read"),
        ({"architectures": ["DFlash2DraftModel"]}, "of the kind DFlash2 are not read"),
        ({"some": "thing"}, "names no known kind .* and the layouts EAGLE-3, P-EAGLE"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, config: dict, message: str) -> None:
    folder = write(tmp_path / "d", config, {"x": torch.ones(1)})
    with pytest.raises(MmspecError, match=message):
        by_name(str(folder), None, text_target())
    assert json.loads((folder / "config.json").read_text()) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"medusa_num_heads": "many"},
        {"architectures": 5, "medusa_num_heads": None},
        LAYER_CONFIG | {"num_attention_heads": "x", "architectures": ["LlamaForCausalLMEagle3"]},
        LAYER_CONFIG | {"rope_scaling": "no", "architectures": ["LlamaForCausalLMEagle3"]},
        LAYER_CONFIG | {"dflash_config": [1]},
        {"speculators_model_type": "eagle3", "transformer_layer_config": LAYER_CONFIG | {"num_key_value_heads": 3}},
    ],
)
def test_nonsense_is_an_error(tmp_path: Path, wrong: dict) -> None:
    folder = write(tmp_path / "d", MEDUSA | wrong, medusa_weights() | {"fc.weight": torch.ones(2, 2)})
    with pytest.raises(MmspecError):
        by_name(str(folder), None, text_target())
