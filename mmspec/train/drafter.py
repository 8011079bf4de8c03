"""Losses and training of the drafters: the target's own guided law as soft label, and a calibration of what is accepted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.hawk import HawkDrafter
from mmspec.drafters.hawk_path import HawkPathDrafter
from mmspec.drafters.heads import HeadDrafter
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.engine.noise import Noise
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.train.capture import Captured
from mmspec.train.loop import Budget, fit, optimizers
from mmspec.train.run import Run

HEADS: dict[str, type[HeadDrafter]] = {"medusa": MedusaDrafter, "hawk": HawkDrafter, "vadusa": VadusaDrafter}


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one training step: `tokens[row, place]`, `features[row, stream, place]`, and each row's guidance and length."""

    tokens: Tensor
    features: Tensor
    guidance: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.tokens.to(device), self.features.to(device), self.guidance.to(device), self.lengths.to(device)
        )


def cross_entropy(logits: Tensor, law: Tensor) -> Tensor:
    """Soft-label cross entropy, nats, one number per place."""
    return -(law * torch.log_softmax(logits.float(), -1)).sum(-1)


def mean(error: Tensor, valid: Tensor) -> Tensor:
    """The mean over the places that are `valid`."""
    return (error * valid).sum() / valid.sum().clamp(min=1)


def mix(logits: Tensor, guidance: Tensor) -> Tensor:
    """Guided logits from `row stream ... vocab`, `guidance` per row; those of a single stream as they are."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    conditional, unconditional = logits.unbind(1)
    scale = guidance.view(-1, *[1] * (conditional.ndim - 1)).to(logits.dtype)
    return unconditional + scale * (conditional - unconditional)


def batches(data: Captured, rows: list[int], batch: int, seed: int) -> Iterator[Batch]:
    """Endless batches; a sampled sequence keeps the guidance it was sampled with half of the time."""
    chance = torch.Generator().manual_seed(seed)
    index, known, lengths = torch.tensor(rows), torch.tensor(data.guidance), torch.tensor(data.lengths)
    while True:
        chosen = index[torch.randint(len(index), (batch,), generator=chance)]
        anything = 1 + 3 * torch.rand(batch, generator=chance)
        own = torch.rand(batch, generator=chance) < 0.5
        longest = int(lengths[chosen].max())
        guidance = torch.where(own, known[chosen], anything)
        yield Batch(data.tokens[chosen, :longest], data.features[chosen, :, :longest], guidance, lengths[chosen])


def head_loss(drafter: HeadDrafter, target: CausalTarget, batch: Batch, decay: float = 0.8) -> dict[str, Tensor]:
    """Sum over heads of decay^(k-1) soft cross entropy at the places each head reaches, plus that of the pooled law per depth."""
    batch = batch.to(target.device)
    features, guidance = batch.features, batch.guidance
    head = target.head.weight.to(features.dtype)
    law = mix(target.logits(features), guidance).softmax(-1)
    length = batch.tokens.shape[1]
    valid = torch.arange(length, device=target.device) < batch.lengths[:, None]
    horizontal = [drafter.offsets[i] for i in drafter.horizontal]
    terms, guided = [], []
    for offset, layer in zip(drafter.offsets, drafter.heads, strict=True):
        logits = mix(nn.functional.linear(layer(features[:, :, : max(0, length + 1 - offset)]), head), guidance).float()
        guided.append(logits)
        order = horizontal.index(offset) if offset in horizontal else 0
        terms.append(decay**order * mean(cross_entropy(logits, law[:, offset - 1 :]), valid[:, offset - 1 :]))
    pooled = []
    first = max([drafter.offsets[i] for i in drafter.vertical], default=1)
    for depth, i in enumerate(drafter.horizontal):
        start = max(first, drafter.offsets[i] - 1)
        places = torch.arange(start, max(start, length), device=target.device)
        found = [
            torch.log_softmax(guided[k][:, places + 1 - drafter.offsets[k]].detach(), -1)
            for k in (i, *drafter.vertical)
        ]
        weights = drafter.weights[depth].softmax(0)
        logits = sum(weight * part for weight, part in zip(weights, found, strict=True))
        pooled.append(mean(cross_entropy(logits, law[:, places]), valid[:, places]))
    return {
        "loss": torch.stack(terms).sum() + torch.stack(pooled).sum(),
        "head": terms[0].detach(),
        "pool": pooled[0].detach(),
        "last": pooled[-1].detach(),
    }


def path_logits(
    drafter: HawkPathDrafter, batch: Batch, anchors: Tensor, depth: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Unroll along the true path from every anchor: yields (places, valid, logits `row stream anchor vocab`) per depth.

    An anchor n has n tokens committed; its root is token n - 1 and depth k predicts token n + k.
    """
    tokens, features = batch.tokens, batch.features
    rows, streams, length = features.shape[:3]
    padded = torch.cat([tokens, tokens.new_full((rows, 1), drafter.vocabulary)], 1)
    offsets = torch.tensor(drafter.offsets, device=tokens.device)
    row = torch.arange(rows, device=tokens.device)[:, None]
    hidden = drafter.begin(features[row, :, anchors - 1].transpose(1, 2))
    for k in range(depth):
        places = anchors + k
        valid = places < batch.lengths[:, None]
        places = places.clamp(max=length - 1)
        near = (places[..., None] - offsets).long()
        known = (near >= 0) & (near < anchors[..., None])
        read = (near >= 0) & (near + 1 < anchors[..., None])
        around = padded[row[..., None], near.where(known, length)]
        seen = features[row[..., None], :, (near + 1).where(read, 0)] * read[..., None, None]
        seen = (
            seen.movedim(3, 1).flatten(3)
            if drafter.offsets
            else features[:, :, :1].expand(-1, -1, anchors.shape[1], -1)
        )
        context = drafter.context(around, seen.transpose(0, 1), places).transpose(0, 1)
        hidden, logits = drafter.step(hidden, padded[row, places - 1][:, None].expand(-1, streams, -1), context)
        yield places, valid, logits


