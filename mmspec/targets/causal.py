"""Decoder-only transformers models as targets, without changes to the model."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmspec.engine.cache import KV_BLOCK, RowCache, TreeCache, cache_kwarg
from mmspec.engine.compiled import CompiledPass, graph_slots, padded_width
from mmspec.engine.state import Output, PromptEmbeds, State
from mmspec.engine.tree import MAX_TREE_NODES, DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.base import Features, Grid, Prompts
from mmspec.targets.head import MIN_QUERY_LEN, LayeredHead, OutputHead, finish_of
from mmspec.targets.hidden import LayerInputs, in_this_thread, layer_inputs
from mmspec.targets.masks import masks_of, windows_of
from mmspec.targets.own import OwnModel
from mmspec.targets.probe import ATTENTION, branching_error, probe, refuse, refuse_other_heads

__all__ = ["CausalTarget", "Prompts"]

# The number of cache slots is rounded up to a multiple of this, so that small differences in prompt length do not
# change the number of key slots that attention reads.
SLOT_MULTIPLE = 128


class CausalTarget(OwnModel):
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
    # Kinds of layers that are understood.
    layer_kinds: ClassVar[frozenset[str]] = ATTENTION
    # How `probe` says that logits differ.
    unlike: ClassVar[str] = "with the tree cache: they differ by {error:.1e} of their spread with {slots} slots"

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Sequence[int] | None = None,
        weights_hash: str = "",
        check: bool = True,
    ):
        refuse(model, self.layer_kinds, self.families)
        self.model = model.eval()
        self.weights_hash = weights_hash
        self.min_query_len = MIN_QUERY_LEN
        self.deterministic = False
        self.passes: CompiledPass | None = None
        self.protected: frozenset[int] = frozenset()
        self.grid: Grid | None = None
        self.decoder = self.find_decoder()
        self._windows = windows_of(self.decoder.config)
        rows = self.head_rows()
        ids = range(rows) if vocabulary is None else vocabulary
        if not ids or min(ids) < 0 or max(ids) >= rows:
            raise MmspecError(
                f"vocabulary has {len(ids)} ids from {min(ids, default=0)} to {max(ids, default=-1)}, but the model's "
                f"output head has {rows} rows: give at least one id, all from 0 to {rows - 1}"
            )
        self.vocabulary_size = len(ids)
        self.vocabulary = torch.tensor(list(ids), device=model.device)
        self._tokens = {model_id: token for token, model_id in enumerate(ids)}
        self.head = self.build_head(ids)
        self.hidden_size: int = self.head.width
        self._checked_slots = KV_BLOCK if check else None
        if check:
            probe(self, min(KV_BLOCK, self.max_positions))
            refuse_other_heads(type(model), model.config, self.families)

    def find_decoder(self) -> PreTrainedModel:
        """The part of the model that reads input vectors and gives hidden states."""
        # Llama 4's first two are itself, and ModernBERT's first is its output head.
        parts = (self.model.get_decoder(), self.model.base_model, *self.model.children())
        own = (part for part in parts if isinstance(part, PreTrainedModel) and part is not self.model)
        return next(own, self.model)

    def layer_inputs(self, numbers: Sequence[int]) -> AbstractContextManager[LayerInputs]:
        """Keep what enters the decoder's layers of these numbers while it runs."""
        return layer_inputs(self.decoder, self.model.config.get_text_config().num_hidden_layers, numbers)

    def head_rows(self) -> int:
        """How many ids the model's output head knows."""
        return len(self.model.get_output_embeddings().weight)

    def build_head(self, ids: Sequence[int]) -> OutputHead | LayeredHead:
        """The model's output head for the ids of the vocabulary."""
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        contiguous = list(ids) == list(range(ids[0], ids[0] + len(ids)))
        rows = slice(ids[0], ids[0] + len(ids)) if contiguous else self.vocabulary
        return OutputHead(weight[rows], None if bias is None else bias[rows], *finish_of(self.model, self.decoder))

    @property
    def chains_only(self) -> bool:
        """Whether drafts are cut to chains."""
        return self.deterministic

    @property
    def compiled(self) -> bool:
        """Whether passes run as compiled graphs (`engine.compiled`), which have not failed. Setting it raises
        MmspecError for a target that cannot.
        """
        return self.passes is not None and not self.passes.graphs.failed

    @compiled.setter
    def compiled(self, value: bool) -> None:
        if not value:
            self.passes = None
            return
        spread = getattr(self.model, "hf_device_map", None) or getattr(self.model, "hf_quantizer", None)
        shared = getattr(self.decoder.config, "num_kv_shared_layers", None)
        if not self._runs_plainly() or spread or shared:
            raise MmspecError(
                f"passes of {type(self.model).__name__} cannot be compiled here: leave compile out (models that are "
                "quantised, on several devices, recurrent, or whose layers share keys run uncompiled)"
            )
        self.passes = self.passes or CompiledPass(self.decoder, self.tolerance, self.layer_inputs)

    def _runs_plainly(self) -> bool:
        """Whether passes of this kind of target are those of any decoder with attention."""
        names = ("run", "pass_inputs", "tree_cache")
        return all(getattr(type(self), name) is getattr(CausalTarget, name) for name in names)

    def first_layers(self, count: int) -> "CausalTarget":
        """This target with its first `count` layers alone, and its own norm and head behind them.

        It shares the weights, and reads and writes the same caches, of whose other layers it knows nothing. Raises
        MmspecError for a decoder that is no stack of attention layers.
        """
        layers: Any = getattr(self.decoder, "layers", None)
        config = self.decoder.config
        stack = self._runs_plainly() and isinstance(layers, nn.ModuleList) and hasattr(self.decoder, "norm")
        # Layers with inputs or keys of others; a forward of its own, such as accelerate's, would run all layers.
        tangled = ("hidden_size_per_layer_input", "num_kv_shared_layers")
        own = "forward" in vars(self.decoder) or any(getattr(config, name, None) for name in tangled)
        if not stack or own or not 0 < count < len(layers):
            raise MmspecError(
                f"{type(self.model).__name__} is no stack of attention layers with a norm behind it, of which a part "
                "could draft: use another drafter than del, such as lookup"
            )
        first, decoder = copy.copy(self), copy.copy(self.decoder)
        decoder._modules = {**decoder._modules, "layers": layers[:count]}
        decoder.config = copy.deepcopy(decoder.config)
        decoder.config.num_hidden_layers = count
        if getattr(decoder.config, "layer_types", None):
            decoder.config.layer_types = decoder.config.layer_types[:count]
        first.decoder, first.passes = decoder, None
        return first

    @property
    def max_positions(self) -> int:
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or 2**31
        if getattr(config, "attn_temperature_tuning", None):
            # Llama 4 scales later queries by how many tokens its cache holds, and not by their positions.
            most = min(most, int(config.floor_scale) - 1 - MAX_TREE_NODES)
        return most

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

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        """What the model's forward is given for each sequence, every prompt of every CFG branch, beside its ids."""
        return [{} for _ in prompts.branches]

    def is_text(self, ids: Int[Tensor, "position"]) -> Bool[Tensor, "position"]:
        """Which positions of a prompt are text: all of them."""
        return torch.ones_like(ids, dtype=torch.bool)

    def read_prompt(
        self, cache: RowCache, sequence: int, prompt: list[int], inputs: dict[str, Tensor]
    ) -> tuple[PromptEmbeds, Float[Tensor, "position width"]]:
        """Let the model's own forward read a prompt into the cache of a sequence.

        Returns what it gave its decoder, and the decoder's last hidden states. The masks are the model's own, and so
        is what it makes of pictures and sounds.
        """
        ids = torch.tensor(prompt, device=self.device)
        embeddings = getattr(self.model.get_input_embeddings(), "weight", None)  # CSM's are of another kind
        known = max(prompt) + 1 if embeddings is None else len(embeddings)
        if max(prompt) >= known and bool((ids[self.is_text(ids)] >= known).any()):
            raise MmspecError(
                f"the prompt has the id {max(prompt)}, and the model has embeddings of {known}: give the tokenizer of "
                "this model"
            )
        seen: dict[str, Tensor] = {}
        hooks = [
            self.decoder.register_forward_pre_hook(
                in_this_thread(lambda _, args, kwargs: seen.update(kwargs)), with_kwargs=True
            ),
            self.decoder.register_forward_hook(in_this_thread(lambda _, args, output: seen.update(hidden=output[0]))),
        ]
        parameters = signature(self.model.forward).parameters
        options: dict = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        if "attention_mask" in parameters:  # some models find positions of pictures only where there is one
            options["attention_mask"] = torch.ones_like(ids)[None]
        options |= {key: value for key, value in inputs.items() if key in parameters}
        try:
            self.forward_prompt(cache, sequence, ids[None], options)
        finally:
            for hook in hooks:
                hook.remove()
        positions, vectors, shift = seen.get("position_ids"), seen.get("inputs_embeds"), 0
        if positions is None:
            positions = torch.arange(len(ids), device=self.device)
        else:
            # Qwen3-Omni gives whole numbers as floats.
            positions = (positions[-3:, 0] if positions.ndim == 3 else positions[0]).long()
            shift = int(positions.max()) + 1 - len(ids)
        vectors = self.model.get_input_embeddings()(ids) if vectors is None else vectors[0]
        return PromptEmbeds(ids, vectors, positions, self.is_text(ids), shift), seen["hidden"][0]

    @torch.inference_mode()
    def prefill(self, prompts: Prompts, capacity: int, features: Features = False) -> State:
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
        # Nodes beyond the last position are never committed, and the last new token is never read.
        if (new := capacity - MAX_TREE_NODES - 1) > most - longest:
            raise MmspecError(
                f"{longest} prompt tokens and {new} new ones exceed the model's {most} positions: shorten the prompt "
                "or ask for fewer tokens"
            )
        inputs = self.prompt_inputs(prompts)
        if features and getattr(self.decoder.config, "num_kv_shared_layers", None):
            # Asked for the last logits by their number, layers without keys of their own (Gemma 4) read nothing else.
            for prompt, options in zip(sequences, inputs, strict=True):
                options["logits_to_keep"] = torch.tensor([len(prompt) - 1], device=self.device)
        cache = self.new_cache(longest - 1 + capacity, inputs)
        numbers, read, kept = features if isinstance(features, tuple) else (), [], []
        for sequence, given in enumerate(zip(sequences, inputs, strict=True)):
            with self.layer_inputs(numbers) as entered:
                read.append(self.read_prompt(cache, sequence, *given))
            kept.append(entered.or_last(read[-1][1][None])[0])
        # Keys and values of the last prompt token, the root, are already written after the committed slots. They are
        # committed together with the first generated token.
        cache.advance([len(prompt) - 1 for prompt in sequences])
        last, newest = (
            rearrange([states[-1] for states in part], "(branch row) width -> branch row 1 width", row=rows)
            for part in ([hidden for _, hidden in read], kept)
        )
        logits, branches, width = self.logits(last), len(sequences) // rows, capacity if features else 0
        state = State(
            cache=cache,
            branches=branches,
            guidance=prompts.guidance,
            roots=torch.tensor(self.tokens([prompt[-1] for prompt in prompts.conditional]), device=self.device),
            tokens=[[] for _ in range(rows)],
            prompt_ids=[
                self.tokens([*padding, *prompt])
                for padding, prompt in zip(prompts.padding or [[]] * rows, prompts.conditional, strict=True)
            ],
            features=newest.new_zeros(branches, rows, width, newest.shape[-1]),
            prompt_hidden=[(prompt, states[:-1]) for (prompt, _), states in zip(read, kept)] if features else [],
            position_shift=torch.tensor([[prompt.position_shift] for prompt, _ in read], device=self.device),
            prefill_output=Output(logits[0], newest),
            feature_layers=numbers,
        )
        first = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        state.prefill_output = Output(self.guide(state, logits, first), newest)
        return state

    def new_cache(self, length: int, inputs: Sequence[dict[str, Tensor]]) -> RowCache:
        """An empty cache for `length` entries of every sequence, which have these `prompt_inputs`."""
        multiple = KV_BLOCK if self.deterministic else SLOT_MULTIPLE
        slots = -(-length // multiple) * multiple
        if self.passes:  # few shapes, each of which is compiled
            slots = graph_slots(length)
        self._check_width(slots)
        return self.tree_cache(slots, inputs, min_visible=slots if self.passes else 0)

    def tree_cache(self, slots: int, inputs: Sequence[dict[str, Tensor]] = ({},), min_visible: int = 0) -> TreeCache:
        """An empty tree cache of so many slots."""
        layers = self.model.config.get_text_config().num_hidden_layers
        return TreeCache(layers, len(inputs), slots, self.device, min_visible)

    def pass_inputs(
        self, cache: TreeCache, nodes: Int[Tensor, "sequence node"], depths: Int[Tensor, "sequence node"]
    ) -> dict:
        """What the decoder is given for new nodes, beside masks and positions: the nodes, and the cache."""
        return self.decoder_inputs(nodes) | cache_kwarg(self.decoder, cache)

    def forward_prompt(self, cache: RowCache, sequence: int, ids: Int[Tensor, "1 position"], options: dict) -> None:
        """Run the model's own forward on a prompt, and keep its keys and values as those of a sequence."""
        assert isinstance(cache, TreeCache)
        cache.open_row(sequence, ids.shape[1])
        self.model(input_ids=ids, use_cache=True, **options, **cache_kwarg(self.model, cache))

    def largest_error(self, slots: int) -> float:
        """What `probe` looks at: the largest error of any node's logits with a cache of `slots` slots, as a share of
        their spread.
        """
        return branching_error(self, slots)

    def _check_width(self, slots: int) -> None:
        """Probe the model when it needs a wider cache than ever before; widths go by powers of two."""
        if self._checked_slots is None or slots <= self._checked_slots:
            return
        wider = KV_BLOCK * 2 ** ((slots - 1) // KV_BLOCK).bit_length()
        probe(self, wider)
        self._checked_slots = wider

    def readable(self, state: State, tree: DraftTree) -> DraftTree:
        """The part of a draft that one pass verifies: a chain, if `chains_only`."""
        return tree.first_children() if self.chains_only else tree

    @torch.inference_mode()
    def forward(self, state: State, tree: DraftTree) -> Output:
        """One pass over the tree; nothing is committed."""
        ids = self.node_ids(state, tree).repeat(state.branches, 1)
        ancestors, depths = tree.ancestors.repeat(state.branches, 1, 1), tree.depths.repeat(state.branches, 1)
        position_ids = self.position_ids(state, tree.depths)
        hidden, features = (
            rearrange(part, "(branch row) node width -> branch row node width", branch=state.branches)
            for part in self.run(state.cache, ids, ancestors, depths, position_ids, state.feature_layers)
        )
        positions = torch.tensor(state.counts, device=self.device)[:, None] + tree.depths
        return Output(self.guide(state, self.logits(hidden, positions.expand(hidden.shape[:-1])), positions), features)

    def node_ids(self, state: State, tree: DraftTree) -> Int[Tensor, "row node"]:
        """What the model reads for the nodes of a tree, as `decoder_inputs` takes it."""
        return self.ids(tree.tokens)

    def decoder_inputs(self, nodes: Int[Tensor, "sequence node"]) -> dict[str, Tensor]:
        """What the decoder is given for nodes: their ids, or input vectors."""
        return {"input_ids": nodes}

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
        cache: RowCache,
        ids: Int[Tensor, "sequence node"],
        ancestors: Bool[Tensor, "sequence node node"],
        depths: Int[Tensor, "sequence node"],
        position_ids: Int[Tensor, "*axis sequence node"],
        numbers: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "sequence node width"], Float[Tensor, "sequence node wide"]]:
        """Run the decoder on new nodes; their last hidden states, and what entered the layers of these numbers side by
        side (the last states again without any).

        Keys and values are written to the slots after the committed ones. The pass is padded to at least
        `min_query_len` nodes; the padding is not returned. `ancestors[b, i, j]` says that node i attends to node j, and
        `depths` are below the last committed token.
        """
        assert isinstance(cache, TreeCache)
        width = ids.shape[1]
        compiled = self.passes if cache.written and cache.min_visible == cache.capacity else None
        padding = max(padded_width(width) if compiled else width, self.min_query_len) - width
        if padding:
            ids, depths, position_ids = (F.pad(values, (0, padding)) for values in (ids, depths, position_ids))
            own = torch.eye(width + padding, dtype=torch.bool, device=ids.device)
            ancestors = F.pad(ancestors, (0, padding, 0, padding)) | own
        cache.open(width + padding)
        masks = masks_of(self.decoder, self._windows, cache, ancestors, depths)
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        if compiled:
            last, features = compiled(self.decoder_inputs(ids), mask, position_ids, cache, numbers)
            return last[:, :width], features[:, :width]
        with self.layer_inputs(numbers) as entered:
            output = self.decoder(
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=True,
                **self.pass_inputs(cache, ids, depths),
            )
        if not cache.layers[0].is_initialized:
            raise MmspecError(
                f"{type(self.model).__name__} does not use the cache that it is given: use a transformer with attention"
            )
        last = output.last_hidden_state[:, :width]
        return last, entered.or_last(last)
