"""Gemma 4's assistants: small layers that read the keys and values of the target itself.

The model is transformers' own, `Gemma4AssistantForCausalLM`, whose forward is the description; it is called here with
the target's tree cache in place of the states that its `generate` hands over.
"""

from collections.abc import Sequence
from inspect import signature
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Gemma4TextConfig, PreTrainedConfig
from transformers.models.gemma4_assistant.configuration_gemma4_assistant import Gemma4AssistantConfig
from transformers.models.gemma4_assistant.modeling_gemma4_assistant import Gemma4AssistantForCausalLM

from mmspec.drafters.layouts import Files
from mmspec.drafters.shapes import check_size, drafted_tokens
from mmspec.drafters.tree_drafter import TreeDrafter
from mmspec.engine.accept import Committed
from mmspec.engine.cache import TreeCache
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target
from mmspec.targets.causal import CausalTarget
from mmspec.targets.hidden import layers_of

# What configurations say at the top.
KNOWN = (
    "backbone_hidden_size",
    "use_ordered_embeddings",
    "num_centroids",
    "centroid_intermediate_top_k",
    "text_config",
)
# Of layers that share keys and values, in some files and without effect.
IDLE = ("k_proj.weight", "v_proj.weight", "k_norm.weight", "v_norm.weight")
# How far below the least of the tokens that are scored those are that are not, in nats.
FAR = 50.0


class Gemma4AssistantDrafter(TreeDrafter):
    """A token and the hidden state before it, the target's or the one that this model gave there, make one query, which
    reads what the target keeps of all committed tokens before the root: each layer those of the target's last layer of
    its kind that has keys of its own (`layers`). All queries of a draft stand at the root's position.

    Sliding layers see `sliding_window + 1` tokens before the root, as in transformers. With `use_ordered_embeddings`
    only the tokens of the best centroids are scored. `rows` are the ids that it drafts from, all if None, and `tokens`
    the target's tokens for them.
    """

    name = "gemma4-assistant"
    rows: Tensor | None

    def __init__(
        self,
        model: Gemma4AssistantForCausalLM,
        layers: dict[str, int],
        rows: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        depth: int = 6,
    ):
        super().__init__("", depth, tokens=tokens)
        self.model, self.read_layers, self.embed_tokens = model, layers, None
        # Of several queries transformers 5.24 would keep the last in a way that fails; a tensor keeps all.
        keeps = "logits_to_keep" in signature(model.model.forward).parameters
        self._options: dict = {"logits_to_keep": torch.tensor([0])} if keeps else {}
        self.register_buffer("rows", None if rows is None else torch.tensor(rows), persistent=False)

    def constructor_arguments(self) -> dict:
        raise MmspecError("a Gemma-4 assistant is saved by its own save_pretrained: drafter.model.save_pretrained")

    def _read_rows(self, state: State, rows: list[int]) -> None:
        """Nothing: all that there is to know is in the target's cache."""

    def _keep_rows(self, rows: list[int]) -> None:
        """Nothing, as above."""

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        self._plan.observe(committed, tree.height)

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = self._plan.height(limit, self.cost)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        target, cache = self.target, state.cache
        assert isinstance(cache, TreeCache)
        rows = torch.arange(state.rows, device=state.roots.device)[:, None]
        newest = torch.tensor(state.counts, device=rows.device)[:, None] - 1
        hidden = state.features[0, rows, newest].to(self.model.dtype)
        kept = {kind: cache.committed(number) for kind, number in self.read_layers.items()}
        masks = self._masks(cache, next(iter(kept.values()))[0].shape[2])
        position_ids = target.position_ids(state, torch.zeros_like(rows))

        def scores(
            depth: int, tokens: Int[Tensor, "row beam"], parent_index: Int[Tensor, "row beam"]
        ) -> Float[Tensor, "row beam drafted"]:
            nonlocal hidden
            vectors = self.embed(target, tokens).to(hidden.dtype)
            beam = tokens.shape[1]
            output = self.model.model(
                inputs_embeds=self.model.pre_projection(torch.cat([vectors, hidden[rows, parent_index]], -1)),
                attention_mask={kind: mask.expand(-1, -1, beam, -1) for kind, mask in masks.items()},
                position_ids=position_ids.expand(-1, beam),
                shared_kv_states=dict(kept),
                use_cache=False,
                **self._options,
            ).last_hidden_state
            hidden = self.model.post_projection(output)
            return self.sampling.scores(self.logits(output))

        tree = self.grow(state, noise, height, scores)
        if not self.needs_draft_probs:
            self._plan.took(perf_counter() - began, height)
        return tree

    def _masks(self, cache: TreeCache, slots: int) -> dict[str, Bool[Tensor, "row 1 1 slot"]]:
        """What a query sees, by the kind of the layer."""
        lengths = cache.lengths[:, None, None, None]
        index = torch.arange(slots, device=cache.device)
        whole = index < lengths
        near = index >= lengths - 1 - self.model.config.get_text_config().sliding_window
        return {"full_attention": whole, "sliding_attention": whole & near}

    def logits(self, hidden: Float[Tensor, "row beam width"]) -> Float[Tensor, "row beam drafted"]:
        """Logits over the drafting vocabulary. With centroids, those of tokens that are not scored are far below."""
        head, embedder = self.model.lm_head.weight, self.model.masked_embedding
        if embedder is None:
            logits = hidden @ head.T
        else:
            clusters = embedder.token_ordering.view(embedder.num_centroids, -1)
            best = embedder.centroids(hidden).topk(embedder.centroid_intermediate_top_k).indices
            ids = clusters[best].flatten(2)
            scored = torch.einsum("rbd,rbnd->rbn", hidden, head[ids])
            least = scored.amin(2, keepdim=True) - FAR
            logits = least.expand(-1, -1, len(head)).scatter(2, ids, scored)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.rows is None else logits[..., self.rows]

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "Gemma4AssistantDrafter":
        """See `Gemma4AssistantDrafter`. Raises MmspecError for settings, tensors and targets that do not fit."""
        folder, text = files.folder, target.model.config.get_text_config()
        files.refuse_flags(files.config, KNOWN)
        known = {*Gemma4TextConfig().to_dict(), "global_head_dim", "num_global_key_value_heads", "per_layer_config"}
        files.refuse_flags(files.config.get("text_config") or {}, known)
        if reason := cls.misfit(files, text):
            raise MmspecError(f"drafter {str(folder)!r}: {reason}")
        config = Gemma4AssistantConfig.from_dict(files.config)
        check_size(folder, target, backbone_hidden_size=config.backbone_hidden_size)
        config._attn_implementation = "sdpa"
        model = Gemma4AssistantForCausalLM(config)
        assert isinstance(target, CausalTarget)
        layers = own_layers(text)
        check_keys(folder, model, target, layers)
        expected, embedding = model.state_dict(), "model.embed_tokens.weight"
        if config.tie_word_embeddings:
            del expected["lm_head.weight"]
        idle = {name for name in files.names if name.endswith(IDLE)} | {"lm_head.weight"} - expected.keys()
        tensors = files.read(expected, "Gemma-4 assistant", idle)
        model.load_state_dict({"lm_head.weight": tensors[embedding]} | tensors)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        if model.masked_embedding is not None:
            check_ordering(folder, model.masked_embedding.token_ordering, config)
        rows, tokens = drafted_tokens(target, torch.arange(len(model.lm_head.weight)))
        whole = rows == tokens == list(range(target.vocabulary_size)) and len(rows) == len(model.lm_head.weight)
        return cls(model, layers, None if whole else rows, None if whole else tokens)

    @classmethod
    def misfit(cls, files: Files, config: PreTrainedConfig) -> str:
        if config.model_type != "gemma4_text":
            return f"it reads the keys and values of a Gemma 4, and the target is a {config.model_type}"
        kinds = (files.config.get("text_config") or {}).get("layer_types") or []
        if missing := sorted(set(kinds) - own_layers(config).keys()):
            return f"it has layers of the kind {missing[0]}, the model has none that keeps keys and values"
        return ""


