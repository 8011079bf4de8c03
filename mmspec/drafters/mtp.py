"""The native multi-token prediction (MTP) of Qwen3-Next and Qwen3.5, whose tensors lie in the model's own checkpoint.

Names and order of operations follow vLLM's readers (github.com/vllm-project/vllm, models/qwen3_next_mtp.py and
qwen3_5_mtp.py); the layer is transformers' own of the target.
"""

import re
from copy import deepcopy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from mmspec.drafters.layouts import Files
from mmspec.drafters.recurrent_drafter import RecurrentDrafter
from mmspec.drafters.shapes import check_size
from mmspec.engine.cache import cache_kwarg
from mmspec.errors import MmspecError
from mmspec.targets.base import Target
from mmspec.targets.causal import CausalTarget

PREFIX = "mtp."
# Families whose MTP is of this kind, by `model_type` of their text, and the axes of their positions.
FAMILIES: dict[str, tuple[int, ...]] = {"qwen3_next": (), "qwen3_5_text": (3,), "qwen3_5_moe_text": (3,)}
# Settings of MTP that are read; its number of layers has two names.
LAYERS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


class MtpDrafter(RecurrentDrafter):
    """Position t reads token t + 1 and the target's last hidden state at t, or what it gave at t itself, and predicts
    token t + 2: `fc` of both, each normed, is read by one full-attention layer of the target's class, and what comes
    of it is normed for the target's head and for the next step.

    Embedding, head and rotary positions are the target's. Drafts are chains, as the target's recurrent layers ask.
    """

    name = "mtp"

    def __init__(self, decoder: PreTrainedModel, depth: int = 4):
        super().__init__("", depth, beam=1, ranks=1)
        self.widths = [1] * depth
        config = deepcopy(decoder.config)
        config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
        config._attn_implementation = "sdpa"
        parts = dict(decoder.named_children())
        layer, norm = type(next(parts["layers"].children())), type(parts["norm"])
        width, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = norm(width, eps), norm(width, eps)
        self.layers = nn.ModuleList([layer(config, 0)])
        self.norm = norm(width, eps)
        self.embed_tokens = None
        self.axes = FAMILIES[config.model_type]
        # No part of this module, whose weights are those of the file.
        self._rotary = (parts["rotary_emb"],)

    def constructor_arguments(self) -> dict:
        raise MmspecError("the MTP of a model is a part of the model's own files and not saved anew: keep that folder")

    def fuse(
        self,
        vectors: Float[Tensor, "*shape width"],
        features: Float[Tensor, "*shape width"],
        is_text: Bool[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape width"]:
        embedding = self.pre_fc_norm_embedding(vectors.to(features.dtype))
        return self.fc(torch.cat([embedding, self.pre_fc_norm_hidden(features)], -1))

    def layer(
        self,
        inputs: Float[Tensor, "row node width"],
        mask: Bool[Tensor, "row 1 node slot"],
        position_ids: Int[Tensor, "*axis row node"],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        layer, rotary = self.layers[0], self._rotary[0]
        rotated = rotary(inputs, position_ids)
        hidden = layer(inputs, attention_mask=mask, position_embeddings=rotated, **cache_kwarg(layer, cache))
        return self.norm(hidden)

    def drafted_logits(self, hidden: Float[Tensor, "row node width"]) -> Float[Tensor, "row node drafted"]:
        return self.target.logits(hidden)

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "MtpDrafter":
        """From the folder of the target's own model, or one that holds these tensors alone."""
        files = files.part(PREFIX)
        if reason := cls.misfit(files, target.model.config.get_text_config()):
            raise MmspecError(f"drafter {str(files.folder)!r}: {reason}")
        check_size(files.folder, target, hidden_size=settings_of(files)["hidden_size"])
        assert isinstance(target, CausalTarget)
        drafter = cls(target.decoder)
        expected = {PREFIX + name: value for name, value in drafter.state_dict().items()}
        tensors = files.read(expected, "MTP", tensors=fused(files))
        drafter.load_state_dict({name.removeprefix(PREFIX): value for name, value in tensors.items()})
        return drafter

    @classmethod
    def misfit(cls, files: Files, config: PreTrainedConfig) -> str:
        own = settings_of(files)
        if config.model_type not in FAMILIES:
            return f"MTP is read for models of the kinds {', '.join(FAMILIES)}, and the target is a {config.model_type}"
        if (layers := next((own[key] for key in LAYERS if key in own), 1)) != 1:
            return f"its MTP has {layers} layers, and how several follow each other is not known: one is read"
        unknown = sorted(key for key, value in own.items() if key.startswith("mtp_") and value not in (None, False))
        if unknown := [key for key in unknown if key not in LAYERS]:
            return f"config.json sets {', '.join(unknown)}, which mmspec does not know"
        return ""


def settings_of(files: Files) -> dict:
    """The configuration of the text model."""
    return files.config.get("text_config") or files.config


def fused(files: Files) -> dict[str, Tensor]:
    """The tensors; those of single experts are stacked as transformers' layers hold them."""
    tensors, experts = dict(files.tensors), dict[str, dict[str, dict[int, Tensor]]]()
    for name in files.tensors:
        if match := EXPERT.fullmatch(name):
            kinds = experts.setdefault(match[1], {"gate": {}, "up": {}, "down": {}})
            kinds[match[3]][int(match[2])] = tensors.pop(name)
    for prefix, kinds in experts.items():
        numbers = range(1 + max(number for rows in kinds.values() for number in rows))
        for kind, rows in kinds.items():
            if missing := [number for number in numbers if number not in rows]:
                raise MmspecError(
                    f"{files.folder}: the file lacks {prefix}.{missing[0]}.{kind}_proj.weight: download it again"
                )
        gate, up, down = (torch.stack([rows[number] for number in numbers]) for rows in kinds.values())
        tensors |= {f"{prefix}.gate_up_proj": torch.cat([gate, up], 1), f"{prefix}.down_proj": down}
    return tensors
