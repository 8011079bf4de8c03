"""Training of drafters for a target: one routine for every class that has a loss and predictions."""

import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from mmspec import drafters
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Example
from mmspec.errors import MmspecError, short, unknown
from mmspec.files import write_atomically
from mmspec.placement import has_fast_bf16
from mmspec.targets.base import Target
from mmspec.train.corpus import SequenceFacts
from mmspec.train.features import Load
from mmspec.train.loop import Budget, fit, optimizers


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """How a drafter is built and trained; what is left out is its class's own (`TrainedDrafter.recipe`).

    `model` are options of `build`, `loss` those of the loss. It drafts from the `vocabulary` most frequent tokens, all
    if 0. `evaluations` is how often its acceptance length is measured. With two `stages`, the first half is text alone,
    and then the share of sequences with pictures rises to all (MSD).
    """

    kind: str
    model: dict = field(default_factory=dict)
    loss: dict = field(default_factory=dict)
    steps: int = 1000
    batch: int = 4
    accumulation: int = 1
    lr: float = 1e-3
    muon_lr: float | None = None
    weight_decay: float = 0.01
    vocabulary: int = 0
    stages: int = 1
    evaluations: int = 5
    seed: int = 0

    @classmethod
    def of(cls, kind: str, **given: object) -> "DrafterSettings":
        """Those of a kind, with what is given. Raises MmspecError for options that it does not have."""
        trained = drafter_class(kind)
        settings = cls(kind, **trained.recipe | {name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        for name in settings.loss:
            if name not in trained.loss_options:
                raise unknown(f"option of the loss of {kind}", name, trained.loss_options)
        if (allowed := options_of(trained)) and (wrong := settings.model.keys() - allowed):
            raise unknown(f"option of {kind}", sorted(wrong)[0], sorted(allowed | {*trained.loss_options}))
        for name in ("steps", "batch", "accumulation", "evaluations"):
            if getattr(settings, name) < 1:
                raise MmspecError(f"{name} must be 1 or more, not {getattr(settings, name)}")
        tv = settings.loss.get("tv", 0.0)
        if not (isinstance(tv, int | float) and 0 <= tv <= 1):
            raise MmspecError(f"tv is a share from 0 to 1, not {tv}")
        if settings.vocabulary < 0 or not 0 < settings.lr < 1:
            raise MmspecError(
                f"vocabulary is 0 or more and lr between 0 and 1, not {settings.vocabulary} and {settings.lr:g}"
            )
        return settings


# Arguments of constructors that the target, calibration or `vocabulary` decide.
DECIDED = {"self", "target", "hidden_size", "stride", "vocabulary", "grid", "beta", "coupling", "greedy", "accuracies"}


def options_of(kind: type[TrainedDrafter]) -> set[str]:
    """What may be chosen of a drafter; nothing for a class whose constructor takes any option."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return set()
    return {parameter.name for parameter in parameters} - DECIDED


def drafter_class(kind: str) -> type[TrainedDrafter]:
    """The class of a kind of drafter that is trained. Raises MmspecError for any other."""
    entries = {name: entry for name, entry in drafters.names().items() if entry.trained}
    if kind not in entries:
        raise MmspecError(f"no drafter of kind {kind!r} can be trained: give one of {', '.join(entries)}")
    cls = entries[kind].load()
    if not issubclass(cls, TrainedDrafter):
        raise MmspecError(f"{entries[kind].path} is no TrainedDrafter, so it cannot be trained")
    return cls


def random_batch(sequences: Sequence[SequenceFacts], size: int, seed: int) -> list[SequenceFacts]:
    """Any sequences."""
    return random.Random(seed).choices(sequences, k=size)


def similar_batch(
    sequences: Sequence[SequenceFacts], size: int, seed: int, stages: int, progress: float
) -> list[SequenceFacts]:
    """Sequences of similar length, all with pictures or all without; see `DrafterSettings` for `stages`."""
    rng = random.Random(seed)
    text = sorted((one for one in sequences if not one.visual), key=lambda one: one.length)
    pictured = sorted((one for one in sequences if one.visual), key=lambda one: one.length)
    share = 0.8 if stages == 1 else 2 * progress - 1
    pool = pictured if pictured and (not text or rng.random() < share) else text
    if len(pool) < size:
        return rng.choices(pool, k=size)
    start = rng.randrange(len(pool) - size + 1)
    return pool[start : start + size]


def vary(example: Example, keep_guidance: bool, guidance: float, draw: int) -> Example:
    """A sequence as a loss takes it: with the guidance that it was sampled with or another one, and a seed."""
    return replace(example, guidance=example.guidance if keep_guidance else guidance, draw=draw)


def frequent_tokens(sequences: Iterable[Sequence[int]], size: int, vocabulary: int) -> list[int]:
    """The `size` tokens that sequences have most often, in order.

    Where they have fewer, the first tokens of the vocabulary come beside them: tokenizers number frequent ones first.
    """
    counts: Counter[int] = Counter()
    for tokens in sequences:
        counts.update(tokens)
    chosen = dict.fromkeys(token for token, _ in counts.most_common(size))
    for token in range(vocabulary):
        if len(chosen) >= size:
            break
        chosen.setdefault(token)
    return sorted(chosen)


def build_drafter(
    settings: DrafterSettings, target: Target, answers: Iterable[Sequence[int]], initial: Path | None = None
) -> TrainedDrafter:
    """An untrained drafter, or one with `initial` weights; `answers` say which tokens are frequent."""
    torch.manual_seed(settings.seed)
    options, kind = dict(settings.model), drafter_class(settings.kind)
    if 0 < settings.vocabulary < target.vocabulary_size:
        options["tokens"] = frequent_tokens(answers, settings.vocabulary, target.vocabulary_size)
    try:
        drafter = kind.build(target, **options)
    except MmspecError:
        raise
    except Exception as error:  # whatever options mean to a class, also one of another package
        raise MmspecError(f"{settings.kind} is not built so: {short(error)}") from None
    if initial is not None:
        drafter.load_initial(torch.load(initial, map_location="cpu", weights_only=True))
    return drafter


def train_drafter(
    drafter: TrainedDrafter,
    settings: DrafterSettings,
    target: Target,
    sequences: Sequence[SequenceFacts],
    load: Load,
    checkpoint: Path,
    evaluate: Callable[[TrainedDrafter], float],
    device: str | None = None,
) -> TrainedDrafter:
    """Train on sequences, and return the drafter as it was when `evaluate` gave the most, not yet calibrated.

    Every process is given its part of each batch; half of the time a sequence keeps its guidance, else it has any from
    1 to 4. Beside `checkpoint` there are the best weights (`best.pt`) and the log (`log.jsonl`).
    """
    kind, state = type(drafter), PartialState()
    budget, best = Budget(settings.steps), checkpoint.with_name("best.pt")

    def batches(step: int) -> Iterator[list[Example]]:
        for number in count(step * settings.accumulation):
            seed = settings.seed * 1_000_003 + number
            if kind.similar_lengths:
                chosen = similar_batch(sequences, settings.batch, seed, settings.stages, budget.progress)
            else:
                chosen = random_batch(sequences, settings.batch, seed)
            rng = random.Random(seed)
            draws = [(rng.random() < 0.5, 1 + 3 * rng.random(), rng.randrange(2**31)) for _ in chosen]
            part = slice(state.process_index, None, state.num_processes)
            yield [vary(example, *draw) for example, draw in zip(load(chosen[part]), draws[part], strict=True)]

    def loss(model: TrainedDrafter, examples: list[Example]) -> dict[str, Tensor]:
        return model.loss(target, examples, **settings.loss)

    def measure(step: int, model: TrainedDrafter) -> dict[str, float]:
        length = evaluate(model)
        if not best.exists() or length > torch.load(best, weights_only=True)["length"]:
            weights = {"length": length, "step": step, "model": model.state_dict()}
            write_atomically(best, lambda partial: torch.save(weights, partial))
        return {"acceptance_length": length}

    chosen = make_optimizers(settings, drafter, target.device)
    every = -(-settings.steps // settings.evaluations)
    log = checkpoint.with_name("log.jsonl")
    extra: dict = dict(every=every, accumulation=settings.accumulation, log=log, on_checkpoint=measure)
    fit(settings.kind, drafter, batches, loss, chosen, budget, checkpoint, device, **extra)
    drafter.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["model"])
    return drafter.float().to(target.device).eval()


def make_optimizers(
    settings: DrafterSettings, drafter: TrainedDrafter, device: torch.device
) -> list[torch.optim.Optimizer]:
    """Those that a drafter is trained by on this device. Muon computes in bfloat16."""
    muon_lr = settings.muon_lr if has_fast_bf16(device) else None
    return optimizers(drafter, settings.lr, settings.weight_decay, muon_lr)


def save_drafter(drafter: TrainedDrafter, kind: str, folder: Path) -> None:
    """Write a drafter in bfloat16, as the `kind` that it is registered by."""
    drafter.bfloat16().save_pretrained(folder, config={"kind": kind})
