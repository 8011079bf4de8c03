"""From logits to the distribution that is sampled from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.generation import logits_process as hf

from mmspec.engine.ranges import check_ranges

if TYPE_CHECKING:
    pass

# Processors whose output does not depend on the prefix: one call serves every node of a tree.
PREFIX_FREE = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.SuppressTokensLogitsProcessor,
)


@dataclass(frozen=True)
class SamplingOptions:
    """How logits become a distribution: transformers' processors and warpers, in the order in which `generate` applies
    them.

    The repetition penalty comes first, then `logits_processor` (a `LogitsProcessorList`, or any sequence of its
    objects), then temperature, top-k, top-p and min-p. `temperature=0` is greedy decoding: neither noise nor warpers.
    Raises MmspecError for a number out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logits_processor: Sequence[hf.LogitsProcessor] = ()

    def __post_init__(self) -> None:
        check_ranges(vars(self))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @cached_property
    def processors(self) -> hf.LogitsProcessorList:
        """What comes before the warpers: the repetition penalty and `logits_processor`."""
        penalty = [hf.RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))]
        return hf.LogitsProcessorList([*(penalty if self.repetition_penalty != 1 else []), *self.logits_processor])

    @cached_property
    def pipeline(self) -> hf.LogitsProcessorList:
        """Processors and warpers, in the order in which they are applied."""
        chosen = list(self.processors)
        if not self.greedy:
            if self.temperature != 1.0:
                chosen.append(hf.TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                chosen.append(hf.TopKLogitsWarper(self.top_k))
            if self.top_p < 1.0:
                chosen.append(hf.TopPLogitsWarper(self.top_p))
            if self.min_p > 0.0:
                chosen.append(hf.MinPLogitsWarper(self.min_p))
        return hf.LogitsProcessorList(chosen)

    @property
    def reads_prefix(self) -> bool:
        """Whether a node's scores depend on the tokens before it."""
        return not all(isinstance(processor, PREFIX_FREE) for processor in self.pipeline)

    def without_processors(self) -> "SamplingOptions":
        """The warpers alone: drafters propose without reading prefixes."""
        return replace(self, repetition_penalty=1.0, logits_processor=())

    def scores(
        self, logits: Float[Tensor, "row node vocab"], prefixes: "Callable[[int, int], Tensor] | None" = None
    ) -> Float[Tensor, "row node vocab"]:
        """Processed logits of every node, float32 or float64.

        Each node has its own prefix, of which processors are given the part that lies in the vocabulary.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not self.pipeline:
            return logits
        if not self.reads_prefix:
            flat = logits.flatten(0, 1)
            return self.pipeline(flat.new_zeros(len(flat), 1, dtype=torch.long), flat).view_as(logits)
        out = torch.empty_like(logits)
        assert prefixes is not None, "processors that read the prefix need the tree's prefixes"
        for row in range(logits.shape[0]):
            for node in range(logits.shape[1]):
                prefix = prefixes(row, node)
                ids = prefix[(prefix >= 0) & (prefix < logits.shape[2])]
                out[row, node] = self.pipeline(ids[None], logits[row, node][None])[0]
        return out


# The name that 0.1 had.
Sampling = SamplingOptions
