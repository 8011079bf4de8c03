"""What a target's own model says by itself: what `probe` and `verify` compare it with."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, SuppressTokensLogitsProcessor

from mmspec.targets.probe import TOLERANCE, plain_ids


class OwnModel:
    """The model of a `CausalTarget` without mmspec: its forward, its `generate`, and how near they must come."""

    model: PreTrainedModel
    vocabulary: Int[Tensor, "vocab"]
    _tokens: dict[int, int]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def generate_processor(self, start: int) -> LogitsProcessor:
        """What `transformers.generate` needs to generate the same tokens after prompts of `start` ids."""
        other = set(range(self.model.get_output_embeddings().weight.shape[0])) - self._tokens.keys()
        return SuppressTokensLogitsProcessor(sorted(other), device=str(self.device))

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        """What the model's own `generate` gives for these options (see `mmspec.reference`): new ids alone."""
        inputs = options["inputs"]
        assert isinstance(inputs, Tensor)
        return self.model.generate(**options)[:, inputs.shape[1] :]

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        """Why `generate` gives other tokens than plain decoding under these options; "" if it gives the same."""
        return ""

    def own_logits(
        self, nodes: Int[Tensor, "row node"], mask: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """What the model itself says after these nodes (see `node_ids`), by its own forward, without a cache.

        `mask` is 0 for padding.
        """
        return self.model(input_ids=nodes, attention_mask=mask, use_cache=False).logits[..., self.vocabulary]

    def sample_nodes(self, count: int, prompt: int) -> list[int]:
        """Nodes to try the model with, the first `prompt` of them a prompt."""
        return plain_ids(self.model, count)

    @property
    def tolerance(self) -> float:
        """The error that `probe` allows; quantised layers may quantise what they are given, too, whole rows at once."""
        quantised = getattr(self.model, "hf_quantizer", None) is not None
        return TOLERANCE[torch.bfloat16 if quantised else self.dtype]
