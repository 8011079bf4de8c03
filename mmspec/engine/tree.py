"""Draft trees: candidate tokens with parents, and how one is grown from scored candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Candidate continuations of each row; node 0 is the root, the last committed token.

    A parent always comes before its children. Padding nodes have parent -1 and are never accepted.
    `laws` holds, for trees whose tokens were *drawn*, the normalised law each node was drawn from;
    None says that the tokens are a function of the prefix alone (a point mass each).
    `replacement` tells whether siblings were drawn independently, or from one law without replacement.
    """

    tokens: Int[Tensor, "row node"]
    parents: Int[Tensor, "row node"]
    depths: Int[Tensor, "row node"]
    laws: Float[Tensor, "row node vocab"] | None = None
    replacement: bool = True

    @property
    def size(self) -> int:
        return self.tokens.shape[1]

    @property
    def height(self) -> int:
        """Depth of the deepest node."""
        return int(self.depths.max())

    def ancestors(self) -> Bool[Tensor, "row node node"]:
        """[b, i, j] is true when j lies on the path from the root to i, i included."""
        reach = torch.eye(self.size, device=self.tokens.device).expand(len(self.tokens), -1, -1).clone()
        reach.scatter_(2, self.parents.clamp(min=0).unsqueeze(2), 1.0)
        reach[:, 0, 1:] = 0.0
        span = 1
        while span < self.height:
            reach = (reach @ reach).clamp(max=1.0)
            span *= 2
        return reach.bool()

    def children(self) -> list[list[list[int]]]:
        """For each row and node, its child nodes in order."""
        found = []
        for parents in self.parents.tolist():
            below: list[list[int]] = [[] for _ in parents]
            for node, parent in enumerate(parents):
                if parent >= 0 and node:
                    below[parent].append(node)
            found.append(below)
        return found


def root(tokens: Int[Tensor, "row"]) -> DraftTree:
    """The empty draft: nothing but the last committed token."""
    nodes = rearrange(tokens, "row -> row 1")
    return DraftTree(nodes, torch.full_like(nodes, -1), torch.zeros_like(nodes))


