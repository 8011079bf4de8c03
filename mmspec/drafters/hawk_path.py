"""Path-conditioned Hawk: one small recurrent head that reads the drafted path and the committed neighbourhood."""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import (
    Batch,
    DepthPredictions,
    Example,
    divergence,
    guide,
    masked_mean,
    pad,
    uniform,
)
from mmspec.drafters.stale import StaleScores
from mmspec.drafters.trees import DepthPlan, sample_tree
from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import Candidates, DraftTree, build_tree, root
from mmspec.targets.base import Target

# Dropout probability on the input of the recurrent block (state + token + context) in training; without it the drafter
# overfits.
DROPOUT = 0.15

# Weight of a depth's loss against that of the depth before it.
DECAY = 0.9


class HawkPathDrafter(TrainedDrafter):
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
    loss_options = ("anchors", "tv")
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
        """The recurrent state before the root is read, from the feature that predicted the root."""
        return self.enter(features)

    def step(
        self, state: Float[Tensor, "*shape width"], tokens: Int[Tensor, "*other"], context: Float[Tensor, "*more width"]
    ) -> tuple[Float[Tensor, "*shape width"], Float[Tensor, "*shape vocab"]]:
        """Read one token; return the new recurrent state and the logits of the next token.

        The embeddings of `tokens` and `context` are broadcast to the shape of `state`, e.g. `branch row beam width`.
        """
        mixed = F.dropout(state + self.tokens(tokens) + context, DROPOUT, self.training)
        gate, value = self.up(self.norm(mixed)).chunk(2, dim=-1)
        state = mixed * torch.sigmoid(self.decay) + self.down(F.silu(gate) * value)
        return state, self.head(self.final(state))

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        self._plan = DepthPlan(self.depth)
        self._stale = StaleScores(state.rows, target.vocabulary_size, target.device)

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        self._stale.change_rows(previous)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        self._plan.observe(committed, tree.height)
        self._stale.observe(tree, committed, gumbel_scores)

    def neighbour_context(self, state: State, height: int) -> Float[Tensor, "branch row position width"]:
        """Contexts of the `height` positions after the root."""
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

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = self._plan.height(limit, self.cost)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        context = self.neighbour_context(state, height)
        counts = torch.tensor(state.counts, device=state.roots.device)
        gumbel = noise.gumbel(state.counts, height) if self.coupled and not noise.greedy else None
        rows = torch.arange(state.rows, device=counts.device)
        hidden = self.begin(state.features[:, rows, counts - 1])[:, :, None]

        def scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row beam vocab"]:
            nonlocal hidden
            hidden = hidden[:, rows[:, None], parent_index]
            hidden, logits = self.step(hidden, tokens, context[:, :, depth : depth + 1])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            positions = (counts + depth)[:, None].expand_as(tokens)
            return self.sampling.scores(self.target.guide(state, logits, positions))

        def expand(depth: int, tokens: Tensor, parent_index: Tensor) -> Candidates:
            values = scores(depth, tokens, parent_index)
            if gumbel is not None:
                values = values + self.coupling[depth] * gumbel[:, depth, None].to(values.dtype)
                values = self._stale.mix(depth, values, self.blend) * self.beta[depth] * self.sampling.temperature
            return self.candidates(values)

        if self.needs_draft_probs:
            return sample_tree(state, noise, scores, self.widths, height, self.max_nodes)
        tree = build_tree(state.roots, expand, height, self.beam, self.max_nodes)
        self._plan.took(perf_counter() - began, height)
        return tree

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

    def unroll(
        self, batch: Batch, anchors: Int[Tensor, "row anchor"]
    ) -> Iterator[tuple[Int[Tensor, "row anchor"], Bool[Tensor, "row anchor"], Tensor]]:
        """Unroll the drafter from every anchor with teacher forcing.

        An anchor n is a draft after n committed tokens: the root is token n - 1, and depth k = 0, 1, ... predicts token
        n + k. For each depth this yields the predicted positions, whether each lies within its sequence, and the logits
        `row branch anchor vocab`.
        """
        tokens, features = batch.tokens, batch.features
        rows, branches, length = features.shape[:3]
        padded = torch.cat([tokens, tokens.new_full((rows, 1), self.vocabulary)], 1)
        offsets = torch.tensor(self.offsets, device=tokens.device)
        row = torch.arange(rows, device=tokens.device)[:, None]
        hidden = self.begin(features[row, :, anchors - 1].transpose(1, 2))
        for depth in range(self.depth):
            positions = anchors + depth
            valid = positions < batch.lengths[:, None]
            positions = positions.clamp(max=length - 1)
            sources = (positions[..., None] - offsets).long()
            committed = (sources >= 0) & (sources < anchors[..., None])
            read = (sources >= 0) & (sources + 1 < anchors[..., None])
            around = padded[row[..., None], sources.where(committed, length)]
            if self.offsets:
                states = features[row[..., None], :, (sources + 1).where(read, 0)] * read[..., None, None]
                states = states.movedim(3, 1).flatten(3)
            else:
                states = features[:, :, :1].expand(-1, -1, anchors.shape[1], -1)
            context = self.context(around, states.transpose(0, 1), positions).transpose(0, 1)
            inputs = padded[row, positions - 1][:, None].expand(-1, branches, -1)
            hidden, logits = self.step(hidden, inputs, context)
            yield positions, valid, logits

    def loss(
        self, target: Target, examples: Sequence[Example], anchors: int = 48, tv: float = 0.0, **options: Any
    ) -> dict[str, Tensor]:
        """`divergence` from the target's guided distribution; depth k = 0, 1, ... has weight `DECAY`^k.

        `anchors` is the number of random draft positions per sequence. "first" and "last" are the losses of the first
        and the last depth.
        """
        batch = pad(examples, target.device)
        share = uniform(examples, anchors, device=target.device)
        chosen = 1 + (share * (batch.lengths[:, None] - 1)).long()
        probs = guide(target.logits(batch.features), batch.guidance).softmax(-1)
        row = torch.arange(len(examples), device=target.device)[:, None]
        terms = []
        for positions, valid, logits in self.unroll(batch, chosen):
            errors = divergence(guide(logits, batch.guidance), probs[row, positions], tv)
            terms.append(masked_mean(errors, valid))
        weights = DECAY ** torch.arange(len(terms), device=target.device)
        total = (weights * torch.stack(terms)).sum() / weights.sum()
        return {"loss": total, "first": terms[0].detach(), "last": terms[-1].detach()}

    def predictions(self, target: Target, example: Example) -> list[DepthPredictions]:
        batch = pad([example], target.device, torch.float32)
        anchors = torch.arange(1, len(example.tokens), device=target.device)[None]
        return [
            DepthPredictions(positions[valid], torch.log_softmax(guide(logits.float(), batch.guidance), -1)[valid])
            for positions, valid, logits in self.unroll(batch, anchors)
        ]
