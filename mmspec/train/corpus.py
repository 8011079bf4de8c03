"""Prompts and the target's answers to them: what a drafter learns from, generated and captured in files that resume."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from mmspec.drafters.examples import Example
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.files import write_atomically
from mmspec.pipelines.base import GenerateOptions, Pipeline
from mmspec.prompts import pictures_of
from mmspec.targets.base import Prompts
from mmspec.train.capture import Reading, read_features

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """How the target answers prompts.

    It answers each prompt `samples` times, `batch` prompts at once, at most `length` tokens each, with the sampling
    `options` and the `guidance` given, or its own. With `answers` "data", lines that bring an answer keep it. As many
    prompts as `held_out` choose the best checkpoint and calibrate, and as many again are for the report alone.
    """

    samples: int = 1
    answers: str = "own"
    batch: int = 16
    length: int | None = None
    held_out: int = 16
    guidance: float | None = None
    seed: int = 0
    options: GenerateOptions = field(default_factory=lambda: GenerateOptions())

    def __post_init__(self) -> None:
        if self.answers not in ("own", "data"):
            raise MmspecError(f"answers are own or data, not {self.answers!r}")
        for name in ("samples", "batch", "held_out"):
            if getattr(self, name) < 1:
                raise MmspecError(f"{name} must be 1 or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts that are answered and captured together, and kept in one file each: their indices, and seeds."""

    number: int
    split: Split
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    temperature: float
    guidance: float
    own: bool


@dataclass(frozen=True, slots=True)
class SequenceFacts:
    """Where a sequence is, and what a batch is chosen by: how many tokens it has, and how many positions its prompt,
    and of these how many are not text.
    """

    job: int
    row: int
    tokens: int
    prompt: int
    visual: int

    @property
    def length(self) -> int:
        return self.tokens + self.prompt