def chain(
    tokens: Int[Tensor, "row"], guesses: Int[Tensor, "row depth"], lengths: Int[Tensor, "row"] | None = None
) -> DraftTree:
    """A tree of width 1; row b uses its first `lengths[b]` guesses and pads the rest."""
    nodes = torch.cat([tokens[:, None], guesses], dim=1)
    depths = torch.arange(nodes.shape[1], device=nodes.device).expand_as(nodes)
    parents = depths - 1
    if lengths is not None:
        beyond = depths > lengths[:, None]
        parents, depths = parents.masked_fill(beyond, -1), depths.masked_fill(beyond, 0)
        depths = depths.contiguous()
    return DraftTree(nodes, parents, depths)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Children proposed for each node of a level, best first: tokens, the estimated chance of each being accepted."""

    tokens: Int[Tensor, "row beam rank"]
    chances: Float[Tensor, "row beam rank"]


def grow(
    tokens: Int[Tensor, "row"],
    expand: Callable[[int, Int[Tensor, "row beam"], Int[Tensor, "row beam"]], Candidates],
    height: int,
    beam: int,
    worth: Callable[[int, float], bool] = lambda depth, mass: True,
    cut: Callable[[Float[Tensor, "node"]], int] = lambda reach: 16,
) -> DraftTree:
    """Grow the tree whose nodes have the largest chance of being reached, level by level.

    `expand(depth, tokens, places)` proposes children of the beam at `depth`; `places[b, i]` is the index, in the
    beam before, of the parent of `tokens[b, i]`. The chance of reaching a node is the product of the chances along
    its path, so the best nodes always form a connected tree; all children that were proposed are among its nodes, the `beam` best of a level are
    expanded. `worth(depth, mass)` says whether another level
    pays when the beam holds `mass` expected tokens; `cut` says, from the chances sorted downwards, how many nodes to keep.
    """
    rows, device = len(tokens), tokens.device
    level, places = tokens[:, None], torch.zeros(rows, 1, dtype=torch.long, device=device)
    reach = torch.ones(rows, 1, device=device)
    ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
    kept_tokens, kept_parents, kept_reach, kept_depths = [], [], [], []
    count = 1
    for depth in range(height):
        found = expand(depth, level, places)
        ranks = found.tokens.shape[2]
        chances = (reach[:, :, None] * found.chances.nan_to_num(0.0)).flatten(1)
        children, every = found.tokens.flatten(1), torch.arange(chances.shape[1], device=device).expand(rows, -1)
        kept_tokens.append(children)
        kept_reach.append(chances)
        kept_parents.append(ids.gather(1, every // ranks))
        kept_depths.append(torch.full_like(children, depth + 1))
        reach, best = chances.topk(min(beam, chances.shape[1]), dim=1)
        places, level, ids = best // ranks, children.gather(1, best), count + best
        count += chances.shape[1]
        if depth + 1 < height and not worth(depth + 1, float(reach.sum(1).max())):
            break
    if not kept_tokens:
        return root(tokens)
    nodes, parents, depths, chances = (
        torch.cat(parts, dim=1) for parts in (kept_tokens, kept_parents, kept_depths, kept_reach)
    )
    return prune(tokens, nodes, parents, depths, chances, cut)


def product(
    tokens: Int[Tensor, "row"],
    levels: Candidates,
    most: int,
    cut: Callable[[Float[Tensor, "node"]], int] = lambda reach: 16,
) -> DraftTree:
    """What `grow` makes with a wide beam where all nodes of a level have the same children: `levels` holds a level in the place of a node,
    its chances sorted downwards.

    Each row's nodes are found in the order of their chances, `most` of them, in plain Python: so few numbers take longer in tensors.
    """
    found = []
    for chances in levels.chances.nan_to_num(0.0).tolist():
        nodes: list[
            tuple[float, int, int, int]
        ] = []  # chance of being reached, negated for the heap; parent, depth, rank
        front = [(-chances[0][0], 0, 0, 0)]
        while front and len(nodes) < most:
            node = reach, parent, depth, rank = heappop(front)
            nodes.append(node)
            if rank + 1 < len(chances[depth]):
                start = nodes[parent - 1][0] if parent else -1.0
                heappush(front, (start * chances[depth][rank + 1], parent, depth, rank + 1))
            if depth + 1 < len(chances):
                heappush(front, (reach * chances[depth + 1][0], len(nodes), depth + 1, 0))
        found.append(nodes)
    budget = max(1, max(cut(torch.tensor([-node[0] for node in nodes])) for nodes in found))
    drafted: list[list[int]] = []
    above: list[list[int]] = []
    below: list[list[int]] = []
    for first, words, nodes in zip(tokens.tolist(), levels.tokens.tolist(), found):
        _, parents, depths, ranks = zip(*nodes[:budget])
        drafted.append([first, *(words[depth][rank] for depth, rank in zip(depths, ranks))])
        above.append([-1, *parents])
        below.append([0, *(depth + 1 for depth in depths)])
    device = tokens.device
    return DraftTree(
        torch.tensor(drafted, device=device), torch.tensor(above, device=device), torch.tensor(below, device=device)
    )


def prune(
    tokens: Int[Tensor, "row"],
    nodes: Int[Tensor, "row node"],
    parents: Int[Tensor, "row node"],
    depths: Int[Tensor, "row node"],
    reach: Float[Tensor, "row node"],
    cut: Callable[[Float[Tensor, "node"]], int],
) -> DraftTree:
    """Keep each row's most probable nodes; parents count from 1, 0 being the root."""
    ordered, order = reach.sort(dim=1, descending=True, stable=True)
    budget = max(cut(row) for row in ordered)
    budget = max(1, min(budget, nodes.shape[1]))
    chosen = order[:, :budget].sort(dim=1).values
    new = torch.zeros(len(nodes), nodes.shape[1] + 1, dtype=torch.long, device=nodes.device)
    new.scatter_(1, chosen + 1, torch.arange(1, budget + 1, device=nodes.device).expand_as(chosen))
    head = tokens[:, None]
    return DraftTree(
        torch.cat([head, nodes.gather(1, chosen)], 1),
        torch.cat([torch.full_like(head, -1), new.gather(1, parents.gather(1, chosen))], 1),
        torch.cat([torch.zeros_like(head), depths.gather(1, chosen)], 1),
    )
