"""EAGLE-3 (arXiv 2503.01840) in the spellings of its authors (github.com/SafeAILab/EAGLE; SpecForge and AngelSlim
follow them), of `speculators` (github.com/vllm-project/speculators) and of DeepSpec.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mmspec.drafters.layouts import Files
from mmspec.drafters.recurrent_drafter import RecurrentDrafter
from mmspec.drafters.shapes import (
    Rotary,
    check_layers,
    check_size,
    drafted_tokens,
    layer_config,
    layer_shape,
    layers_misfit,
    plain_layer,
)
from mmspec.drafters.speculators import SpeculatorsDrafter
from mmspec.engine.cache import cache_kwarg
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

# Settings that change what is computed, all off in the first edition.
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# What else configurations of this layout say.
KNOWN = (
    *FLAGS,
    *("draft_vocab_size", "target_hidden_size", "eagle_aux_hidden_state_layer_ids", "eagle_config"),
    *("embed_requires_grad", "num_aux_hidden_states", "transformer_layer_config", "has_no_defaults_at_init"),
)


# How deep trees are, at most, where nothing is said.
DEPTH = 6

# In published files, and not needed to draft.
IDLE = ("d2t", "t2d", "verifier_norm.weight", "verifier_lm_head.weight", "layers.0.self_attn.rotary_emb.inv_freq")


class FusedLayer(nn.Module):
    """A decoder layer whose attention reads [normed embedding; normed hidden state], around a residual of the hidden
    state: the one before its norm, or, with `norm_before_residual`, after it.
    """

    def __init__(self, config: PreTrainedConfig, kind: str, norm_before_residual: bool):
        super().__init__()
        layer: Any = plain_layer(config, kind, 0)
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = norm_before_residual
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(self.self_attn, name)
            wide = nn.Linear(2 * config.hidden_size, old.out_features, bias=old.bias is not None)
            setattr(self.self_attn, name, wide)

    def forward(
        self,
        inputs: Float[Tensor, "row node twice"],
        mask: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        embedding, hidden = inputs.chunk(2, -1)
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        mixed, _ = self.self_attn(
            torch.cat([self.input_layernorm(embedding), normed], -1),
            position_embeddings=position_embeddings,
            attention_mask=mask,
            **cache_kwarg(self.self_attn, cache),
        )
        hidden = residual + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3Drafter(RecurrentDrafter, SpeculatorsDrafter):
    """Position t reads token t + 1 and what enters `feature_layers` of the target at t, which `fc` makes one hidden
    state, or the hidden state that it gave at t itself, before its norm (after it with `norm_output`), and predicts
    token t + 2.

    `shape` are arguments of `layer_config`; further layers are plain. `norm_before_fc` norms the target's states side
    by side, `fc_norm` each of them alone (EAGLE-3.1). `own_embedding` and `own_head` are how many ids the weights bring
    vectors and logits for, 0 where the target's are used. With M-RoPE, text after a picture goes on at the target's
    positions, and vectors of pictures are the target's.
    """

    name = "eagle3"
    architecture = "Eagle3DraftModel"

    def __init__(
        self,
        shape: dict,
        target_size: int,
        feature_layers: Sequence[int],
        layers: int = 1,
        own_embedding: int = 0,
        own_head: int = 0,
        norm_before_residual: bool = False,
        norm_before_fc: bool = False,
        fc_norm: bool = False,
        norm_output: bool = False,
        tokens: Sequence[int] | None = None,
        depth: int = DEPTH,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        greedy: list[float] | None = None,
    ):
        super().__init__(target, depth, beta, coupling, greedy, tokens)
        config = layer_config(**shape, layers=layers)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.feature_layers, self.cached_layers, self.norm_output = tuple(feature_layers), layers, norm_output
        self.layers = nn.ModuleList(
            [
                FusedLayer(config, shape["kind"], norm_before_residual),
                *(plain_layer(config, shape["kind"], number) for number in range(1, layers)),
            ]
        )
        wide = target_size * len(self.feature_layers)
        self.fc = nn.Linear(wide, width, bias=False)
        self.input_norm = LlamaRMSNorm(wide, eps) if norm_before_fc else None
        norms = [LlamaRMSNorm(target_size, eps) for _ in self.feature_layers] if fc_norm else []
        self.fc_norm = nn.ModuleList(norms)
        self.norm = LlamaRMSNorm(width, eps)
        self.embed_tokens = nn.Embedding(own_embedding, width) if own_embedding else None
        self.lm_head = nn.Linear(width, own_head, bias=False) if own_head else None
        self.rotary = Rotary(config, shape["rope"])
        self.axes = self.rotary.axes

    def fuse(
        self,
        vectors: Float[Tensor, "*shape width"],
        features: Float[Tensor, "*shape width"],
        is_text: Bool[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape twice"]:
        return torch.cat([vectors.to(features.dtype), features], -1)

    def project(self, features: Float[Tensor, "*shape wide"]) -> Float[Tensor, "*shape width"]:
        states = features.to(self.fc.weight.dtype)
        if self.input_norm is not None:
            states = self.input_norm(states)
        if len(self.fc_norm):
            parts = states.chunk(len(self.fc_norm), -1)
            states = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        return self.fc(states)

    def layer(
        self,
        inputs: Float[Tensor, "row node twice"],
        mask: Bool[Tensor, "row 1 node slot"],
        position_ids: Int[Tensor, "*axis row node"],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        rotated = self.rotary(inputs, position_ids)
        hidden = self.layers[0](inputs, mask, rotated, cache)
        for layer in self.layers[1:]:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotated, **cache_kwarg(layer, cache))
        return self.norm(hidden) if self.norm_output else hidden

    def drafted_logits(self, hidden: Float[Tensor, "row node width"]) -> Float[Tensor, "row node drafted"]:
        normed = hidden if self.norm_output else self.norm(hidden)
        logits = self.target.logits(normed) if self.lm_head is None else self.lm_head(normed)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "Eagle3Drafter":
        """See `Eagle3Drafter`. Raises MmspecError for settings, tensors and vocabularies that are not understood."""
        names = {spelled(name) for name in files.names}
        config = files.config.get("transformer_layer_config") or files.config
        for settings in (files.config, config):
            files.refuse_flags(settings, (*KNOWN, *cls.known_keys()))
        shape = layer_shape(config, names, files.folder)
        target_size = files.config.get("target_hidden_size") or shape["hidden_size"]
        check_size(files.folder, target, target_hidden_size=target_size)
        numbers = check_layers(files.folder, target, read_numbers(files, target.model.config.get_text_config()))
        tensors = {spelled(name): value for name, value in files.tensors.items()}
        own_head = len(tensors["lm_head.weight"]) if "lm_head.weight" in tensors else 0
        rows, tokens = read_vocabulary(files, tensors, target, own_head)
        options: dict = dict(
            own_embedding=len(tensors["embed_tokens.weight"]) if "embed_tokens.weight" in tensors else 0,
            tokens=tokens,
            layers=1 + max((int(name.split(".")[1]) for name in names if name.startswith("layers.")), default=0),
            **read_flags(files),
            **cls.released_options(files, shape["hidden_size"]),
        )
        drafter = cls(shape=shape, target_size=target_size, feature_layers=numbers, own_head=own_head, **options)
        drafter.load_state_dict(files.read(drafter.state_dict(), cls.name.upper(), IDLE, spelled))
        if drafter.lm_head is not None and rows is not None:
            drafter.lm_head.weight = nn.Parameter(drafter.lm_head.weight[rows])
        return drafter

    def settings(self) -> dict:
        own = self.constructor_arguments()
        return {flag: own.get(flag, False) for flag in FLAGS} | {
            "eagle_aux_hidden_state_layer_ids": list(self.feature_layers)
        }

    def uncarried(self) -> list[str]:
        deep = f"the depth of its trees in mmspec, {self.depth}: {DEPTH} is taken for this layout"
        return super().uncarried() + [deep] * (self.depth != DEPTH)

    @classmethod
    def misfit(cls, files: Files, config: PreTrainedConfig) -> str:
        return layers_misfit(read_numbers(files, config), config)

    @classmethod
    def known_keys(cls) -> tuple[str, ...]:
        """Further keys of configurations that this class reads."""
        return ()

    @classmethod
    def released_options(cls, files: Files, width: int) -> dict:
        """Further arguments of the constructor that published files decide."""
        return {}


def spelled(name: str) -> str:
    """The name of a tensor here: `midlayer.` is layer 0, and `model.` says nothing."""
    name = name.removeprefix("model.")
    return f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name


def read_numbers(files: Files, config: PreTrainedConfig) -> Sequence[int]:
    """The layers of a target whose inputs are read: those that are named, or the authors' of its number of layers."""
    key, count = "eagle_aux_hidden_state_layer_ids", config.num_hidden_layers
    named = files.config.get(key) or (files.config.get("eagle_config") or {}).get(key)
    return named or (2, count // 2, count - 3)


def read_flags(files: Files) -> dict[str, bool]:
    """The settings in `FLAGS`.

    `norm_output` feeds the normed state back for speculators and in EAGLE-3.1 (vLLM, SGLang), whose flat configurations
    have `fc_norm` beside it; in other flat ones it may mean the norm before the head (SpecForge), so it is refused.
    """
    config = files.config
    nested = "speculators_model_type" in config
    if "norm_output" in config and not nested and "fc_norm" not in config:
        raise MmspecError(
            f"{files.folder / 'config.json'} sets norm_output without fc_norm: for SpecForge it is the norm before the "
            "head, for EAGLE-3.1 the normed state is fed back; if it is of EAGLE-3.1, add fc_norm (true or false), "
            "else remove norm_output"
        )
    return {flag: bool(config.get(flag)) for flag in FLAGS}


def read_vocabulary(
    files: Files, tensors: dict[str, Tensor], target: Target, size: int
) -> tuple[list[int] | None, list[int] | None]:
    """Rows of the head to keep, and the target's tokens that they stand for; None for all of the target's.

    The target's id of draft id i is i + d2t[i]. Raises MmspecError for maps that do not agree.
    """
    if not size:
        return None, None
    ids = torch.arange(size)
    if "d2t" in tensors:
        if len(tensors["d2t"]) != size:
            raise MmspecError(
                f"{files.folder}: d2t has {len(tensors['d2t'])} ids and lm_head {size}: download it again"
            )
        ids = ids + tensors["d2t"].long()
        marks = tensors.get("t2d")
        if marks is not None and marks.nonzero()[:, 0].tolist() != sorted(ids.tolist()):
            raise MmspecError(
                f"{files.folder}: t2d does not mark the ids that d2t gives (the id of draft id i is i + d2t[i]): "
                "the file is damaged, or d2t holds ids and not differences"
            )
    elif size < len(target.vocabulary):
        raise MmspecError(
            f"{files.folder}: the head has {size} ids, the target {len(target.vocabulary)}, and there is no d2t that "
            "says which: it is another model's"
        )
    rows, tokens = drafted_tokens(target, ids)
    return (None, None) if tokens == list(range(target.vocabulary_size)) == rows else (rows, tokens)
