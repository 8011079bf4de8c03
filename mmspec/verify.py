"""`mmspec verify`: does a drafter give the same tokens as plain decoding, and if not, by how little did they part?"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from mmspec import drafters
from mmspec.bench.image import DTYPES
from mmspec.decode import Stop, generate
from mmspec.errors import unknown
from mmspec.pipelines.text_to_image import TextToImagePipeline
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


def margins(pipe: TextToImagePipeline, prompts: Prompts, sampling: Sampling, seeds: list[int], length: int) -> tuple[list[list[int]], list[list[float]]]:
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
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype]).to(device)
        count = length or pipe.target.grid.tokens
        ids, empty = [pipe.tokenizer(text).input_ids for text in prompts], pipe.tokenizer("").input_ids
        for temperature in temperatures:
            for guidance in guidances:
                sampling = Sampling(temperature)
                seeds = list(range(seed, seed + len(ids)))

                def streams(part: slice, guidance: float = guidance) -> Prompts:
                    rows = ids[part]
                    return Prompts(rows, [empty] * len(rows) if guidance != 1 else None, guidance)

                reference: list[list[int]] = []
                lead: list[list[float]] = []
                for i in range(len(ids)):
                    tokens, gaps = margins(pipe, streams(slice(i, i + 1)), sampling, [seeds[i]], count)
                    reference += tokens
                    lead += gaps
                for name in names:
                    drafter = drafters.load(name, pipe.folder, pipe.target)
                    for batch in batches:
                        found: list[list[int]] = []
                        for start in range(0, len(ids), batch):
                            part = slice(start, start + batch)
                            rows = len(ids[part])
                            found += generate(pipe.target, streams(part), rows, Stop(count), drafter, sampling=sampling, seeds=seeds[part]).tokens
                        partings = []
                        for row, (want, have) in enumerate(zip(reference, found, strict=True)):
                            at = next((i for i, (a, b) in enumerate(zip(want, have)) if a != b), None)
                            if at is not None:
                                partings.append(Parting(row, at, want[at], have[at], lead[row][at]))
                        yield Finding(name, dtype, temperature, guidance, batch, len(ids), len(ids) - len(partings), partings)
        del pipe
        torch.cuda.empty_cache()
