"""`mmspec verify`: do all drafters give the tokens of plain decoding, and does that give those of the model's own
`generate`?
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from mmspec import drafters, reference
from mmspec.drafters.table import check_name
from mmspec.engine.accept import Committed
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.pipelines import pipeline, task_of
from mmspec.pipelines.request import ImageRequest
from mmspec.placement import check_pair, device_of, dtype_of
from mmspec.targets.base import Prompts, Target


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a row first differs from plain decoding (-1 is no token).

    `margin` is by how much plain decoding's token led there in log p + g.
    """

    row: int
    position: int
    expected: int
    found: int
    margin: float


@dataclass(frozen=True, slots=True)
class Plain:
    """Plain decoding of one row alone: its tokens, and the lead of each over the runner-up in log p + g."""

    tokens: list[int]
    leads: list[float]


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting: how many rows a drafter gave as plain decoding does, and where the others part.

    `generate_rows` of plain decoding's rows were compared with the model's own `generate`, of which `generate_equal`
    are equal; `generate_skipped` says why none were.
    """

    drafter: str
    dtype: str
    temperature: float
    guidance: float
    repetition_penalty: float
    batch: int
    rows: int
    equal: int
    partings: list[Parting]
    generate_rows: int
    generate_equal: int
    generate_partings: list[Parting]
    generate_skipped: str

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        return asdict(self)


def decode_plainly(target: Target, prompts: Prompts, sampling: SamplingOptions, seed: int, stop: Stop) -> Plain:
    """Plain decoding of one row."""
    leads: list[float] = []

    def watch(state: State, tree: DraftTree, gumbel_scores: Tensor, accepted: Committed) -> None:
        best, second = gumbel_scores[0, 0].topk(2).values.tolist()
        leads.append(best - second)

    result = generate(target, prompts, 1, stop, None, sampling=sampling, seeds=[seed], on_accept=watch)
    return Plain(result.tokens[0], leads)


def parting(row: int, plain: Plain, expected: list[int], actual: list[int]) -> Parting | None:
    """Where two lists first differ, None if they are equal."""
    pairs = enumerate(zip_longest(expected, actual, fillvalue=-1))
    position = next((i for i, (first, second) in pairs if first != second), None)
    if position is None:
        return None
    first, second = (values[position] if position < len(values) else -1 for values in (expected, actual))
    return Parting(row, position, first, second, plain.leads[min(position, len(plain.leads) - 1)])


def compare_with_generate(
    target: Target, rows: Sequence[Prompts], plain: Sequence[Plain], sampling: SamplingOptions, stop: Stop
) -> tuple[list[Parting], str]:
    """Where plain decoding parts from the model's own `generate`, and why it cannot be compared if it cannot."""
    skipped = reference.why_not_comparable(target, rows[0], sampling)
    partings: list[Parting] = []
    for row, (prompts, expected) in enumerate(zip(rows, plain, strict=True) if not skipped else ()):
        prompt = torch.tensor(prompts.conditional[0], device=target.device)
        tokens = torch.tensor(expected.tokens, dtype=torch.long, device=target.device)
        ids = target.model_ids(prompt, tokens).tolist()
        # `generate` does not know when speech has stalled: it is compared as far as plain decoding went.
        reference_ids = reference.greedy_ids(target, prompts, stop, sampling)[: len(ids)]
        difference = parting(row, expected, ids, reference_ids)
        partings += [difference] if difference else []
    return partings, skipped


def verify(
    folder: Path,
    dtypes: Sequence[str],
    temperatures: Sequence[float],
    guidances: Sequence[float] | None,
    penalties: Sequence[float],
    batches: Sequence[int],
    names: Sequence[str],
    prompts: list[dict],
    seed: int,
    device: str,
    length: int | None = None,
    deterministic: bool = False,
    compiled: bool = False,
) -> Iterator[Finding]:
    """One finding per setting and drafter, with rule `exact`.

    Plain decoding decodes each row alone and serves as reference for all drafters; where it is greedy it is compared
    with the model's own `generate`, too. `prompts` are lines of the model's own list (`prompts.jsonl`); `guidances`
    None are 1 and 2 where the model takes guidance. `deterministic` and `compiled` are those of `Pipeline`.
    Raises MmspecError if graphs fail, since uncompiled passes were then compared.
    """
    seeds = list(range(seed, seed + len(prompts)))
    _check(folder, dtypes, guidances, names, prompts, seeds, device)
    for dtype in dtypes:
        pipe = pipeline(task_of(folder), folder, device=device, dtype=dtype)
        pipe.deterministic, pipe.compiled = deterministic, compiled
        target = pipe.target
        options = [
            SamplingOptions(temperature, repetition_penalty=penalty, logits_processor=pipe.processors)
            for temperature, penalty in product(temperatures, penalties)
        ]
        encoded, stop = pipe.encode_examples(prompts)
        stop = replace(stop, length=length or stop.length)
        if set(guidances or [1.0]) != {1.0} and not encoded.unconditional:
            raise MmspecError(f"{folder} takes no guidance: leave it out")
        ready = {name: drafters.load(name, pipe.folder, target) for name in names}
        for sampling, guidance in product(options, guidances or ([1.0, 2.0] if encoded.unconditional else [1.0])):
            rows = [encoded.select(slice(i, i + 1), guidance) for i in range(len(prompts))]
            plain = [decode_plainly(target, row, sampling, seeds[i], stop) for i, row in enumerate(rows)]
            generate_partings, skipped = compare_with_generate(target, rows, plain, sampling, stop)
            compared = 0 if skipped else len(rows)
            for name, batch in product(ready, batches):
                tokens: list[list[int]] = []
                for start in range(0, len(prompts), batch):
                    part = slice(start, start + batch)
                    tokens += generate(
                        target,
                        encoded.select(part, guidance),
                        len(seeds[part]),
                        stop,
                        ready[name],
                        sampling=sampling,
                        seeds=seeds[part],
                    ).tokens
                differences = [
                    parting(i, expected, expected.tokens, actual)
                    for i, (expected, actual) in enumerate(zip(plain, tokens, strict=True))
                ]
                partings = [difference for difference in differences if difference]
                yield Finding(
                    name,
                    dtype,
                    sampling.temperature,
                    guidance,
                    sampling.repetition_penalty,
                    batch,
                    len(rows),
                    len(rows) - len(partings),
                    partings,
                    compared,
                    compared - len(generate_partings),
                    generate_partings,
                    skipped,
                )
        if compiled and not pipe.compiled:
            raise MmspecError(f"compiled passes failed in {dtype}, see the warning: leave compile out")
        del pipe, target
        torch.cuda.empty_cache()


def _check(
    folder: Path,
    dtypes: Sequence[str],
    guidances: Sequence[float] | None,
    names: Sequence[str],
    prompts: list[dict],
    seeds: list[int],
    device: str,
) -> None:
    """Raise MmspecError for wrong arguments, before any model is loaded."""
    for dtype in dtypes:
        check_pair(device_of(device), dtype_of(dtype))
    for name in names:
        check_name(name, folder)
    for guidance in guidances or ():
        ImageRequest([row["prompt"] for row in prompts], seeds, None, 1, guidance)
