"""`mmspec train`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmspec.cli.common import (
    Count,
    Device,
    File,
    Name,
    Names,
    Real,
    Strings,
    Switch,
    Whole,
    check_model,
    console,
    loading,
    quiet_libraries,
    say,
    torch_device,
)
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.train.stages import Training

FEATURES = ("auto", "disk", "online")


@dataclass
class Train:
    """Train a drafter for a model on prompts of your own, or rebuild a bundled model from its recipe.

    A run that was interrupted and is started again goes on where it was, and ends as if it had not been.

    Example: mmspec train medusa --model my-model --prompts prompts.txt --out my-drafter

    Example: mmspec train models/emoji-64/recipe.yaml --work training --out rebuilt

    Several GPUs: torchrun --nproc-per-node 4 -m mmspec train ...
    """

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DRAFTER|RECIPE")]
    """medusa, vadusa, hydra, msd or another of docs/drafters; or a recipe.yaml, or a folder that holds one."""
    model: Name = None
    """The target: a bundled name, a folder, or a hub id."""
    prompts: File = None
    """Lines of text, or of JSON ({"prompt": ..., "image": ..., "answer": ...}, {"messages": [...]}), or a folder of the
    library datasets."""
    out: File = None
    """The drafter's folder, DRAFTER in the present folder if left out; for a recipe WORK/model."""
    work: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("training")
    """Folder for answers, features and checkpoints; another training on the same prompts uses them again."""
    plan: Switch = False
    """Say what it takes in tokens, disk, memory and hours on this machine, measured on the first prompts, and stop."""
    stages: Names = field(default_factory=list)
    """Only these of generate, capture, train, calibrate, report; of a recipe, e.g. target or drafters.hawk."""
    steps: Whole = None
    """Training steps; the drafter's own default if left out, as of the next four."""
    minutes: Real = None
    """As many steps as take so long here, in the place of --steps."""
    batch: Whole = None
    """Sequences of a step, on all devices together."""
    accumulation: Whole = None
    """Batches whose gradients are summed up before each step."""
    lr: Real = None
    """Learning rate."""
    vocabulary: Whole = None
    """Draft from so many of the most frequent tokens; 0 is all. msd, dflash and dspark reduce large vocabularies to
    8192."""
    tv: Real = None
    """The share of total variation beside cross entropy in the loss, from 0 to 1."""
    option: Strings = ()
    """Options of the drafter or its loss, such as heads=4 depth=6 neighbours=[[0,2],[0,3],[1,0]]."""
    samples: Count = 1
    """Answers to each prompt."""
    answers: Annotated[str, tyro.conf.arg(metavar="own|data")] = "own"
    """own: the target answers every prompt. data: lines that bring an answer (answer, tokens, or the last message) keep
    it."""
    answered: Annotated[int, tyro.conf.arg(name="at-once", metavar="N")] = 16
    """Prompts that are answered together."""
    max_new_tokens: Whole = None
    """Of an answer; the model's own limit if left out."""
    held_out: Count = 16
    """Prompts that choose the best checkpoint, and as many again for the report."""
    temperature: Real = None
    """Of the answers; the model's own default if left out, as of the next four."""
    top_k: Whole = None
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: Real = None
    """Keep the most probable tokens up to this mass; 1 keeps all."""
    repetition_penalty: Real = None
    """Divide the scores of tokens that came before; 1 is none."""
    guidance: Real = None
    """Of pictures; 1 is none. A line may have its own."""
    features: Annotated[str, tyro.conf.arg(metavar="auto|disk|online")] = "auto"
    """disk: read every sequence once. online: read it again in every batch. auto: disk, if that leaves half of it
    free."""
    seed: Count = 0
    """Of answers, weights and batches."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    device_map: Annotated[str | None, tyro.conf.arg(metavar="MAP", help_behavior_hint="")] = None
    """How transformers spreads a target that is too large for one device over several, such as auto; --device is then
    ignored."""
    dtype: Name = None
    """The target's: bf16, fp32, fp16 or fp64; the faster of bf16 and fp32 here if left out."""
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="HUB_ID", help_behavior_hint="")] = None
    """Upload the drafter under this name when it is done."""

    def run(self) -> int:
        try:
            if self.model is None and self.prompts is None:
                self._rebuild()
            else:
                self._train()
        except ModuleNotFoundError as error:
            raise MmspecError(f"training needs {error.name}: pip install 'mmspec[train]'") from None
        return 0

    def _rebuild(self) -> None:
        from mmspec.drafters.table import TABLE

        if self.what in TABLE and not Path(self.what).exists():
            raise MmspecError(
                f"mmspec train {self.what} needs --model, the target, and --prompts, a file with a prompt on each line"
            )
        from mmspec.train.loop import join_processes
        from mmspec.train.recipe import train

        device = torch_device(self.device)
        join_processes(device)
        train(Path(self.what), self.work, self.out, device, self.stages)

    def _train(self) -> None:
        from mmspec.drafters.table import names
        from mmspec.errors import unknown
        from mmspec.train.stages import STAGES

        trained = [name for name, entry in names().items() if entry.trained]
        if self.what not in trained:
            raise unknown("drafter that is trained", self.what, trained)
        if self.model is None or self.prompts is None:
            raise MmspecError("--model, the target, and --prompts, a file with a prompt on each line, are both needed")
        if self.features not in FEATURES:
            raise unknown("--features", self.features, FEATURES)
        if self.minutes is not None and not self.minutes > 0:
            raise MmspecError(f"--minutes {self.minutes:g} is no time: give more than 0")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise MmspecError(f"--max-new-tokens {self.max_new_tokens}: give 1 or more")
        for stage in self.stages:
            if stage not in STAGES:
                raise unknown("stage", stage, STAGES)
        if self.steps is not None and self.minutes is not None:
            raise MmspecError("--steps and --minutes both say how long to train: give one")
        from mmspec.train.loop import join_processes

        join_processes(torch_device(self.device))
        training = self._load()
        from mmspec.train.plan import make_plan, steps_in

        if training.is_main:
            say("measuring on the first prompts what this takes here")
        plan = make_plan(training)
        if self.minutes is not None:
            training = training.with_steps(steps_in(training, self.minutes))
            plan = make_plan(training)
        training.disk = plan.fits if self.features == "auto" else self.features == "disk"
        if main := training.is_main:
            console.print(plan.table())
            say(f"features: {'disk' if training.disk else 'online, read again in every batch'}")
        if self.plan:
            return
        training.run(self.stages or training.STAGES)
        if self.push_to_hub and main:
            training.push(self.push_to_hub)
        if main:
            for line in training.summary():
                say(line)

    def _load(self) -> "Training":
        """Everything is checked, and the model is loaded."""
        from mmspec import zoo
        from mmspec.engine.ranges import check_ranges
        from mmspec.pipelines import task_of
        from mmspec.prompts import read_prompts

        options = {
            name: getattr(self, name)
            for name in ("temperature", "top_k", "top_p", "repetition_penalty")
            if getattr(self, name) is not None
        }
        check_ranges(options)
        assert self.model is not None and self.prompts is not None
        rows = read_prompts(self.prompts)
        task = task_of(zoo.resolve(self.model, allow_transformers=True))
        folder = check_model(self.model, task, None, self.dtype or "bf16", self.device)
        build, loss = self._options()
        from mmspec.pipelines import pipeline
        from mmspec.placement import device_of, has_fast_bf16
        from mmspec.train.corpus import Corpus, CorpusSettings
        from mmspec.train.drafter import DrafterSettings, drafter_class
        from mmspec.train.stages import Training, check_folder, check_output

        out = (self.out or Path(self.what)).absolute()
        check_output(out, self.what)
        device = torch_device(self.device)
        settings = DrafterSettings.of(
            self.what,
            model=build,
            loss=loss,
            steps=self.steps,
            batch=self.batch,
            accumulation=self.accumulation,
            lr=self.lr,
            vocabulary=self.vocabulary,
            seed=self.seed,
        )
        corpus_settings = CorpusSettings(
            self.samples,
            self.answers,
            self.answered,
            self.max_new_tokens,
            self.held_out,
            self.guidance,
            self.seed,
            options,  # type: ignore[arg-type]
        )
        dtype = self.dtype or ("bf16" if has_fast_bf16(device_of(device)) else "fp32")
        with loading(self.model, quiet=False):
            spread = {"device_map": self.device_map} if self.device_map else {}
            pipe = pipeline(task, folder, device=device, dtype=dtype, **spread)
            quiet_libraries()
        check_folder(self.work)
        cls = drafter_class(self.what)
        corpus = Corpus(pipe, rows, corpus_settings, self.work, cls.calibrates_greedy)
        if corpus.guidance != 1 and not getattr(cls, "guided", True):
            raise MmspecError(
                f"{self.what} drafts without guidance, and this model's is {corpus.guidance:g}: give --guidance 1, or "
                "train another one, such as hawk-path"
            )
        return Training(corpus, settings, out, device)

    def _options(self) -> tuple[dict, dict]:
        """Options of the drafter, and of its loss."""
        from mmspec.train.drafter import drafter_class

        given: dict = {}
        for option in self.option:
            name, equals, value = option.partition("=")
            if not equals:
                raise MmspecError(f"--option {option} is not NAME=VALUE, such as depth=6")
            try:
                given[name.replace("-", "_")] = json.loads(value)
            except ValueError:
                given[name.replace("-", "_")] = value
        names = drafter_class(self.what).loss_options
        loss = {name: value for name, value in given.items() if name in names}
        if self.tv is not None:
            loss["tv"] = self.tv
        return {name: value for name, value in given.items() if name not in names}, loss