def path_loss(
    drafter: HawkPathDrafter, target: CausalTarget, batch: Batch, anchors: int = 48, decay: float = 0.9
) -> dict[str, Tensor]:
    """Sum over depths of decay^k soft cross entropy against the target's guided law."""
    batch = batch.to(target.device)
    share = torch.rand(len(batch.tokens), anchors, device=target.device)
    chosen = 1 + (share * (batch.lengths[:, None] - 1)).long()
    law = mix(target.logits(batch.features), batch.guidance).softmax(-1)
    row = torch.arange(len(batch.tokens), device=target.device)[:, None]
    terms = []
    for places, valid, logits in path_logits(drafter, batch, chosen, drafter.depth):
        terms.append(mean(cross_entropy(mix(logits, batch.guidance), law[row, places]), valid))
    weights = decay ** torch.arange(len(terms), device=target.device)
    total = (weights * torch.stack(terms)).sum() / weights.sum()
    return {"loss": total, "first": terms[0].detach(), "last": terms[-1].detach()}


# Pairs (lambda, beta) that calibration tries.
SCORES = torch.cartesian_prod(torch.linspace(0, 1, 11), torch.linspace(0.4, 2.0, 17))


def misses(log_q: Tensor, noise: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of softmax(beta (log q + lambda g)) against the tokens that were sampled, for every pair of `SCORES`."""
    losses = [
        -torch.log_softmax(beta * (log_q + share * noise), -1).gather(1, wanted[:, None]).sum()
        for share, beta in SCORES
    ]
    return torch.stack(losses).cpu()


# What a drafter says at one depth of one sequence: the sequence, roots, log q, noise there, and the tokens that were sampled (-1: none that it knows).
Law = tuple[int, Tensor, Tensor, Tensor, Tensor]


def settle(drafter: TrainedDrafter, depths: list[list[Law]]) -> list[list[float]]:
    """Give each depth of the drafter the pair that best predicts what was sampled; returns how often the i-th candidate was right.

    Both at roots whose sampled tokens were candidates at all depths before, since no other path gets there; where no root is left,
    the pair of the depth before stands.
    """
    alive: dict[int, set[int]] = {}
    accuracies, best = [], len(SCORES) - 1
    for depth, laws in enumerate(depths):
        losses, right, seen, before = torch.zeros(len(SCORES)), torch.zeros(drafter.ranks), 0, alive
        parts = []
        for row, roots, *law in laws:
            kept = torch.tensor(
                [not depth or root in before.get(row, ()) for root in roots.tolist()],
                dtype=torch.bool,
                device=roots.device,
            )
            log_q, noise, wanted = (part[kept] for part in law)
            parts.append((row, roots[kept], log_q, noise, wanted))
            losses += misses(log_q[wanted >= 0], noise[wanted >= 0], wanted[wanted >= 0])
        best = int(losses.argmin()) if losses.any() else best
        drafter.coupling[depth], drafter.beta[depth] = (round(float(x), 3) for x in SCORES[best])
        alive = {}
        for row, roots, log_q, noise, wanted in parts:
            keys = log_q + drafter.coupling[depth] * noise
            hit = keys.topk(min(drafter.ranks, keys.shape[1]), dim=1).indices == wanted[:, None]
            right[: hit.shape[1]] += hit.sum(0).cpu()
            seen += len(roots)
            alive[row] = set(roots[hit.any(1)].tolist())
        accuracies.append([round(x, 4) for x in (right / max(1, seen)).tolist()])
    return accuracies


def path_laws(drafter: HawkPathDrafter, target: CausalTarget, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """For each depth, the places of a single row that have drafts and the drafter's log q there."""
    last = int(batch.lengths[0])
    anchors = torch.arange(1, last, device=target.device)[None]
    found = []
    for places, valid, logits in path_logits(drafter, batch, anchors, drafter.depth):
        found.append((places[valid], torch.log_softmax(mix(logits.float(), batch.guidance), -1)[valid]))
    return found


def head_laws(drafter: HeadDrafter, target: CausalTarget, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """As `path_laws`, for the pooled heads."""
    guided = [
        torch.log_softmax(mix(target.logits(layer(batch.features)), batch.guidance), -1)[0] for layer in drafter.heads
    ]
    first = max([drafter.offsets[i] for i in drafter.vertical], default=1)
    found = []
    for depth, i in enumerate(drafter.horizontal):
        start = max(first, drafter.offsets[i] - 1)
        places = torch.arange(start, max(start, int(batch.lengths[0])), device=target.device)
        weights = drafter.weights[depth].softmax(0)
        parts = [
            w * guided[k][places + 1 - drafter.offsets[k]] for w, k in zip(weights, (i, *drafter.vertical), strict=True)
        ]
        found.append((places, torch.stack(parts).sum(0)))
    return found


@torch.inference_mode()
def calibrate(drafter: HawkPathDrafter | HeadDrafter, target: CausalTarget, data: Captured) -> None:
    """Coupling and sharpness of each depth from sampled sequences, and for VADUSA how often each candidate was right."""
    depths: list[list[Law]] = [[] for _ in drafter.beta]
    for row, length in enumerate(data.lengths):
        noise = Noise([data.seeds[row]], target.vocabulary_size).gumbel([0], length)[0].to(target.device)
        part = (
            data.tokens[row : row + 1],
            data.features[row : row + 1],
            torch.tensor(data.guidance[row : row + 1]),
            torch.tensor([length]),
        )
        batch = Batch(*part).to(target.device)
        laws = (
            path_laws(drafter, target, batch)
            if isinstance(drafter, HawkPathDrafter)
            else head_laws(drafter, target, batch)
        )
        for depth, (places, log_q) in enumerate(laws):
            depths[depth].append((row, places - depth, log_q, noise[places], batch.tokens[0, places]))
    accuracies = settle(drafter, depths)
    if isinstance(drafter, VadusaDrafter):
        drafter.accuracies = accuracies


def train_drafter(
    name: str,
    kind: str,
    config: dict,
    target: CausalTarget,
    data: Captured,
    budget: Budget,
    checkpoint: Path,
    device: str | None = None,
    heads: Path | None = None,
) -> HawkPathDrafter | HeadDrafter:
    """Train one drafter on captured sequences and calibrate it on 16 sampled ones, of every guidance, which it has not seen.

    A drafter of kind vadusa begins with the `heads` that were trained with the target.
    """
    torch.manual_seed(config.get("seed", 0))
    sampled = [row for row, seed in enumerate(data.seeds) if seed >= 0]
    if len(sampled) < 17:
        raise MmspecError(
            f"{len(sampled)} sampled sequences were captured, and 16 are kept for calibration: set capture.sampled to 32 or more"
        )
    held = sampled[:: len(sampled) // 16][:16]
    rows = [row for row in range(len(data.tokens)) if row not in set(held)]
    drafter = new_drafter(kind, target, config["model"])
    if isinstance(drafter, VadusaDrafter) and heads is not None:
        known = torch.load(heads, map_location="cpu", weights_only=True)
        drafter.heads.load_state_dict({key: value for key, value in known.items() if key in drafter.heads.state_dict()})
    if budget.steps:
        source = partial(batches, data, rows, config["batch"])
        chosen = optimizers(drafter, config["lr"], 0.01, config.get("muon_lr"))

        def loss(drafter: TrainedDrafter, batch: Batch) -> dict[str, Tensor]:
            if isinstance(drafter, HawkPathDrafter):
                return path_loss(drafter, target, batch, config.get("anchors", 48))
            assert isinstance(drafter, HeadDrafter)
            return head_loss(drafter, target, batch)

        drafter = fit(name, drafter, source, loss, chosen, budget, checkpoint, device=device)
    drafter = drafter.float().to(target.device)
    calibrate(drafter, target, data.rows(held))
    return drafter


def new_drafter(kind: str, target: CausalTarget, options: dict) -> HawkPathDrafter | HeadDrafter:
    """An untrained drafter for `target`; the path-conditioned one begins with the target's output head where it fits."""
    grid = getattr(target, "grid", None)
    stride = grid.stride if grid else 0
    if kind not in HEADS and kind != "hawk-path":
        raise MmspecError(f"no drafter of kind {kind!r} can be trained: give one of {', '.join([*HEADS, 'hawk-path'])}")
    if kind in HEADS:
        return HEADS[kind](target.hidden_size, stride=stride, target=target.weights_hash, **options)
    shape = (grid.height, grid.width) if grid else (0, 0)
    drafter = HawkPathDrafter(
        target.hidden_size, target.vocabulary_size, grid=shape, stride=stride, target=target.weights_hash, **options
    )
    if drafter.head.weight.shape == target.head.weight.shape:
        drafter.head.weight.data.copy_(target.head.weight)
    return drafter


def train_drafters(
    run: Run, target: CausalTarget, data: Captured, only: str | None = None, heads: Path | None = None
) -> None:
    """Every drafter of a recipe, or one, trained, calibrated and saved in bfloat16."""
    for name, stage in run.recipe["drafters"].items():
        if only not in (None, name):
            continue
        checkpoint = run.file(name, target.weights_hash, stage["model"])
        budget = Budget(**stage["budget"]) if "budget" in stage else Budget(0)
        model = train_drafter(name, stage["kind"], stage, target, data, budget, checkpoint, run.device, heads)
        grid = getattr(target, "grid", None)
        config = {
            "kind": stage["kind"],
            "hidden_size": target.hidden_size,
            "stride": grid.stride if grid else 0,
            "target": target.weights_hash,
            "beta": model.beta,
            "coupling": model.coupling,
            **stage["model"],
        }
        if isinstance(model, HawkPathDrafter):
            config |= {"vocabulary": target.vocabulary_size, "grid": list(model.grid)}
        if isinstance(model, VadusaDrafter):
            config |= {"accuracies": model.accuracies}
        folder = run.out / "drafters" / name
        model.bfloat16().save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