class Corpus:
    """Prompts, split for training, validation and a last test, and what a pipeline's target answers to them.

    Everything is kept in a folder of `work` whose name tells model, prompts and settings apart. Jobs that are done are
    not done again; several processes share the jobs. Validation prompts are answered by sampling, and with `greedy`
    greedily too.
    """

    def __init__(self, pipe: Pipeline, rows: Sequence[dict], settings: CorpusSettings, work: Path, greedy: bool = True):
        self.pipe, self.settings, self.greedy = pipe, settings, greedy
        pipe.target.min_query_len = 1  # the answers need not be those of wide passes to the last bit
        self.rows = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
        self.options = pipe.read_options(settings.options)[0]
        self.check_rows()
        pictures = [
            hashlib.sha256(Path(path).read_bytes()).hexdigest() for row in self.rows for path in pictures_of(row)
        ]
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        sampling = [getattr(self.options, name) for name in names]
        origin = [pipe.target.weights_hash, str(pipe.dtype), self.rows, asdict(settings), pictures, sampling]
        digest = hashlib.sha256(json.dumps(origin, default=str).encode()).hexdigest()[:10]
        self.folder = work / f"{Path(str(pipe.folder or 'model')).name}-{digest}"
        self.splits = split(len(self.rows), settings)

    def check_rows(self) -> None:
        """Raise MmspecError for lines whose numbers or answers are none."""
        for row in self.rows:
            line = json.dumps(row, ensure_ascii=False)[:80]
            for name in ("temperature", "guidance"):
                if not isinstance(row.get(name, 1.0), int | float):
                    raise MmspecError(f"{name} of {line} is {row[name]!r}: give a number")
            tokens, answer = row.get("tokens"), row.get("answer")
            if tokens is not None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
                raise MmspecError(f"tokens of {line} are {str(tokens)[:40]}: give a list of whole numbers")
            if answer is not None and not isinstance(answer, str):
                raise MmspecError(f"the answer of {line} is {answer!r}: give text")

    @cached_property
    def jobs(self) -> list[Job]:
        """All that is to be answered, numbered; greedy answers to validation prompts come last."""
        own = self.options.temperature
        passes: list[tuple[Split, int, float | None]] = [("validation", 0, own or 1.0)]
        passes += [("train", sample, None) for sample in range(self.settings.samples)]
        passes += [("validation", 1, 0.0)] if self.greedy else []
        jobs: list[Job] = []
        for part, turn, temperature in passes:
            groups: dict[tuple[float, float, bool], list[int]] = {}
            for index in self.splits[part]:
                row = self.rows[index]
                chosen = float(row.get("temperature", own) if temperature is None else temperature)
                guidance = float(row.get("guidance", self.guidance))
                regenerated = part != "train" or self.settings.answers == "own" or not has_answer(row)
                groups.setdefault((chosen, guidance, regenerated), []).append(index)
            for group, members in groups.items():
                for start in range(0, len(members), self.settings.batch):
                    rows = tuple(members[start : start + self.settings.batch])
                    seeds = tuple(self.settings.seed + turn * len(self.rows) + index for index in rows)
                    jobs.append(Job(len(jobs), part, rows, seeds, *group))
        return jobs

    @cached_property
    def guidance(self) -> float:
        """The guidance of prompts that say nothing of it."""
        given = self.settings.guidance
        return self.pipe.default_guidance if given is None else given

    @cached_property
    def guided(self) -> bool:
        """Whether prompts have a second CFG branch."""
        return self.encode([0])[0].unconditional is not None

    def encode(self, rows: Sequence[int]) -> tuple[Prompts, Stop]:
        """Prompts of these lines. Raises MmspecError that names the first line that cannot be read."""
        try:
            return self.pipe.encode_examples([self.rows[row] for row in rows])
        except MmspecError as error:
            if len(rows) > 1:
                for row in rows:
                    self.encode([row])
                raise
            raise MmspecError(f"prompt {json.dumps(self.rows[rows[0]])[:80]}: {error}") from None

    def answer_file(self, job: Job) -> Path:
        return self.folder / "answers" / f"{job.number:05d}.json"

    def sampling(self, temperature: float) -> SamplingOptions:
        """The user's sampling at a temperature; greedily, it is nothing but that and the processors."""
        return replace(self.options, temperature=temperature)

    def generate(self, jobs: Sequence[Job] | None = None) -> None:
        """Let the target answer, where it has not yet."""
        self.share("generating", self.jobs if jobs is None else jobs, self.answer_file, self._answer)

    def _answer(self, job: Job, path: Path) -> None:
        prompts, stop = self.encode(job.rows)
        stop = replace(stop, length=min(stop.length, self.settings.length or stop.length))
        if job.own:
            guided = prompts.select(slice(None), job.guidance)
            sampling, seeds = self.sampling(job.temperature), list(job.seeds)
            tokens = generate(self.pipe.target, guided, len(seeds), stop, sampling=sampling, seeds=seeds).tokens
        else:
            tokens = [self.read_answer(self.rows[row])[: stop.length] for row in job.rows]
        is_text = [self.pipe.target.is_text(torch.tensor(prompt)) for prompt in prompts.conditional]
        lengths = {"prompts": [len(text) for text in is_text], "visual": [int((~text).sum()) for text in is_text]}
        path.write_text(json.dumps({"tokens": tokens} | lengths))

    def read_answer(self, row: dict) -> list[int]:
        """The tokens of the answer that a line brings."""
        tokens = row.get("tokens") or self.pipe.encode_answer(row["answer"])
        if not tokens or min(tokens) < 0 or max(tokens) >= self.pipe.target.vocabulary_size:
            raise MmspecError(
                f"the answer of {json.dumps(row)[:80]} has tokens beyond 0 to {self.pipe.target.vocabulary_size - 1}, "
                "or none: give other tokens"
            )
        return [int(token) for token in tokens]

    def answers(self, job: Job) -> dict:
        """What `generate` wrote of a job. Raises MmspecError if it did not yet."""
        path = self.answer_file(job)
        if not path.is_file():
            raise MmspecError(f"{path} is missing: run the stage generate first")
        try:
            return json.loads(path.read_text())
        except ValueError:
            raise MmspecError(f"{path} is damaged: remove it and run the stage generate again") from None

    def feature_folder(self, reading: Reading) -> Path:
        parts = ["features", *["and-prompts"] * reading.prompts, *map(str, reading.layers)]
        return self.folder / "-".join(parts)

    def feature_file(self, job: Job, reading: Reading) -> Path:
        return self.feature_folder(reading) / f"{job.number:05d}.safetensors"

    def capture(self, reading: Reading, jobs: Sequence[Job] | None = None) -> None:
        """Write the features of every sequence, a file for each job."""

        def file(job: Job) -> Path:
            return self.feature_file(job, reading)

        def work(job: Job, path: Path) -> None:
            save_file(flatten(self.read(job, range(len(job.rows)), reading)), path)

        self.share("capturing", self.jobs if jobs is None else jobs, file, work)

    def read(self, job: Job, rows: Sequence[int], reading: Reading) -> list[Example]:
        """Sequences of a job, read by the target now."""
        prompts, _ = self.encode([job.rows[row] for row in rows])
        answers = self.answers(job)["tokens"]
        tokens = [torch.tensor(answers[row]) for row in rows]
        sampled = job.own and job.temperature > 0
        seeds = [job.seeds[row] if sampled else -1 for row in rows]
        temperature = job.temperature if job.own else 1.0
        examples = read_features(self.pipe.target, prompts, tokens, seeds, temperature, reading)
        return [replace(example, guidance=job.guidance if prompts.unconditional else 1.0) for example in examples]

    def share(
        self, title: str, jobs: Sequence[Job], file: Callable[[Job], Path], work: Callable[[Job, Path], None]
    ) -> None:
        """Do the jobs whose file is not there, each written whole or not at all; processes share all jobs, and wait for
        each other.
        """
        state = PartialState()
        mine = jobs[state.process_index :: state.num_processes]
        missing = [job for job in mine if not file(job).exists()]
        if missing:
            file(missing[0]).parent.mkdir(parents=True, exist_ok=True)
            with Progress(console=Console(stderr=True), disable=not state.is_main_process) as bar:
                task = bar.add_task(title, total=len(mine), completed=len(mine) - len(missing))
                for job in missing:
                    write_atomically(file(job), lambda path, job=job: work(job, path))  # type: ignore[misc]
                    bar.advance(task)
                    if not bar.console.is_terminal:
                        bar.console.print(f"{title} {round(bar.tasks[task].completed)} of {len(mine)}")
        state.wait_for_everyone()

    def sequences(self, split: Split) -> list[SequenceFacts]:
        """What there is to learn from, or to calibrate by."""
        return [facts for job in self.jobs if job.split == split for facts in self.facts(job)]

    def facts(self, job: Job) -> list[SequenceFacts]:
        """The sequences of a job."""
        answers = self.answers(job)
        lengths = zip(answers["tokens"], answers["prompts"], answers["visual"], strict=True)
        return [
            SequenceFacts(job.number, row, len(tokens), prompt, visual)
            for row, (tokens, prompt, visual) in enumerate(lengths)
        ]


