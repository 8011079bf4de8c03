"""What drafters share that read the drafted path token by token, from the target's last hidden state on."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
from mmspec.drafters.trees import DepthPlan, sample_tree
from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import Candidates, DraftTree, build_tree, root
from mmspec.targets.base import Target

# Weight of a depth's loss against that of the depth before it.
DECAY = 0.9


class PathDrafter(TrainedDrafter):
    """A state of its own is carried along each path, without any pass of the target and without a cache.

    A subclass says what the state is before the root is read (`begin`) and what a token makes of it (`step`). A tree
    grows level by level from the `beam` most probable nodes, by `ranks` candidates each, to a height of `depth`.
    """

    loss_options = ("anchors", "tv")

    def __init__(
        self, target: str, depth: int, beta: list[float] | None, coupling: list[float] | None, beam: int, ranks: int
    ):
        super().__init__(target, depth, beta, coupling, beam, ranks)
        self.widths, self.depth = [2, *[1] * depth], depth

    @classmethod
    def build(cls, target: Target, **options: Any) -> "PathDrafter":
        return cls(hidden_size=target.hidden_size, target=target.weights_hash, **options)  # type: ignore[call-arg]

    @abstractmethod
    def begin(self, features: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape state"]:
        """The state before the root is read, from the feature that predicted the root."""

    @abstractmethod
    def step(
        self,
        target: Target,
        state: Float[Tensor, "*shape state"],
        tokens: Int[Tensor, "*other"],
        depth: int,
        context: Float[Tensor, "*more width"] | None,
    ) -> tuple[Float[Tensor, "*shape next"], Float[Tensor, "*shape vocab"]]:
        """Read the token at `depth`, 0 for the root; the new state, and the logits of the token after it.

        What is made of `tokens`, and `context`, are broadcast to the shape of `state`, e.g. `branch row beam state`.
        """

    def embedded(self, target: Target, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape hidden"]:
        """The target's input embeddings of tokens, in this drafter's dtype; they are not trained."""
        return target.embed(tokens).detach().to(next(self.parameters()).dtype)

    def target_logits(self, target: Target, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocab"]:
        """Logits of hidden states by the target's own output head, through which gradients pass in training."""
        return target.head.differentiable(hidden) if torch.is_grad_enabled() else target.logits(hidden)

    def draft_contexts(self, state: State, height: int) -> Float[Tensor, "branch row depth width"] | None:
        """What is known of each of the `height` positions after the root, whatever is drafted."""
        return None

    def training_context(
        self, batch: Batch, anchors: Int[Tensor, "row anchor"], positions: Int[Tensor, "row anchor"]
    ) -> Float[Tensor, "row branch anchor width"] | None:
        """What `step` is given in training for `positions` of sequences, each drafted after as many tokens as its
        anchor says.
        """
        return None

    def couple(
        self, depth: int, scores: Float[Tensor, "row beam vocab"], noise: Float[Tensor, "row 1 vocab"]
    ) -> Float[Tensor, "row beam vocab"]:
        """Scores with the noise that the target's sample will use."""
        return self.sharpen(scores, noise, depth)

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        self._plan = DepthPlan(self.depth)

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        """Nothing is kept of rows."""

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        self._plan.observe(committed, tree.height)

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = self._plan.height(limit, self.cost)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        contexts = self.draft_contexts(state, height)
        counts = torch.tensor(state.counts, device=state.roots.device)
        gumbel = noise.gumbel(state.counts, height) if self.coupled and not noise.greedy else None
        rows = torch.arange(state.rows, device=counts.device)
        hidden = self.begin(state.features[:, rows, counts - 1])[:, :, None]

        def scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row beam vocab"]:
            nonlocal hidden
            hidden = hidden[:, rows[:, None], parent_index]
            context = None if contexts is None else contexts[:, :, depth : depth + 1]
            hidden, logits = self.step(self.target, hidden, tokens, depth, context)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            positions = (counts + depth)[:, None].expand_as(tokens)
            return self.sampling.scores(self.target.guide(state, logits, positions))

        def expand(depth: int, tokens: Tensor, parent_index: Tensor) -> Candidates:
            values = scores(depth, tokens, parent_index)
            if gumbel is not None:
                values = self.couple(depth, values, gumbel[:, depth, None].to(values.dtype))
            return self.candidates(values)

        if self.needs_draft_probs:
            return sample_tree(state, noise, scores, self.widths, height, self.max_nodes, self.paths)
        tree = build_tree(state.roots, expand, height, self.beam, self.max_nodes)
        self._plan.took(perf_counter() - began, height)
        return tree

    def unroll(
        self, target: Target, batch: Batch, anchors: Int[Tensor, "row anchor"]
    ) -> Iterator[tuple[Int[Tensor, "row anchor"], Bool[Tensor, "row anchor"], Tensor]]:
        """Draft along the true tokens from every anchor.

        An anchor n is a draft after n committed tokens: the root is token n - 1, and depth k = 0, 1, ... predicts token
        n + k. For each depth this yields the predicted positions, whether each lies within its sequence, and the logits
        `row branch anchor vocab`.
        """
        row = torch.arange(len(batch.tokens), device=anchors.device)[:, None]
        hidden = self.begin(batch.features[row, :, anchors - 1].transpose(1, 2))
        for depth in range(self.depth):
            positions = anchors + depth
            valid = positions < batch.lengths[:, None]
            positions = positions.clamp(max=batch.tokens.shape[1] - 1)
            tokens = batch.tokens[row, positions - 1][:, None].expand(-1, batch.features.shape[1], -1)
            context = self.training_context(batch, anchors, positions)
            hidden, logits = self.step(target, hidden, tokens, depth, context)
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
        for positions, valid, logits in self.unroll(target, batch, chosen):
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
            for positions, valid, logits in self.unroll(target, batch, anchors)
        ]
