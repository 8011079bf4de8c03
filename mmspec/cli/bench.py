"""`mmspec bench`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from mmspec.cli.common import (
    SUITES,
    Count,
    Device,
    File,
    Name,
    Names,
    Reals,
    Switch,
    Whole,
    check_model,
    console,
    loading,
    quiet_libraries,
    say,
    suite,
    torch_device,
)
from mmspec.errors import MmspecError, unknown

# The suite of all bundled models and all drafters.
EVERY = "drafters"


@dataclass
class Bench:
    """Measure every drafter beside plain AR and transformers.generate, in one process.

    A suite has its own prompts and drafters; without one, a model of any task is measured on prompts of your own.

    Example: mmspec bench image --out results --quick

    Example: mmspec bench --model path/to/model --prompts prompts.txt --drafters lookup path/to/drafter

    Example: mmspec bench --compare before/results.json after/results.json
    """

    suite: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[image|speech|vlm|drafters]", help_behavior_hint="")
    ] = ""
    """A suite; none for --model with --prompts, or for --compare."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """Folder for results.json, results.md and results.png."""
    model: Name = None
    """A bundled name, a folder, or a hub id; a suite's own bundled model if left out."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Lines of text, or as in a model's prompts.jsonl ({"prompt": ..., "image": ...}); a suite has its own."""
    count: Whole = None
    """Prompts of each entrant in each setting; all in FILE if left out, 8 of a suite's own, 1 with --quick."""
    drafters: Names = field(default_factory=list)
    """Names, folders and hub ids: these alone, beside plain decoding. A model of transformers assists generate too."""
    temperature: Reals = None
    """0 is greedy; the suite's own, or the model's own default, if left out."""
    tokens: Whole = None
    """With prompts of your own: at most so many tokens for each."""
    quick: Switch = False
    """One prompt in bf16; of a suite a few entrants and no ablations: some minutes. Other options still hold."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    dtype: Annotated[list[str] | None, tyro.conf.arg(metavar="DTYPE ...", help_behavior_hint="")] = None
    """bf16, fp32, fp64 or fp16; bf16 if left out, and bf16 and fp32 in a suite."""
    batch: Annotated[list[int], tyro.conf.arg(metavar="N ...")] = field(default_factory=lambda: [1])
    """Rows at once, a table each: 1 4 16 gives all three; 1 alone for prompts of your own."""
    seed: Count = 0
    """Seed of the first prompt; each next one counts up."""
    compile: Switch = False
    """Compiled passes, and `generate` compiled by transformers too; in a suite plain decoding uncompiled as well."""
    nodes: Annotated[list[int] | None, tyro.conf.arg(metavar="N ...", help_behavior_hint="")] = None
    """Also accepted lengths with so many draft nodes for every drafter, such as 4 8 16 32 64."""
    compare: Annotated[list[Path], tyro.conf.arg(metavar="A.json B.json", help_behavior_hint="")] = field(
        default_factory=list
    )
    """Two results.json side by side, row by row; nothing is measured."""
    trained: File = None
    """For the suite drafters: a folder for each of pictures, speech, descriptions and text, with a folder for each
    drafter that was trained."""

    def run(self) -> int:
        if self.compare:
            return self.run_comparison()
        from importlib.util import find_spec

        from mmspec.placement import check_pair, device_of, dtype_of
        from mmspec.prompts import read_prompts

        if self.suite and self.suite not in (*SUITES, EVERY):
            raise unknown("suite", self.suite, (*SUITES, EVERY))
        if self.trained and self.suite != EVERY:
            raise MmspecError("--trained is for the suite drafters: leave it out")
        if self.trained and not self.trained.is_dir():
            raise MmspecError(f"no folder {self.trained}: give one that has pictures, speech, descriptions or text")
        if self.suite == EVERY and (self.model or self.prompts or self.drafters or self.compile or self.batch != [1]):
            raise MmspecError("the suite drafters has models, prompts, drafters and batches of its own: leave them out")
        if self.suite == EVERY and len(self.dtype or ()) > 1:
            raise MmspecError("the suite drafters takes one dtype")
        file, count = self.read_count()
        if not self.suite and (self.model is None or file is None):
            raise MmspecError(
                "say what to measure: image, speech, vlm or drafters, or --model MODEL and --prompts FILE for prompts "
                "of your own; mmspec bench --help says more"
            )
        if find_spec("matplotlib") is None:
            raise MmspecError("the benchmark draws a plot and needs matplotlib: pip install 'mmspec[bench]'")
        rows = read_prompts(file) if file else ()
        dtypes = ["bf16"] if self.quick or not self.suite else ["bf16", "fp32"]
        dtypes = dtypes if self.dtype is None else self.dtype
        self.check_numbers(count, len(rows), dtypes)
        folder = self.check_names(dtypes)
        device = torch_device(self.device)
        for name in dtypes:
            check_pair(device_of(device), dtype_of(name))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MmspecError(f"cannot write to {self.out}: {error.strerror}; give a folder") from None
        count = count or (1 if self.quick else len(rows) or 8)
        if self.suite == EVERY:
            self.run_drafters(count, dtypes, device)
        elif self.suite:
            self.run_suite(rows, count, dtypes, device)
        else:
            self.run_own(folder, rows[:count], dtypes, device)
        console.print((self.out / "results.md").read_text(), markup=False, highlight=False, soft_wrap=True)
        return 0

    def read_count(self) -> tuple[Path | None, int | None]:
        """The file of prompts and how many to take; a number that is no file is the count, which it once was."""
        if self.prompts is None or not self.prompts.isdigit() or Path(self.prompts).exists():
            return None if self.prompts is None else Path(self.prompts), self.count
        say(f"mmspec: --prompts {self.prompts} is read as --count {self.prompts}: --prompts takes a file")
        return None, int(self.prompts)

    def check_numbers(self, count: int | None, lines: int, dtypes: list[str]) -> None:
        """Raise MmspecError for numbers that cannot be."""
        from mmspec.engine.ranges import check_ranges

        for name, values in (
            ("dtype", dtypes),
            ("temperature", self.temperature),
            ("batch", self.batch),
            ("nodes", self.nodes),
        ):
            if values == []:
                raise MmspecError(f"--{name} has no values: give at least one")
        if min(*self.batch, *(1 if number is None else number for number in (count, self.tokens))) < 1:
            raise MmspecError("--count, --batch and --tokens must be 1 or more")
        for temperature in self.temperature or ():
            check_ranges({"temperature": temperature})
        if self.suite and self.tokens:
            raise MmspecError("a suite generates whole pictures, sentences and answers: leave --tokens out")
        if not all(1 <= nodes <= 64 for nodes in self.nodes or ()):
            raise MmspecError("--nodes are 1 to 64")
        if not self.suite and self.batch != [1]:
            raise MmspecError("prompts of your own are decoded one at a time: leave --batch out")
        if not self.suite and count is not None and count > lines:
            raise MmspecError(f"--count {count} is more than the {lines} prompts in {self.prompts}: leave it out")

    def check_names(self, dtypes: list[str]) -> Path:
        """The model's folder. Raises MmspecError for wrong names of anything, before anything is loaded."""
        from mmspec import zoo
        from mmspec.drafters.table import check_name
        from mmspec.pipelines import TASKS, check_task, task_of
        from mmspec.placement import check_names

        for name in dtypes:
            check_names(name, self.device)
        if self.suite == EVERY:
            folder = zoo.home()
        elif self.suite:
            task = SUITES[self.suite]
            folder = check_model(self.model or TASKS[task][1], task, None, dtypes[0], self.device)
        else:

            def check(folder: Path) -> None:
                check_task(folder, task_of(folder))

            folder = zoo.resolve(self.model or "", allow_transformers=True, check=check)
            check(folder)
        for drafter in self.drafters:
            check_name(drafter, folder)
        return folder

    def run_suite(self, rows: tuple[dict, ...], count: int, dtypes: list[str], device: str) -> None:
        """Measure a suite's settings."""
        from mmspec.pipelines import TASKS

        task = SUITES[self.suite]
        model = self.model or TASKS[task][1]
        with loading(model, quiet=False):
            measured = suite(task)
            quiet_libraries()
        choice = measured.Choice(rows, tuple(self.drafters), tuple(self.temperature or ()))
        choice = replace(choice, compiled=self.compile, nodes=tuple(self.nodes or ()))
        measured.run(model, self.out, self.quick, device, dtypes, self.seed, self.batch, count, choice)

    def run_drafters(self, count: int, dtypes: list[str], device: str) -> None:
        """Measure every drafter on every bundled model."""
        with loading("the bundled models", quiet=False):
            from mmspec.bench import drafters

            quiet_libraries()
        how: dict = {"temperatures": tuple(self.temperature)} if self.temperature else {}
        how |= {"nodes": tuple(self.nodes)} if self.nodes else {}
        drafters.run(self.out, self.trained, count, dtype=dtypes[0], device=device, seed=self.seed, **how)

    def run_own(self, folder: Path, rows: tuple[dict, ...], dtypes: list[str], device: str) -> None:
        """Measure a model on prompts of one's own."""
        with loading(self.model or "", quiet=False):
            from mmspec.bench import own

            quiet_libraries()
        chosen = (self.drafters, self.temperature or (), dtypes)
        limits: tuple = (self.seed, self.tokens, self.compile, self.nodes or ())
        own.run(self.model or "", folder, rows, self.out, *chosen, device, *limits)

    def run_comparison(self) -> int:
        """Print two results side by side; what makes them unlike is said on standard error."""
        from mmspec.bench import comparison

        if len(self.compare) != 2:
            raise MmspecError(f"--compare takes two files, and {len(self.compare)} are given: A.json B.json")
        if self.suite or self.model or self.prompts:
            raise MmspecError(
                "--compare reads two results and measures nothing: leave suite, --model and --prompts out"
            )
        first, second = map(comparison.read_results, self.compare)
        text = comparison.markdown(first, second, self.compare)
        for difference in comparison.differences(first, second):
            say(f"mmspec: warning: {difference}")
        print(text, end="")
        return 0
