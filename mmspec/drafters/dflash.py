"""DFlash (arXiv 2602.06036): a block of masked tokens that sees the target's states, filled in one pass; in the
spelling of its authors (github.com/z-lab/dflash) and of `speculators`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

from mmspec.drafters.blocks import Blocks
from mmspec.drafters.eagle3 import read_vocabulary
from mmspec.drafters.examples import DepthPredictions, Example, divergence, masked_mean, uniform
from mmspec.drafters.layouts import Files
from mmspec.drafters.shapes import (
    Rotary,
    check_layers,
    check_size,
    layer_config,
    layer_shape,
    layers_misfit,
    plain_layer,
    same_shape,
)
from mmspec.drafters.speculators import SpeculatorsDrafter
from mmspec.drafters.tree_drafter import Scores
from mmspec.engine.accept import Committed
from mmspec.engine.cache import TreeCache, cache_kwarg
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

# What configurations of this layout say, at the top and in `dflash_config`.
KNOWN = (
    *("block_size", "dflash_config", "draft_vocab_size", "mask_token_id", "aux_hidden_state_layer_ids"),
    *("sample_from_anchor", "target_hidden_size", "transformer_layer_config", "target_layer_ids", "num_anchors"),
    *("max_anchors", "has_no_defaults_at_init", "sliding_window_non_causal"),
    # Of Domino and of training, in every file of speculators.
    *("projector_type", "pure_draft_prefix_len", "emb_dim", "gru_hidden_dim", "auf"),
    *("lambda_base_start", "lambda_base_decay_ratio", "embed_requires_grad"),
)
IDLE = ("d2t", "t2d", "verifier_norm.weight", "verifier_lm_head.weight")

# Weight of a depth's loss against that of the depth before it: about that of DFlash for blocks of 8 and 10.
DECAY = 0.8

# Blocks of a sequence that are read at once for calibration.
BLOCKS = 64


class DFlashDrafter(SpeculatorsDrafter):
    """Layers of Qwen3 over a block: the last committed token and `block - 1` mask tokens, which see each other both
    ways and the context, the target's states at all positions before the block.

    What enters `feature_layers` of the target is made the context by `fc` and a norm; its keys and values are each
    layer's projections of it, at plain positions. Slot k of the block predicts the token k places after the last
    committed one, and slot 0 nothing; with `from_anchor`, slot k predicts the token k + 1 places after it.
    `own_embedding` and `own_head` are how many ids the weights bring vectors and logits for, 0 where the target's are
    used.

    `build` was our choice: it reads what enters three layers, every slot predicts (`from_anchor`), and training begins
    with the target's own last layers. The head is a frozen copy of the target's rows for the drafting vocabulary.
    """

    name = "dflash"
    architecture = "DFlashDraftModel"
    similar_lengths = True
    calibrates_greedy = True
    loss_options = ("anchors", "tv")
    recipe = {"steps": 600, "batch": 8, "lr": 1e-3, "muon_lr": 2e-3, "weight_decay": 0.0, "vocabulary": 8192}

    def __init__(
        self,
        shape: dict,
        feature_layers: Sequence[int],
        mask_token: int,
        block: int = 16,
        layers: int = 1,
        target_size: int = 0,
        from_anchor: bool = False,
        own_embedding: int = 0,
        own_head: int = 0,
        tokens: Sequence[int] | None = None,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        greedy: list[float] | None = None,
    ):
        super().__init__(target, block if from_anchor else block - 1, beta, coupling, greedy, tokens)
        config = layer_config(**shape, layers=layers)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.feature_layers, self.mask_token, self.from_anchor = tuple(feature_layers), mask_token, from_anchor
        self.layers = nn.ModuleList(plain_layer(config, shape["kind"], number) for number in range(layers))
        self.fc = nn.Linear((target_size or width) * len(self.feature_layers), width, bias=False)
        self.hidden_norm, self.norm = LlamaRMSNorm(width, eps), LlamaRMSNorm(width, eps)
        self.embed_tokens = nn.Embedding(own_embedding, width) if own_embedding else None
        self.lm_head = nn.Linear(width, own_head, bias=False) if own_head else None
        self.rotary = Rotary(config, {})

    @torch.inference_mode()
    def _read_rows(self, state: State, rows: list[int]) -> None:
        cache = TreeCache(len(self.layers), len(rows), state.cache.capacity + self.depth + 1, self.target.device)
        parts = [torch.cat([state.prompt_hidden[row][1], state.features[0, row, : state.counts[row]]]) for row in rows]
        self._extend(cache, parts)
        if len(rows) == state.rows:
            self._cache = cache
        else:
            self._cache.join(cache)

    def _keep_rows(self, rows: list[int]) -> None:
        self._cache.keep(rows)

    def _extend(self, cache: TreeCache, parts: list[Float[Tensor, "_ wide"]]) -> None:
        """Keep the keys and values of further context of each row."""
        features = pad_sequence(parts, batch_first=True)
        cache.open(features.shape[1])
        positions = cache.lengths[:, None] + torch.arange(features.shape[1], device=features.device)
        for number, (keys, values) in enumerate(self.context(features, positions)):
            cache.update(keys, values, number)
        cache.advance([len(part) for part in parts])

    def context(
        self, features: Float[Tensor, "row position wide"], positions: Int[Tensor, "row position"]
    ) -> Iterator[tuple[Float[Tensor, "row head position width"], Float[Tensor, "row head position width"]]]:
        """Keys and values of the target's states in each layer."""
        states = self.hidden_norm(self.fc(features.to(self.fc.weight.dtype)))
        cosines, sines = (part[:, None] for part in self.rotary(states, positions))
        for layer in self.layers:
            attention: Any = layer.self_attn
            keys, values = (
                part(states).unflatten(-1, (-1, attention.head_dim)) for part in (attention.k_proj, attention.v_proj)
            )
            keys = (attention.k_norm(keys) if hasattr(attention, "k_norm") else keys).transpose(1, 2)
            yield keys * cosines + rotate_half(keys) * sines, values.transpose(1, 2)

    @torch.inference_mode()
    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        counts = [len(tokens) for tokens in committed.tokens]
        if max(counts):
            pairs = enumerate(zip(counts, state.counts, strict=True))
            self._extend(self._cache, [state.features[0, row, count - new : count] for row, (new, count) in pairs])

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, self.depth)
        if height < 1:
            return root(state.roots)
        return self.grow(state, noise, height, self.block_scores(self.block(state)))

    def block(self, state: State) -> Float[Tensor, "row slot width"]:
        """Hidden states of the whole block, after the last norm."""
        rows, device, size, cache = state.rows, state.roots.device, self.slots, self._cache
        cache.open(size)
        mask = cache.mask(torch.ones(rows, size, size, dtype=torch.bool, device=device))
        positions = cache.lengths[:, None] + torch.arange(size, device=device)
        return self.read(self.inputs(self.target, state.roots[:, None])[:, 0], mask, positions, cache)

    @property
    def slots(self) -> int:
        """How many slots a block has."""
        return self.depth if self.from_anchor else self.depth + 1

    def inputs(self, target: Target, roots: Int[Tensor, "row block"]) -> Float[Tensor, "row block slot width"]:
        """What enters the layers: the vector of the last committed token, then that of the mask token."""
        if self.embed_tokens is not None:
            masked = self.embed_tokens.weight[self.mask_token]
        else:
            masked = target.model.get_input_embeddings()(torch.tensor(self.mask_token, device=roots.device))
        anchor = self.embed(target, roots)[:, :, None]
        return torch.cat([anchor, masked.expand(*roots.shape, self.slots - 1, -1).to(anchor.dtype)], 2)

    def read(
        self,
        hidden: Float[Tensor, "row slot width"],
        mask: Bool[Tensor, "row 1 slot key"],
        positions: Int[Tensor, "row slot"],
        cache: Cache,
    ) -> Float[Tensor, "row slot width"]:
        """Hidden states of blocks after the last norm; `cache` has the context."""
        rotated = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotated, **cache_kwarg(layer, cache))
        return self.norm(hidden)

    def logits(self, target: Target, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape drafted"]:
        """Logits of hidden states over the drafting vocabulary."""
        if self.lm_head is not None:
            logits = self.lm_head(hidden)
        else:
            logits = target.head.differentiable(hidden) if self.training else target.logits(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def block_scores(self, hidden: Float[Tensor, "row slot width"]) -> Scores:
        """Scores of a level: of every slot that predicts something, whatever is drafted before it."""
        logits = self.sampling.scores(self.logits(self.target, self.predicting(hidden)))

        def scores(
            depth: int, tokens: Int[Tensor, "row beam"], parent_index: Int[Tensor, "row beam"]
        ) -> Float[Tensor, "row beam drafted"]:
            return logits[:, depth, None].expand(-1, tokens.shape[1], -1)

        return scores

    def predicting(self, hidden: Float[Tensor, "*shape slot width"]) -> Float[Tensor, "*shape depth width"]:
        """The hidden states of the slots that predict something."""
        return hidden if self.from_anchor else hidden[..., 1:, :]

    @classmethod
    def layers_read(cls, target: Target) -> tuple[int, ...]:
        """Three at even distances, the last layer among them."""
        last = target.model.config.get_text_config().num_hidden_layers - 1
        return tuple(sorted({max(1, round(last * third / 3)) for third in (1, 2, 3)}))

    @classmethod
    def build(cls, target: Target, **options: Any) -> "DFlashDrafter":
        """A drafter with a block of 8, whose layer has about the shape of the target's."""
        shape, weights = same_shape(target, options.get("layers", 1))
        rows = options.get("tokens")
        if rows is None and target.vocabulary.tolist() != list(range(target.vocabulary_size)):
            rows = list(range(target.vocabulary_size))
        text = target.model.config.get_text_config()
        chosen = {
            "shape": shape,
            "feature_layers": cls.layers_read(target),
            "mask_token": getattr(text, "pad_token_id", None) or 0,
            "block": 8,
            "target_size": target.hidden_size,
            "from_anchor": True,
            "own_head": len(rows or []),
            "target": target.weights_hash,
        }
        drafter = cls(**chosen | cls.default_options(target) | options)
        if weights and drafter.feature_layers == chosen["feature_layers"]:
            drafter.begin_with(weights, target.decoder.norm.weight)  # type: ignore[attr-defined]
        if drafter.lm_head is not None:
            drafter.lm_head.weight = nn.Parameter(target.head.weight[rows].float(), requires_grad=False)
        return drafter

    def begin_with(self, weights: Sequence[dict[str, Tensor]], norm: Float[Tensor, "width"]) -> None:
        """Begin as the target's own last layers, whose context is what enters the very last one."""
        width = self.fc.out_features
        for layer, own in zip(self.layers, weights, strict=True):
            layer.load_state_dict(own)
        with torch.no_grad():
            self.hidden_norm.weight.copy_(weights[-1]["input_layernorm.weight"])
            self.norm.weight.copy_(norm)
            self.fc.weight.zero_()
            self.fc.weight[:, -width:].copy_(torch.eye(width))

    @classmethod
    def default_options(cls, target: Target) -> dict:
        """Further options of the constructor where nothing else is said."""
        return {}

    def drafted_tokens(self, target: Target) -> Tensor | None:
        return self.tokens

    def loss(
        self, target: Target, examples: Sequence[Example], anchors: int = 16, tv: float = 0.0, **options: Any
    ) -> dict[str, Tensor]:
        """`divergence` from the target's distribution over the drafting vocabulary, in `anchors` blocks of a sequence
        whose places are drawn, with weight `DECAY`^depth.
        """
        lengths = torch.tensor([len(example.tokens) - 1 for example in examples], device=target.device)
        places = (uniform(examples, anchors, device=target.device) * lengths[:, None]).long()
        blocks = Blocks.of(target, examples, places, self.depth)
        with torch.no_grad():
            logits = target.logits(blocks.last)
            probs = (logits if self.tokens is None else logits[..., self.tokens]).softmax(-1)
        errors = divergence(self.path_logits(target, blocks, self.read_blocks(target, blocks)), blocks.at(probs), tv)
        depths = [masked_mean(errors[..., depth], blocks.valid[..., depth]) for depth in range(self.depth)]
        total = torch.stack([DECAY**depth * error for depth, error in enumerate(depths)]).sum()
        return {"loss": total, "first": depths[0].detach(), "last": depths[-1].detach()}

    def read_blocks(self, target: Target, blocks: Blocks) -> Float[Tensor, "row block slot width"]:
        """Hidden states of blocks of sequences."""
        cache, size = DynamicCache(), self.slots
        for number, (keys, values) in enumerate(self.context(blocks.context, blocks.positions)):
            cache.update(keys, values, number)
        inputs = self.inputs(target, blocks.before[..., 0]).to(self.fc.weight.dtype).flatten(1, 2)
        hidden = self.read(inputs, blocks.mask(size), blocks.slot_positions(size), cache)
        return hidden.unflatten(1, (-1, size))

    def path_logits(
        self, target: Target, blocks: Blocks, hidden: Float[Tensor, "row block slot width"]
    ) -> Float[Tensor, "row block depth drafted"]:
        """Logits of blocks after the true tokens before each."""
        return self.logits(target, self.predicting(hidden))

    def predictions(self, target: Target, example: Example) -> list[DepthPredictions]:
        count, parts = len(example.tokens) - 1, []
        for places in torch.arange(max(count, 1), device=target.device).split(BLOCKS):
            blocks = Blocks.of(target, [example], places[None], self.depth)
            logits = self.path_logits(target, blocks, self.read_blocks(target, blocks))
            parts.append(torch.log_softmax(logits[0], -1))
        log_q = torch.cat(parts)
        return [
            DepthPredictions(torch.arange(1 + depth, max(depth, count) + 1), log_q[: max(0, count - depth), depth])
            for depth in range(self.depth)
        ]

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "DFlashDrafter":
        """See `DFlashDrafter`.

        The authors and DeepSpec number layers by what leaves them (`target_layer_ids`, hidden state id + 1),
        `speculators` by what enters (`aux_hidden_state_layer_ids`). Raises MmspecError for what is not understood.
        """
        config, folder = files.config, files.folder
        own = config.get("dflash_config") or {}
        if (kind := config.get("projector_type") or own.get("projector_type") or "dflash") != "dflash":
            raise MmspecError(f"{folder}: projector_type {kind!r} is not read: DFlash and DSpark are")
        layer = config.get("transformer_layer_config") or config
        for settings in (config, own, layer):
            files.refuse_flags(settings, (*KNOWN, *cls.known_keys()))
        if "sliding_attention" in (layer.get("layer_types") or []):
            raise MmspecError(f"{folder}: layers of the kind sliding_attention are not understood in a block drafter")
        tensors = {cls.spelled(name): value for name, value in files.tensors.items()}
        shape = layer_shape(layer, set(tensors), folder)
        size = config.get("target_hidden_size") or shape["hidden_size"]
        check_size(folder, target, target_hidden_size=size)
        numbers = read_numbers(files, own)
        own_head = len(tensors["lm_head.weight"]) if "lm_head.weight" in tensors else 0
        rows, tokens = read_vocabulary(files, tensors, target, own_head)
        mask_token = int(str(files.get("mask_token_id", of={**config, **own})))
        own_embedding = len(tensors["embed_tokens.weight"]) if "embed_tokens.weight" in tensors else 0
        embedded = own_embedding or len(target.model.get_input_embeddings().weight)
        if not 0 <= mask_token < embedded:
            raise MmspecError(f"{folder}: mask_token_id is {mask_token}, and there are vectors of {embedded} ids")
        drafter = cls(
            shape=shape,
            feature_layers=check_layers(folder, target, numbers),
            mask_token=mask_token,
            block=int(str(files.get("block_size", of={**own, **config}))),
            layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers.")),
            target_size=size,
            own_embedding=own_embedding,
            own_head=own_head,
            tokens=tokens,
            **cls.released_options(files, tensors),
        )
        drafter.load_state_dict(files.read(drafter.state_dict(), drafter.name, cls.idle(tensors), cls.spelled))
        if drafter.lm_head is not None and rows is not None:
            drafter.keep_rows(rows)
        return drafter

    def settings(self) -> dict:
        return {
            "block_size": self.depth if self.from_anchor else self.depth + 1,
            "mask_token_id": self.mask_token,
            "aux_hidden_state_layer_ids": list(self.feature_layers),
            "sample_from_anchor": self.from_anchor,
        }

    @classmethod
    def misfit(cls, files: Files, config: PreTrainedConfig) -> str:
        return layers_misfit(read_numbers(files, files.config.get("dflash_config") or {}), config)

    def keep_rows(self, rows: list[int]) -> None:
        """Draft from these rows of the output matrix alone."""
        assert self.lm_head is not None
        self.lm_head.weight = nn.Parameter(self.lm_head.weight[rows])

    @classmethod
    def known_keys(cls) -> tuple[str, ...]:
        """Further keys of configurations that this class reads."""
        return ()

    @classmethod
    def idle(cls, tensors: dict[str, Tensor]) -> Sequence[str]:
        """Tensors that are not needed to draft."""
        return IDLE

    @classmethod
    def spelled(cls, name: str) -> str:
        """The name of a tensor here."""
        return name.removeprefix("model.")

    @classmethod
    def released_options(cls, files: Files, tensors: dict[str, Tensor]) -> dict:
        """Further arguments of the constructor that published files decide."""
        return {"from_anchor": bool(files.config.get("sample_from_anchor", False))}


def read_numbers(files: Files, own: dict) -> list[int]:
    """The layers whose inputs are read; see `DFlashDrafter.from_released`."""
    config, left = files.config, own.get("target_layer_ids", files.config.get("target_layer_ids"))
    if (numbers := config.get("aux_hidden_state_layer_ids")) is not None:
        if left is not None:
            raise MmspecError(
                f"{files.folder / 'config.json'} has aux_hidden_state_layer_ids and target_layer_ids, "
                "which count layers differently, by one: remove the one that is wrong"
            )
        return list(numbers)
    if left is not None:
        return [number + 1 for number in left]
    raise MmspecError(
        f"{files.folder / 'config.json'} names no layers: give target_layer_ids, which count what leaves "
        "layers, or aux_hidden_state_layer_ids, which count what enters them"
    )
