"""Acceptance rules: which path of a draft tree is kept, and the bonus token that follows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError, unknown


@dataclass(frozen=True, slots=True)
class Verdict:
    """Nodes kept (root first) and the tokens that this commits, the bonus last; equally many of each."""

    paths: list[list[int]]
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A rule by name; `lossless` says whether the target's law is preserved, `drawn` whether it wants drawn drafts.

    One that `keeps_strict` is given the `strict` tokens, and accepts neither such a token in another's place nor another in its place:
    those that say where others belong, such as the end of a row.
    """

    name: str
    lossless: bool
    rule: Callable[..., Verdict]
    drawn: bool = False
    options: tuple = ()
    keeps_strict: bool = False

    def __call__(
        self,
        tree: DraftTree,
        scores: Float[Tensor, "row node vocab"],
        keys: Float[Tensor, "row node vocab"],
        noise: Noise,
        counts: list[int],
        strict: frozenset[int] = frozenset(),
    ) -> Verdict:
        """`scores` are processed logits, `keys` the same plus Gumbel noise, `counts` the tokens each row has so far."""
        if self.keeps_strict:
            return self.rule(tree, scores, keys, noise, counts, *self.options, strict=strict)
        return self.rule(tree, scores, keys, noise, counts, *self.options)


def perturb(
    tree: DraftTree, scores: Float[Tensor, "row node vocab"], noise: Noise, counts: list[int]
) -> Float[Tensor, "row node vocab"]:
    """log p + g at every node, g keyed by the position that the node predicts."""
    if noise.greedy:
        return scores
    gumbel = noise.gumbel(counts, tree.height + 1)
    index = tree.depths[:, :, None].expand(-1, -1, gumbel.shape[2])
    return scores + gumbel.to(scores.dtype).gather(1, index)


def _walk(tree: DraftTree, choose: Callable[[int, int, list[int]], tuple[int | None, int]]) -> Verdict:
    """From the root down: `choose(row, node, children)` gives the accepted child, or None and the bonus token."""
    paths, tokens = [], []
    drafted = tree.tokens.tolist()
    for row, below in enumerate(tree.children()):
        node, path, new = 0, [], []
        while True:
            path.append(node)
            child, token = choose(row, node, below[node])
            if child is None:
                new.append(token)
                break
            new.append(drafted[row][child])
            node = child
        paths.append(path)
        tokens.append(new)
    return Verdict(paths, tokens)


def exact(tree: DraftTree, scores: Tensor, keys: Tensor, noise: Noise, counts: list[int]) -> Verdict:
    """LOSSLESS. Accept the child that is the target's own sample, argmax log p + g (Daliri et al. 2024, membership form)."""
    samples = keys.argmax(2).tolist()
    drafted = tree.tokens.tolist()

    def choose(row: int, node: int, children: list[int]) -> tuple[int | None, int]:
        wanted = samples[row][node]
        return next((child for child in children if drafted[row][child] == wanted), None), wanted

    return _walk(tree, choose)


def tolerance(
    tree: DraftTree,
    scores: Tensor,
    keys: Tensor,
    noise: Noise,
    counts: list[int],
    tau: int = 2,
    strict: frozenset[int] = frozenset(),
) -> Verdict:
    """LOSSY for tau > 1. Accept a child among the tau best of log p + g, i.e. among tau draws without replacement (VADUSA);
    the best-ranked one if there are several. tau = 1 is `exact`. That `strict` tokens are not exchanged is our choice."""
    found = keys.topk(min(tau, scores.shape[2]), dim=2)
    possible = scores.gather(2, found.indices).isfinite().tolist()
    drafted, best = tree.tokens.tolist(), found.indices.tolist()

    def choose(row: int, node: int, children: list[int]) -> tuple[int | None, int]:
        first, *others = best[row][node]
        alike = (
            []
            if first in strict
            else [token for token, allowed in zip(others, possible[row][node][1:]) if allowed and token not in strict]
        )
        for wanted in (first, *alike):
            child = next((child for child in children if drafted[row][child] == wanted), None)
            if child is not None:
                return child, wanted
        return None, first

    return _walk(tree, choose)


