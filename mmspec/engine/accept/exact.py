"""Accept what the target itself samples (Daliri et al. 2024, arXiv 2408.07978)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmspec.engine.accept.base import Acceptable
from mmspec.engine.largest import argmax
from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree


@dataclass(frozen=True)
class Exact:
    """LOSSLESS. Accept the child that is the target's own sample, argmax log p + g: the same seed gives the same
    tokens.
    """

    needs_draft_probs: ClassVar[bool] = False
    usage: ClassVar[str] = ""
    name: ClassVar[str] = "exact"
    lossless: ClassVar[bool] = True

    def __call__(
        self,
        tree: DraftTree,
        scores: Tensor,
        gumbel_scores: Tensor,
        noise: Noise,
        counts: list[int],
        protected: frozenset[int] = frozenset(),
    ) -> Acceptable:
        samples = argmax(gumbel_scores)
        right = tree.tokens == samples.gather(1, tree.parents.clamp(min=0))
        return Acceptable(tree, right.long() - 1, samples)
