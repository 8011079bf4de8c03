"""Any decoder-only transformers model as a target, unmodified."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, PreTrainedModel, SuppressTokensLogitsProcessor

from mmspec.engine.cache import TreeCache, cache_kwarg, causal, positions
from mmspec.engine.state import Output, PromptEmbeds, State
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError

# Passes are padded to at least this many nodes. Matrix libraries sum one to three rows in another order than four and more; from four
# on, passes of every width agree bit for bit on the CPU, in bfloat16 and float32 alike (docs/how-it-works.md has the figures).
MIN_QUERY_LEN = 4

# The cache is a multiple of this many slots, so that prompts of other lengths do not change the width of attention.
SLOT_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of every row; with `unconditional` prompts, a second stream guides the first by `guidance`.

    guided logits = unconditional + guidance * (conditional - unconditional)
    """

    conditional: list[list[int]]
    unconditional: list[list[int]] | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.unconditional is not None and len(self.unconditional) != len(self.conditional):
            raise MmspecError(
                f"{len(self.conditional)} prompts have {len(self.unconditional)} unconditional twins: give one each"
            )

    @property
    def branches(self) -> list[list[int]]:
        """All prompts, stream by stream."""
        return self.conditional + (self.unconditional or [])

    def part(self, rows: slice, guidance: float) -> "Prompts":
        """Some of the rows, guided if they have unconditional twins and guidance is not 1."""
        twins = self.unconditional[rows] if self.unconditional and guidance != 1 else None
        return Prompts(self.conditional[rows], twins, guidance if twins else 1.0)

    def alike(self, rows: int) -> "Prompts":
        """The first row, `rows` times."""
        return replace(
            self,
            conditional=self.conditional[:1] * rows,
            unconditional=self.unconditional and self.unconditional[:1] * rows,
        )


