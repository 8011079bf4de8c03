"""Drafters in the layouts that others publish, with random weights, and their forward passes written from the
published descriptions with plain operations of torch.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from host_reads import count_reads
from safetensors.torch import save_file
from tiny import prompts
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec.drafters.registry import by_name
from mmspec.engine.loop import Batch, Round, Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget

D, HEADS, KV, INNER, V = 32, 4, 2, 48, 40
Weights = dict[str, Tensor]
# Logits of the token after a path: weights, ids, hidden states (entering each layer, and the output) of all ids but the
# last, which is the root, and the path of draft ids after it.
Reference = Callable[[Weights, list[int], Sequence[Tensor], list[int]], Tensor]


def deep_target(layers: int = 6) -> CausalTarget:
    """A Llama whose layers differ enough to tell which of them were read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = LlamaConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            intermediate_size=INNER,
            max_position_embeddings=512,
            initializer_range=0.2,
            eos_token_id=None,
        )
        return CausalTarget(LlamaForCausalLM(config).double().eval())


def draw(shapes: dict[str, Sequence[int]], seed: int = 3) -> Weights:
    """Random weights: matrices that are loud, norms around one."""
    chance = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*shape, generator=chance) * 0.3 + (1.0 if "norm" in name and len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }


def layer_shapes(prefix: str, entry: int = D, kv: int = KV, head: int = D // HEADS) -> dict[str, Sequence[int]]:
    """Names and shapes of a decoder layer of Llama whose attention reads `entry` numbers."""
    return {
        f"{prefix}self_attn.q_proj.weight": (HEADS * head, entry),
        f"{prefix}self_attn.k_proj.weight": (kv * head, entry),
        f"{prefix}self_attn.v_proj.weight": (kv * head, entry),
        f"{prefix}self_attn.o_proj.weight": (D, HEADS * head),
        f"{prefix}mlp.gate_proj.weight": (INNER, D),
        f"{prefix}mlp.up_proj.weight": (INNER, D),
        f"{prefix}mlp.down_proj.weight": (D, INNER),
        f"{prefix}post_attention_layernorm.weight": (D,),
    }


LAYER_CONFIG = dict(
    hidden_size=D,
    intermediate_size=INNER,
    num_attention_heads=HEADS,
    num_key_value_heads=KV,
    num_hidden_layers=1,
    rms_norm_eps=1e-5,
    vocab_size=V,
    rope_theta=10000.0,
)


def write(folder: Path, config: dict, weights: Weights, file: str = "model.safetensors") -> Path:
    """A folder in which they are published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


def rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """RoPE of `head position dim`; `positions` has one number for each position, or for each of half the dimensions."""
    half = x.shape[-1] // 2
    angles = positions.double().reshape(x.shape[1], -1) * theta ** -(torch.arange(half).double() / half)
    real, imaginary = x[..., :half], x[..., half:]
    return torch.cat(
        [real * angles.cos() - imaginary * angles.sin(), imaginary * angles.cos() + real * angles.sin()], -1
    )


def heads_of(w: Weights, name: str, x: Tensor, head: int, norm: str = "") -> Tensor:
    """`head position dim` of a projection, each head normed if there is such a weight."""
    y = x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1))
    y = y.view(len(x), -1, head)
    return (rms(y, w[f"{norm}.weight"]) if f"{norm}.weight" in w else y).transpose(0, 1)


def attend(
    w: Weights, prefix: str, x: Tensor, positions: Tensor, seen: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """Attention of Llama or Qwen over `x`, causal or as `seen` says; keys and values of `context` come before."""
    a = f"{prefix}self_attn."
    head = len(w[f"{a}q_proj.weight"]) // HEADS
    source = x if context is None else torch.cat([context, x])
    q = rotate(heads_of(w, f"{a}q_proj", x, head, f"{a}q_norm"), positions[-len(x) :])
    k = rotate(heads_of(w, f"{a}k_proj", source, head, f"{a}k_norm"), positions)
    v = heads_of(w, f"{a}v_proj", source, head)
    k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    seen = torch.ones(len(x), len(source)).tril().bool() if seen is None else seen
    mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return mixed.transpose(0, 1).reshape(len(x), -1) @ w[f"{a}o_proj.weight"].T


def feed(w: Weights, prefix: str, x: Tensor) -> Tensor:
    """The second half of a layer: norm, gated MLP, residual."""
    h = rms(x, w[f"{prefix}post_attention_layernorm.weight"])
    gate, up, down = (w[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return x + (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T


def hidden_states(target: CausalTarget, ids: list[int]) -> tuple[Tensor, ...]:
    """What transformers gives as `hidden_states` of ids; the last one after the final norm."""
    output = target.model.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return tuple(states[0] for states in output.hidden_states)


def check_trees(
    target: CausalTarget, folder: Path, weights: Weights, reference: Reference, guidance: float = 1.0
) -> None:
    """Children of every node of greedy trees are the best by the reference forward over all that is before them."""
    given = prompts([[1, 3, 4, 2], [1, 5, 9, 11, 7, 2]], guidance)
    wide = {name: value.double() if value.is_floating_point() else value for name, value in weights.items()}

    @cache
    def hidden(*ids: int) -> tuple[Tensor, ...]:
        return hidden_states(target, list(ids))

    def logits(branch: int, row: int, tokens: list[int], path: list[int]) -> Tensor:
        ids = given.branches[branch * 2 + row] + tokens
        return reference(wide, ids, hidden(*ids[:-1]), path)

    check_children(target, folder, given, logits)


def check_children(
    target: CausalTarget, folder: Path, given: Prompts, logits: Callable[[int, int, list[int], list[int]], Tensor]
) -> None:
    """Children of every node of greedy trees are the best by `logits`, of a CFG branch and a row, after generated
    tokens and a path of draft tokens; branches are mixed by the prompts' guidance.
    """
    drafter = by_name(str(folder), None, target)
    draft, deepest = drafter.draft, 0

    def guided(*after) -> Tensor:
        conditional = logits(0, *after)
        if given.unconditional is None:
            return conditional
        unconditional = logits(1, *after)
        mixed = unconditional + given.guidance * (conditional - unconditional)
        return mixed.where(conditional.isfinite(), -torch.inf)  # what is not drafted from

    def check(state, noise, limit) -> DraftTree:
        nonlocal deepest
        tree = draft(state, noise, limit)
        parents = tree.parents.tolist()
        for row in range(state.rows):
            for node in range(tree.size):
                children = [
                    int(tree.tokens[row, child]) for child in range(1, tree.size) if parents[row][child] == node
                ]
                path, above = [], node
                while above > 0:
                    path.insert(0, int(tree.tokens[row, above]))
                    above = parents[row][above]
                if children:
                    best = guided(row, list(state.tokens[row]), path).topk(len(children)).indices
                    assert set(children) == set(best.tolist()), (row, node, path)
                    deepest = max(deepest, len(path) + 1)
        return tree

    drafter.draft = check  # type: ignore[method-assign]
    with torch.inference_mode():
        generate(target, given, len(given.conditional), Stop(9), drafter, sampling=SamplingOptions(0))
    assert deepest > 2


def check_equal(
    target: CausalTarget,
    folder: Path,
    given: Prompts | None = None,
    beside: Path | None = None,
    name: str | None = None,
    reads: int = 0,
) -> None:
    """A batch drafted for, and its first row alone, say what plain decoding says, greedy and sampled (fp64).

    Drafting reads the device `reads` times in four rounds. The drafter is that in `folder`, or the one of that `name`.
    """
    given = given or prompts([[1, 3, 4, 2], [1, 5, 9, 11, 7, 2], [1, 2]])
    name, rows = name or str(folder), len(given.conditional)
    for temperature in (0.0, 1.0):
        options: dict = dict(sampling=SamplingOptions(temperature), seeds=4)
        whole, drafted = (
            generate(target, given, rows, Stop(14), by_name(each, beside, target), **options) for each in ("none", name)
        )
        assert drafted.tokens == whole.tokens
        alone = generate(
            target, given.select(slice(1), given.guidance), 1, Stop(14), by_name(name, beside, target), **options
        )
        assert alone.tokens == whole.tokens[:1]
    counts, drafting = count_reads(target, by_name(name, beside, target), given, rows, Stop(14))
    assert drafting <= reads and max(counts) <= 2 + reads


def check_joining(target: CausalTarget, folder: Path, beside: Path | None = None, given: Prompts | None = None) -> None:
    """What was read of rows that stay is kept, and new ones are read: rows that join and leave say what plain decoding
    says.
    """
    given, sampling = given or prompts([[1, 3, 4, 2], [1, 5, 9, 11, 7, 2], [1, 2]]), SamplingOptions(1.0)
    rows = [given.select(slice(row, row + 1), given.guidance) for row in range(3)]
    expected = [
        generate(target, row, 1, Stop(24), sampling=sampling, seeds=seed).tokens[0] for seed, row in enumerate(rows)
    ]
    batch = Batch(target, by_name(str(folder), beside, target), sampling)
    tokens: list[list[int]] = [[], [], []]

    def follow(result: Round, *numbers: int) -> None:
        for row, new in zip(numbers, result.tokens, strict=True):
            tokens[row] += new

    follow(batch.join(rows[0], [0], Stop(24)), 0)
    follow(batch.round(), 0)
    follow(batch.join(rows[1], [1], Stop(24)), 0, 1)
    follow(batch.round(), 0, 1)
    batch.keep([1])
    follow(batch.join(rows[2], [2], Stop(24)), 1, 2)
    batch.keep([1, 0])
    for _ in range(4):
        follow(batch.round(), 2, 1)
    assert all(found == whole[: len(found)] for found, whole in zip(tokens, expected)) and len(tokens[2]) > 4


def check_refusals(
    target: CausalTarget, folder: Path, config: dict, weights: Weights, name: str, flags: bool = True
) -> None:
    """A tensor that is missing, foreign or of another shape is named, and so is a setting that is not known."""
    without = {key: value for key, value in weights.items() if key != name}
    cases: list[tuple[dict, Weights, str]] = [
        (config, without, f"the file lacks {name}"),
        (config, weights | {"foreign.weight": torch.ones(1)}, "the file has unexpected foreign.weight"),
        (config, weights | {name: torch.ones(3, 3)}, rf"{name} is \[3, 3\] and should be \["),
    ]
    if flags:
        cases.append((config | {"some_setting": True}, weights, "config.json sets some_setting, which mmspec does not"))
    for settings, tensors, message in cases:
        with pytest.raises(MmspecError, match=message):
            by_name(str(write(folder, settings, tensors)), None, target)
