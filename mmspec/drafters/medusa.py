"""Medusa: horizontal heads only (Cai et al. 2024, arXiv 2401.10774)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmspec.drafters.heads import HeadDrafter, ResidualHead
from mmspec.drafters.layouts import Files
from mmspec.drafters.release import Release, Verifier
from mmspec.drafters.shapes import check_size
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.base import Target


class MedusaDrafter(HeadDrafter):
    """Head k predicts the token k places after the one that the target is about to emit."""

    name, format = "medusa", "medusa"

    def to_released(self, target: Target, verifier: Verifier) -> Release:
        """Every head has the target's output matrix as its own."""
        if self.table is not None:
            raise MmspecError("these heads count on a table and on the last token, of which Medusa's files have none")
        output, heads = target.model.get_output_embeddings(), [self.heads[i] for i in self.horizontal]
        tensors: dict[str, Tensor] = {}
        residual: list = []
        for k, head in enumerate(heads):
            residual = [head, *(self.more[self.horizontal[k]].children() if self.more else ())]
            for i, layer in enumerate(residual):
                tensors |= {f"{k}.{i}.{name}": value for name, value in layer.state_dict().items()}
            tensors[f"{k}.{len(residual)}.weight"] = output.weight
        config = {
            "medusa_num_heads": len(heads),
            "medusa_num_layers": len(residual),
            "base_model_name_or_path": verifier.name,
            "vocab_size": len(output.weight),
        }
        lost = self.uncalibrated()
        if self.vertical:
            lost.append(f"the {len(self.vertical)} heads for the rows below: Medusa's are for the tokens that follow")
        if output.bias is not None or target.head.scale != 1.0 or target.head.softcap is not None:
            lost.append("the bias, scale or soft cap of the target's logits: Medusa's heads end with a matrix")
        return Release(config, tensors, lost, "medusa_lm_head.safetensors")


class PublicMedusaDrafter(HeadDrafter):
    """Medusa as its authors publish it (github.com/FasterDecoding/Medusa): every head has residual layers and an output
    matrix of its own.
    """

    name, kind = "medusa", "public-medusa"

    def __init__(self, hidden_size: int, vocabulary: int, heads: int, layers: int, target: str = ""):
        super().__init__(hidden_size, 0, [(0, k + 2) for k in range(heads)], target)
        residual = [[ResidualHead(hidden_size) for _ in range(layers)] for _ in range(heads)]
        self.heads = nn.ModuleList(
            nn.Sequential(*part, nn.Linear(hidden_size, vocabulary, bias=False)) for part in residual
        )

    def constructor_arguments(self) -> dict:
        *_, output = self.heads[0].parameters()  # without the ids that the target lacks
        return super().constructor_arguments() | {"vocabulary": len(output)}

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super(HeadDrafter, self).start(target, state, sampling, needs_draft_probs)
        self._vertical_scores = []

    def sources(self, state: State, height: int) -> Float[Tensor, "row depth source vocab"]:
        counts = torch.tensor(state.counts, device=state.roots.device)[:, None]
        rows = torch.arange(state.rows, device=counts.device)[:, None]
        latest = state.features[:, rows, counts - 1].squeeze(2)
        logits = torch.stack([head(latest) for head in self.heads[:height]], 2)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        positions = counts + torch.arange(height, device=counts.device)
        return self.sampling.scores(self.target.guide(state, wide, positions))[:, :, None]

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "PublicMedusaDrafter":
        """From `medusa_lm_head.pt`: `{head}.{layer}.linear.weight` and `.bias`, and `{head}.{layers}.weight`."""
        files.refuse_flags(files.config, ("medusa_num_heads", "medusa_num_layers"))
        heads, layers = (int(str(files.get(key))) for key in ("medusa_num_heads", "medusa_num_layers"))
        outputs = [
            value for name, value in files.tensors.items() if name.removeprefix("medusa_head.") == f"0.{layers}.weight"
        ]
        if not outputs:
            raise MmspecError(f"{files.folder}: the file lacks 0.{layers}.weight: it is no Medusa of {layers} layers")
        vocabulary, width = outputs[0].shape
        check_size(files.folder, target, hidden_size=width)
        if int(target.vocabulary.max()) >= vocabulary:
            raise MmspecError(
                f"drafter {str(files.folder)!r} was trained for another target: its heads know {vocabulary} ids, this "
                f"target's go to {int(target.vocabulary.max())}; use one for this target"
            )
        drafter = cls(width, vocabulary, heads, layers)
        expected = {name: value for name, value in drafter.state_dict().items() if name != "weights"}
        weights = files.read(expected, "Medusa", rename=lambda name: f"heads.{name.removeprefix('medusa_head.')}")
        drafter.load_state_dict(weights, strict=False)
        for name, output in drafter.heads.named_modules():
            if name.endswith(f".{layers}") and isinstance(output, nn.Linear):
                output.weight = nn.Parameter(output.weight[target.vocabulary.cpu()])
        return drafter
