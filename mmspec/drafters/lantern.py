"""LANTERN's drafters of models that draw (arXiv 2410.03355, github.com/jadohu/LANTERN): EAGLE-1 for LlamaGen that draws
captions, and for Anole and Lumina-mGPT.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonRMSNorm

from mmspec.drafters.eagle import EagleDrafter
from mmspec.drafters.layouts import Files
from mmspec.drafters.msd import IDLE
from mmspec.drafters.shapes import check_size, layer_shape
from mmspec.engine.cache import cache_kwarg
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.base import Target
from mmspec.targets.llamagen import LlamaGenConfig, LlamaGenTarget, RasterRotary

# Codes a row of LlamaGen's pictures, by `input_type`.
SIDES = {"t2i": 16, "t2i2": 32}


class LanternDrafter(EagleDrafter):
    """EAGLE over the codes of a picture, with an embedding of its own.

    For LlamaGen, whose pictures have `side` codes a row, positions are those of the raster, and queries and keys before
    it are 0. Of the caption its vectors are not read: each position but the last enters as the feature there, and code
    0 as the token after it, filled up on the left to the longest caption. The target leaves that padding out, and what
    LANTERN's own sampler reads there in 16 bits is read here: features of 0, and without a caption those of the first
    vectors of no caption, read by themselves.

    For a Chameleon (`side` 0) the layer is Chameleon's, with its first norm, and prompts are read as EAGLE reads them.
    """

    name, format = "lantern", ""

    def __init__(self, *, side: int = 0, layer: str = "chameleon", **options: Any):
        super().__init__(layer=layer, **options)
        self.side = side
        if side:
            shape = self.shape
            self.rotary = RasterRotary(
                LlamaGenConfig(
                    side=side,
                    hidden_size=shape["hidden_size"],
                    num_attention_heads=shape["heads"],
                    head_dim=shape["head_dim"],
                    rope_parameters=shape["rope"],
                )
            )
        else:
            self.layers[0].input_layernorm = ChameleonRMSNorm(self.shape["hidden_size"], self.shape["eps"])

    def layer(
        self,
        inputs: Float[Tensor, "sequence node width"],
        mask: Bool[Tensor, "sequence 1 node slot"],
        position_ids: Int[Tensor, "sequence node"],
        cache: Cache,
    ) -> Float[Tensor, "sequence node width"]:
        layer, rotated = self.layers[0], self.rotary(inputs, position_ids)
        hidden = layer(inputs, attention_mask=mask, position_embeddings=rotated, **cache_kwarg(layer, cache))
        return hidden if self.side else hidden[0]

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        if self.side:
            if not isinstance(target, LlamaGenTarget) or target.model.config.classes or target.grid.width != self.side:
                raise MmspecError(
                    f"this drafter is for a LlamaGen that draws captions on {self.side}x{self.side} codes: use another "
                    "for this target"
                )
            self.longer = target.model.config.caption_length - 1
            self._no_caption = no_caption(target) if state.branches > 1 else None
        super().start(target, state, sampling, needs_draft_probs)

    def prompt_inputs(
        self, state: State, sequence: int
    ) -> tuple[Float[Tensor, "read width"], Int[Tensor, "*axis read"], int]:
        if not self.side:
            return super().prompt_inputs(state, sequence)
        _, features = state.prompt_hidden[sequence]
        missing = self.longer - len(features)
        padding = features.new_zeros(missing, features.shape[1])
        if sequence >= state.rows and self._no_caption is not None:
            padding = self._no_caption[:missing]
        features = torch.cat([padding, features])
        codes = torch.zeros(self.longer, dtype=torch.long, device=features.device)
        positions = torch.arange(-self.longer, 0, device=features.device)
        return self.fuse(self.embed(self.target, codes), features), positions, -self.longer

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "LanternDrafter":
        """Weights as the authors of LANTERN publish them. Raises MmspecError for those of another target."""
        if reason := cls.misfit(files, target.model.config.get_text_config()):
            raise MmspecError(f"drafter {str(files.folder)!r}: {reason}")
        side = SIDES.get(files.config.get("input_type", ""), 0)
        shape = layer_shape(files.config, files.names, files.folder)
        check_size(files.folder, target, hidden_size=shape["hidden_size"])
        if side:  # whatever config.json says of positions
            shape["rope"] = {"rope_type": "default", "rope_theta": 10000.0}
        drafter = cls(
            **{key: shape[key] for key in ("hidden_size", "intermediate_size", "heads", "kv_heads", "eps", "rope")},
            layer="llama" if side else "chameleon",
            side=side,
            bias=files.config.get("bias", True),
            own_embedding=files.config["vocab_size"],
        )
        heads = {"q": shape["heads"], "k": shape["kv_heads"]}
        tensors = files.read(drafter.state_dict(), cls.name.upper(), IDLE, tensors=by_head(files.tensors, heads))
        drafter.load_state_dict(halves(tensors, heads) if side else tensors)
        return drafter

    @classmethod
    def misfit(cls, files: Files, config: PreTrainedConfig) -> str:
        own = files.config
        vocabulary, kind = files.get("vocab_size"), own.get("input_type")
        if kind is None and config.model_type != "chameleon":
            return f"it drafts for a Chameleon that draws, such as Anole, and the target is a {config.model_type}"
        if kind is not None:
            if kind not in SIDES:
                return f"its input_type is {kind!r}, and LlamaGen's {' and '.join(SIDES)} are read"
            if config.model_type != "llamagen":
                return f"it drafts for LlamaGen (input_type {kind}), and the target is a {config.model_type}"
            if config.classes:
                return f"it drafts for captions (input_type {kind}), and the model draws classes"
            if config.side != (side := SIDES[kind]):
                return f"it drafts {side}x{side} codes (input_type {kind}), the model draws {config.side}x{config.side}"
            if (width := files.get("caption_dim")) != config.caption_width:
                return (
                    f"its caption_dim is {width}, vectors of the model's captions have {config.caption_width} numbers"
                )
        if vocabulary != config.vocab_size:
            return f"its vocab_size is {vocabulary}, the model's {config.vocab_size}"
        return ""


@torch.inference_mode()
def no_caption(target: LlamaGenTarget) -> Float[Tensor, "position width"]:
    """The target's last hidden states over the vectors of no caption but the last, read without a mask."""
    length = target.model.config.caption_length
    vectors = target.model.caption_vectors(length)[None, :-1]
    positions = torch.arange(1 - length, 0, device=target.device)[None]
    return target.decoder(inputs_embeds=vectors, position_ids=positions, use_cache=False)[0][0]


def by_head(tensors: dict[str, Tensor], heads: dict[str, int]) -> dict[str, Tensor]:
    """The tensors, with a row for each head in norms that have one for each group of heads, as Lumina-mGPT's do."""
    tensors = dict(tensors)
    for part, count in heads.items():
        for name in (f"layers.0.self_attn.{part}_norm.{kind}" for kind in ("weight", "bias")):
            if name in tensors and count % len(tensors[name]) == 0:
                tensors[name] = tensors[name].repeat_interleave(count // len(tensors[name]), 0)
    return tensors


def halves(tensors: dict[str, Tensor], heads: dict[str, int]) -> dict[str, Tensor]:
    """The tensors, queries and keys in the order of transformers: what turns together is half a head apart there, and
    side by side in LlamaGen.
    """
    names = {f"layers.0.self_attn.{part}_proj.weight": count for part, count in heads.items()}
    apart = "(head pair two) width -> (head two pair) width"
    return tensors | {name: rearrange(tensors[name], apart, head=count, two=2) for name, count in names.items()}
