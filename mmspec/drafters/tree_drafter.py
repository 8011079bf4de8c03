"""What drafters share that grow a tree from scores of their own."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.trees import DepthPlan, sample_tree
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import PromptEmbeds, State
from mmspec.engine.tree import Candidates, DraftTree, build_tree
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

# Scores (row beam drafted) after the nodes of a level: by their depth, their tokens, and the place of each one's parent
# in the level before.
Scores = Callable[[int, Int[Tensor, "row beam"], Int[Tensor, "row beam"]], Float[Tensor, "row beam drafted"]]


def model_ids(target: Target, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The target's own ids of tokens."""
    return torch.where(tokens < 0, -1 - tokens, target.vocabulary[tokens.clamp(min=0)])


class TreeDrafter(TrainedDrafter):
    """A drafter that grows a tree level by level, coupled with the target's noise.

    `tokens` is the drafting vocabulary (tokens of the target; all, or the first ones, if None), over which `Scores`
    are. `embed_tokens` is an embedding of the target's ids, or None where the target's own is used.
    softmax(greedy[depth] log q) is the probability of a candidate where there is no noise. Unless it is `guided`, it
    reads one CFG branch, and guidance is refused.
    """

    needs_prompt = True
    guided: ClassVar[bool] = False
    tokens: Tensor | None
    embed_tokens: nn.Embedding | None

    def __init__(
        self,
        target: str,
        depth: int,
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        greedy: list[float] | None = None,
        tokens: Sequence[int] | None = None,
        beam: int = 4,
        ranks: int = 4,
    ):
        super().__init__(target, depth, beta, coupling, beam, ranks)
        self.depth, self.greedy = depth, greedy or [1.0] * depth
        self.register_buffer("tokens", None if tokens is None else torch.tensor(tokens), persistent=False)

    def constructor_arguments(self) -> dict:
        tokens = None if self.tokens is None else self.tokens.tolist()
        return super().constructor_arguments() | {"greedy": self.greedy, "tokens": tokens}

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        if state.branches > 1 and not self.guided:
            raise MmspecError(
                "this drafter reads one stream, and guidance needs two: set guidance to 1, or use another drafter"
            )
        super().start(target, state, sampling, needs_draft_probs)
        self._plan = DepthPlan(self.depth)
        self._read_rows(state, list(range(state.rows)))

    def embed(self, target: Target, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Input vectors of text tokens, by this drafter's embedding as far as it has them."""
        own = self.embed_tokens
        if own is None:
            return target.embed(tokens)
        ids = model_ids(target, tokens)
        vectors = own(ids.clamp(max=own.num_embeddings - 1))
        if own.embedding_dim != target.hidden_size:
            return vectors
        return torch.where((ids < own.num_embeddings)[..., None], vectors, target.embed(tokens))

    def read_prompt(self, prompt: PromptEmbeds) -> Float[Tensor, "position width"]:
        """Input vectors of a prompt, text by this drafter's embedding."""
        own = self.embed_tokens
        if own is None:
            return prompt.vectors
        ids = prompt.ids
        vectors = own(ids.clamp(max=own.num_embeddings - 1))
        if own.embedding_dim != prompt.vectors.shape[1]:
            return vectors
        return torch.where((prompt.is_text & (ids < own.num_embeddings))[:, None], vectors, prompt.vectors)

    @abstractmethod
    def _read_rows(self, state: State, rows: list[int]) -> None:
        """Read all of some rows, which come after those that were read before."""

    @abstractmethod
    def _keep_rows(self, rows: list[int]) -> None:
        """Keep what was read of these rows, in this order."""

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        present = [row for row in previous if row is not None]
        new = [row for row, before in enumerate(previous) if before is None]
        self._keep_rows(present)
        if new:
            self._read_rows(state, new)
            rows = [row for row, before in enumerate(previous) if before is not None] + new
            self._keep_rows(sorted(range(state.rows), key=rows.__getitem__))

    def grow(self, state: State, noise: Noise, height: int, scores: Scores) -> DraftTree:
        """The tree of the candidates that are most probable, or that are sampled, by `scores`."""
        gumbel = noise.gumbel(state.counts, height) if self.coupled and not noise.greedy else None

        def all_scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row beam vocab"]:
            return self._over_vocabulary(scores(depth, tokens, parent_index))

        def expand(depth: int, tokens: Tensor, parent_index: Tensor) -> Candidates:
            values = scores(depth, tokens, parent_index)
            if gumbel is not None:
                index = slice(values.shape[2]) if self.tokens is None else self.tokens
                values = self.sharpen(torch.log_softmax(values, -1), gumbel[:, depth, None, index], depth)
            elif noise.greedy:
                values = values * self.greedy[depth]
            proposed = self.candidates(values)
            if self.tokens is None:
                return proposed
            return Candidates(self.tokens[proposed.tokens], proposed.probs)

        if self.needs_draft_probs:
            return sample_tree(state, noise, all_scores, self.widths, height, self.max_nodes, self.paths)
        return build_tree(state.roots, expand, height, self.beam, self.max_nodes)

    def _over_vocabulary(self, scores: Float[Tensor, "row beam drafted"]) -> Float[Tensor, "row beam vocab"]:
        """Scores over the target's whole vocabulary; what is not drafted from is impossible."""
        if scores.shape[2] == self.target.vocabulary_size:
            return scores
        whole = scores.new_full((*scores.shape[:2], self.target.vocabulary_size), -torch.inf)
        whole[..., slice(scores.shape[2]) if self.tokens is None else self.tokens] = scores
        return whole
