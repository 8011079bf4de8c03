"""From logits to the distribution that is sampled from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.generation import logits_process as hf

from mmspec.engine.largest import NUCLEUS, cut
from mmspec.engine.ranges import check_ranges

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
    def cuts(self) -> hf.LogitsProcessorList:
        """The warpers up to top-p."""
        temperature, top_k, top_p = float(self.temperature), self.top_k, self.top_p
        chosen: list[hf.LogitsProcessor] = []
        if not self.greedy:
            chosen += [hf.TemperatureLogitsWarper(temperature)] if temperature != 1 else []
            chosen += [hf.TopKLogitsWarper(top_k)] if top_k else []
            chosen += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
        return hf.LogitsProcessorList(chosen)

    @property
    def reads_prefix(self) -> bool:
        """Whether a node's scores depend on the tokens before it."""
        return not all(isinstance(processor, PREFIX_FREE) for processor in self.processors)

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
        if not (self.processors or self.cuts or self.min_p):
            return logits
        flat = logits.flatten(0, 1)
        if self.reads_prefix:
            assert prefixes is not None, "processors that read the prefix need the tree's prefixes"
            rows, nodes, vocabulary = logits.shape
            all_ids = [prefixes(row, node) for row in range(rows) for node in range(nodes)]
            ids = [prefix[(prefix >= 0) & (prefix < vocabulary)] for prefix in all_ids]
        else:
            ids = list(flat.new_zeros(len(flat), 1, dtype=torch.long))
        for processor in self.processors:
            flat = _process(processor, ids, flat)
        return self._warp(flat).view_as(logits)

    def _warp(self, scores: Float[Tensor, "node vocab"]) -> Float[Tensor, "node vocab"]:
        """What the warpers make of scores.

        On a CPU, whose numbers are at hand, those of a large vocabulary are not sorted where a part of them decides.
        """
        if self.greedy:
            return scores
        no_ids = scores.new_zeros(len(scores), 1, dtype=torch.long)
        large = scores.device.type == "cpu" and scores.shape[1] > 4 * (self.top_k or NUCLEUS)
        if large and (self.top_k or self.top_p < 1):
            warped, certain = cut(scores, float(self.temperature), self.top_k, self.top_p)
            for node, decided in enumerate(certain.tolist()):
                if not decided:
                    warped[node] = self.cuts(no_ids[:1], scores[node, None])[0]
        else:
            warped = self.cuts(no_ids, scores)
        return hf.MinPLogitsWarper(self.min_p)(no_ids, warped) if self.min_p else warped


def _process(
    processor: hf.LogitsProcessor, ids: list[Tensor], scores: Float[Tensor, "node vocab"]
) -> Float[Tensor, "node vocab"]:
    """One processor over nodes that have prefixes of different lengths, in as few calls as it allows.

    `ids` are the prefixes, each of its own length. Processors of transformers treat the rows that they are given alike,
    so nodes whose prefixes are equally long go together. What the repetition penalty sees is a set, so prefixes are
    filled up with a token of their own.
    """
    if isinstance(processor, PREFIX_FREE):
        return processor(ids[0].new_zeros(len(ids), 1), scores)
    together = type(processor).__module__.startswith("transformers.")
    if type(processor) is hf.RepetitionPenaltyLogitsProcessor and not isinstance(
        processor.prompt_ignore_length, Tensor
    ):
        ids = [prefix[processor.prompt_ignore_length or 0 :] for prefix in ids]
        processor = hf.RepetitionPenaltyLogitsProcessor(processor.penalty)
        longest = max(map(len, ids))
        ids = [
            torch.cat([prefix, prefix[-1:].expand(longest - len(prefix))]) if len(prefix) else prefix for prefix in ids
        ]
    groups: dict[int, list[int]] = {}
    for number, prefix in enumerate(ids):
        groups.setdefault(len(prefix) if together else -1 - number, []).append(number)
    if len(groups) == 1:
        return processor(torch.stack(ids), scores)
    # Whole rows are copied much faster by `index_select` and `index_copy_` than by indexing.
    processed = torch.empty_like(scores)
    for numbers in groups.values():
        rows = torch.tensor(numbers, device=scores.device)
        prefixes = torch.stack([ids[number] for number in numbers])
        processed.index_copy_(0, rows, processor(prefixes, scores.index_select(0, rows)))
    return processed


# The name that 0.1 had.
Sampling = SamplingOptions