def refuse(model: PreTrainedModel) -> None:
    """Models whose logits or attention this target would get wrong raise MmspecError."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise MmspecError(
            f"{type(model).__name__} has an output head with a bias, which is not supported: use a model without one, such as Llama"
        )
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise MmspecError(
                f"{type(model).__name__} rescales its logits ({name}), which is not supported: use a model that does not, such as Llama"
            )
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager"):
        raise MmspecError(
            f"attention {attention!r} does not take tree masks: load the model with attn_implementation='sdpa' or 'eager'"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("longrope", "dynamic") or getattr(config, "alibi", False) or getattr(config, "attn_config", None):
        raise MmspecError(
            f"{type(model).__name__} has positions that depend on the whole sequence, which is not supported: use plain RoPE, such as Llama"
        )
    kinds = set(getattr(config, "layer_types", None) or [])
    windowed = getattr(config, "sliding_window", None) and (not kinds or "sliding_attention" in kinds)
    if windowed or kinds - {"full_attention", "sliding_attention"}:
        raise MmspecError(
            f"{type(model).__name__} has sliding-window or recurrent layers, which the tree cache cannot hold: use a model with full attention"
        )


def projection(
    head: Float[Tensor, "vocab width"],
) -> Callable[[Float[Tensor, "node width"]], Float[Tensor, "node vocab"]]:
    """Logits in float32, or float64 for such a head.

    FBGEMM (x86 CPUs) reads weights of 16 bits and multiplies and sums in float32: half the memory, several times as fast,
    and the same bits for a node however many there are. It reads bfloat16 as float16, which is exact down to 2^-17 and off
    by at most 2^-25 below. It has no gradient.
    """
    wide = torch.float64 if head.dtype == torch.float64 else torch.float32
    if head.device.type == "cpu" and head.element_size() == 2 and torch.backends.quantized.engine in ("x86", "fbgemm"):
        packed = torch.ops.quantized.linear_prepack_fp16(head.float(), None)
        return lambda nodes: torch.ops.quantized.linear_dynamic_fp16(nodes.float(), packed)
    weight = head.to(wide)

    def padded(nodes: Tensor) -> Tensor:
        few = max(0, MIN_QUERY_LEN - len(nodes))
        return F.linear(F.pad(nodes.to(wide), (0, 0, 0, few)), weight)[: len(nodes)]

    return padded


class CausalTarget:
    """A transformers causal language model that generates ids `offset ... offset + vocabulary - 1`.

    Token ids of the loop are model ids less `offset`. The final logits are always computed in float32 (float64 for a
    float64 model): bfloat16 logits tie too often for samples to be reproducible. `hash` names the weights, so that a
    drafter trained on others can be told. `min_query_len = 1` trades the bitwise agreement of narrow and wide passes for
    faster plain decoding.
    """

    def __init__(self, model: PreTrainedModel, offset: int = 0, vocabulary: int | None = None, weights_hash: str = ""):
        refuse(model)
        self.model = model.eval()
        self.weights_hash = weights_hash
        self.min_query_len = MIN_QUERY_LEN
        self.strict: frozenset[int] = frozenset()
        self.offset = offset
        self.decoder: Any = model.base_model
        head = model.get_output_embeddings()
        self.vocabulary_size = vocabulary or head.weight.shape[0] - offset
        if offset + self.vocabulary_size > head.weight.shape[0]:
            raise MmspecError(
                f"{self.vocabulary_size} tokens from id {offset} on were asked for, and the model's head has {head.weight.shape[0]}: "
                "give the model's own numbers"
            )
        self.head = head.weight.detach()[offset : offset + self.vocabulary_size]
        self.hidden_size = self.head.shape[1]
        self._project = projection(self.head)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_positions(self) -> int:
        """How many positions the model knows."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def logits(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape vocab"]:
        """The model's own head, in float32 or wider."""
        return self._project(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1)

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The model's own table; `ids` are the model's."""
        return self.model.get_input_embeddings()(ids)

    def sequence(self, prompt: Int[Tensor, "position"], tokens: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
        """What the model reads in the place of `tokens` after a prompt (the model's own ids)."""
        return tokens + self.offset

    def processor(self, start: int) -> LogitsProcessor:
        """What `transformers.generate` needs to follow the same law after prompts of `start` ids."""
        return SuppressTokensLogitsProcessor(list(range(self.offset)), device=str(self.device))

    def read(self, prompts: Prompts) -> list[PromptEmbeds]:
        """What the decoder is given for each stream's prompt."""
        every = [torch.tensor(ids, device=self.device) for ids in prompts.branches]
        return [PromptEmbeds(self.embed(ids), torch.arange(len(ids), device=self.device), ids >= 0) for ids in every]

    @torch.inference_mode()
    def prefill(self, prompts: Prompts, capacity: int, features: bool = False) -> State:
        streams = prompts.branches
        if any(not prompt for prompt in streams):
            raise MmspecError("a prompt has no tokens: give at least a beginning-of-sequence token")
        if any(one[-1] != other[-1] for one, other in zip(prompts.conditional, prompts.unconditional or [])):
            raise MmspecError(
                "a prompt and its unconditional twin differ in their last token: both streams read one tree, so they must end alike"
            )
        rows, longest = len(prompts.conditional), max(map(len, streams))
        most = self.max_positions
        if longest + capacity > most + 64:
            raise MmspecError(
                f"{longest} prompt tokens and {capacity} new ones exceed the model's {most} positions: shorten one of them"
            )
        slots = -(-(longest - 1 + capacity) // SLOT_MULTIPLE) * SLOT_MULTIPLE
        cache = TreeCache(self.model.config.get_text_config().num_hidden_layers, len(streams), slots, self.device)
        read = self.read(prompts)
        vectors = pad_sequence([one.vectors for one in read], batch_first=True)
        places = pad_sequence([one.places.movedim(0, -1) for one in read], batch_first=True)
        hidden = self._run(
            cache,
            vectors,
            causal(len(streams), longest, self.device),
            places.movedim(-1, 0) if places.ndim == 3 else places,
        )
        cache.lengths = [
            len(prompt) - 1 for prompt in streams
        ]  # the root's keys are in place, to be committed with the first token
        state = State(
            cache=cache,
            branches=len(streams) // rows,
            roots=torch.tensor([prompt[-1] - self.offset for prompt in prompts.conditional], device=self.device),
            tokens=[[] for _ in range(rows)],
            prompts=[torch.tensor(prompt, device=self.device) - self.offset for prompt in prompts.conditional],
            features=self.head.new_zeros(
                len(streams) // rows, rows, capacity if features else 0, self.hidden_size, dtype=self.dtype
            ),
            context=[(one, row[: len(one.vectors) - 1]) for one, row in zip(read, hidden)] if features else [],
            shift=torch.tensor([[one.shift] for one in read], device=self.device),
            ahead=[],
            options={"guidance": prompts.guidance},
        )
        last = torch.stack([row[len(prompt) - 1] for row, prompt in zip(hidden, streams, strict=True)])
        last = rearrange(last, "(stream row) width -> stream row 1 width", row=rows)
        logits = self.guide(state, self.logits(last), torch.zeros(rows, 1, dtype=torch.long, device=self.device))
        state.ahead = [Output(logits[row : row + 1], last[:, row : row + 1]) for row in range(rows)]
        return state

    @torch.inference_mode()
    def forward(self, state: State, tree: DraftTree, ids: Int[Tensor, "row node"] | None = None) -> Output:
        """`ids` are what the model reads in the nodes' places, their tokens' own if left out."""
        depths = tree.depths.repeat(state.branches, 1)
        ids = (tree.tokens + self.offset if ids is None else ids).repeat(state.branches, 1)
        # Rows ahead of the others, and stopped ones, get nodes beyond the end: what is said there is never kept.
        where = positions(state.cache.lengths, depths).clamp(max=self.max_positions - 1) + state.shift
        hidden = self._run(state.cache, self.embed(ids), tree.ancestors().repeat(state.branches, 1, 1), where)
        hidden = rearrange(hidden, "(stream row) node width -> stream row node width", stream=state.branches)
        places = positions(state.counts, tree.depths)
        return Output(self.guide(state, self.logits(hidden), places), hidden)

    def guide(
        self, state: State, logits: Float[Tensor, "stream row node vocab"], places: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        if state.branches == 1:
            return logits[0]
        conditional, unconditional = logits
        return unconditional + state.options["guidance"] * (conditional - unconditional)

    def _run(
        self,
        cache: TreeCache,
        vectors: Float[Tensor, "row node width"],
        ancestors: Bool[Tensor, "row node node"],
        places: Tensor,
    ) -> Float[Tensor, "row node width"]:
        width = vectors.shape[1]
        few = max(0, self.min_query_len - width)
        if few:
            vectors, places = F.pad(vectors, (0, 0, 0, few)), F.pad(places, (0, few))
            ancestors = F.pad(ancestors, (0, few, 0, few)) | torch.eye(
                width + few, dtype=torch.bool, device=vectors.device
            )
        cache.open(width + few)
        mask = cache.mask(ancestors)
        if self.decoder.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        kept = cache_kwarg(self.decoder, cache)
        out = self.decoder(inputs_embeds=vectors, attention_mask=mask, position_ids=places, use_cache=True, **kept)
        if not cache.layers[0].is_initialized:
            raise MmspecError(
                f"{type(self.model).__name__} does not use the cache that it is given: use a transformer with attention"
            )
        return out.last_hidden_state[:, :width]
