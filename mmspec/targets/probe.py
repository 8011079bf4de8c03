"""What is not understood is refused: models are looked at, and tried against their own forward, before they
are used.
"""

import math
import random
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmspec.engine.cache import KV_BLOCK, causal
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.targets.causal import CausalTarget

# Largest error of a node's logits, as a share of their spread, that rounding explains.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}

# Tokens of the prompt, and parents of the tree whose root is the last of them.
PROMPT, PARENTS = 16, (-1, 0, 0, 1, 2, 3, 2, 5)

# Kinds of attention layers whose masks are known, and kinds with a state that takes in one token after the other.
ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
RECURRENT = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})

# What transformers 5.24 itself does not do alike token by token and for several tokens after others, by family.
_FORGETS = "forgets the states of its Mamba layers where it reads several tokens after others"
_UNBOUND = "keeps the time steps of its Mamba layers above time_step_min where it reads several tokens, and not for one"
UNSTEADY = dict.fromkeys(("falcon_mamba", "jamba", "mamba", "zamba"), _FORGETS)
UNSTEADY |= dict.fromkeys(("nemotron_h", "zamba2"), _UNBOUND)
UNSTEADY["recurrent_gemma"] = "keeps its states in its layers, and not in a cache that can be copied"


def refuse(model: PreTrainedModel, layer_kinds: frozenset[str] = ATTENTION, families: tuple[str, ...] = ()) -> None:
    """Raise MmspecError for a model whose logits, attention, positions or layers (other than `layer_kinds`) a target
    of the `families` would get wrong by construction.
    """
    name, head = type(model).__name__, model.get_output_embeddings()
    refuse_kind(type(model), model.config, layer_kinds, families)
    if not isinstance(getattr(head, "weight", None), Tensor) and model.config.model_type not in families:
        raise MmspecError(f"{name} has no single output head, which is not supported: use a causal language model")
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager"):
        raise MmspecError(
            f"attention {attention!r} does not take tree masks: load the model with attn_implementation='sdpa' or "
            "'eager'"
        )


def refuse_kind(
    kind: type[PreTrainedModel],
    whole: PreTrainedConfig,
    layer_kinds: frozenset[str] = ATTENTION,
    families: tuple[str, ...] = (),
) -> None:
    """Raise MmspecError for models of this class and configuration, as `refuse` does, before there is one."""
    name, config = kind.__name__, whole.get_text_config()
    if getattr(kind, "_is_stateful", False) and not is_recurrent(whole):
        raise MmspecError(
            f"{name} keeps a recurrent state and does not use the cache that it is given: use a transformer with "
            "attention"
        )
    if whole.is_encoder_decoder and whole.model_type not in families:
        raise MmspecError(
            f"{name} is an encoder-decoder model whose decoder takes no positions, or is not known to give its own "
            "tokens here, which is not supported: use a decoder-only model, or Whisper and its like "
            "(mmspec.targets.encoder_decoder)"
        )
    alibi = config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False)
    if alibi or _rope_types(config) & {"longrope", "dynamic"}:
        raise MmspecError(
            f"{name} has positions that depend on the whole sequence, which is not supported: "
            "use plain RoPE, such as Llama"
        )
    if config is not whole and getattr(config, "cross_attention_layers", None):
        raise MmspecError(
            f"{name} reads pictures by cross-attention layers, which the tree cache cannot hold: use a model whose "
            "pictures are part of the prompt"
        )
    if getattr(config, "keep_window_size", None):  # Doge
        raise MmspecError(
            f"{name} attends to a number of keys that it chooses anew for each token, which is not supported: "
            "use a model with full or sliding attention"
        )
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - layer_kinds:
        recurrent = not RECURRENT.isdisjoint(kinds) and RECURRENT.isdisjoint(layer_kinds)
        raise MmspecError(
            f"{name} has layers of the kind {', '.join(sorted(kinds - layer_kinds))}, which "
            + (
                "the tree cache cannot hold: build its target by target_of(model) of mmspec.targets.registry"
                if recurrent
                else "are not understood: use a model with full or sliding attention"
            )
        )
    why = UNSTEADY.get(config.model_type, "")
    low, high = map(float, getattr(config, "time_step_limit", None) or (0.0, math.inf))
    if not why and (low > 0 or high < math.inf):
        why = (
            f"keeps the time steps of its Mamba layers within {low:g} and {high:g} where it reads several tokens, and "
            "not for one"
        )
    if why:
        raise MmspecError(
            f"{name} {why}, in transformers itself, so that drafts would change its tokens: use Falcon-H1, Granite 4, "
            "Qwen3-Next, LFM2 or Mamba 2"
        )


