"""Gemma 4's assistants: trees against a forward pass written from the description and against transformers' own class,
tokens against plain decoding.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import vlm_families
from tiny import prompts, text_target
from tiny_gemma4 import (
    BEST,
    CENTROIDS,
    HEADS,
    KEYS,
    KINDS,
    WINDOW,
    assistant_config,
    assistant_weights,
    gemma4_target,
)
from tiny_layouts import V, check_equal, check_joining, check_trees, rms, write
from torch import Tensor
from torch.nn import functional as F

from mmspec import cli
from mmspec.drafters.registry import by_name
from mmspec.engine.loop import Batch, Stop
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.registry import target_of
from mmspec.targets.vision_language import VisualPrompts

EPS = 1e-6


def kept(target, ids: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of the last layers of each kind that have their own, by transformers, without a cache."""
    return target.model.model(torch.tensor([ids]), use_cache=False, return_shared_kv_states=True).shared_kv_states


def turn(x: Tensor, position: int, kind: str) -> Tensor:
    """RoPE of `head dim` at one position: a sliding layer's whole head, the first quarter of a full one's."""
    size = x.shape[-1]
    theta, turned = (1e4, size // 2) if kind == "sliding_attention" else (1e6, size // 8)
    speeds = theta ** -(torch.arange(0, 2 * turned, 2).double() / size)
    angles = torch.cat([position * speeds, torch.zeros(size // 2 - turned)])
    real, imaginary = x.chunk(2, -1)
    return torch.cat(
        [real * angles.cos() - imaginary * angles.sin(), imaginary * angles.cos() + real * angles.sin()], -1
    )


def reference(target) -> Callable:
    """One query a step, at the root's position, over what the target keeps of the tokens before the root."""

    def step(w: dict[str, Tensor], x: Tensor, states: dict, position: int) -> Tensor:
        for number, kind in enumerate(KINDS):
            layer = f"model.layers.{number}."
            heads, size = KEYS[kind]
            normed = rms(x, w[f"{layer}input_layernorm.weight"], EPS)
            q = (w[f"{layer}self_attn.q_proj.weight"] @ normed).view(HEADS, size)
            q = turn(rms(q, w[f"{layer}self_attn.q_norm.weight"], EPS), position, kind)
            k, v = (part[0].double().repeat_interleave(HEADS // heads, 0) for part in states[kind])
            if kind == "sliding_attention":
                k, v = k[:, -WINDOW - 1 :], v[:, -WINDOW - 1 :]
            mixed = torch.einsum("hs,hsd->hd", torch.einsum("hd,hsd->hs", q, k).softmax(-1), v).flatten()
            mixed = w[f"{layer}self_attn.o_proj.weight"] @ mixed
            x = x + rms(mixed, w[f"{layer}post_attention_layernorm.weight"], EPS)
            normed = rms(x, w[f"{layer}pre_feedforward_layernorm.weight"], EPS)
            gate, up, down = (w[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
            fed = down @ (F.gelu(gate @ normed, approximate="tanh") * (up @ normed))
            x = (x + rms(fed, w[f"{layer}post_feedforward_layernorm.weight"], EPS)) * w[f"{layer}layer_scalar"]
        return rms(x, w["model.norm.weight"], EPS)

    def logits(w, ids, hidden, path):
        states, state = kept(target, ids[:-1]), hidden[-1][-1]
        for token in [ids[-1], *path]:
            vector = target.model.get_input_embeddings()(torch.tensor(token))
            out = step(w, w["pre_projection.weight"] @ torch.cat([vector, state]), states, len(ids) - 1)
            state = w["post_projection.weight"] @ out
        scores = w["model.embed_tokens.weight"] @ out
        if "masked_embedding.centroids.weight" in w:
            best = (w["masked_embedding.centroids.weight"] @ out).topk(BEST).indices
            scored = w["masked_embedding.token_ordering"].long().view(CENTROIDS, -1)[best].flatten()
            scores = torch.full((V,), -1e9, dtype=scores.dtype).index_put((scored,), scores[scored])
        return scores

    return logits


@pytest.mark.parametrize("ordered", [False, True])
def test_published(tmp_path: Path, ordered: bool) -> None:
    """A dense head, and one over the tokens of the best centroids."""
    target, weights = gemma4_target(), assistant_weights(ordered)
    folder = write(tmp_path / "d", assistant_config(ordered), weights)
    check_trees(target, folder, weights, reference(target))
    check_equal(target, folder)


@pytest.mark.parametrize("length", [3, 5, 6, 12])
def test_equal_to_transformers(tmp_path: Path, length: int) -> None:
    """What a draft's first two levels score is what `Gemma4AssistantForCausalLM` scores of the same states, with
    windows that are not full, full and left behind.
    """
    target, texts = gemma4_target(), [[(7 * i) % 30 + 2 for i in range(length)], [1, 3, 4, 2, 9]]
    folder = write(tmp_path / "d", assistant_config(), assistant_weights())
    drafter, seen = by_name(str(folder), None, target), []
    logits = drafter.logits
    drafter.logits = lambda hidden: seen.append(logits(hidden)) or seen[-1]
    batch = Batch(target, drafter, SamplingOptions(0))
    with torch.inference_mode():
        batch.join(prompts(texts), [0, 0], Stop(20))
        state = batch.state
        drafter.start(target, state, SamplingOptions(0), False)  # the first round would
        tree = drafter.draft(state, Noise([0, 0], V, greedy=True), 2)
        for row, text in enumerate(texts):
            ids = text + state.tokens[row]
            states = kept(target, ids[:-1])
            hidden = target.model.model(torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state[:, -1:]
            token, expected = ids[-1], []
            for _ in range(2):
                vector = target.model.get_input_embeddings()(torch.tensor([[token]]))
                out = drafter.model(
                    inputs_embeds=torch.cat([vector, hidden], -1),
                    position_ids=torch.tensor([[len(ids) - 1]]),
                    shared_kv_states=dict(states),
                )
                expected.append(out.logits[0, 0])
                hidden, token = out.last_hidden_state, int(out.logits.argmax())
            torch.testing.assert_close(seen[0][row, 0], expected[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(seen[1][row, 0], expected[1], rtol=1e-6, atol=1e-6)
    assert tree.height == 2


def test_rows_that_join_and_leave(tmp_path: Path) -> None:
    check_joining(gemma4_target(), write(tmp_path / "d", assistant_config(), assistant_weights()))


def test_a_target_that_generates_some_ids_alone(tmp_path: Path) -> None:
    """What it cannot say is not drafted; where no token of the best centroids can be said, drafts are still laws."""
    target = CausalTarget(gemma4_target().model, range(30, V))
    drafter = by_name(str(write(tmp_path / "d", assistant_config(True), assistant_weights(True))), None, target)
    assert drafter.rows.tolist() == list(range(30, V)) and drafter.tokens.tolist() == list(range(V - 30))
    assert bool(drafter.logits(torch.ones(1, 4, 16, dtype=torch.float64)).isfinite().all())
    check_equal(target, tmp_path / "d")


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    """They are in the keys and values that the target keeps."""
    target = target_of(vlm_families.model("gemma4"))
    given = VisualPrompts.of([vlm_families.asked("gemma4", sizes, 1) for sizes in ([(2, 3)], [], [(1, 2), (3, 2)])])
    config = assistant_config(vocab_size=64, attention_k_eq_v=False)
    check_equal(target, write(tmp_path / "d", config, assistant_weights(vocabulary=64)), given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, w: w.pop("pre_projection.weight"),
            "the file lacks pre_projection.weight: it is no Gemma-4 assistant",
        ),
        (lambda c, w: w.update({"fc.weight": torch.ones(1)}), "the file has unexpected fc.weight"),
        (
            lambda c, w: w.update({"post_projection.weight": torch.ones(16, 16)}),
            r"post_projection.weight is \[16, 16\] and should be \[32, 16\]",
        ),
        (lambda c, w: w.pop("masked_embedding.token_ordering"), "the file lacks masked_embedding.token_ordering"),
        (lambda c, w: w["masked_embedding.token_ordering"].fill_(1), "token_ordering does not name every id once"),
        (lambda c, w: c.update(centroid_intermediate_top_k=11), "11 of 10 centroids cannot share 40 ids evenly"),
        (lambda c, w: c.update(num_shared_experts=2), "sets num_shared_experts, which mmspec does not know"),
        (lambda c, w: c["text_config"].update(use_kv_mixing=True), "sets use_kv_mixing, which mmspec does not know"),
        (lambda c, w: c.update(backbone_hidden_size=64), "its backbone_hidden_size is 64, this target's"),
        (
            lambda c, w: c["text_config"].update(num_key_value_heads=4),
            "layers of the kind sliding_attention read 4 heads of 8 numbers, and this target keeps 2 of 8",
        ),
        (lambda c, w: c["text_config"].update(hidden_size_per_layer_input=4), "do not describe a drafter .*must be 0"),
        (lambda c, w: c["text_config"].update(layer_types=["linear_attention"] * 3), "layers of the kind linear_att"),
    ],
)
def test_traps_are_named(tmp_path: Path, change, message: str) -> None:
    config, weights = assistant_config(True), assistant_weights(True)
    change(config, weights)
    with pytest.raises(MmspecError, match=message):
        by_name(str(write(tmp_path / "d", config, weights)), None, gemma4_target())


def test_idle_tensors(tmp_path: Path) -> None:
    """Keys of layers that share them, and the head, which is the embedding, are passed over."""
    more = {"model.layers.0.self_attn.k_proj.weight": torch.ones(2), "lm_head.weight": torch.ones(2)}
    drafter = by_name(str(write(tmp_path / "d", assistant_config(), assistant_weights() | more)), None, gemma4_target())
    assert drafter.model.lm_head.weight is drafter.model.model.embed_tokens.weight


def test_saved_by_its_own_class(tmp_path: Path) -> None:
    """What transformers writes is read again."""
    target, weights = gemma4_target(), assistant_weights(True)
    drafter = by_name(str(write(tmp_path / "d", assistant_config(True), weights)), None, target)
    with pytest.raises(MmspecError, match="saved by its own save_pretrained: drafter.model.save_pretrained"):
        drafter.save_pretrained(tmp_path / "saved")
    drafter.model.save_pretrained(tmp_path / "saved")
    again = by_name(str(tmp_path / "saved"), None, target)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in drafter.state_dict().items())


def test_of_another_target(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", assistant_config(), assistant_weights())
    with pytest.raises(MmspecError, match="it reads the keys and values of a Gemma 4, and the target is a llama"):
        by_name(str(folder), None, text_target())
    unified = write(
        tmp_path / "u", assistant_config() | {"model_type": "gemma4_unified_assistant"}, assistant_weights()
    )
    with pytest.raises(MmspecError, match="of the kind assistant of the unified Gemma 4 are not read"):
        by_name(str(unified), None, gemma4_target())


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mmspec info FOLDER --target MODEL` says what it is and whether it fits."""
    folder = write(tmp_path / "d", assistant_config(), assistant_weights())
    gemma4_target().model.save_pretrained(tmp_path / "m")
    text_target().model.save_pretrained(tmp_path / "llama")

    def facts(model: str) -> dict:
        with pytest.raises(SystemExit) as done:
            cli.main(["info", str(folder), "--target", str(tmp_path / model), "--json"])
        captured = capsys.readouterr()
        assert not done.value.code, captured.err
        return json.loads(captured.out)

    fits, other = facts("m"), facts("llama")
    assert fits["layout"] == "Gemma-4 assistant" and fits["read"] and fits["hidden_size"] == 32 and fits["fits"]
    assert not other["fits"] and "and the target is a llama" in other["why"]
