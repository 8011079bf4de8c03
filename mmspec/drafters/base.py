"""What the loop asks of a drafter."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from mmspec.accept import Verdict
from mmspec.sampling import Noise, Sampling
from mmspec.targets.base import State, Target
from mmspec.tree import DraftTree


@runtime_checkable
class Drafter(Protocol):
    """The cheap guesser. One instance serves one generation at a time; `start` begins the next.

    `max_nodes` is the largest number of draft tokens in a tree; `needs_features` asks the state to keep features.
    """

    name: str
    max_nodes: int
    needs_features: bool

    def start(self, target: Target, state: State, sampling: Sampling, drawn: bool) -> None:
        """A generation begins; `drawn` asks for candidates drawn from laws that the tree then carries."""
        ...

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        """A tree of at most `limit` levels under the root."""
        ...

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None:
        """What was committed, and log p + g of every node (`row node vocab`)."""
        ...
