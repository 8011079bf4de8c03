"""What the loop asks of a drafter."""

from collections.abc import Callable
from time import perf_counter
from typing import ClassVar, Protocol, runtime_checkable

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.drafters.cost import Cost
from mmspec.engine.accept import Verdict
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import Candidates, DraftTree, grow
from mmspec.targets.base import Target


@runtime_checkable
class Drafter(Protocol):
    """The cheap guesser. One instance serves one generation at a time; `start` begins the next.

    `max_nodes` is the largest number of draft tokens in a tree; `needs_features` asks the state to keep features.
    """

    name: str
    max_nodes: int
    needs_features: bool

    def start(self, target: Target, state: State, sampling: SamplingOptions, drawn: bool) -> None:
        """A generation begins, or goes on with other rows; `drawn` asks for candidates drawn from laws that the tree then carries.

        A drafter that can carry over what it knows has `reseat(state, former)` too: row i was `former[i]`, or is new if None.
        """
        ...

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        """A tree of at most `limit` levels under the root."""
        ...

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None:
        """What was committed, and log p + g of every node (`row node vocab`)."""
        ...


class TrainedDrafter(nn.Module, PyTorchModelHubMixin):
    """What drafters with weights share: how they spend the node budget.

    `coupled` ranks candidates by log q + lambda g, with the noise that the target's sample will use, else by q alone. A tree
    grows from `beam` nodes a level and `ranks` children each; `nodes` fixes its size, else `cost` chooses it. `widths`
    are the children per level of trees that are drawn for `rejection`. `coupling[depth]` (lambda) and `beta[depth]` are calibrated:
    softmax(beta (log q + lambda g)) is the chance that a candidate is the target's sample. lambda is 1 if q is the
    target's p, and 0 if the target is certain of a token that the drafter does not know: the noise then decides nothing.
    """

    needs_features: ClassVar[bool] = True
    max_nodes: ClassVar[int] = 64

    def __init__(
        self, target: str, depth: int, beta: list[float] | None, coupling: list[float] | None, beam: int, ranks: int
    ):
        super().__init__()
        self.target_hash = target
        self.beta, self.coupling = beta or [1.0] * depth, coupling or [1.0] * depth
        self.coupled, self.beam, self.ranks = True, beam, ranks
        self.nodes: int | None = None
        self.widths = [3, 2, *[1] * depth]
        self.cost: Cost | None = None

    def budget(self, reach: Tensor, drafting: float = 0.0) -> int:
        """How many of the nodes whose chances of being reached are `reach`, sorted downwards, make the tree."""
        wanted = self.nodes or (self.cost.cut(drafting)(reach[: self.max_nodes]) if self.cost else 16)
        return min(wanted, self.max_nodes)

    def candidates(self, keys: Float[Tensor, "row beam vocab"]) -> Candidates:
        """The best children of each node, and their chances: the softmax of `keys`."""
        best, children = keys.topk(min(self.ranks, keys.shape[2]), dim=2)
        return Candidates(children, (best - keys.logsumexp(2, keepdim=True)).exp().float())

    def grown(
        self,
        state: State,
        expand: Callable[[int, Tensor, Tensor], Candidates],
        height: int,
        began: float,
        length: float,
    ) -> DraftTree:
        """The tree of a drafter that pays for every level; drafting began at `began`.

        Another level adds at most `mass` tokens (in practice some 0.7 of it) and must beat the present rate of `length` tokens a round.
        """

        def worth(depth: int, mass: float) -> bool:
            step = (perf_counter() - began) / depth
            return self.cost is None or mass * 0.7 > step * length / (self.cost.target(8) + depth * step)

        return grow(
            state.roots, expand, height, self.beam, worth, lambda reach: self.budget(reach, perf_counter() - began)
        )

    def drawn(
        self, state: State, noise: Noise, scores: Callable[[int, Tensor, Tensor], Tensor], height: int
    ) -> DraftTree:
        """Siblings drawn without replacement from q, by Gumbel top-m with noise of their own; widths are fixed beforehand.

        `scores(depth, tokens, places)` are those that follow the nodes of a level, whose parents were at `places` of the level before.
        """
        rows, device = state.rows, state.roots.device
        level, places = state.roots[:, None], torch.zeros(rows, 1, dtype=torch.long, device=device)
        head = state.roots[:, None]
        tokens, parents, depths = [head], [torch.full_like(head, -1)], [torch.zeros_like(head)]
        laws: list[Tensor] = []
        first, count = 0, 1
        for depth in range(height):
            width, beam = self.widths[depth], level.shape[1]
            law = scores(depth, level, places).softmax(2)
            laws = laws or [torch.zeros_like(law[:, :1])]
            fresh = torch.stack(
                [noise.fresh(row, place + depth, Noise.DRAFT)[0] for row, place in enumerate(state.counts)]
            )
            if noise.greedy:
                law, width = F.one_hot(law.argmax(2), law.shape[2]).to(law.dtype), 1
                level = law.argmax(2)
            else:
                level = (law.log() + fresh[:, None].to(law)).topk(width, dim=2).indices.flatten(1)
            places = torch.arange(beam, device=device).repeat_interleave(width).expand(rows, -1)
            tokens.append(level)
            parents.append(places + first)
            depths.append(torch.full_like(level, depth + 1))
            laws.append(law.repeat_interleave(width, dim=1))
            first, count = count, count + level.shape[1]
            if depth + 1 < height and count + level.shape[1] * self.widths[depth + 1] > self.max_nodes:
                break
        return DraftTree(
            torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(depths, 1), torch.cat(laws, 1), replacement=False
        )
