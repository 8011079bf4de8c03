"""Losses and training of the drafters: the target's own guided law as soft label, and a calibration of what is accepted."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.hawk import HawkDrafter
from mmspec.drafters.hawk_path import HawkPathDrafter
from mmspec.drafters.heads import HeadDrafter
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.errors import MmspecError
from mmspec.sampling import Noise
from mmspec.targets.image import ImageTarget
from mmspec.training.capture import Captured
from mmspec.training.fit import Budget, fit, optimizers


def cross_entropy(logits: Tensor, law: Tensor) -> Tensor:
    """Soft-label cross entropy, nats, one number per place."""
    return -(law * torch.log_softmax(logits.float(), -1)).sum(-1)


def mix(logits: Tensor, guidance: Tensor) -> Tensor:
    """Guided logits from `row stream ... vocab`, `guidance` per row."""
    conditional, unconditional = logits.unbind(1)
    scale = guidance.view(-1, *[1] * (conditional.ndim - 1)).to(logits.dtype)
    return unconditional + scale * (conditional - unconditional)


def batches(data: Captured, rows: list[int], batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (tokens, features, guidance); a sampled sequence keeps the guidance it was sampled with half of the time."""
    chance = torch.Generator().manual_seed(seed)
    index = torch.tensor(rows)
    known = torch.tensor(data.guidance)
    while True:
        chosen = index[torch.randint(len(index), (batch,), generator=chance)]
        anything = 1 + 3 * torch.rand(batch, generator=chance)
        own = torch.rand(batch, generator=chance) < 0.5
        yield data.tokens[chosen], data.features[chosen], torch.where(own, known[chosen], anything)


def head_loss(drafter: HeadDrafter, target: ImageTarget, batch: tuple[Tensor, Tensor, Tensor], decay: float = 0.8) -> dict[str, Tensor]:
    """Sum over heads of decay^(k-1) soft cross entropy at the places each head reaches, plus that of the pooled law per depth."""
    tokens, features, guidance = (part.to(target.device) for part in batch)
    head = target.head.to(torch.bfloat16) if features.dtype == torch.bfloat16 else target.head
    law = mix(target.logits(features), guidance).softmax(-1)
    length = tokens.shape[1]
    horizontal = [drafter.offsets[i] for i in drafter.horizontal]
    terms, guided = [], []
    for offset, layer in zip(drafter.offsets, drafter.heads, strict=True):
        logits = mix(nn.functional.linear(layer(features[:, :, : length + 1 - offset]), head), guidance).float()
        guided.append(logits)
        order = horizontal.index(offset) if offset in horizontal else 0
        terms.append(decay**order * cross_entropy(logits, law[:, offset - 1 :]).mean())
    pooled = []
    first = max([drafter.offsets[i] for i in drafter.vertical], default=1)
    for depth, i in enumerate(drafter.horizontal):
        places = torch.arange(max(first, drafter.offsets[i] - 1), length, device=tokens.device)
        found = [torch.log_softmax(guided[k][:, places + 1 - drafter.offsets[k]].detach(), -1) for k in (i, *drafter.vertical)]
        weights = drafter.weights[depth].softmax(0)
        logits = sum(weight * part for weight, part in zip(weights, found, strict=True))
        pooled.append(cross_entropy(logits, law[:, places]).mean())
    return {
        "loss": torch.stack(terms).sum() + torch.stack(pooled).sum(),
        "head": terms[0].detach(),
        "pool": pooled[0].detach(),
        "last": pooled[-1].detach(),
    }


