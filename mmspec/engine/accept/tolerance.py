"""Accept one of the target's best candidates (VADUSA, Li et al. 2024, arXiv 2410.21951)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmspec.engine.accept.base import Acceptable, is_protected
from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError


@dataclass(frozen=True)
class Tolerance:
    """LOSSY for tau > 1. Accept a child among the tau best of log p + g, i.e. among tau samples without replacement.

    The best-ranked one is taken if there are several. tau = 1 is `Exact`. That protected tokens are not exchanged is
    our choice, not the paper's.
    """

    tau: int = 2

    needs_draft_probs: ClassVar[bool] = False
    usage: ClassVar[str] = "tolerance takes one whole number from 1 to 64, as in 'tolerance:3'"

    def __post_init__(self) -> None:
        if isinstance(self.tau, bool) or not 1 <= self.tau <= 64:
            raise MmspecError(f"acceptance 'tolerance:{self.tau}': {self.usage}")

    @property
    def name(self) -> str:
        return f"tolerance:{self.tau}"

    @property
    def lossless(self) -> bool:
        return self.tau == 1

    def __call__(
        self,
        tree: DraftTree,
        scores: Tensor,
        gumbel_scores: Tensor,
        noise: Noise,
        counts: list[int],
        protected: frozenset[int] = frozenset(),
    ) -> Acceptable:
        best = gumbel_scores.topk(min(self.tau, scores.shape[2]), dim=2).indices
        samples = best[..., 0]
        guarded = is_protected(best, protected)
        allowed = scores.gather(2, best).isfinite() & ~guarded & ~guarded[..., :1]
        allowed[..., 0] = True
        parents = tree.parents.clamp(min=0)[:, :, None].expand(-1, -1, best.shape[2])
        matches = (tree.tokens[:, :, None] == best.gather(1, parents)) & allowed.gather(1, parents)
        order = torch.where(matches.any(2), matches.int().argmax(2), -1)
        return Acceptable(tree, order, samples)
