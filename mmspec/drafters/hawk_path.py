"""Path-conditioned Hawk: one small recurrent head that reads the drafted path and the committed neighbourhood."""

from collections.abc import Sequence
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.leftovers import Leftovers
from mmspec.engine.accept import Verdict
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import Candidates, DraftTree, root
from mmspec.targets.base import Target

# Share of the recurrent input that training leaves out: without it the drafter learns its sequences by heart.
DROPOUT = 0.15


class HawkPathDrafter(TrainedDrafter):
    """State <- (state, token drafted before, tokens and target features at the neighbours, row and column).

    `neighbours` are (rows up, columns right) of the place to be predicted; their tokens are read as embeddings, and the
    target's hidden state after each was read as its feature. An empty list, with `grid = (0, 0)`, is the
    one-dimensional form for speech and text. No target pass happens while drafting. What the last round said of a place (its
    leftovers) is blended in: `(1 - blend) (log q + lambda g) + blend (log p + g)`.
    """

    name = "hawk-path"

    def __init__(
        self,
        hidden_size: int,
        vocabulary: int,
        width: int = 512,
        inner: int = 1024,
        neighbours: Sequence[Sequence[int]] = (),
        grid: Sequence[int] = (0, 0),
        stride: int = 0,
        depth: int = 8,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
    ):
        super().__init__(target, depth, beta, coupling, beam=3, ranks=3)
        self.widths = [2, *[1] * depth]
        self.blend = 0.6
        self.vocabulary, self.grid, self.stride, self.depth = vocabulary, tuple(grid), stride, depth
        self.offsets = [up * stride - right for up, right in neighbours]
        self.enter = nn.Linear(hidden_size, width, bias=False)
        self.tokens = nn.Embedding(vocabulary + 1, width)
        self.around = nn.ModuleList(nn.Embedding(vocabulary + 1, width) for _ in self.offsets)
        self.look = nn.Linear(hidden_size * len(self.offsets), width, bias=False) if self.offsets else None
        self.row = nn.Embedding(grid[0], width) if stride else None
        self.column = nn.Embedding(stride, width) if stride else None
        self.decay = nn.Parameter(torch.zeros(width))
        self.norm, self.final = nn.RMSNorm(width), nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for table in (self.tokens, *self.around, self.row, self.column):
            if table is not None:
                nn.init.normal_(table.weight, std=0.5 / (len(self.offsets) + 2) ** 0.5)

    def context(
        self,
        tokens: Int[Tensor, "row place neighbour"],
        features: Float[Tensor, "stream row place wide"],
        places: Int[Tensor, "row place"],
    ) -> Float[Tensor, "stream row place width"]:
        """What is known of each place before its left neighbour is: `tokens` has `vocabulary` where nothing is committed."""
        seen = torch.zeros(1, device=places.device, dtype=self.decay.dtype)
        for i, table in enumerate(self.around):
            seen = seen + table(tokens[..., i])
        if self.row is not None and self.column is not None:
            seen = (
                seen + self.row((places // self.stride).clamp(max=self.grid[0] - 1)) + self.column(places % self.stride)
            )
        if self.look is None:
            return seen.expand(features.shape[0], *places.shape, self.decay.shape[0])
        return seen + self.look(features)

    def begin(self, features: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape width"]:
        """The recurrent state before the root is read, from the feature that predicted the root."""
        return self.enter(features)

    def step(
        self, state: Float[Tensor, "*shape width"], tokens: Int[Tensor, "*other"], context: Float[Tensor, "*more width"]
    ) -> tuple[Float[Tensor, "*shape width"], Float[Tensor, "*shape vocab"]]:
        """Read one token; the new state, and logits of the token that follows."""
        mixed = F.dropout(state + self.tokens(tokens) + context, DROPOUT, self.training)
        gate, value = self.up(self.norm(mixed)).chunk(2, dim=-1)
        state = mixed * torch.sigmoid(self.decay) + self.down(F.silu(gate) * value)
        return state, self.head(self.final(state))

    def start(self, target: Target, state: State, sampling: SamplingOptions, drawn: bool) -> None:
        self._target, self._drawn, self._sampling = target, drawn, sampling.without_processors()
        self._length = 3.0
        self._leftovers = Leftovers(state.rows, target.vocabulary_size, target.device)

    def reseat(self, state: State, former: list[int | None]) -> None:
        self._leftovers.reseat(former)

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None:
        committed = sum(map(len, verdict.paths)) / max(1, sum(map(bool, verdict.paths)))
        self._length += 0.1 * (committed - self._length)
        self._leftovers.observe(tree, verdict, keys)

    def surroundings(self, state: State, height: int) -> Float[Tensor, "stream row place width"]:
        """Contexts of the `height` places after the root."""
        counts = torch.tensor(state.counts, device=state.roots.device)
        places = counts[:, None] + torch.arange(height, device=counts.device)
        if not self.offsets:
            return self.context(places[..., None][..., :0], state.features[:, :, :1].expand(-1, -1, height, -1), places)
        longest = max(state.counts)
        history = torch.full((state.rows, longest + 1), self.vocabulary, device=counts.device)
        for row, committed in enumerate(state.tokens):
            history[row, : len(committed)] = torch.tensor(committed, device=counts.device)
        near = places[..., None] - torch.tensor(self.offsets, device=counts.device)
        known = (near >= 0) & (near < counts[:, None, None])
        tokens = history.gather(1, near.where(known, longest).flatten(1)).view_as(near)
        read = (near >= 0) & (near + 1 < counts[:, None, None])
        rows = torch.arange(state.rows, device=counts.device)[:, None, None]
        features = state.features[:, rows, (near + 1).where(read, 0)] * read[..., None]
        return self.context(tokens, features.flatten(3), places)

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, self.depth)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        coupled = self.coupled and not noise.greedy
        context = self.surroundings(state, height)
        counts = torch.tensor(state.counts, device=state.roots.device)
        gumbel = noise.gumbel(state.counts, height)
        rows = torch.arange(state.rows, device=counts.device)
        hidden = self.begin(state.features[:, rows, counts - 1])[:, :, None]

        def scores(depth: int, tokens: Tensor, places: Tensor) -> Float[Tensor, "row beam vocab"]:
            nonlocal hidden
            hidden = hidden[:, rows[:, None], places]
            hidden, logits = self.step(hidden, tokens, context[:, :, depth : depth + 1])
            where = (counts + depth)[:, None].expand_as(tokens)
            return self._sampling.scores(
                self._target.guide(
                    state, logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32), where
                )
            )

        if self._drawn:
            return self.drawn(state, noise, scores, height)
        left = self._leftovers

        def expand(depth: int, tokens: Tensor, places: Tensor) -> Candidates:
            keys = scores(depth, tokens, places)
            if coupled:
                keys = keys + self.coupling[depth] * gumbel[:, depth, None].to(keys.dtype)
                keys = left.mix(depth, keys, self.blend) * self.beta[depth]
            return self.candidates(keys)

        return self.grown(state, expand, height, began, self._length)
