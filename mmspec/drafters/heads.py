"""Independent heads on the target's last hidden state: what Medusa and Hawk share."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.adversary import Discriminator
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Batch, DepthPredictions, Example, divergence, guide, masked_mean, pad
from mmspec.drafters.lattice import PairTable, RootReader, cut_tree, joined_tree, product_paths
from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

Neighbour = Sequence[int]

# Floor of a log probability in a pool: what one source forbids, another may still propose.
IMPOSSIBLE = -50.0

# Weight of a head's loss against that of the head before it.
DECAY = 0.8

# With a table: weight of the loss of heads alone, and dropout in what reads the last token.
ALONE, DROPOUT = 0.3, 0.15


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

    A neighbour (rows down, columns right) of the token just read is `down * stride + right` positions ahead. The
    position one ahead is the target's own to sample, so horizontal heads begin at (0, 2): the k-th of them serves draft
    depth k. Heads for rows below are vertical: their proposals wait in the speculation cache until that row is drafted,
    and then serve whatever depth their position has.

    With `rank`, heads know the last token by a `RootReader` of width `inner`, and candidates of neighbouring depths are
    joined by a `PairTable` of that rank (`mmspec.drafters.lattice`); without, all candidates of a depth are followed
    alike.

    KOALA (arXiv 2408.08146) adds `layers` residual layers in each head, and a `discriminator` of so many hidden units,
    whose loss is added with the weight `adversarial`.
    """

    name = "heads"
    loss_options = ("tv", "adversarial")

    def __init__(
        self,
        hidden_size: int,
        stride: int,
        neighbours: Sequence[Neighbour],
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        vocabulary: int = 0,
        rank: int = 0,
        inner: int = 512,
        layers: int = 1,
        discriminator: int = 0,
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
        self.more = nn.ModuleList(
            nn.Sequential(*(ResidualHead(hidden_size) for _ in range(layers - 1)))
            for _ in self.neighbours
            if layers > 1
        )
        self.discriminator = Discriminator(hidden_size, discriminator) if discriminator else None
        self.weights = nn.Parameter(torch.zeros(len(self.horizontal), 1 + len(self.vertical)))
        self.table = PairTable(vocabulary, rank) if rank else None
        self.reader = RootReader(hidden_size, vocabulary, inner, right) if rank else None

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        # One product for all horizontal heads.
        weights = self.heads.state_dict()
        self._across = (
            torch.cat([weights[f"{i}.linear.weight"] for i in self.horizontal]),
            torch.cat([weights[f"{i}.linear.bias"] for i in self.horizontal]),
        )
        self._fill_cache(state)

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        self._fill_cache(state)

    def _fill_cache(self, state: State) -> None:
        """The speculation cache, filled from the features that are there."""
        target = self.target
        wide = torch.float64 if state.features.dtype == torch.float64 else torch.float32
        self._vertical_scores = [
            torch.zeros(
                state.rows,
                self.offsets[i] + self.max_nodes,
                target.vocabulary_size,
                device=target.device,
                dtype=wide,
            )
            for i in self.vertical
        ]
        for row, count in enumerate(state.counts):
            self._store(state, row, max(1, count - max(self.offsets)), count)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        """Store the vertical proposals of the features just committed."""
        for row, (tokens, count) in enumerate(zip(committed.tokens, state.counts, strict=True)):
            self._store(state, row, max(1, count - len(tokens)), count)

    def _store(self, state: State, row: int, first: int, count: int) -> None:
        """What vertical heads propose after the features of the positions `first` to `count`."""
        if first >= count or not self.vertical:
            return
        features = state.features[:, row : row + 1, first:count]
        for scores, head in zip(self._vertical_scores, self.vertical, strict=True):
            positions = torch.arange(first, count, device=features.device) - 1 + self.offsets[head]
            logits = self.target.guide(state, self.target.logits(self.moved(head, features)), positions[None])
            scores[row, positions % scores.shape[1]] = logits[0]

    def pool(
        self, scores: Float[Tensor, "row depth source vocab"], valid: list[list[list[bool]]]
    ) -> Float[Tensor, "row depth vocab"]:
        """Log-linear pool of the proposals for each position, up to a constant; sources that are missing get no
        weight.
        """
        if scores.shape[2] == 1:
            return scores[:, :, 0]
        has = torch.tensor(valid, device=scores.device)
        weights = self.weights[: scores.shape[1]].to(scores.dtype).masked_fill(~has, -torch.inf).softmax(2)
        return torch.einsum("rdsv,rds->rdv", torch.log_softmax(scores, 3).clamp(min=IMPOSSIBLE), weights)

    def _valid_sources(self, state: State, height: int) -> list[list[list[bool]]]:
        """For each row and depth, which sources have a proposal: the horizontal head, and each vertical one."""
        offsets = [self.offsets[head] for head in self.vertical]
        return [
            [[True, *(0 <= count + depth - offset < count - 1 for offset in offsets)] for depth in range(height)]
            for count in state.counts
        ]

    def hidden_ahead(self, state: State, height: int) -> Float[Tensor, "branch row depth width"]:
        """What the horizontal heads predict from."""
        latest = torch.stack([state.features[:, row, count - 1] for row, count in enumerate(state.counts)], 1)
        stacked = self.across(latest)[:, :, :height]
        if self.reader is not None:
            stacked = stacked + self.reader(latest, state.roots.expand(latest.shape[:2]))[:, :, :height]
        return stacked

    def across(self, features: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape depth width"]:
        """All horizontal heads, after `start`."""
        moved = nn.functional.linear(features, *self._across).unflatten(-1, (len(self.horizontal), -1))
        stacked = features[..., None, :] + nn.functional.silu(moved)
        if not self.more:
            return stacked
        return torch.stack([self.more[k](stacked[..., i, :]) for i, k in enumerate(self.horizontal)], -2)

    def moved(self, head: int, features: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        """What a head predicts from."""
        first = self.heads[head](features)
        return self.more[head](first) if self.more else first

    def sources(self, state: State, height: int) -> Float[Tensor, "row depth source vocab"]:
        """Processed scores for each depth, the horizontal head's first, then those of the vertical heads."""
        stacked = self.hidden_ahead(state, height)
        depths = [range(count, count + height) for count in state.counts]
        positions = torch.tensor(depths, device=state.roots.device)
        parts = [self.target.guide(state, self.target.logits(stacked), positions)]
        rows = torch.arange(state.rows, device=positions.device)[:, None] if self.vertical else None
        parts += [scores[rows, positions % scores.shape[1]] for scores in self._vertical_scores]
        scores = parts[0] if len(parts) == 1 else torch.stack(parts, 2).flatten(1, 2)
        return self.sampling.scores(scores).unflatten(1, (height, len(parts)))

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        began, height = perf_counter(), min(limit, len(self.horizontal))
        if height < 1:
            return root(state.roots)
        scores, valid = self.sources(state, height), self._valid_sources(state, height)
        if self.needs_draft_probs:
            return self._sample(state, noise, scores, valid)
        pooled = self.pool(scores, valid)
        if (table := self.joining_table()) is not None:
            first = pooled[:, 0] + table(state.roots) / (self.sampling.temperature or 1.0)
            pooled = torch.cat([first[:, None], pooled[:, 1:]], 1)
            return joined_tree(self, state, noise, pooled, table.pairs, began)
        if self.coupled and not noise.greedy:
            pooled = self.sharpen(pooled, noise.gumbel(state.counts, height), slice(height))
        rows = product_paths(self.candidates(pooled), self.nodes or self.max_nodes)
        return cut_tree(self, state.roots, rows, began)

    def joining_table(self) -> PairTable | None:
        """The table that joins candidates, if there is one."""
        return self.table

    def _sample(
        self,
        state: State,
        noise: Noise,
        scores: Float[Tensor, "row depth source vocab"],
        valid: list[list[list[bool]]],
    ) -> DraftTree:
        """The paper's sampling pool: every candidate is sampled from its own head's distribution, independently."""
        rows, device, vocabulary = state.rows, state.roots.device, scores.shape[3]
        tokens, parents = [state.roots[:, None]], [torch.full((rows, 1), -1, device=device)]
        depths, probs = [torch.zeros(rows, 1, dtype=torch.long, device=device)], [torch.zeros_like(scores[:, :1, 0])]
        level, count = [0], 1
        for depth in range(scores.shape[1]):
            width = self.widths[depth]
            sources = [[i for i, has in enumerate(row[depth]) if has] for row in valid]
            chosen = torch.tensor([[row[i % len(row)] for i in range(width)] for row in sources], device=device)
            q = scores[:, depth].gather(1, chosen[:, :, None].expand(-1, -1, vocabulary)).softmax(2)
            if noise.greedy:
                samples = q.argmax(2)
                q = nn.functional.one_hot(samples, vocabulary).to(q)
            else:
                positions = [[position + depth] for position in state.counts]
                samples = (q.log() + noise.fresh(positions, Noise.DRAFT, width)[:, 0].to(q)).argmax(2)
            tokens.append(samples.repeat(1, len(level)))
            probs.append(q.repeat(1, len(level), 1))
            parents.append(torch.tensor(level, device=device).repeat_interleave(width).expand(rows, -1))
            depths.append(torch.full((rows, width * len(level)), depth + 1, device=device))
            level = list(range(count, count + width * len(level)))
            count += len(level)
            if count + len(level) * (self.widths[depth + 1] if depth + 1 < scores.shape[1] else 0) > self.max_nodes:
                break
        height = len(tokens) - 1
        return DraftTree(
            torch.cat(tokens, 1),
            torch.cat(parents, 1),
            torch.cat(depths, 1),
            height,
            probs=torch.cat(probs, 1),
            max_children=max(self.widths[:height]),
        )

    @classmethod
    def build(cls, target: Target, **options: Any) -> "HeadDrafter":
        options = cls.default_options(target) | options
        stride = target.grid.stride if target.grid else 0
        if options.get("rank"):
            options["vocabulary"] = target.vocabulary_size
        return cls(hidden_size=target.hidden_size, stride=stride, target=target.weights_hash, **options)

    @classmethod
    def default_options(cls, target: Target) -> dict:
        """Options of the constructor where nothing else is said."""
        return {"neighbours": [[0, right] for right in range(2, 7)]}

    def load_initial(self, weights: dict[str, Tensor]) -> None:
        """Heads that were trained with the target, by number."""
        state = self.heads.state_dict()
        self.heads.load_state_dict({name: value for name, value in weights.items() if name in state})

    def _pool_sources(self, depth: int, length: int, device: torch.device) -> tuple[Tensor, list[int]]:
        """Positions for which all sources of a depth have a proposal, and the sources' heads."""
        first = max([self.offsets[i] for i in self.vertical], default=1)
        head = self.horizontal[depth]
        start = max(first, self.offsets[head] - 1)
        return torch.arange(start, max(start, length), device=device), [head, *self.vertical]

    def _hidden(self, target: Target, batch: Batch) -> list[Float[Tensor, "row branch _ width"]]:
        """What each head predicts from, at the positions of its features that have a prediction within the batch."""
        length, branches = batch.tokens.shape[1], batch.features.shape[1]
        hidden = [
            self.moved(head, batch.features[:, :, : max(0, length + 1 - offset)])
            for head, offset in enumerate(self.offsets)
        ]
        if self.reader is not None:
            roots = batch.tokens[:, None].expand(-1, branches, -1)
            changes = self.reader(batch.features, roots, DROPOUT)
            for depth, head in enumerate(self.horizontal):
                hidden[head] = hidden[head] + changes[:, :, : hidden[head].shape[2], depth]
        return hidden

    def _pooled(
        self, guided: Sequence[Float[Tensor, "row _ vocab"]], tokens: Int[Tensor, "row token"], depth: int
    ) -> tuple[Int[Tensor, "prediction"], Float[Tensor, "row prediction vocab"]]:
        """The positions that all sources of a depth predict, and the pool of their logits, after the token before."""
        positions, heads = self._pool_sources(depth, tokens.shape[1], tokens.device)
        parts = [torch.log_softmax(guided[k][:, positions + 1 - self.offsets[k]], -1) for k in heads]
        pooled = torch.as_tensor(
            sum(weight * part for weight, part in zip(self.weights[depth].softmax(0), parts, strict=True))
        )
        return positions, pooled if self.table is None else pooled + self.table(tokens[:, positions - 1])

    def loss(
        self,
        target: Target,
        examples: Sequence[Example],
        tv: float = 0.0,
        adversarial: float | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """`divergence` from the target's guided distribution.

        It is summed over heads with weight `DECAY`^(k-1), at the positions that each head reaches, and over depths for
        the pool. With a table the pool trains the heads too, and what they say alone, by which candidates are chosen,
        has weight `ALONE`.
        """
        batch = pad(examples, target.device)
        probs = guide(target.logits(batch.features), batch.guidance).softmax(-1)
        horizontal = [self.offsets[i] for i in self.horizontal]
        terms, guided, deceived = [], [], []
        for offset, hidden in zip(self.offsets, self._hidden(target, batch), strict=True):
            logits = guide(target.head.differentiable(hidden), batch.guidance).float()
            guided.append(logits if self.table is not None else logits.detach())
            order = horizontal.index(offset) if offset in horizontal else 0
            errors = divergence(logits, probs[:, offset - 1 :], tv)
            terms.append(DECAY**order * masked_mean(errors, batch.valid[:, offset - 1 :]))
            if self.discriminator is not None:
                true = batch.features[:, :, offset - 1 :].to(hidden.dtype)
                deceived.append(DECAY**order * self.discriminator(hidden, true, batch.valid[:, offset - 1 :]))
        pooled = []
        for depth in range(len(self.horizontal)):
            positions, logits = self._pooled(guided, batch.tokens, depth)
            pooled.append(masked_mean(divergence(logits, probs[:, positions], tv), batch.valid[:, positions]))
        alone = torch.stack(terms).sum() * (1.0 if self.table is None else ALONE)
        if deceived:
            alone = alone + (0.1 if adversarial is None else adversarial) * torch.stack(deceived).sum()
        elif adversarial is not None:
            raise MmspecError("adversarial is the weight of a discriminator, and there is none: give discriminator=64")
        return {
            "loss": alone + torch.stack(pooled).sum(),
            "head": terms[0].detach(),
            "pool": pooled[0].detach(),
            "last": pooled[-1].detach(),
        }

    def predictions(self, target: Target, example: Example) -> list[DepthPredictions]:
        batch = pad([example], target.device, torch.float32)
        guided = [guide(target.logits(hidden), batch.guidance) for hidden in self._hidden(target, batch)]
        depths = (self._pooled(guided, batch.tokens, depth) for depth in range(len(self.horizontal)))
        return [DepthPredictions(positions, torch.log_softmax(logits, -1)[0]) for positions, logits in depths]