def split(count: int, settings: CorpusSettings) -> dict[Split, list[int]]:
    """Indices of prompts for training, validation and test."""
    held = min(settings.held_out, count // 5)
    if held < 1:
        raise MmspecError(f"{count} different prompts are too few to train on: give at least 5, better some hundreds")
    order = random.Random(settings.seed).sample(range(count), count)
    parts: dict[Split, list[int]] = {
        "validation": order[:held],
        "test": order[held : 2 * held],
        "train": order[2 * held :],
    }
    return {name: sorted(indices) for name, indices in parts.items()}


def has_answer(row: dict) -> bool:
    """Whether a line brings its answer."""
    return bool(row.get("answer") or row.get("tokens"))


def flatten(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Examples as tensors by name."""
    tensors: dict[str, torch.Tensor] = {}
    for row, example in enumerate(examples):
        numbers = torch.tensor([example.seed, example.temperature, example.guidance], dtype=torch.float64)
        tensors |= {f"{row}.tokens": example.tokens, f"{row}.features": example.features, f"{row}.numbers": numbers}
        if example.entered is not None:
            tensors[f"{row}.entered"] = example.entered
        if example.prompt is not None:
            tensors |= {f"{row}.{name}": value for name, value in asdict(example.prompt).items()}
    return {name: value.contiguous() for name, value in tensors.items()}
