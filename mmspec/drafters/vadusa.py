"""VADUSA: Medusa heads trained jointly with a speech model, and a sparse tree for speech (Li et al.

2024, arXiv 2410.21951).
"""

from jaxtyping import Float
from torch import Tensor

from mmspec.drafters.heads import HeadDrafter
from mmspec.drafters.lattice import PairTable
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import Candidates
from mmspec.errors import MmspecError
from mmspec.targets.base import Target


class VadusaDrafter(HeadDrafter):
    """`heads` residual heads on the last hidden state, head k for the token k positions after the one that the target
    samples next.

    With `sparse`, nodes go where `accuracies[k][i]`, how often the i-th candidate of head k was right on held-out
    speech, says: always the same tree, grown greedily by products of accuracies as in the paper, whatever a table says.
    Without, each candidate's own chance decides.
    """

    name = "vadusa"

    def __init__(
        self,
        hidden_size: int,
        heads: int = 6,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        accuracies: list[list[float]] | None = None,
        sparse: bool = False,
        stride: int = 0,
        vocabulary: int = 0,
        rank: int = 0,
        inner: int = 512,
        layers: int = 1,
        discriminator: int = 0,
    ):
        neighbours = [(0, k + 2) for k in range(heads)]
        options = (vocabulary, rank, inner, layers, discriminator)
        super().__init__(hidden_size, stride, neighbours, target, beta, coupling, *options)
        self.accuracies, self.sparse = accuracies, sparse

    @classmethod
    def default_options(cls, target: Target) -> dict:
        return {}

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        if self.sparse and not self.accuracies:
            raise MmspecError(
                "a sparse tree needs the accuracies of the heads, and this drafter has none: train it again, or leave "
                "sparse out"
            )
        super().start(target, state, sampling, needs_draft_probs)

    def joining_table(self) -> PairTable | None:
        return None if self.sparse else self.table

    def candidates(self, scores: Float[Tensor, "row depth vocab"]) -> Candidates:
        proposed = super().candidates(scores)
        if not (self.sparse and self.accuracies):
            return proposed
        probs = proposed.probs.new_tensor(self.accuracies)[: proposed.probs.shape[1], : proposed.probs.shape[2]]
        return Candidates(proposed.tokens, probs.cummin(1).values.expand_as(proposed.probs))

    def calibrated(self, accuracies: list[list[float]]) -> None:
        self.accuracies = accuracies
