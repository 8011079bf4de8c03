"""Accept what the target is certain of (Lexical Unit Decoding, Sun et al. 2024, arXiv 2405.15208)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmspec.engine.accept.base import Acceptable, above
from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError


@dataclass(frozen=True)
class Lexical:
    """LOSSY. Accept a child x with p(x) >= alpha, the most probable such child at every node, else the target's own
    sample: tokens that follow each other with so much certainty are a lexical unit, and come at once.

    The paper fine-tunes the model to emit a unit in parallel, and verifies nothing; here any drafter proposes it, and
    the target's own probabilities say whether it is one. That, and that protected tokens are not exchanged, is our
    choice.
    """

    alpha: float = 0.9

    needs_draft_probs: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    usage: ClassVar[str] = "lexical takes one number in (0, 1], as in 'lexical:0.9'"

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise MmspecError(f"acceptance 'lexical:{self.alpha}': {self.usage}")

    @property
    def name(self) -> str:
        return f"lexical:{self.alpha}"

    def __call__(
        self,
        tree: DraftTree,
        scores: Tensor,
        gumbel_scores: Tensor,
        noise: Noise,
        counts: list[int],
        protected: frozenset[int] = frozenset(),
    ) -> Acceptable:
        p = torch.softmax(scores, dim=2)
        return above(tree, p, torch.full_like(p[..., 0], self.alpha), gumbel_scores, protected, samples_too=True)