def own_layers(config: PreTrainedConfig) -> dict[str, int]:
    """The last layer of each kind that has keys and values of its own."""
    own = config.layer_types[: config.num_hidden_layers - config.num_kv_shared_layers]
    return {kind: number for number, kind in enumerate(own)}


def check_keys(folder: object, model: Gemma4AssistantForCausalLM, target: CausalTarget, layers: dict[str, int]) -> None:
    """Raise MmspecError for an assistant whose heads are not those of the keys that it would read."""
    theirs = layers_of(target.decoder, target.model.config.get_text_config().num_hidden_layers)
    config = model.config.get_text_config()
    for kind, layer in zip(config.layer_types, layers_of(model.model, config.num_hidden_layers), strict=True):
        own: Any = layer.self_attn
        other: Any = theirs[layers[kind]].self_attn
        shape = (config.num_attention_heads // own.num_key_value_groups, own.head_dim)
        kept = (other.k_proj.out_features // other.head_dim, other.head_dim)
        if shape != kept:
            raise MmspecError(
                f"drafter {str(folder)!r} was made for another target: its layers of the kind {kind} read {shape[0]} "
                f"heads of {shape[1]} numbers, and this target keeps {kept[0]} of {kept[1]}"
            )


def check_ordering(folder: object, ordering: Int[Tensor, "vocab"], config: Gemma4AssistantConfig) -> None:
    """Raise MmspecError unless the centroids share out all ids evenly."""
    size, count, best = len(ordering), config.num_centroids, config.centroid_intermediate_top_k
    if size % count or not 0 < best <= count:
        raise MmspecError(f"{folder}: {best} of {count} centroids cannot share {size} ids evenly: restore config.json")
    if not torch.equal(ordering.sort().values.cpu(), torch.arange(size)):
        raise MmspecError(
            f"{folder}: masked_embedding.token_ordering does not name every id once: download the file again"
        )
