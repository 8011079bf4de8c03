"""Decoder-only transformers models as targets, without changes to the model."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, PreTrainedModel, SuppressTokensLogitsProcessor

from mmspec.engine.cache import KV_BLOCK, TreeCache, cache_kwarg, causal
from mmspec.engine.state import Output, PromptEmbeds, State
from mmspec.engine.tree import MAX_TREE_NODES, DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.head import MIN_QUERY_LEN, OutputHead
from mmspec.targets.probe import probe, refuse, refuse_other_heads

__all__ = ["CausalTarget", "Prompts"]

# The number of cache slots is rounded up to a multiple of this, so that small differences in prompt length do not
# change the number of key slots that attention reads.
SLOT_MULTIPLE = 128


class CausalTarget:
    """A transformers causal language model that generates only the model ids in `vocabulary` (None: all of its ids).

    Token t of the loop stands for the model id `vocabulary[t]`. A model id that is not in the vocabulary, which can
    occur in prompts only, is represented by the negative token -1 - id. Logits are computed in float32 (float64 for a
    float64 model). Setting `min_query_len = 1` makes plain decoding faster, but narrow and wide passes may then differ
    in the last bits.

    On construction, and whenever a wider cache is needed than was tested before, the logits obtained with the tree
    cache are compared with those of the model's own `forward` (`targets.probe`). `check=False` skips these tests.
    Raises MmspecError for a model that is not supported or that fails the test.
    """

    # Values of `config.model_type` that a subclass knows beside causal language models.
    families: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Sequence[int] | None = None,
        weights_hash: str = "",
        check: bool = True,
    ):
        refuse(model)
        self.model = model.eval()
        self.weights_hash = weights_hash
        self.min_query_len = MIN_QUERY_LEN
        self.deterministic = False
        self.protected: frozenset[int] = frozenset()
        self.grid: Grid | None = None
        self.decoder = self.find_decoder()
        weight: Tensor = model.get_output_embeddings().weight
        ids = range(len(weight)) if vocabulary is None else vocabulary
        if not ids or min(ids) < 0 or max(ids) >= len(weight):
            raise MmspecError(
                f"vocabulary has {len(ids)} ids from {min(ids, default=0)} to {max(ids, default=-1)}, but the model's "
                f"output head has {len(weight)} rows: give at least one id, all from 0 to {len(weight) - 1}"
            )
        self.vocabulary_size = len(ids)
        self.vocabulary = torch.tensor(list(ids), device=model.device)
        self._tokens = {model_id: token for token, model_id in enumerate(ids)}
        contiguous = list(ids) == list(range(ids[0], ids[0] + len(ids)))
        self.head = OutputHead(weight[ids[0] : ids[0] + len(ids)] if contiguous else weight[self.vocabulary])
        self.hidden_size: int = weight.shape[1]
        self._checked_slots = KV_BLOCK if check else None
        if check:
            probe(self, min(KV_BLOCK, self.max_positions))
            refuse_other_heads(model, self.families)

    def find_decoder(self) -> PreTrainedModel:
        """The part of the model that reads input vectors and gives hidden states."""
        return self.model.base_model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def max_positions(self) -> int:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def logits(
        self, hidden: Float[Tensor, "*shape width"], positions: Int[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape vocab"]:
        """Logits by the model's output head, in float32 or wider. `positions` is ignored: they share one head."""
        return self.head(hidden)

    def embed(
        self, tokens: Int[Tensor, "*shape"], positions: Int[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape width"]:
        """Input embeddings of tokens. `positions` is ignored: the embedding does not depend on the position."""
        return self.model.get_input_embeddings()(self.ids(tokens))

    def ids(self, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The model's ids of tokens."""
        return torch.where(tokens < 0, -1 - tokens, self.vocabulary[tokens.clamp(min=0)])

    def tokens(self, ids: Sequence[int]) -> list[int]:
        """Tokens of the model's ids; those outside the vocabulary are negative."""
        return [self._tokens.get(model_id, -1 - model_id) for model_id in ids]

    def model_ids(self, prompt: Int[Tensor, "position"], tokens: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
        """The model ids that are fed to the model for generated `tokens` after `prompt`, which is given as model ids.

        Here they are `ids(tokens)`; a subclass may let them depend on the prompt.
        """
        return self.ids(tokens)

    def generate_processor(self, start: int) -> LogitsProcessor:
        """What `transformers.generate` needs to generate the same tokens after prompts of `start` ids."""
        other = set(range(self.model.get_output_embeddings().weight.shape[0])) - self._tokens.keys()
        return SuppressTokensLogitsProcessor(sorted(other), device=str(self.device))

    def embed_prompts(self, prompts: Prompts) -> list[PromptEmbeds]:
        """What the decoder is given for each sequence: every prompt of every CFG branch."""
        embeds = []
        for prompt in prompts.branches:
            ids = torch.tensor(prompt, device=self.device)
            vectors = self.model.get_input_embeddings()(ids)
            embeds.append(PromptEmbeds(vectors, torch.arange(len(ids), device=self.device), ids >= 0))
        return embeds

    @torch.inference_mode()
    def prefill(self, prompts: Prompts, capacity: int, features: bool = False) -> State:
        """Read the prompts; see `Target`. Raises MmspecError for prompts that cannot be read or are too long."""
        sequences = prompts.branches
        if any(not prompt for prompt in sequences):
            raise MmspecError("a prompt has no tokens: give at least a beginning-of-sequence token")
        if any(prompt[-1] != other[-1] for prompt, other in zip(prompts.conditional, prompts.unconditional or [])):
            raise MmspecError(
                "a prompt and its unconditional prompt differ in their last token: both CFG branches verify the same "
                "tree, whose root is that token, so it must be the same"
            )
        rows, longest, most = len(prompts.conditional), max(map(len, sequences)), self.max_positions
        if longest + capacity > most + MAX_TREE_NODES:
            raise MmspecError(
                f"{longest} prompt tokens and {capacity - MAX_TREE_NODES} positions for new tokens exceed the model's "
                f"{most} positions: shorten the prompt or ask for fewer tokens"
            )
        multiple = KV_BLOCK if self.deterministic else SLOT_MULTIPLE
        slots = -(-(longest - 1 + capacity) // multiple) * multiple
        self._check_width(slots)
        layers = self.model.config.get_text_config().num_hidden_layers
        cache = TreeCache(layers, len(sequences), slots, self.device)
        embeds = self.embed_prompts(prompts)
        vectors = pad_sequence([prompt.vectors for prompt in embeds], batch_first=True)
        ids = pad_sequence([prompt.position_ids.movedim(0, -1) for prompt in embeds], batch_first=True)
        ids = ids.movedim(-1, 0) if ids.ndim == 3 else ids
        hidden = self.run(cache, vectors, causal(len(sequences), longest, self.device), ids)
        # Keys and values of the last prompt token, the root, are already written after the committed slots. They are
        # committed together with the first generated token.
        cache.advance([len(prompt) - 1 for prompt in sequences])
        last = torch.stack([row[len(prompt) - 1] for row, prompt in zip(hidden, sequences, strict=True)])
        last = rearrange(last, "(branch row) width -> branch row 1 width", row=rows)
        logits, branches, width = self.logits(last), len(sequences) // rows, capacity if features else 0
        state = State(
            cache=cache,
            branches=branches,
            guidance=prompts.guidance,
            roots=torch.tensor(self.tokens([prompt[-1] for prompt in prompts.conditional]), device=self.device),
            tokens=[[] for _ in range(rows)],
            prompt_ids=[self.tokens(prompt) for prompt in prompts.conditional],
            features=last.new_zeros(branches, rows, width, self.hidden_size),
            prompt_hidden=[(prompt, row[: len(prompt.vectors) - 1]) for prompt, row in zip(embeds, hidden)]
            if features
            else [],
            position_shift=torch.tensor([[prompt.position_shift] for prompt in embeds], device=self.device),
            prefill_output=Output(logits[0], last),
        )
        first = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        state.prefill_output = Output(self.guide(state, logits, first), last)
        return state

    def _check_width(self, slots: int) -> None:
        """Probe the model when it needs a wider cache than ever before; widths go by powers of two."""
        if self._checked_slots is None or slots <= self._checked_slots:
            return
        wider = KV_BLOCK * 2 ** ((slots - 1) // KV_BLOCK).bit_length()
        probe(self, wider)
        self._checked_slots = wider

    @torch.inference_mode()
    def forward(self, state: State, tree: DraftTree) -> Output:
        """One pass over the tree; nothing is committed."""
        ids = self.node_ids(state, tree).repeat(state.branches, 1)
        vectors, ancestors = self.model.get_input_embeddings()(ids), tree.ancestors.repeat(state.branches, 1, 1)
        hidden = self.run(state.cache, vectors, ancestors, self.position_ids(state, tree.depths))
        hidden = rearrange(hidden, "(branch row) node width -> branch row node width", branch=state.branches)
        positions = torch.tensor(state.counts, device=self.device)[:, None] + tree.depths
        return Output(self.guide(state, self.logits(hidden, positions.expand(hidden.shape[:-1])), positions), hidden)

    def node_ids(self, state: State, tree: DraftTree) -> Int[Tensor, "row node"]:
        """What the model reads for the nodes of a tree."""
        return self.ids(tree.tokens)

    def position_ids(self, state: State, depths: Int[Tensor, "row node"]) -> Int[Tensor, "*axis sequence node"]:
        # All rows get a tree of the same height. In rows that are longer than the others, or that have stopped, nodes
        # may lie beyond the model's last position. Such nodes are never committed, so their position ids are clamped.
        ids = state.cache.lengths[:, None] + depths.repeat(state.branches, 1)
        return ids.clamp(max=self.max_positions - 1) + state.position_shift

    def guide(
        self, state: State, logits: Float[Tensor, "branch row node vocab"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """Classifier-free guidance; see `Prompts`."""
        if state.branches == 1:
            return logits[0]
        conditional, unconditional = logits
        return unconditional + state.guidance * (conditional - unconditional)

    def run(
        self,
        cache: TreeCache,
        vectors: Float[Tensor, "sequence node width"],
        ancestors: Bool[Tensor, "sequence node node"],
        position_ids: Int[Tensor, "*axis sequence node"],
    ) -> Float[Tensor, "sequence node width"]:
        """Run the decoder on new nodes and return their last hidden states.

        Keys and values are written to the slots after the committed ones. The pass is padded to at least
        `min_query_len` nodes; the padding is not returned. `ancestors[b, i, j]` says that node i attends to node j.
        """
        width = vectors.shape[1]
        padding = max(0, self.min_query_len - width)
        if padding:
            vectors, position_ids = F.pad(vectors, (0, 0, 0, padding)), F.pad(position_ids, (0, padding))
            own = torch.eye(width + padding, dtype=torch.bool, device=vectors.device)
            ancestors = F.pad(ancestors, (0, padding, 0, padding)) | own
        cache.open(width + padding)
        mask = cache.mask(ancestors)
        if self.decoder.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        kwargs = cache_kwarg(self.decoder, cache)
        output = self.decoder(
            inputs_embeds=vectors, attention_mask=mask, position_ids=position_ids, use_cache=True, **kwargs
        )
        if not cache.layers[0].is_initialized:
            raise MmspecError(
                f"{type(self.model).__name__} does not use the cache that it is given: use a transformer with attention"
            )
        return output.last_hidden_state[:, :width]
