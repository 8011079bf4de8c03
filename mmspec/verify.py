"""`mmspec verify`: does a drafter give the same tokens as plain decoding, and if not, by how little did they part?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import torch

from mmspec import drafters, zoo
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError, unknown
from mmspec.pipelines import pipeline, task_of
from mmspec.pipelines.request import Request
from mmspec.placement import check_pair, device_of, dtype_of
from mmspec.targets.causal import Prompts


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a row first differs from AR (-1 is no token): `margin` is by how much AR's token led there in log p + g."""

    row: int
    position: int
    expected: int
    found: int
    margin: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting: how many rows are equal, and every parting."""

    drafter: str
    dtype: str
    temperature: float
    guidance: float
    repetition_penalty: float
    batch: int
    rows: int
    equal: int
    partings: list[Parting]

    def as_dict(self) -> dict:
        return asdict(self)


def margins(
    pipe: Any, prompts: Prompts, sampling: SamplingOptions, seed: int, stop: Stop
) -> tuple[list[int], list[float]]:
    """AR tokens of one row, and the lead of each over the runner-up in log p + g."""
    lead: list[float] = []

    def watch(state, tree, keys, verdict) -> None:
        best, second = keys[0, 0].topk(2).values.tolist()
        lead.append(best - second)

    done = generate(pipe.target, prompts, 1, stop, None, sampling=sampling, seeds=[seed], on_accept=watch)
    return done.tokens[0], lead


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
) -> Iterator[Finding]:
    """One finding per setting and drafter, with rule `exact`; AR decodes each row alone and serves as reference for all.

    `prompts` are lines of the model's own list (`prompts.jsonl`); `guidances` None are 1 and 2 where the model takes guidance.
    """
    seeds = list(range(seed, seed + len(prompts)))
    for dtype in dtypes:
        check_pair(device_of(device), dtype_of(dtype))
    for name in names:
        if name not in (known := {*drafters.names(), *zoo.drafters(folder)}):
            raise unknown("drafter", name, known)
    for guidance in guidances or ():
        Request([row["prompt"] for row in prompts], seeds, None, 1, guidance)
    laws = [
        (SamplingOptions(temperature, repetition_penalty=penalty), penalty)
        for temperature, penalty in product(temperatures, penalties)
    ]
    for dtype in dtypes:
        pipe = pipeline(task_of(folder), folder, device=device, dtype=dtype)
        texts, stop = pipe.rows(prompts)
        stop = replace(stop, length=length or stop.length)
        if set(guidances or [1.0]) != {1.0} and not texts.unconditional:
            raise MmspecError(f"{folder} takes no guidance: leave it out")
        ready = {name: drafters.load(name, pipe.folder, pipe.target) for name in names}
        for (sampling, penalty), guidance in product(laws, guidances or ([1.0, 2.0] if texts.unconditional else [1.0])):
            wanted = [
                margins(pipe, texts.select(slice(i, i + 1), guidance), sampling, seeds[i], stop)
                for i in range(len(prompts))
            ]
            for name, batch in product(ready, batches):
                found: list[list[int]] = []
                for start in range(0, len(prompts), batch):
                    part = slice(start, start + batch)
                    law = dict(sampling=sampling, seeds=seeds[part])
                    found += generate(
                        pipe.target, texts.select(part, guidance), len(seeds[part]), stop, ready[name], **law
                    ).tokens
                partings = []
                for row, ((want, lead), have) in enumerate(zip(wanted, found, strict=True)):
                    at = next((i for i, (a, b) in enumerate(zip_longest(want, have, fillvalue=-1)) if a != b), None)
                    if at is not None:
                        expected, got = (dict(enumerate(tokens)).get(at, -1) for tokens in (want, have))
                        partings.append(Parting(row, at, expected, got, lead[min(at, len(lead) - 1)]))
                rows = len(prompts)
                setting = (name, dtype, sampling.temperature, guidance, penalty, batch)
                yield Finding(*setting, rows, rows - len(partings), partings)
        del pipe
        torch.cuda.empty_cache()
