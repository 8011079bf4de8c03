"""`mmspec verify`: does a drafter give the same tokens as plain decoding, and if not, by how little did they part?"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from mmspec import drafters, zoo
from mmspec.decode import Stop, generate
from mmspec.errors import unknown
from mmspec.pipelines.request import Request
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.placement import check_pair, device_of, dtype_of
from mmspec.sampling import Sampling
from mmspec.targets.causal import Prompts


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a row first differs from AR: `margin` is by how much AR's token led there in log p + g."""

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
    batch: int
    rows: int
    equal: int
    partings: list[Parting]

    def as_dict(self) -> dict:
        return asdict(self)


def margins(
    pipe: TextToImagePipeline, prompts: Prompts, sampling: Sampling, seeds: list[int], length: int
) -> tuple[list[list[int]], list[list[float]]]:
    """AR tokens of every row, and the lead of each token over the runner-up in log p + g."""
    lead: list[list[float]] = [[] for _ in seeds]

    def watch(state, tree, keys, verdict) -> None:
        best = keys[:, 0].topk(2, dim=1).values
        for row, gap in enumerate((best[:, 0] - best[:, 1]).tolist()):
            lead[row].append(gap)

    done = generate(pipe.target, prompts, len(seeds), Stop(length), None, sampling=sampling, seeds=seeds, on_verdict=watch)
    return done.tokens, lead


def verify(
    folder,
    dtypes: list[str],
    temperatures: list[float],
    guidances: list[float],
    batches: list[int],
    names: list[str],
    prompts: list[str],
    seed: int,
    device: str,
    length: int | None = None,
) -> Iterator[Finding]:
    """One finding per setting and drafter, with rule `exact`; AR decodes each row alone and serves as reference for all."""
    seeds = list(range(seed, seed + len(prompts)))
    for dtype in dtypes:
        check_pair(device_of(device), dtype_of(dtype))
    for name in names:
        if name not in (known := {*drafters.names(), *zoo.drafters(folder)}):
            raise unknown("drafter", name, known)
    for guidance in guidances:
        Request(prompts, seeds, None, 1, guidance)
    for temperature in temperatures:
        Sampling(temperature)
    for dtype in dtypes:
        pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype)).to(device)
        count = length or pipe.target.grid.tokens
        texts = pipe.encode(prompts, 0.0)
        ready = {name: drafters.load(name, pipe.folder, pipe.target) for name in names}
        for temperature in temperatures:
            for guidance in guidances:
                sampling = Sampling(temperature)

                def streams(part: slice, texts: Prompts = texts, guidance: float = guidance) -> Prompts:
                    rows = texts.conditional[part]
                    return Prompts(rows, (texts.unconditional or [])[part] if guidance != 1 else None, guidance)

                reference: list[list[int]] = []
                lead: list[list[float]] = []
                for i in range(len(prompts)):
                    tokens, gaps = margins(pipe, streams(slice(i, i + 1)), sampling, [seeds[i]], count)
                    reference += tokens
                    lead += gaps
                for name, drafter in ready.items():
                    for batch in batches:
                        found: list[list[int]] = []
                        for start in range(0, len(prompts), batch):
                            part = slice(start, start + batch)
                            rows = len(prompts[part])
                            found += generate(
                                pipe.target, streams(part), rows, Stop(count), drafter, sampling=sampling, seeds=seeds[part]
                            ).tokens
                        partings = []
                        for row, (want, have) in enumerate(zip(reference, found, strict=True)):
                            at = next((i for i, (a, b) in enumerate(zip(want, have)) if a != b), None)
                            if at is not None:
                                partings.append(Parting(row, at, want[at], have[at], lead[row][at]))
                        yield Finding(name, dtype, temperature, guidance, batch, len(prompts), len(prompts) - len(partings), partings)
        del pipe
        torch.cuda.empty_cache()
