"""What a training will take on this machine, measured on the first prompts before anything long begins."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from accelerate import PartialState
from rich.table import Table

from mmspec.files import write_atomically
from mmspec.placement import has_fast_bf16
from mmspec.train.corpus import Job
from mmspec.train.drafter import make_optimizers, vary
from mmspec.train.features import from_files
from mmspec.train.measure import measure
from mmspec.train.stages import EVALUATED, EVALUATED_TOKENS, Training

# The share of the free disk that features may take before they are read again instead.
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """Sequences and their tokens (estimated from the first ones while `estimated`), bytes of features, free bytes of
    the disk, bytes of memory at the peak so far, and seconds of each stage on this machine.
    """

    sequences: int
    tokens: int
    estimated: bool
    disk: int
    free: int
    memory: int
    seconds: dict[str, float]

    def table(self) -> Table:
        """To be printed."""
        table = Table("", "planned", title="plan", show_header=False)
        about = "about " if self.estimated else ""
        if (processes := PartialState().num_processes) > 1:
            table.add_row("processes", f"{processes}")
        table.add_row("sequences", f"{self.sequences}")
        table.add_row("tokens", f"{about}{self.tokens}")
        table.add_row("features on disk", f"{about}{self.disk / 1e9:.2f} GB of {self.free / 1e9:.0f} GB free")
        table.add_row("memory", f"{self.memory / 1e9:.1f} GB")
        for stage, seconds in self.seconds.items():
            table.add_row(stage, f"{seconds / 3600:.2f} h ({seconds:.0f} s)")
        table.add_row("all", f"{sum(self.seconds.values()) / 3600:.2f} h")
        return table

    @property
    def fits(self) -> bool:
        """Whether the features may go to the disk."""
        return self.disk < SHARE * self.free


def make_plan(training: Training) -> Plan:
    """Answer, capture and train on the first prompts, which are kept, and reckon."""
    corpus, path = training.corpus, training.plan_file
    job = next(job for job in corpus.jobs if job.split == "train")
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.is_file()
    PartialState().wait_for_everyone()
    if not known:
        measured = json.dumps(measure_rates(training, job))
        if training.is_main:
            write_atomically(path, lambda partial: partial.write_text(measured))
        PartialState().wait_for_everyone()
    rates = json.loads(path.read_text())
    done = [one for one in corpus.jobs if corpus.answer_file(one).is_file()]
    answers = [corpus.answers(one) for one in done]
    lengths = [len(tokens) for answer in answers for tokens in answer["tokens"]]
    sequences = sum(len(one.rows) for one in corpus.jobs)
    share = sequences / len(lengths)
    size = sum(training.feature_bytes(one) for one in done)
    tokens = round(sum(lengths) * share)
    settings = training.settings
    seconds = {
        "generate": rates["generate"] * tokens,
        "capture": rates["capture"] * tokens,
        "train": rates["step"] * settings.steps + rates["evaluate"] * settings.evaluations,
        "calibrate": rates["evaluate"],
        "report": rates["answer"] * len(corpus.splits["test"]),
    }
    return Plan(
        sequences,
        tokens,
        len(done) < len(corpus.jobs),
        round(size * share),
        shutil.disk_usage(corpus.folder).free,
        peak_memory(corpus.pipe.device),
        seconds,
    )


def steps_in(training: Training, minutes: float) -> int:
    """Steps that take so long here, as `make_plan` measured."""
    rates = json.loads(training.plan_file.read_text())
    spent = rates["evaluate"] * training.settings.evaluations
    return max(training.settings.evaluations, round((60 * minutes - spent) / rates["step"]))


def seconds_of(work: Callable[[], object]) -> float:
    """How long something takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


def measure_rates(training: Training, job: Job) -> dict[str, float]:
    """Seconds a token of generation and of capture, a training step, and an evaluation; all processes take part."""
    corpus, settings, target = training.corpus, training.settings, training.corpus.pipe.target
    state = PartialState()
    if state.is_main_process:
        for path in (corpus.answer_file(job), corpus.feature_file(job, training.reading)):
            path.unlink(missing_ok=True)
    state.wait_for_everyone()
    generate = seconds_of(lambda: corpus.generate([job]))
    tokens = sum(map(len, corpus.answers(job)["tokens"]))
    capture = seconds_of(lambda: corpus.capture(training.reading, [job]))
    facts = corpus.facts(job)
    batch = [facts[index % len(facts)] for index in range(state.process_index, settings.batch, state.num_processes)]
    drafter = training.build_from(corpus.answers(job)["tokens"]).to(target.device)
    drafter.calibrated([[0.5] * drafter.ranks for _ in drafter.beta])  # sparse trees ask for accuracies
    steps = make_optimizers(settings, drafter, target.device)

    def step() -> None:
        examples = [vary(example, True, 1.0, 0) for example in from_files(corpus, training.reading)(batch)]
        with torch.autocast(target.device.type, torch.bfloat16, enabled=has_fast_bf16(target.device)):
            loss = drafter.loss(target, examples, **settings.loss)["loss"]
        loss.backward()
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()

    step()
    trained = min(seconds_of(step) for _ in range(2)) * settings.accumulation
    drafter = drafter.to(target.dtype).eval()
    rows = corpus.splits["validation"]
    once = seconds_of(lambda: measure(corpus, drafter, rows[:1], "", EVALUATED_TOKENS))
    # Plain decoding and three drafters or four, which take as many rounds together as about two of an untrained one.
    answer = 2 * once * tokens / len(facts) / EVALUATED_TOKENS
    return {
        "generate": generate / tokens,
        "capture": capture / tokens,
        "step": trained,
        "evaluate": once * min(EVALUATED, len(rows)),
        "answer": answer,
    }


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: device memory on a GPU, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # POSIX only

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