def rejection(tree: DraftTree, scores: Tensor, keys: Tensor, noise: Noise, counts: list[int]) -> Verdict:
    """LOSSLESS in law, not per seed. Multi-round speculative sampling, each child with the law it was drawn from
    (Leviathan et al. 2023; SpecInfer; Hawk eq. 6-7): accept x with min(1, r(x) / q(x)), else r <- norm((r - q)+).

    Children drawn without replacement from one law q zero it at each rejected sibling. Undrawn children are point masses.
    """
    laws = (
        torch.softmax(scores, dim=2)
        if not noise.greedy
        else torch.nn.functional.one_hot(scores.argmax(2), scores.shape[2]).to(scores.dtype)
    )
    drafted = tree.tokens.tolist()

    def choose(row: int, node: int, children: list[int]) -> tuple[int | None, int]:
        place = counts[row] + int(tree.depths[row, node])
        residual = laws[row, node]
        coins = noise.coins(row, place, len(children)) if children else []
        tried: list[int] = []
        for child, coin in zip(children, coins, strict=True):
            token = drafted[row][child]
            if tree.laws is None:
                q = torch.zeros_like(residual)
                q[token] = 1.0
            else:
                q = tree.laws[row, child].to(residual.dtype)
                if not tree.replacement and tried:
                    q = q.clone()
                    q[tried] = 0.0
                    q = q / q.sum().clamp(min=torch.finfo(q.dtype).tiny)
            if float(q[token]) <= 0:
                continue
            if coin * float(q[token]) < float(residual[token]):
                return child, token
            rest = (residual - q).clamp(min=0)
            if float(rest.sum()) <= 0:
                break
            residual = rest / rest.sum()
            tried.append(token)
        if noise.greedy:
            return None, int(residual.argmax())
        gumbel = noise.fresh(row, place, Noise.ACCEPT + 1)[0].to(residual.dtype)
        return None, int((residual.log() + gumbel).argmax())

    return _walk(tree, choose)


def typical(
    tree: DraftTree,
    scores: Tensor,
    keys: Tensor,
    noise: Noise,
    counts: list[int],
    epsilon: float = 0.3,
    delta: float = 0.09,
    strict: frozenset[int] = frozenset(),
) -> Verdict:
    """LOSSY. Accept a child x with p(x) > min(epsilon, delta exp(-H(p))) (Medusa's typical acceptance); the most probable
    such child at every node. The bonus token is the target's own sample. That `strict` tokens are not exchanged is our choice."""
    log_p = torch.log_softmax(scores, dim=2)
    p = log_p.exp()
    entropy = -(p * log_p.clamp(min=-1e4)).sum(2)
    floor = torch.minimum(torch.full_like(entropy, epsilon), delta * (-entropy).exp())
    samples = keys.argmax(2).tolist()
    drafted = tree.tokens.tolist()

    def choose(row: int, node: int, children: list[int]) -> tuple[int | None, int]:
        sample = samples[row][node]
        children = [
            child
            for child in children
            if drafted[row][child] == sample or strict.isdisjoint((drafted[row][child], sample))
        ]
        if children:
            chance, child = max((float(p[row, node, drafted[row][child]]), child) for child in children)
            if chance > float(floor[row, node]):
                return child, drafted[row][child]
        return None, sample

    return _walk(tree, choose)


RULES = {"exact": exact, "rejection": rejection, "tolerance": tolerance, "typical": typical}


def acceptance(name: Any) -> Acceptance:
    """A rule by name (or itself); options follow a colon: `tolerance:3`, `typical:0.3,0.09`."""
    if isinstance(name, Acceptance):
        return name
    if not isinstance(name, str):
        raise MmspecError(
            f"acceptance is a {type(name).__name__}: give one of {', '.join(RULES)}, as in 'exact' or 'tolerance:3'"
        )
    base, _, options = name.partition(":")
    if base not in RULES:
        raise unknown("acceptance", base, RULES)
    try:
        values = tuple(float(part) for part in options.split(",")) if options else ()
    except ValueError:
        raise MmspecError(
            f"acceptance {name!r}: what follows the colon must be numbers, as in 'tolerance:3' or 'typical:0.3,0.09'"
        ) from None
    if base in ("exact", "rejection") and values:
        raise MmspecError(f"acceptance {base!r} takes no options: give {base!r} alone")
    if base == "tolerance":
        tau = values[0] if values else 2.0
        if len(values) > 1 or not tau.is_integer() or not 1 <= tau <= 64:
            raise MmspecError(
                f"acceptance {name!r}: tolerance takes one whole number from 1 to 64, as in 'tolerance:3'"
            )
        return Acceptance(f"tolerance:{int(tau)}", tau == 1, tolerance, options=(int(tau),), keeps_strict=tau > 1)
    if base == "typical" and (len(values) not in (0, 2) or any(not 0 < value <= 1 for value in values)):
        raise MmspecError(f"acceptance {name!r}: typical takes epsilon and delta in (0, 1], as in 'typical:0.3,0.09'")
    lossy = base == "typical"
    return Acceptance(
        name.rstrip(":"), not lossy, RULES[base], drawn=base == "rejection", options=values, keeps_strict=lossy
    )
