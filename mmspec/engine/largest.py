"""The largest of many scores, and the distributions that are cut to them, in as few passes over a vocabulary as can
be: what sampling costs on a CPU with 150,000 tokens.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A block's largest number is found at the speed of memory; only the best blocks are looked into.
ARGMAX_BLOCK, TOP_BLOCK = 128, 64

# How many of the largest scores are looked at for top-p alone, and how near to its bound sums may come: what is not
# decided by them is left to the whole sort.
NUCLEUS, MARGIN = 1024, 2e-6


def argmax(scores: Float[Tensor, "row node vocab"]) -> Int[Tensor, "row node"]:
    """The token of the largest score, the first of equals."""
    count = scores.shape[2] // ARGMAX_BLOCK
    if scores.device.type != "cpu" or count < 16:
        return scores.argmax(2)
    blocks, rest = _blocks(scores, ARGMAX_BLOCK)
    maxima, block = blocks.amax(3).max(2, keepdim=True)
    best = block * ARGMAX_BLOCK + _block(blocks, block).argmax(2, keepdim=True)
    if rest.shape[2]:
        last, token = rest.max(2, keepdim=True)
        # Written so that the first NaN is the largest, as `argmax` has it.
        best = torch.where((last > maxima) | (last.isnan() & ~maxima.isnan()), token + count * ARGMAX_BLOCK, best)
    return best[..., 0]


def largest(
    scores: Float[Tensor, "row node vocab"], count: int
) -> tuple[Float[Tensor, "row node rank"], Int[Tensor, "row node rank"]]:
    """The `count` largest scores, best first, and their tokens."""
    if scores.device.type != "cpu" or scores.shape[2] // TOP_BLOCK < 4 * count:
        values, tokens = scores.topk(count, dim=2)
        return values, tokens
    blocks, rest = _blocks(scores, TOP_BLOCK)
    chosen = blocks.amax(3).topk(count, dim=2, sorted=False).indices
    offsets = torch.arange(TOP_BLOCK)
    inside = (chosen[..., None] * TOP_BLOCK + offsets).flatten(2)
    after = torch.arange(scores.shape[2] - rest.shape[2], scores.shape[2]).expand(*rest.shape)
    candidates = torch.cat([inside, after], 2)
    values, ranks = scores.gather(2, candidates).topk(count, dim=2)
    return values, candidates.gather(2, ranks)


def _blocks(scores: Tensor, size: int) -> tuple[Float[Tensor, "row node block entry"], Float[Tensor, "row node rest"]]:
    whole = scores.shape[2] // size * size
    return scores[..., :whole].unflatten(2, (-1, size)), scores[..., whole:]


def _block(blocks: Tensor, number: Int[Tensor, "row node 1"]) -> Float[Tensor, "row node entry"]:
    return blocks.gather(2, number[..., None].expand(-1, -1, -1, blocks.shape[3])).squeeze(2)


def cut(
    logits: Float[Tensor, "node vocab"], temperature: float, top_k: int, top_p: float
) -> tuple[Float[Tensor, "node vocab"], Bool[Tensor, "node"]]:
    """Logits over temperature, -inf but for the `top_k` largest (0: all) and of those the smallest set that has the
    probability `top_p`; and for which nodes this is certain.

    Where it is, the numbers are those of transformers' warpers bit for bit. It is not where scores tie at a bound, sums
    come too near to it, or `NUCLEUS` tokens do not hold the set.
    """
    count = min(logits.shape[1], (top_k or NUCLEUS) + 1)
    values, tokens = (part[0] for part in largest(logits[None], count))
    values = values / temperature
    kept = torch.ones_like(values, dtype=torch.bool)
    if count == top_k + 1:
        kept[:, -1] = False
    certain = ~_splits_equals(values, kept)
    if top_p < 1:
        total = values[:, :top_k] if top_k else logits / temperature
        most = values[:, :1]  # taken off first, sums are exact to a few parts in ten million
        shares = (values - most).exp().double() / (total - most).exp_().sum(1, keepdim=True).double() * kept
        above = shares.cumsum(1) - shares
        kept &= above < top_p
        kept[:, 0] = True
        certain &= ((above - top_p).abs() > MARGIN).all(1) & (values[:, 0] > -torch.inf)
        if count < logits.shape[1] and not top_k:
            certain &= ~kept[:, -1]
        certain &= ~_splits_equals(values, kept)
    result = torch.full_like(logits, -torch.inf)
    return result.scatter_(1, tokens, values.where(kept, -torch.inf)), certain


def _splits_equals(values: Float[Tensor, "node rank"], kept: Bool[Tensor, "node rank"]) -> Bool[Tensor, "node"]:
    """Where of two equal scores one is kept and one is not; those of no probability are not kept in any case."""
    return (kept[:, :-1] & ~kept[:, 1:] & (values[:, :-1] == values[:, 1:]) & (values[:, 1:] > -torch.inf)).any(1)
