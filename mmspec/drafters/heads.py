"""Independent heads on the target's last hidden state: what Medusa and Hawk share."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmspec.drafters.base import TrainedDrafter
from mmspec.engine.accept import Verdict
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, product, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

Neighbour = Sequence[int]

# Floor of a log probability in a pool: what one source forbids, another may still propose.
IMPOSSIBLE = -50.0


class ResidualHead(nn.Module):
    """x + SiLU(W x + b), the identity at first (Medusa); the target's own head follows it."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return x + nn.functional.silu(self.linear(x))


class HeadDrafter(TrainedDrafter):
    """One residual head for each neighbour, sharing the target's frozen output head.

    A neighbour (rows down, columns right) of the token just read is `down * stride + right` places ahead. The place one
    ahead is the target's own to sample, so horizontal heads begin at (0, 2): the k-th of them serves draft depth k. Heads
    for rows below are vertical: their proposals wait in the speculation cache until that row is drafted, and then serve
    whatever depth their place has.
    """

    name = "heads"

    def __init__(
        self,
        hidden_size: int,
        stride: int,
        neighbours: Sequence[Neighbour],
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
    ):
        right = sum(down == 0 for down, _ in neighbours)
        super().__init__(target, right, beta, coupling, beam=8, ranks=8)
        self.neighbours = [(int(down), int(right)) for down, right in neighbours]
        self.offsets = [down * stride + right for down, right in self.neighbours]
        self.horizontal = [i for i, (down, _) in enumerate(self.neighbours) if down == 0]
        self.vertical = [i for i, (down, _) in enumerate(self.neighbours) if down > 0]
        if [self.offsets[i] for i in self.horizontal] != list(range(2, right + 2)):
            raise MmspecError(f"horizontal neighbours must be (0, 2), (0, 3), ... in order, not {self.neighbours}")
        self.heads = nn.ModuleList(ResidualHead(hidden_size) for _ in self.neighbours)
        self.weights = nn.Parameter(torch.zeros(len(self.horizontal), 1 + len(self.vertical)))

    def start(self, target: Target, state: State, sampling: SamplingOptions, drawn: bool) -> None:
        self._target, self._drawn = target, drawn
        self._sampling = sampling.without_processors()
        layers: list[Any] = [self.heads[i].linear for i in self.horizontal]  # one product for all of them
        self._across = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        self._wait(state)

    def reseat(self, state: State, former: list[int | None]) -> None:
        self._wait(state)

    def _wait(self, state: State) -> None:
        """The speculation cache, filled from the features that are there."""
        wide = torch.float64 if state.features.dtype == torch.float64 else torch.float32
        target = self._target
        self._waiting = [
            torch.zeros(
                state.rows, self.offsets[i] + self.max_nodes, target.vocabulary_size, device=target.device, dtype=wide
            )
            for i in self.vertical
        ]
        for row, count in enumerate(state.counts):
            self._store(state, row, max(1, count - max(self.offsets)), count)

    def propose(self, head: int, features: Tensor) -> Tensor:
        """Logits of one head, `*shape width` to `*shape vocab`."""
        return self._target.logits(self.heads[head](features))

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None:
        """Store the vertical proposals of the features just committed."""
        for row, (path, count) in enumerate(zip(verdict.paths, state.counts, strict=True)):
            self._store(state, row, max(1, count - len(path)), count)

    def _store(self, state: State, row: int, first: int, count: int) -> None:
        """What vertical heads say after the features of the places `first` to `count`."""
        if first >= count or not self.vertical:
            return
        features = state.features[:, row : row + 1, first:count]
        for slot, head in enumerate(self.vertical):
            places = torch.arange(first, count, device=features.device) - 1 + self.offsets[head]
            logits = self._target.guide(state, self.propose(head, features), places[None])
            waiting = self._waiting[slot]
            waiting[row, places % waiting.shape[1]] = logits[0]

    def pool(
        self, scores: Float[Tensor, "row depth source vocab"], known: Bool[Tensor, "row depth source"]
    ) -> Float[Tensor, "row depth vocab"]:
        """Log-linear pool of the proposals for each place; sources that are missing get no weight."""
        if scores.shape[2] == 1:
            return torch.log_softmax(scores[:, :, 0], 2)
        weights = self.weights[: scores.shape[1]].to(scores.dtype).masked_fill(~known, -torch.inf).softmax(2)
        return torch.einsum("rdsv,rds->rdv", torch.log_softmax(scores, 3).clamp(min=IMPOSSIBLE), weights)

    def sources(
        self, state: State, height: int
    ) -> tuple[Float[Tensor, "row depth source vocab"], Bool[Tensor, "row depth source"]]:
        """Processed scores for each depth, the horizontal head's first, and which of them are known."""
        counts = torch.tensor(state.counts, device=state.roots.device)[:, None]
        rows = torch.arange(state.rows, device=counts.device)[:, None]
        latest = state.features[:, rows, counts - 1].squeeze(2)
        moved = nn.functional.linear(latest, *self._across).unflatten(2, (len(self.horizontal), -1))[:, :, :height]
        stacked = latest[:, :, None] + nn.functional.silu(moved)
        places = counts + torch.arange(height, device=counts.device)
        found = [self._target.guide(state, self._target.logits(stacked), places)]
        known = [torch.ones_like(places, dtype=torch.bool)]
        for waiting, head in zip(self._waiting, self.vertical, strict=True):
            above = places - self.offsets[head]
            found.append(waiting[rows, places % waiting.shape[1]])
            known.append((above >= 0) & (above < counts - 1))
        scores = self._sampling.scores(torch.stack(found, 2).flatten(1, 2))
        return scores.unflatten(1, (height, len(found))), torch.stack(known, 2)

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, len(self.horizontal))
        if height < 1:
            return root(state.roots)
        scores, known = self.sources(state, height)
        if self._drawn:
            return self._draw(state, noise, scores, known)
        keys = self.pool(scores, known)
        if self.coupled and not noise.greedy:
            coupling, beta = (keys.new_tensor(each[:height])[:, None] for each in (self.coupling, self.beta))
            keys = beta * (keys + coupling * noise.gumbel(state.counts, height).to(keys.dtype))
        return product(state.roots, self.candidates(keys), self.max_nodes, self.budget)

    def _draw(self, state: State, noise: Noise, scores: Tensor, known: Tensor) -> DraftTree:
        """The paper's sampling pool: every candidate is drawn from its own head's law, independently, and keeps that law."""
        rows, device = state.rows, state.roots.device
        vocabulary = scores.shape[3]
        tokens, parents, depths = (
            [state.roots[:, None]],
            [torch.full((rows, 1), -1, device=device)],
            [torch.zeros(rows, 1, dtype=torch.long, device=device)],
        )
        laws = [torch.zeros(rows, 1, vocabulary, device=device, dtype=scores.dtype)]
        level, count = [0], 1
        for depth, (found, have) in enumerate(zip(scores.unbind(1), known.unbind(1), strict=True)):
            width = self.widths[depth]
            drawn, drawn_laws = [], []
            for row in range(rows):
                present = have[row].nonzero()[:, 0].tolist()
                chosen = [present[i % len(present)] for i in range(width)]
                law = found[row, chosen].softmax(1)
                fresh = noise.fresh(row, state.counts[row] + depth, Noise.DRAFT, width).to(law)
                drawn.append(law.argmax(1) if noise.greedy else (law.log() + fresh).argmax(1))
                drawn_laws.append(torch.nn.functional.one_hot(drawn[-1], vocabulary).to(law) if noise.greedy else law)
            tokens.append(torch.stack(drawn).repeat(1, len(level)))
            laws.append(torch.stack(drawn_laws).repeat(1, len(level), 1))
            parents.append(torch.tensor(level, device=device).repeat_interleave(width).expand(rows, -1))
            depths.append(torch.full((rows, width * len(level)), depth + 1, device=device))
            level = list(range(count, count + width * len(level)))
            count += len(level)
            if count + len(level) * (self.widths[depth + 1] if depth + 1 < scores.shape[1] else 0) > self.max_nodes:
                break
        return DraftTree(torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(depths, 1), torch.cat(laws, 1))