def path_logits(
    drafter: HawkPathDrafter, tokens: Tensor, features: Tensor, anchors: Tensor, depth: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Unroll along the true path from every anchor: yields (places, valid, logits `row stream anchor vocab`) per depth.

    An anchor n has n tokens committed; its root is token n - 1 and depth k predicts token n + k.
    """
    rows, length = tokens.shape
    padded = torch.cat([tokens, tokens.new_full((rows, 1), drafter.vocabulary)], 1)
    offsets = torch.tensor(drafter.offsets, device=tokens.device)
    row = torch.arange(rows, device=tokens.device)[:, None]
    hidden = drafter.begin(features[row, :, anchors - 1].transpose(1, 2))
    for k in range(depth):
        places = anchors + k
        valid = places < length
        places = places.clamp(max=length - 1)
        near = places[..., None] - offsets
        known = (near >= 0) & (near < anchors[..., None])
        read = (near >= 0) & (near + 1 < anchors[..., None])
        around = padded[row[..., None], near.where(known, length)]
        seen = features[row[..., None], :, (near + 1).where(read, 0)] * read[..., None, None]
        seen = seen.movedim(3, 1).flatten(3) if drafter.offsets else features[:, :, :1].expand(-1, -1, anchors.shape[1], -1)
        context = drafter.context(around, seen.transpose(0, 1), places).transpose(0, 1)
        hidden, logits = drafter.step(hidden, padded[row, places - 1][:, None].expand(-1, 2, -1), context)
        yield places, valid, logits


def path_loss(
    drafter: HawkPathDrafter, target: ImageTarget, batch: tuple[Tensor, Tensor, Tensor], anchors: int = 48, decay: float = 0.9
) -> dict[str, Tensor]:
    """Sum over depths of decay^k soft cross entropy against the target's guided law."""
    tokens, features, guidance = (part.to(target.device) for part in batch)
    chosen = torch.randint(1, tokens.shape[1], (len(tokens), anchors), device=tokens.device)
    law = mix(target.logits(features), guidance).softmax(-1)
    row = torch.arange(len(tokens), device=tokens.device)[:, None]
    terms = []
    for places, valid, logits in path_logits(drafter, tokens, features, chosen, drafter.depth):
        error = cross_entropy(mix(logits, guidance), law[row, places])
        terms.append((error * valid).sum() / valid.sum().clamp(min=1))
    weights = decay ** torch.arange(len(terms), device=tokens.device)
    total = (weights * torch.stack(terms)).sum() / weights.sum()
    entropy = -(law * law.clamp(min=1e-9).log()).sum(-1).mean()
    return {"loss": total, "first": terms[0].detach(), "last": terms[-1].detach(), "entropy": entropy}


# Pairs (lambda, beta) that calibration tries.
SCORES = torch.cartesian_prod(torch.linspace(0, 1, 11), torch.linspace(0.4, 2.0, 17))


def misses(log_q: Tensor, noise: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of softmax(beta (log q + lambda g)) against the tokens that were sampled, for every pair of `SCORES`."""
    losses = [-torch.log_softmax(beta * (log_q + share * noise), -1).gather(1, wanted[:, None]).mean() for share, beta in SCORES]
    return torch.stack(losses).cpu()


def settle(drafter: TrainedDrafter, losses: Tensor) -> None:
    """Give the drafter the best pair of each depth, from `depth pair` losses."""
    best = SCORES[losses.argmin(1)]
    drafter.coupling, drafter.beta = ([round(float(x), 3) for x in column] for column in best.unbind(1))


@torch.inference_mode()
def calibrate_path(drafter: HawkPathDrafter, target: ImageTarget, data: Captured) -> None:
    """For each depth, the coupling lambda and sharpness beta that best predict the token that was sampled."""
    length = data.tokens.shape[1]
    losses = torch.zeros(drafter.depth, len(SCORES))
    for row in range(len(data.tokens)):
        noise = Noise([data.seeds[row]], target.vocabulary).gumbel([0], length)[0].to(target.device)
        tokens, features = data.tokens[row][None].to(target.device), data.features[row][None].to(target.device)
        scale = torch.tensor([data.guidance[row]], device=target.device)
        anchors = torch.arange(1, length - drafter.depth, device=target.device)[None]
        for k, (places, _, logits) in enumerate(path_logits(drafter, tokens, features, anchors, drafter.depth)):
            log_q = torch.log_softmax(mix(logits.float(), scale), -1)[0]
            losses[k] += misses(log_q, noise[places[0]], tokens[0, places[0]])
    settle(drafter, losses)


@torch.inference_mode()
def calibrate_heads(drafter: HeadDrafter, target: ImageTarget, data: Captured) -> None:
    """As `calibrate_path`, for the pooled heads."""
    length = data.tokens.shape[1]
    losses = torch.zeros(len(drafter.horizontal), len(SCORES))
    first = max([drafter.offsets[i] for i in drafter.vertical], default=1)
    for row in range(len(data.tokens)):
        noise = Noise([data.seeds[row]], target.vocabulary).gumbel([0], length)[0].to(target.device)
        features, scale = data.features[row][None].to(target.device), torch.tensor([data.guidance[row]], device=target.device)
        guided = [torch.log_softmax(mix(target.logits(layer(features)), scale), -1)[0] for layer in drafter.heads]
        for depth, i in enumerate(drafter.horizontal):
            places = torch.arange(max(first, drafter.offsets[i] - 1), length, device=target.device)
            weights = drafter.weights[depth].softmax(0)
            pooled = sum(w * guided[k][places + 1 - drafter.offsets[k]] for w, k in zip(weights, (i, *drafter.vertical), strict=True))
            losses[depth] += misses(pooled, noise[places], data.tokens[row][places.cpu()].to(target.device))
    settle(drafter, losses)


def train_drafter(
    name: str, kind: str, config: dict, target: ImageTarget, data: Captured, budget: Budget, checkpoint: Path, device: str | None = None
) -> TrainedDrafter:
    """Train one drafter on captured sequences and calibrate it on 16 sampled ones, of every guidance, which it has not seen."""
    torch.manual_seed(config.get("seed", 0))
    sampled = [row for row, seed in enumerate(data.seeds) if seed >= 0]
    if len(sampled) < 17:
        raise MmspecError(
            f"{len(sampled)} sampled sequences were captured, and 16 are kept for calibration: set capture.sampled to 32 or more"
        )
    held = sampled[:: len(sampled) // 16][:16]
    rows = [row for row in range(len(data.tokens)) if row not in set(held)]
    wide = Captured(data.tokens[held], data.features[held].float(), [data.seeds[row] for row in held], [data.guidance[row] for row in held])
    source = partial(batches, data, rows, config["batch"])
    drafter = new_drafter(kind, target, config["model"])
    chosen = optimizers(drafter, config["lr"], 0.01, config.get("muon_lr"))

    def loss(drafter: TrainedDrafter, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        if isinstance(drafter, HawkPathDrafter):
            return path_loss(drafter, target, batch, config.get("anchors", 48))
        assert isinstance(drafter, HeadDrafter)
        return head_loss(drafter, target, batch)

    drafter = fit(name, drafter, source, loss, chosen, budget, checkpoint, device=device).float()
    if isinstance(drafter, HawkPathDrafter):
        calibrate_path(drafter, target, wide)
    elif isinstance(drafter, HeadDrafter):
        calibrate_heads(drafter, target, wide)
    return drafter


def new_drafter(kind: str, target: ImageTarget, options: dict) -> TrainedDrafter:
    """An untrained drafter for `target`; the path-conditioned one begins with the target's output head where it fits."""
    grid = target.grid
    if kind != "hawk-path":
        return (HawkDrafter if kind == "hawk" else MedusaDrafter)(target.hidden_size, grid.stride, target=target.hash, **options)
    drafter = HawkPathDrafter(
        target.hidden_size, target.vocabulary, grid=(grid.height, grid.width), stride=grid.stride, target=target.hash, **options
    )
    if drafter.head.weight.shape == target.head.shape:
        drafter.head.weight.data.copy_(target.head)
    return drafter