def is_recurrent(config: PreTrainedConfig) -> bool:
    """Whether a configuration names recurrent layers."""
    return not RECURRENT.isdisjoint(getattr(config.get_text_config(), "layer_types", None) or [])


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """The kinds of RoPE of all layers; some families have one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}


def refuse_other_heads(kind: type[PreTrainedModel], config: PreTrainedConfig, families: Collection[str] = ()) -> None:
    """Raise MmspecError for a class that is neither a causal language model, of transformers or by its own `auto_map`,
    nor of one of the `families`.

    Such a model may generate by other heads, embeddings or positions than those of its text, which no probe sees.
    """
    names, own = {base.__name__ for base in kind.__mro__}, getattr(config, "auto_map", None) or {}
    causal = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), own.get("AutoModelForCausalLM", "").rpartition(".")[2]}
    if names.isdisjoint(causal) and config.model_type not in families:
        raise MmspecError(
            f"{kind.__name__} is no causal language model of transformers: it may generate by another head "
            "or other "
            "positions than those of its text, so it is refused; use one of the families in docs/models.md"
        )


@torch.inference_mode()
def probe(target: "CausalTarget", slots: int = KV_BLOCK) -> None:
    """Compare a prefill and a branching pass, with a cache of `slots` slots, with the model's own forward without
    cache.

    Raises MmspecError with the largest error if they differ by more than rounding explains (`TOLERANCE`), or if either
    cannot be run.
    """
    name = type(target.model).__name__
    try:
        error = target.largest_error(slots)
    except MmspecError:
        raise
    except Exception as problem:  # whatever a foreign model raises
        experts = "; experts in float64 need model.set_experts_implementation('eager')"
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
        raise MmspecError(
            f"{name} cannot be read with the cache ({reason}): use a decoder-only model of transformers with full "
            f"attention{experts if 'got Double' in str(problem) else ''}"
        ) from None
    tolerance = target.tolerance
    if not error <= tolerance:
        raise MmspecError(
            f"{name} does not give its own logits {target.unlike.format(error=error, slots=slots)}, and "
            f"{tolerance:.0e} is what rounding explains; its masks, positions or logits are not understood, so it is "
            "refused"
        )


def branching_error(target: "CausalTarget", slots: int) -> float:
    """The largest error of the logits of a prompt and of a tree after it, as a share of their spread."""
    device = target.device
    sequence = target.sample_nodes(PROMPT + len(PARENTS) - 1, PROMPT)
    prompt, drafted = sequence[:PROMPT], sequence[PROMPT - 1 :]
    paths: list[list[int]] = []
    for node, parent in enumerate(PARENTS):
        paths.append([*(paths[parent] if node else []), node])
    parents = torch.tensor([PARENTS], device=device)
    depths = torch.tensor([[len(path) - 1 for path in paths]], device=device)
    tree = DraftTree(torch.tensor([drafted], device=device), parents, depths, int(max(map(len, paths))) - 1)
    cache = target.tree_cache(max(slots, 2 * len(sequence)), min_visible=slots)
    ids = torch.tensor([prompt], device=device)
    positions = torch.arange(PROMPT, device=device)[None]
    read, _ = target.run(cache, ids, causal(1, PROMPT, device), positions, positions)
    cache.advance([PROMPT - 1])  # the root's entry is in place, to be written anew
    branched, _ = target.run(cache, tree.tokens, tree.ancestors, depths, depths + PROMPT - 1)
    leaves = [path for node, path in enumerate(paths) if node not in PARENTS]
    whole = [torch.tensor([*prompt, *(drafted[node] for node in path[1:])], device=device) for path in leaves]
    # Padding comes after what is compared, and is never seen. Its mask keeps models that can attend both ways (such as
    # PaliGemma) from leaving their causal mask out.
    mask = pad_sequence([torch.ones_like(row) for row in whole], batch_first=True)
    logits = target.own_logits(pad_sequence(whole, batch_first=True), mask)
    errors = []
    for path, row in zip(leaves, logits, strict=True):
        actual = target.logits(torch.cat([read[0, :-1], branched[0, path]]))
        errors.append(share_of_spread(actual, row[: PROMPT - 1 + len(path)]))
    return float(torch.tensor(errors).max())  # nan if any is


def share_of_spread(actual: Float[Tensor, "node vocab"], expected: Float[Tensor, "node vocab"]) -> float:
    """The largest error of any node's logits, as a share of their spread; nan if any is."""
    actual, expected = actual.double(), expected.double()
    spread = (expected - expected.mean(1, keepdim=True)).square().mean(1).sqrt()
    return float(((actual - expected).square().mean(1).sqrt() / spread.clamp(min=1e-12)).max())


def plain_ids(model: PreTrainedModel, count: int) -> list[int]:
    """Some token ids of a model, none of which its configuration gives a meaning."""
    config = model.config
    values = [value for part in (config, config.get_text_config()) for value in part.to_dict().values()]
    special = {value for value in values if isinstance(value, int)}
    rows = model.get_input_embeddings().weight.shape[0]
    plain = [i for i in range(min(rows, 4096)) if i not in special] or list(range(rows))
    return [random.Random(i).choice(plain) for i in range(count)]
