"""Path-conditioned Hawk: one small recurrent head that reads the drafted path and the committed neighbourhood."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.drafters.examples import Batch
from mmspec.drafters.path_drafter import PathDrafter
from mmspec.drafters.stale import StaleScores
from mmspec.engine.accept import Committed
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree
from mmspec.targets.base import Target

# Dropout probability on the input of the recurrent block (state + token + context) in training; without it the drafter
# overfits.
DROPOUT = 0.15


class HawkPathDrafter(PathDrafter):
    """A recurrent block that is applied once per draft depth, without any target pass while drafting.

    Its input is the recurrent state, the embedding of the last drafted token, and the context of the position to be
    predicted: tokens and target features of its neighbours, and its row and column in the grid.

    `neighbours` are offsets (rows up, columns right) from the position to be predicted: (1, 0) is the position directly
    above (the neighbours of `HawkDrafter` count rows down from the token just read). The feature of a neighbour is the
    target's hidden state after its token was read. `grid` is (height, width) and `stride` the number of tokens per grid
    row; an empty list of neighbours with `grid = (0, 0)` and `stride = 0` is the one-dimensional form for speech and
    text. `width` is the size of the recurrent state, `inner` that of the feed-forward layer, `depth` the largest height
    of a tree, and `target` the target's `weights_hash`.

    A coupled drafter that samples scores its candidates with
    `beta T ((1 - blend) (log q + lambda g) + blend (log p + g))`, where log p + g are the stale scores of the position
    from the last round. Without stale scores, `blend` counts as 0.
    """

    name = "hawk-path"
    recipe = {"steps": 2000, "batch": 8, "lr": 1.5e-3, "muon_lr": 1.5e-3}

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
        self.blend = 0.6
        self.vocabulary, self.grid, self.stride = vocabulary, tuple(grid), stride
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
        tokens: Int[Tensor, "row position neighbour"],
        features: Float[Tensor, "branch row position wide"],
        positions: Int[Tensor, "row position"],
    ) -> Float[Tensor, "branch row position width"]:
        """The context vector of each position to be predicted; it does not depend on the drafted path.

        `tokens[..., i]` is the token of neighbour i, or `vocabulary` if it is not committed. `features` are those of
        all neighbours, concatenated along the last axis ("wide") and zero where they are not known; without neighbours,
        only the number of branches is taken from them.
        """
        total = torch.zeros(1, device=positions.device, dtype=self.decay.dtype)
        for i, table in enumerate(self.around):
            total = total + table(tokens[..., i])
        if self.row is not None and self.column is not None:
            total = total + self.row((positions // self.stride).clamp(max=self.grid[0] - 1))
            total = total + self.column(positions % self.stride)
        if self.look is None:
            return total.expand(features.shape[0], *positions.shape, self.decay.shape[0])
        return total + self.look(features)

    def begin(self, features: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape width"]:
        return self.enter(features)

    def step(
        self,
        target: Target,
        state: Float[Tensor, "*shape width"],
        tokens: Int[Tensor, "*other"],
        depth: int,
        context: Float[Tensor, "*more width"] | None,
    ) -> tuple[Float[Tensor, "*shape width"], Float[Tensor, "*shape vocab"]]:
        mixed = F.dropout(state + self.tokens(tokens) + context, DROPOUT, self.training)
        gate, value = self.up(self.norm(mixed)).chunk(2, dim=-1)
        state = mixed * torch.sigmoid(self.decay) + self.down(F.silu(gate) * value)
        return state, self.head(self.final(state))

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        self._stale = StaleScores(state.rows, target.vocabulary_size, target.device)

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        self._stale.change_rows(previous)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        super().observe(state, tree, committed, gumbel_scores)
        self._stale.observe(tree, committed, gumbel_scores)

    def couple(
        self, depth: int, scores: Float[Tensor, "row beam vocab"], noise: Float[Tensor, "row 1 vocab"]
    ) -> Float[Tensor, "row beam vocab"]:
        mixed = self._stale.mix(depth, scores + self.coupling[depth] * noise, self.blend)
        return mixed * self.beta[depth] * self.sampling.temperature

    def draft_contexts(self, state: State, height: int) -> Float[Tensor, "branch row position width"]:
        counts = torch.tensor(state.counts, device=state.roots.device)
        positions = counts[:, None] + torch.arange(height, device=counts.device)
        if not self.offsets:
            first = state.features[:, :, :1].expand(-1, -1, height, -1)
            return self.context(positions[..., None][..., :0], first, positions)
        longest = max(state.counts)
        padded = [row + [self.vocabulary] * (longest + 1 - len(row)) for row in state.tokens]
        history = torch.tensor(padded, device=counts.device)
        sources = positions[..., None] - torch.tensor(self.offsets, device=counts.device)
        committed = (sources >= 0) & (sources < counts[:, None, None])
        tokens = history.gather(1, sources.where(committed, longest).flatten(1)).view_as(sources)
        read = (sources >= 0) & (sources + 1 < counts[:, None, None])
        rows = torch.arange(state.rows, device=counts.device)[:, None, None]
        features = state.features[:, rows, (sources + 1).where(read, 0)] * read[..., None]
        return self.context(tokens, features.flatten(3), positions)

    @classmethod
    def build(cls, target: Target, **options: Any) -> "HawkPathDrafter":
        """A drafter that begins with the target's output head where it fits; on a grid it reads the positions above."""
        grid = target.grid
        options.setdefault("neighbours", [[1, 0], [1, 1], [1, -1]] if grid else [])
        drafter = cls(
            target.hidden_size,
            target.vocabulary_size,
            grid=(grid.height, grid.width) if grid else (0, 0),
            stride=grid.stride if grid else 0,
            target=target.weights_hash,
            **options,
        )
        if drafter.head.weight.shape == target.head.weight.shape:
            drafter.head.weight.data.copy_(target.head.weight)
        return drafter

    def training_context(
        self, batch: Batch, anchors: Int[Tensor, "row anchor"], positions: Int[Tensor, "row anchor"]
    ) -> Float[Tensor, "row branch anchor width"]:
        tokens, features = batch.tokens, batch.features
        rows, length = tokens.shape
        padded = torch.cat([tokens, tokens.new_full((rows, 1), self.vocabulary)], 1)
        row = torch.arange(rows, device=tokens.device)[:, None, None]
        sources = (positions[..., None] - torch.tensor(self.offsets, device=tokens.device)).long()
        committed = (sources >= 0) & (sources < anchors[..., None])
        read = (sources >= 0) & (sources + 1 < anchors[..., None])
        around = padded[row, sources.where(committed, length)]
        if self.offsets:
            states = features[row, :, (sources + 1).where(read, 0)] * read[..., None, None]
            states = states.movedim(3, 1).flatten(3)
        else:
            states = features[:, :, :1].expand(-1, -1, anchors.shape[1], -1)
        return self.context(around, states.transpose(0, 1), positions).transpose(0, 1)
