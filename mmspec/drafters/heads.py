"""Independent heads on the target's last hidden state: what Medusa and Hawk share."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmspec.accept import Verdict
from mmspec.drafters.base import TrainedDrafter
from mmspec.errors import MmspecError
from mmspec.sampling import Noise, Sampling
from mmspec.targets.base import State, Target
from mmspec.tree import Candidates, DraftTree, grow, root

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

    def start(self, target: Target, state: State, sampling: Sampling, drawn: bool) -> None:
        self._target, self._drawn = target, drawn
        self._sampling = replace(sampling, processors=[])
        self._wait(state)

    def reseat(self, state: State, former: list[int | None]) -> None:
        self._wait(state)

    def _wait(self, state: State) -> None:
        """The speculation cache, filled from the features that are there."""
        wide = torch.float64 if state.features.dtype == torch.float64 else torch.float32
        target = self._target
        self._waiting = [
            torch.zeros(state.rows, self.offsets[i] + self.max_nodes, target.vocabulary, device=target.device, dtype=wide)
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

    def pool(self, logits: Float[Tensor, "row source vocab"], known: list[list[bool]], depth: int) -> Float[Tensor, "row vocab"]:
        """Log-linear pool of the proposals for one place; sources that are missing get no weight."""
        present = torch.tensor(known, device=logits.device)
        weights = self.weights[depth].to(logits.dtype).masked_fill(~present, -torch.inf).softmax(1)
        return torch.einsum("rsv,rs->rv", torch.log_softmax(logits, 2).clamp(min=IMPOSSIBLE), weights)

    def sources(self, state: State, height: int) -> tuple[list[Tensor], list[list[list[bool]]]]:
        """For each depth: processed scores `row source vocab` (horizontal first), and which of them are known."""
        counts = torch.tensor(state.counts, device=state.roots.device)
        rows = torch.arange(state.rows, device=state.roots.device)
        latest = state.features[:, rows, counts - 1]
        stacked = torch.stack([self.heads[self.horizontal[d]](latest) for d in range(height)], dim=2)
        places = counts[:, None] + torch.arange(height, device=counts.device)
        across = self._target.guide(state, self._target.logits(stacked), places)
        scores, known = [], []
        for depth in range(height):
            found = [across[:, depth]]
            have = [[True] for _ in state.counts]
            for slot, head in enumerate(self.vertical):
                waiting = self._waiting[slot]
                found.append(waiting[rows, places[:, depth] % waiting.shape[1]])
                for row, count in enumerate(state.counts):
                    above = count + depth - self.offsets[head]
                    have[row].append(0 <= above < count - 1)
            scores.append(self._sampling.scores(torch.stack(found, 1)))
            known.append(have)
        return scores, known

    def candidates(self, depth: int, keys: Float[Tensor, "row vocab"]) -> Candidates:
        """The best of one depth, and the chance of each."""
        chances, tokens = keys.softmax(1).topk(min(self.ranks, keys.shape[1]), dim=1)
        return Candidates(tokens[:, None], chances[:, None].float())

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, len(self.horizontal))
        if height < 1 or min(state.counts) == 0:
            return root(state.roots)
        scores, known = self.sources(state, height)
        if self._drawn:
            return self._draw(state, noise, scores, known)
        keys = [self.pool(found, have, depth) for depth, (found, have) in enumerate(zip(scores, known, strict=True))]
        if self.coupled and not noise.greedy:
            gumbel = noise.gumbel(state.counts, height)
            keys = [self.beta[d] * (key + self.coupling[d] * gumbel[:, d].to(key.dtype)) for d, key in enumerate(keys)]
        levels = [self.candidates(depth, key) for depth, key in enumerate(keys)]

        def expand(depth: int, tokens: Tensor, places: Tensor) -> Candidates:
            level = levels[depth]
            beam = tokens.shape[1]
            return Candidates(level.tokens.expand(-1, beam, -1), level.chances.expand(-1, beam, -1))

        return grow(state.roots, expand, height, self.beam, cut=self.budget)

    def _draw(self, state: State, noise: Noise, scores: list[Tensor], known: list[list[list[bool]]]) -> DraftTree:
        """The paper's sampling pool: every candidate is drawn from its own head's law, independently, and keeps that law."""
        rows, device = state.rows, state.roots.device
        vocabulary = scores[0].shape[2]
        tokens, parents, depths = (
            [state.roots[:, None]],
            [torch.full((rows, 1), -1, device=device)],
            [torch.zeros(rows, 1, dtype=torch.long, device=device)],
        )
        laws = [torch.zeros(rows, 1, vocabulary, device=device, dtype=scores[0].dtype)]
        level, count = [0], 1
        for depth, (found, have) in enumerate(zip(scores, known, strict=True)):
            width = self.widths[depth]
            drawn, drawn_laws = [], []
            for row in range(rows):
                present = [i for i, there in enumerate(have[row]) if there]
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
            if count + len(level) * (self.widths[depth + 1] if depth + 1 < len(scores) else 0) > self.max_nodes:
                break
        return DraftTree(torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(depths, 1), torch.cat(laws, 1))
