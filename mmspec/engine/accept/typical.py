"""Accept what is typical of the target (Medusa, Cai et al. 2024, arXiv 2401.10774)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmspec.engine.accept.base import Acceptable, above
from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError


@dataclass(frozen=True)
class Typical:
    """LOSSY. Accept a child x with p(x) > min(epsilon, delta exp(-H(p))), the most probable such child at every node.

    The bonus token is the target's own sample. That protected tokens are not exchanged is our choice.
    """

    epsilon: float = 0.3
    delta: float = 0.09

    needs_draft_probs: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    usage: ClassVar[str] = "typical takes epsilon and delta in (0, 1], as in 'typical:0.3,0.09'"

    def __post_init__(self) -> None:
        if not (0 < self.epsilon <= 1 and 0 < self.delta <= 1):
            raise MmspecError(f"acceptance 'typical:{self.epsilon},{self.delta}': {self.usage}")

    @property
    def name(self) -> str:
        return "typical" if self == Typical() else f"typical:{self.epsilon:g},{self.delta:g}"

    def __call__(
        self,
        tree: DraftTree,
        scores: Tensor,
        gumbel_scores: Tensor,
        noise: Noise,
        counts: list[int],
        protected: frozenset[int] = frozenset(),
    ) -> Acceptable:
        log_p = torch.log_softmax(scores, dim=2)
        p = log_p.exp()
        entropy = -(p * log_p.clamp(min=-1e4)).sum(2)
        floor = torch.minimum(torch.full_like(entropy, self.epsilon), self.delta * (-entropy).exp())
        return above(tree, p, floor, gumbel_scores, protected, strictly=True)
