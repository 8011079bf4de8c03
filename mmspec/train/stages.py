"""`mmspec train DRAFTER`: from prompts to a drafter of a target, in stages that can be run alone and resume."""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState
from rich.console import Console

from mmspec import drafters, zoo
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Example
from mmspec.errors import MmspecError, short, unknown
from mmspec.train.calibrate import calibrate
from mmspec.train.capture import Reading
from mmspec.train.corpus import Corpus, Job
from mmspec.train.drafter import DrafterSettings, build_drafter, drafter_class, save_drafter, train_drafter
from mmspec.train.features import Load, from_files, online
from mmspec.train.measure import Measurement, measure
from mmspec.train.report import write_report

console = Console(stderr=True)

STAGES = ("generate", "capture", "train", "calibrate", "report")

# Held-out prompts that a checkpoint is measured on, and tokens of each.
EVALUATED, EVALUATED_TOKENS = 8, 64

# Test prompts that are decoded plainly, which takes longest and goes at one speed.
PLAIN = 4


@dataclass
class Training:
    """One drafter for one corpus; it goes to `out`.

    With features on the disk (`disk`) the target reads every sequence once; else it reads them again in every batch.
    `initial` is a file of weights that were trained with the target, for drafters that can begin with them.
    """

    corpus: Corpus
    settings: DrafterSettings
    out: Path
    device: str | None = None
    disk: bool = True
    initial: Path | None = None
    kind: type[TrainedDrafter] = field(init=False)
    STAGES: ClassVar[tuple[str, ...]] = STAGES

    def __post_init__(self) -> None:
        self.kind = drafter_class(self.settings.kind)
        if self.settings.batch % (processes := PartialState().num_processes):
            raise MmspecError(f"a batch of {self.settings.batch} cannot be shared by {processes} processes evenly")
        self.out = self.out.absolute()  # a drafter's folder, and no drafter's name

    @property
    def work(self) -> Path:
        """Where the drafter's checkpoints are."""
        digest = hashlib.sha256(json.dumps(asdict(self.settings)).encode()).hexdigest()[:10]
        return self.corpus.folder / f"{self.settings.kind}-{digest}"

    @property
    def plan_file(self) -> Path:
        """What passes and steps cost here, whatever the number of steps."""
        settings = asdict(replace(self.settings, steps=1)) | {"processes": PartialState().num_processes}
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:10]
        return self.corpus.folder / f"plan-{self.settings.kind}-{digest}.json"

    @cached_property
    def reading(self) -> Reading:
        """What the drafter is trained on."""
        return Reading.of(self.kind, self.corpus.pipe.target)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return PartialState().is_main_process

    def with_steps(self, steps: int) -> "Training":
        """The same with another number of steps."""
        settings = replace(self.settings, steps=steps)
        return Training(self.corpus, settings, self.out, self.device, self.disk, self.initial)

    def push(self, hub_id: str) -> None:
        """Upload the drafter's folder."""
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            api.create_repo(hub_id, exist_ok=True)
            api.upload_folder(repo_id=hub_id, folder_path=self.out)
        except Exception as error:  # of the hub, or of the network on the way
            raise MmspecError(
                f"the drafter is in {self.out}, but not on the hub ({short(error)}): give --stages report again"
            ) from None

    def run(self, stages: Sequence[str] = STAGES) -> Path:
        """Run the stages in order, and return the drafter's folder."""
        for stage in stages:
            if stage not in STAGES:
                raise unknown("stage", stage, STAGES)
        for stage in (stage for stage in STAGES if stage in stages):
            if PartialState().is_main_process:
                console.rule(stage)
            getattr(self, stage)()
        return self.out

    def generate(self) -> None:
        """Let the target answer the prompts."""
        self.corpus.generate()

    def capture(self) -> None:
        """Write features, unless they are read again in every batch."""
        if self.disk:
            self.corpus.capture(self.reading)

    def check_captured(self) -> None:
        """Raise MmspecError where features are missing that are to be read from the disk."""
        files = [self.corpus.feature_file(job, self.reading) for job in self.corpus.jobs]
        if missing := next((path for path in files if self.disk and not path.is_file()), None):
            raise MmspecError(f"{missing} is missing: run the stage capture first")

    @cached_property
    def load(self) -> Load:
        """How sequences are loaded."""
        return (from_files if self.disk else online)(self.corpus, self.reading)

    def held_out(self, rows: Sequence[int]) -> tuple[list[Example], list[Example]]:
        """Sequences of these validation prompts, sampled and greedy."""
        jobs, sequences = self.corpus.jobs, self.corpus.sequences("validation")
        examples = self.load([facts for facts in sequences if jobs[facts.job].rows[facts.row] in rows])
        return [one for one in examples if one.seed >= 0], [one for one in examples if one.temperature == 0]

    def build(self) -> TrainedDrafter:
        """The drafter before it is trained."""
        train = (job for job in self.corpus.jobs if job.split == "train")
        return self.build_from(tokens for job in train for tokens in self.corpus.answers(job)["tokens"])

    def build_from(self, answers: Iterable[Sequence[int]]) -> TrainedDrafter:
        """The drafter before it is trained; `answers` say which tokens are frequent."""
        return build_drafter(self.settings, self.corpus.pipe.target, answers, self.initial)

    def feature_bytes(self, job: Job) -> int:
        """Bytes of the features of a job that is answered."""
        target = self.corpus.pipe.target
        branches = 1 + self.corpus.guided
        width, layers, size = target.hidden_size * target.dtype.itemsize, len(self.reading.layers), 0
        for facts in self.corpus.facts(job):
            size += facts.tokens * ((branches + layers) * width + 8)
            if self.reading.prompts:
                size += ((facts.prompt - 1) * (layers or 1) + facts.visual) * width + 9 * facts.prompt
        return size

    def train(self) -> None:
        """Train, and keep the weights whose acceptance length on validation prompts is largest."""
        self.check_captured()
        target, sequences = self.corpus.pipe.target, self.corpus.sequences("train")
        checkpoint = self.work / "checkpoint.pt"
        train_drafter(self.build(), self.settings, target, sequences, self.load, checkpoint, self.evaluate, self.device)

    def evaluate(self, drafter: TrainedDrafter) -> float:
        """The acceptance length of a drafter on the last validation prompts, calibrated on sequences of the first."""
        rows = self.corpus.splits["validation"]
        ready = self.calibrated(copy.deepcopy(drafter), *self.held_out(rows[:EVALUATED]))
        return measure(self.corpus, ready, rows[-EVALUATED:], self.settings.kind, EVALUATED_TOKENS).acceptance_length

    def calibrated(
        self, drafter: TrainedDrafter, sampled: Sequence[Example], greedy: Sequence[Example]
    ) -> TrainedDrafter:
        """The drafter, calibrated in float32 and ready to draft in the target's dtype."""
        target = self.corpus.pipe.target
        drafter = drafter.float().to(target.device).eval()
        calibrate(drafter, target, sampled, greedy)
        return drafter.to(target.dtype)

    def calibrate(self) -> None:
        """Calibrate the best weights, and save the drafter."""
        best = self.work / "best.pt"
        if not best.is_file():
            raise MmspecError(f"{best} is missing: run the stage train first")
        if PartialState().is_main_process:
            drafter = self.build()
            drafter.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["model"])
            save_drafter(
                self.calibrated(drafter, *self.held_out(self.corpus.splits["validation"])), self.settings.kind, self.out
            )
        PartialState().wait_for_everyone()

    def report(self) -> None:
        """Measure the drafter beside those that need no training, and the model's own of its kind, on test prompts."""
        if not (self.out / "config.json").is_file():
            raise MmspecError(f"{self.out} holds no drafter: run the stage calibrate first")
        if PartialState().is_main_process:
            write_report(self.out, self, self.measurements())
        PartialState().wait_for_everyone()

    def summary(self) -> list[str]:
        """What has come of it, in lines: acceptance lengths, and what to do next."""
        if not (self.out / "config.json").is_file():
            return [f"no drafter is in {self.out} yet: go on with --stages {' '.join(STAGES[2:])}"]
        report, lines = self.out / "report.json", []
        if report.is_file():
            results = json.loads(report.read_text())["results"]
            lines = [
                f"{one['name']}: {one['acceptance_length']:.2f} tokens a round, {one['speedup']:.2f}×"
                for one in results
            ]
            best = max(results, key=lambda one: one["speedup"])["name"]
            lines += [f"fastest here is {best}: train longer, or on more prompts"] * (best != "this drafter")
        return [*lines, f"drafter in {self.out}: use it by --drafter {self.out}"]

    def measurements(self) -> list[Measurement]:
        """Plain decoding, drafters without training, the model's own of this kind, and the new one."""
        pipe, results = self.corpus.pipe, []
        own = [name for name in zoo.drafters(pipe.folder) if name == self.settings.kind] if pipe.folder else []
        entrants = {name: name for name in ("none", "jacobi", "lookup")}
        entrants |= {f"{name}, the model's own": name for name in own} | {"this drafter": str(self.out)}
        for label, name in entrants.items():
            drafter = drafters.load(name, pipe.folder, pipe.target)
            prompts = self.corpus.splits["test"]
            results.append(measure(self.corpus, drafter, prompts[:PLAIN] if name == "none" else prompts, label))
        return results


def check_output(out: Path, kind: str) -> None:
    """Raise MmspecError for a drafter's folder that cannot be made, or that holds anything but such a drafter."""
    check_folder(out)
    there = out.is_dir() and any(out.iterdir())
    try:
        own = json.loads((out / "config.json").read_text()).get("kind") == kind
    except (OSError, ValueError, AttributeError):
        own = False
    if there and not own:
        raise MmspecError(f"{out} is there already and holds no drafter of kind {kind}: give another folder as --out")


def check_folder(folder: Path) -> None:
    """Raise MmspecError for a folder that is not there and cannot be made."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise MmspecError(f"cannot write to {folder}: {nearest} is no folder that can be written to; give another")
