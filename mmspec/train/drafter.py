"""Training of drafters for a target: one routine for every class that has a loss and predictions."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mmspec import drafters
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Example
from mmspec.errors import MmspecError
from mmspec.targets.base import Target
from mmspec.train.calibrate import calibrate
from mmspec.train.loop import Budget, fit, optimizers
from mmspec.train.run import Run


def is_pictured(example: Example) -> bool:
    """Whether the prompt has positions that are not text."""
    return example.prompt is not None and len(example.prompt.visual) > 0


def random_batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches; a sequence keeps the guidance that it was sampled with half of the time, else it is anything to
    4.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(examples), (size,), generator=generator).tolist()
        anything = (1 + 3 * torch.rand(size, generator=generator)).tolist()
        own = (torch.rand(size, generator=generator) < 0.5).tolist()
        yield [
            examples[i] if keep else replace(examples[i], guidance=guidance)
            for i, guidance, keep in zip(chosen, anything, own)
        ]


def similar_batches(
    examples: Sequence[Example], size: int, budget: Budget, stages: int, seed: int
) -> Iterator[list[Example]]:
    """Endless batches of sequences of similar length.

    With two stages the first half of the budget is text alone, and then the share of sequences with pictures rises to
    all (MSD).
    """
    rng = random.Random(seed)

    def length(example: Example) -> int:
        return len(example.tokens) + (len(example.prompt.ids) if example.prompt else 0)

    text = sorted((example for example in examples if not is_pictured(example)), key=length)
    pictured = sorted((example for example in examples if is_pictured(example)), key=length)
    while True:
        share = 0.8 if stages == 1 else 2 * budget.progress - 1
        pool = pictured if pictured and (not text or rng.random() < share) else text
        start = rng.randrange(max(1, len(pool) - size + 1))
        yield pool[start : start + size]


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of the examples, evenly over all."""
    return list(examples[:: max(1, len(examples) // count)][:count])


def held_out(kind: type[TrainedDrafter], examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Sampled and greedy sequences that calibrate and are not trained on; with pictures, where there are any."""
    pool = [example for example in examples if is_pictured(example)] or list(examples)
    sampled = [example for example in pool if example.seed >= 0]
    if len(sampled) < kind.min_sampled:
        raise MmspecError(
            f"{len(sampled)} sampled sequences were captured, and {kind.held_out} are kept for calibration: "
            f"set capture.sampled to {2 * kind.held_out} or more"
        )
    greedy = [example for example in pool if example.greedy]
    return spread(sampled, kind.held_out), spread(greedy, kind.held_out)


def frequent_tokens(examples: Sequence[Example], count: int) -> list[int]:
    """The tokens that sequences have most often, in order."""
    counts: Counter[int] = Counter()
    for example in examples:
        counts.update(example.tokens.tolist())
    return sorted(token for token, _ in counts.most_common(count))


def drafter_class(kind: str) -> type[TrainedDrafter]:
    """The class of a kind of drafter that is trained. Raises MmspecError for any other."""
    entries = {name: entry for name, entry in drafters.names().items() if entry.trained}
    if kind not in entries:
        raise MmspecError(f"no drafter of kind {kind!r} can be trained: give one of {', '.join(entries)}")
    cls = entries[kind].load()
    if not issubclass(cls, TrainedDrafter):
        raise MmspecError(f"{entries[kind].path} is no TrainedDrafter, so it cannot be trained")
    return cls


def train_drafter(
    name: str,
    stage: dict,
    target: Target,
    own: Sequence[Example],
    data: Sequence[Example],
    budget: Budget,
    checkpoint: Path,
    device: str | None = None,
    initial: dict[str, Tensor] | None = None,
) -> TrainedDrafter:
    """Train one drafter on `data` and calibrate it on sequences of the target's `own` that it has not seen.

    Where the two differ, they are of the same prompts in the same order.

    `stage` is the drafter's part of a recipe: kind, model (options of `build`), batch, lr, muon_lr, vocabulary (how
    many
    tokens it drafts from), stages, and the class's `loss_options`. It begins with `initial` weights if given.
    """
    torch.manual_seed(stage.get("seed", 0))
    kind = drafter_class(stage["kind"])
    sampled, greedy = held_out(kind, own)
    calibrates = {id(example) for example in (*sampled, *greedy)}
    excluded = {index for index, example in enumerate(own) if id(example) in calibrates}
    rows = [example for index, example in enumerate(data) if index not in excluded]
    options = dict(stage["model"])
    if "vocabulary" in stage:
        options["tokens"] = frequent_tokens(own, stage["vocabulary"])
    drafter = kind.build(target, **options)
    if initial is not None:
        drafter.load_initial(initial)
    if budget.steps:
        loss_options = {key: stage[key] for key in kind.loss_options if key in stage}

        def batches(seed: int) -> Iterator[list[Example]]:
            if kind.similar_lengths:
                return similar_batches(rows, stage["batch"], budget, stage.get("stages", 2), seed)
            return random_batches(rows, stage["batch"], seed)

        def loss(drafter: TrainedDrafter, examples: list[Example]) -> dict[str, Tensor]:
            return drafter.loss(target, examples, **loss_options)

        decay = stage.get("weight_decay", 0.0 if kind.similar_lengths else 0.01)
        chosen = optimizers(drafter, stage["lr"], decay, stage.get("muon_lr"))
        drafter = fit(name, drafter, batches, loss, chosen, budget, checkpoint, device=device)
    drafter = drafter.float().to(target.device).eval()
    calibrate(drafter, target, sampled, greedy)
    return drafter


def save_drafter(drafter: TrainedDrafter, kind: str, folder: Path) -> None:
    """Write a drafter in bfloat16, as the `kind` that it is registered by."""
    drafter.bfloat16().save_pretrained(folder, config={"kind": kind})


def train_drafters(
    run: Run,
    target: Target,
    examples: Callable[[bool], Sequence[Example]],
    only: str | None = None,
    origin: Callable[[dict], object] = lambda stage: stage["model"],
) -> None:
    """Every drafter of a recipe, or one, trained, calibrated and saved.

    `examples(own)` are sequences with the target's own answers, or with those of the data. Training goes on from a
    checkpoint of the same target, name and `origin(stage)`.
    """
    for name, stage in run.recipe["drafters"].items():
        if only not in (None, name):
            continue
        own = examples(True)
        data = own if stage.get("own_answers", True) else examples(False)
        checkpoint = run.file(name, target.weights_hash, origin(stage))
        budget = run.budget(stage) if "budget" in stage else Budget(0)
        path = run.work / stage["initial"] if "initial" in stage else None
        initial = torch.load(path, map_location="cpu", weights_only=True) if path else None
        drafter = train_drafter(name, stage, target, own, data, budget, checkpoint, run.device, initial)
        save_drafter(drafter, stage["kind"], run.out / "drafters" / name)
