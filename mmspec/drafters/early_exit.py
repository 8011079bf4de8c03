"""DEL: the target's own first layers as drafter, how many and how far chosen every round (Zarch et al., arXiv
2504.05598).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmspec.drafters.base import Drafter
from mmspec.drafters.trees import sample_tree
from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import MAX_TREE_NODES, Candidates, DraftTree, build_tree, chain, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target
from mmspec.targets.causal import CausalTarget

# The share of right guesses of an exit before any was seen, which lets each be tried, how fast it follows, and how fast
# it goes back to that while nothing is drafted.
FIRST, RATE, DRIFT = 0.8, 0.1, 0.01


class EarlyExitDrafter(Drafter):
    """Training-free; works on targets that are a stack of attention layers with a norm behind it. Hidden states after
    an early layer go through that norm and the output head; the layers read the target's own cache, and their keys and
    values are overwritten when the target verifies. It gives a chain with `ranks` choices at every level, ranked by
    log q + g.

    `exits` are shares of the layers. A round drafts from the exit e to the depth d with the most tokens a layer,
    (1 - a^(d + 1)) / (1 - a) / (d e + all layers), where a is how often guesses from e were right; for d = 0 it drafts
    nothing. The paper learns a of all exits from hidden states that its cache keeps (shadow tokens), and its models
    were trained with layers left out (LayerSkip), so that early layers speak; others' hardly do, and it then stops
    drafting for some time. That a is learnt from the exit which was used, from a hopeful beginning, was our choice,
    as were second choices, which count as right. Every level reads the chain so far once more.
    """

    name = "del"

    def __init__(
        self, exits: Sequence[float] = (0.25, 0.5, 0.75), depth: int = 5, ranks: int = 2, nodes: int | None = None
    ):
        if not exits or not all(0 < share < 1 for share in exits):
            raise MmspecError(
                f"exits are shares of the layers between 0 and 1, such as 0.25 0.5, and not {list(exits)}"
            )
        self.exits, self.depth, self.ranks, self.nodes = tuple(exits), depth, ranks, nodes
        self.max_nodes = max(MAX_TREE_NODES, nodes or 0)
        self._of: tuple[Target, SamplingOptions] | None = None

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        if self._of != (target, self.sampling):
            if not isinstance(target, CausalTarget):
                raise MmspecError("drafter 'del' reads the layers of a decoder, which this target is not: use lookup")
            self._layers = target.model.config.get_text_config().num_hidden_layers
            self._counts = sorted({max(1, min(self._layers - 1, round(share * self._layers))) for share in self.exits})
            self._parts = [target.first_layers(count) for count in self._counts]
            self._of, self._rates = (target, self.sampling), [FIRST] * len(self._counts)
        self._used: tuple[int, int] | None = None

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        """What is known is of no row."""

    def forget(self) -> None:
        self._of = None

    def choice(self) -> tuple[int, int]:
        """The exit and the depth with the most tokens a layer; some depth where the number of nodes is fixed."""

        def tokens_a_layer(pair: tuple[int, int]) -> float:
            exit, depth = pair
            rate = min(self._rates[exit], 0.999)
            return (1 - rate ** (depth + 1)) / (1 - rate) / (depth * self._counts[exit] + self._layers)

        depths = range(1 if self.nodes else 0, 1 + min(self.depth, self.nodes or self.depth))
        return max(((exit, depth) for exit in range(len(self._counts)) for depth in depths), key=tokens_a_layer)

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        exit, depth = self.choice()
        height, target = min(limit, depth), self._parts[exit]
        self._used = (exit, height) if height > 0 else None
        if height < 1:
            self._rates = [rate + DRIFT * (FIRST - rate) for rate in self._rates]
            return root(state.roots)
        gumbel = None if noise.greedy else noise.gumbel(state.counts, height)
        drafted: list[Tensor] = []

        def scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row 1 vocab"]:
            if depth:
                drafted.append(tokens)
            guesses = torch.cat(drafted, 1) if drafted else state.roots.new_zeros(state.rows, 0)
            return self.sampling.scores(target.forward(state, chain(state.roots, guesses)).logits[:, -1:])

        def expand(depth: int, tokens: Tensor, parent_index: Tensor) -> Candidates:
            values = torch.log_softmax(scores(depth, tokens, parent_index), -1)
            if gumbel is not None:
                values = values + gumbel[:, depth, None].to(values.dtype)
            best, children = values.topk(min(self.ranks, values.shape[2]), dim=2)
            return Candidates(children, (best - values.logsumexp(2, keepdim=True)).exp().float())

        if self.needs_draft_probs:
            return sample_tree(state, noise, scores, [1] * height, height, self.max_nodes)
        return build_tree(state.roots, expand, height, 1, self.max_nodes)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        if self._used is None:
            return
        exit, height = self._used
        height = min(height, tree.height)  # of what was verified
        for path in committed.paths:
            accepted = min(len(path) - 1, height)
            for guess in range(min(accepted + 1, height) if path else 0):
                self._rates[exit] += RATE * ((guess < accepted) - self._rates[exit])
