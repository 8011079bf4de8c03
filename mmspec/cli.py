"""The command line: `mmspec image · speak · ask · chat · verify · bench · train · info`.

Exit codes, for every command: 0 done, 1 a check failed, 2 wrong input (what is wrong and what to do, on standard error, no traceback), 130 interrupted.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmspec import __version__
from mmspec.errors import MmspecError

console = Console(stderr=True)


def torch_dtype(name: str):
    from mmspec.placement import dtype_of

    return dtype_of(name)


def torch_device(name: str) -> str:
    from mmspec.placement import device_of

    return str(device_of(None if name == "auto" else name))


@dataclass
class Image:
    """Draw a picture from a text prompt.

    Example: mmspec image "a red heart, 3d style" -o heart.png --seed 7
    """

    prompt: tyro.conf.Positional[str]
    """What to draw."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("image.png")
    """Where to write it: .png (carries prompt, seed and settings), .jpg or .webp."""
    n: int = 1
    """How many pictures; picture i has seed + i and is written to NAME-i."""
    grid: bool = False
    """Write all pictures into one sheet."""
    seed: int | None = None
    """Same seed, same picture, whatever the drafter. Random if left out, and printed."""
    guidance: float | None = None
    """Classifier-free guidance, 0 to 20; 1 is none. The model's own default if left out."""
    temperature: float | None = None
    """0 is greedy. The model's own default if left out."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens up to this mass."""
    drafter: str | None = None
    """none (plain AR), lookup, jacobi, medusa, hawk, hawk-path. The model's own default if left out."""
    acceptance: str = "exact"
    """exact (lossless), rejection (lossless in law), tolerance:N or typical:E,D (lossy, and the result says so)."""
    progressive: Path | None = None
    """Also write an animation (.gif, .webp, .png) of the first picture being filled."""
    model: str = "emoji-64"
    """A bundled name, a folder, or a hub id."""
    dtype: str = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    quiet: bool = False
    """No progress bar and no summary."""

    def run(self) -> int:
        from mmspec import picture
        from mmspec.bench.provenance import versions

        if not 1 <= self.n <= 64:
            raise MmspecError(f"--n {self.n} is out of range: give a number from 1 to 64")
        alone = self.n == 1 or self.grid
        written = [self.out] if alone else [self.out.with_stem(f"{self.out.stem}-{i}") for i in range(self.n)]
        for path in written:
            picture.check_output(path, picture.STILL)
        if self.progressive:
            picture.check_output(self.progressive, picture.MOVING)
            if self.progressive.absolute() in [path.absolute() for path in written]:
                raise MmspecError(f"--progressive and --out both name {self.progressive}: give two names")
        from mmspec.pipelines.text_to_image import TextToImagePipeline

        quiet_libraries()
        place = torch_device(self.device)
        pipe = TextToImagePipeline.from_pretrained(self.model, torch_dtype=torch_dtype(self.dtype)).to(place)
        pipe.set_progress_bar_config(disable=True)
        columns = (TextColumn("drawing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=pipe.target.grid.tokens)
            done = pipe(
                self.prompt,
                seed=self.seed,
                num_images_per_prompt=self.n,
                guidance_scale=self.guidance,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                drafter=self.drafter,
                acceptance=self.acceptance,
                callback_on_step_end=lambda pipe, step, count, new: bar.update(task, completed=count),
            )
        stats = done.stats
        facts = {
            "prompt": self.prompt,
            "seed": done.seeds[0],
            "model": self.model,
            "drafter": stats.drafter,
            "acceptance": stats.acceptance,
            "lossless": "yes" if stats.lossless else "no",
            "guidance": pipe.config.guidance_scale if self.guidance is None else self.guidance,
            "temperature": pipe.config.temperature if self.temperature is None else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "dtype": self.dtype,
            "mean_acceptance_length": f"{stats.mean_acceptance_length:.3f}",
            "software": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        if alone:
            picture.save(picture.sheet(done.images), self.out, facts)
        else:
            for path, image, seed in zip(written, done.images, done.seeds, strict=True):
                picture.save(image, path, facts | {"seed": seed})
        if self.progressive:
            grid = pipe.target.grid
            picture.animate(picture.filling(done.images[0], stats.runs[0], grid.height, grid.width, grid.stride), self.progressive)
        if not self.quiet:
            kept = "lossless" if stats.lossless else "NOT lossless"
            console.print(
                f"{', '.join(map(str, written))}: {stats.total:.2f} s, {stats.tokens_per_second:.0f} tokens/s, "
                f"mean acceptance length {stats.mean_acceptance_length:.2f}, {stats.drafter}, {stats.acceptance} ({kept}), seed {done.seeds[0]}",
                highlight=False,
                soft_wrap=True,
            )
        return 0


@dataclass
class Speak:
    """Speak a text.

    Example: mmspec speak "Hello there." -o hello.wav --seed 7
    """

    text: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """What to say, in quotes or not; left out, it is read from --file."""
    file: Path | None = None
    """A text file, or - for standard input."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("speech.wav")
    """Where to write it: .wav, .flac or .ogg, with text, seed and settings in its comment; - writes a WAV to standard output."""
    voice: str | None = None
    """A voice of the model, its first one if left out."""
    seed: int | None = None
    """Same seed, same speech, whatever the drafter. Random if left out, and printed."""
    temperature: float | None = None
    """0 is greedy. The model's own default if left out."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens up to this mass."""
    repetition_penalty: float = 1.0
    """Divide the scores of tokens that were said before; 1 is none."""
    drafter: str | None = None
    """none (plain AR), lookup, jacobi, vadusa, medusa, hawk-path. The model's own default if left out."""
    acceptance: str | None = None
    """exact (lossless, the default), rejection (lossless in law), tolerance:N or typical:E,D (lossy, and the result says so)."""
    tolerance: int | None = None
    """Short for --acceptance tolerance:N; 1 is exact."""
    stream: bool = False
    """Decode piece by piece, as soon as tokens are verified; with -o - each is written at once, to be heard: | aplay"""
    plot: Path | None = None
    """Also draw waveform and spectrogram of the first sentence with the accepted runs coloured (.png)."""
    model: str = "wren-86"
    """A bundled name, a folder, or a hub id."""
    dtype: str = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    quiet: bool = False
    """No progress bar and no summary."""

    def run(self) -> int:
        from mmspec import picture, sound
        from mmspec.bench.provenance import versions
        from mmspec.reading import source

        text, to_pipe = source(" ".join(self.text) if self.text else None, self.file), str(self.out) == "-"
        sound.check_output(self.out)
        if not to_pipe:
            sound.library("soundfile")
        if self.plot:
            picture.check_output(self.plot, {".png": "PNG"})
            sound.library("matplotlib", "bench")
        if self.tolerance is not None and self.acceptance is not None:
            raise MmspecError(f"--tolerance {self.tolerance} and --acceptance {self.acceptance} are both given: give one")
        try:
            from mmspec.pipelines.text_to_speech import TextToSpeechOutput, TextToSpeechPipeline
        except ModuleNotFoundError as error:
            raise MmspecError(f"speech needs {error.name}: pip install 'mmspec[speech]'") from None

        quiet_libraries()
        place = torch_device(self.device)
        pipe = TextToSpeechPipeline.from_pretrained(self.model, torch_dtype=torch_dtype(self.dtype)).to(place)
        pipe_out = sound.Pipe(sys.stdout.buffer, pipe.codec.sampling_rate) if to_pipe else None
        hear = pipe_out.write if pipe_out else lambda audio: None
        token_samples = pipe.codec.frame_samples / pipe.codec.frame_tokens
        columns = (TextColumn("speaking"), BarColumn(), TextColumn("{task.fields[seconds]:.1f} s of speech"))
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=None, seconds=0.0)

            def watch(so_far: TextToSpeechOutput) -> None:
                seconds = sum(map(len, so_far.tokens)) * token_samples / so_far.sampling_rate
                bar.update(task, total=len(so_far.sentences), completed=len(so_far.ended), seconds=seconds)
                pipe.interrupt = pipe_out is not None and not pipe_out.open

            began = perf_counter()
            done = pipe(
                text,
                voice=self.voice,
                seed=self.seed,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                repetition_penalty=self.repetition_penalty,
                drafter=self.drafter,
                acceptance=self.acceptance or ("exact" if self.tolerance is None else f"tolerance:{self.tolerance}"),
                stream_to=hear if self.stream else None,
                callback=watch,
            )
        stats, spent = done.total, perf_counter() - began
        facts = {
            "text": text,
            "voice": pipe.voices[0] if self.voice is None else self.voice,
            "seed": done.seeds[0],
            "model": self.model,
            "drafter": stats.drafter,
            "acceptance": stats.acceptance,
            "lossless": "yes" if stats.lossless else "no",
            "temperature": pipe.temperature if self.temperature is None else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "ended": done.ended,
            "dtype": self.dtype,
            "mean_acceptance_length": f"{stats.mean_acceptance_length:.3f}",
            "software": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        if pipe_out is None:
            done.save(self.out, **facts)
        elif not self.stream:
            pipe_out.write(done.audio)
        if self.plot:
            first = done.audio[: round(len(done.tokens[0]) * token_samples)]
            sound.plot(first, done.sampling_rate, done.stats[0].runs[0], round(token_samples), self.plot)
        if not self.quiet:
            kept = "lossless" if stats.lossless else "NOT lossless"
            console.print(
                f"{self.out}: {done.seconds:.2f} s of speech in {spent:.2f} s, first sound after {done.first_audio:.2f} s, "
                f"{stats.tokens_per_second:.0f} tokens/s, mean acceptance length {stats.mean_acceptance_length:.2f}, "
                f"{stats.drafter}, {stats.acceptance} ({kept}), seed {done.seeds[0]}",
                highlight=False,
                soft_wrap=True,
            )
        return 0


@dataclass
class Ask:
    """Ask a question about a picture; the answer goes to standard output.

    Example: mmspec ask photo.png "How many hearts are there?"
    """

    image: tyro.conf.Positional[str]
    """A picture: a path, an http(s) URL, or - for standard input."""
    question: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="QUESTION")]
    """What to ask, in quotes or not."""
    stream: bool = False
    """Write words as they are verified; in a terminal, what came in one round has one colour."""
    max_new_tokens: int | None = None
    """The model's own default if left out."""
    seed: int | None = None
    """Same seed, same answer, whatever the drafter. Random if left out, and printed."""
    temperature: float | None = None
    """0 is greedy. The model's own default if left out."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that sum to p."""
    repetition_penalty: float = 1.0
    drafter: str | None = None
    """none, lookup, jacobi, or one that the model has weights for. Changes the speed, never the answer."""
    acceptance: str = "exact"
    """exact and rejection are lossless; tolerance:N and typical are lossy, and said to be so."""
    model: str = "magpie-135"
    """A bundled name, a folder, or a hub id such as llava-hf/llava-1.5-7b-hf."""
    device: str = "auto"
    dtype: str = "bf16"
    json: bool = False
    """Answer, seed and statistics as one line of JSON."""
    quiet: bool = False
    """Nothing but the answer."""

    def run(self) -> int:
        talk = Talk(self)
        question = " ".join(self.question)
        picture = talk.picture(self.image)
        answer = talk.answer([{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}])
        if self.json:
            print(json.dumps({"question": question, "answer": answer.text} | talk.facts(answer)))
        elif not self.stream:
            print(answer.text)
        if not self.quiet and not self.json:
            talk.report(answer)
        return 0


@dataclass
class Chat:
    """Talk about a picture, question after question; an empty line or Ctrl-D ends it.

    Example: mmspec chat photo.png
    """

    image: tyro.conf.Positional[str | None] = None
    """A picture: a path or an http(s) URL; none for a talk without one."""
    max_new_tokens: int | None = None
    seed: int | None = None
    """Question i uses seed + i. Random if left out."""
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    drafter: str | None = None
    acceptance: str = "exact"
    model: str = "magpie-135"
    device: str = "auto"
    dtype: str = "bf16"
    quiet: bool = False
    """Nothing but the answers."""

    def run(self) -> int:
        talk = Talk(self)
        chat: list[dict] = []
        pictures = [{"type": "image", "image": talk.picture(self.image)}] if self.image else []
        number = 0
        while question := talk.prompt():
            chat = [*chat, {"role": "user", "content": [*([] if chat else pictures), {"type": "text", "text": question}]}]
            answer = talk.answer(chat, number)
            chat, number = answer.chat(), number + 1
            if not self.quiet:
                talk.report(answer)
        return 0


class Talk:
    """What `ask` and `chat` share: the model, answers as they come, and what they cost."""

    COLOURS = ("cyan", "green")

    def __init__(self, command: "Ask | Chat"):
        from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

        quiet_libraries()
        self.command = command
        place = torch_device(command.device)
        self.pipe = ImageTextToTextPipeline.from_pretrained(command.model, torch_dtype=torch_dtype(command.dtype)).to(place)

    def picture(self, source: str):
        from mmspec.picture import read

        return read(source)

    def prompt(self) -> str:
        """The next question; empty at the end."""
        try:
            return (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
        except EOFError:
            return ""

    def answer(self, chat: list[dict], number: int = 0):
        """Ask, and print words as they are verified if that is wanted: what came in one round has one colour."""
        command, out = self.command, Console(highlight=False, soft_wrap=True)
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "drafter", "acceptance")
        law = {name: getattr(command, name) for name in names}
        streams = not isinstance(command, Ask) or (command.stream and not command.json)
        seed = None if command.seed is None else command.seed + number
        for step, words in enumerate(self.pipe.stream(chat, seed=seed, **law)):
            if streams:
                out.print(words.texts[0], end="", markup=False, style=self.COLOURS[step % 2] if out.is_terminal else None)
        if streams:
            out.print()
        return words.output

    def facts(self, answer) -> dict:
        stats = answer.stats
        return {
            "seed": answer.seeds[0],
            "ended": answer.ended[0],
            "drafter": stats.drafter,
            "acceptance": stats.acceptance,
            "lossless": stats.lossless,
            "tokens": stats.tokens,
            "mean_acceptance_length": round(stats.mean_acceptance_length, 3),
            "tokens_per_second": round(stats.tokens_per_second, 1),
            "seconds_to_first_token": round(answer.first_token, 3),
        }

    def report(self, answer) -> None:
        """One line about what it cost."""
        stats = answer.stats
        kept = "lossless" if stats.lossless else "NOT lossless"
        console.print(
            f"{stats.tokens} tokens in {stats.total:.2f} s, first after {answer.first_token:.2f} s, {stats.tokens_per_second:.0f} tokens/s, "
            f"mean acceptance length {stats.mean_acceptance_length:.2f}, {stats.drafter}, {stats.acceptance} ({kept}), seed {answer.seeds[0]}",
            highlight=False,
            soft_wrap=True,
        )


@dataclass
class Verify:
    """Does every drafter give the same tokens as plain decoding? Exit code 1 if any float64 row differs.

    Example: mmspec verify emoji-64 --prompts 4 --dtype fp64 --temperature 1 --guidance 2
    """

    model: tyro.conf.Positional[str] = "emoji-64"
    """A bundled name, a folder, or a hub id; pictures or speech."""
    prompts: int = 10
    """How many of the model's prompts; voices take turns."""
    seed: int = 0
    """Seed of the first prompt; each next one counts up."""
    dtype: list[str] = field(default_factory=lambda: ["fp64", "fp32", "bf16"])
    temperature: list[float] = field(default_factory=lambda: [0.0, 0.7, 1.0])
    guidance: list[float] | None = None
    """1 and 2 for pictures if left out; speech has none."""
    repetition_penalty: list[float] = field(default_factory=lambda: [1.0])
    batch: list[int] = field(default_factory=lambda: [1, 4])
    drafters: list[str] = field(default_factory=list)
    """All that the model has weights for, if left out."""
    tokens: int | None = None
    """Compare this many tokens; the whole picture or sentence if left out."""
    device: str = "auto"
    json: Path | None = None
    """Also write the findings there."""

    def run(self) -> int:
        from torch import float64

        from mmspec import picture, zoo
        from mmspec.drafters import usable
        from mmspec.placement import dtype_of
        from mmspec.verify import verify

        quiet_libraries()
        folder = zoo.resolve(self.model)
        for name in ("dtype", "temperature", "guidance", "repetition_penalty", "batch"):
            if getattr(self, name) == []:
                raise MmspecError(f"--{name} has no values: give at least one")
        if self.prompts < 1 or min(self.batch) < 1 or (self.tokens is not None and self.tokens < 1):
            raise MmspecError("--prompts, --batch and --tokens must be 1 or more")
        if self.json:
            picture.check_output(self.json, {".json": "JSON"})
        found = [name for name in usable(folder) if name != "none"]
        texts = sample_prompts(folder, self.prompts)
        heads = ("dtype", "T", "guidance", "penalty", "batch", "drafter", "equal", "first parting: position, margin of AR's token")
        table = Table(*heads, title=f"{self.model}, {len(texts)} prompts")
        rows = []
        laws = (self.dtype, self.temperature, self.guidance, self.repetition_penalty, self.batch)
        search = verify(folder, *laws, self.drafters or found, texts, self.seed, torch_device(self.device), self.tokens)
        with console.status("verifying"):
            for finding in search:
                rows.append(finding)
                where = "; ".join(f"{p.position}, {p.margin:.1e}" for p in sorted(finding.partings, key=lambda p: -p.margin)[:3])
                law = (f"{value:g}" for value in (finding.temperature, finding.guidance, finding.repetition_penalty, finding.batch))
                line = (finding.dtype, *law, finding.drafter, f"{finding.equal}/{finding.rows}", where)
                table.add_row(*line)
                console.print(*line, soft_wrap=True)
                if self.json:
                    text = json.dumps([row.as_dict() for row in rows], indent=1) + "\n"
                    picture.replace(self.json, partial(Path.write_text, data=text))
        Console(width=140).print(table)
        return int(any(row.partings for row in rows if dtype_of(row.dtype) == float64))


@dataclass
class Bench:
    """Measure every drafter beside plain AR and transformers.generate, in one process.

    Example: mmspec bench image --out results --quick
    """

    suite: tyro.conf.Positional[Literal["image", "speech"]]
    """What to measure."""
    out: Path = Path("results")
    """Folder for results.json, results.md and results.png."""
    model: str | None = None
    """A bundled name, a folder, or a hub id; emoji-64 or wren-86 if left out."""
    quick: bool = False
    """Five entrants, one prompt in bf16, no ablations: about a minute. Other options still hold."""
    device: str = "auto"
    dtype: list[str] | None = None
    """bf16 and fp32 if left out."""
    batch: list[int] = field(default_factory=lambda: [1])
    prompts: int | None = None
    """Pictures or sentences of each entrant in each setting; 8 if left out."""
    seed: int = 0

    def run(self) -> int:
        from importlib.util import find_spec

        from mmspec.placement import check_pair, device_of, dtype_of
        from mmspec.zoo import resolve

        if find_spec("matplotlib") is None:
            raise MmspecError("the benchmark draws a plot and needs matplotlib: pip install 'mmspec[bench]'")
        quiet_libraries()
        place = torch_device(self.device)
        dtypes = self.dtype or (["bf16"] if self.quick else ["bf16", "fp32"])
        for name in dtypes:
            check_pair(device_of(place), dtype_of(name))
        count = self.prompts if self.prompts is not None else 1 if self.quick else 8
        if count < 1 or min(self.batch, default=0) < 1:
            raise MmspecError("--prompts and --batch must be 1 or more")
        model = self.model or {"image": "emoji-64", "speech": "wren-86"}[self.suite]
        resolve(model)
        measured = suite(self.suite)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MmspecError(f"cannot write to {self.out}: {error.strerror}; give a folder") from None
        out = measured.run(model, self.out, self.quick, place, dtypes, self.seed, self.batch, count)
        console.print((out / "results.md").read_text(), markup=False, highlight=False, soft_wrap=True)
        return 0


@dataclass
class Train:
    """Rebuild a model folder from its recipe: data, tokenizer, target, drafters. An interrupted run resumes.

    Example: mmspec train models/emoji-64/recipe.yaml --work training --out rebuilt
    """

    recipe: tyro.conf.Positional[Path]
    """A recipe.yaml, or a model folder that holds one."""
    work: Path = Path("training")
    """Folder for data and checkpoints."""
    out: Path | None = None
    """Model folder to fill; WORK/model if left out."""
    stages: list[str] = field(default_factory=list)
    """Only these, e.g. tokenizer, target, drafters, drafters.hawk."""
    device: str = "auto"

    def run(self) -> int:
        try:
            from mmspec.training.recipe import train
        except ModuleNotFoundError as error:
            raise MmspecError(f"training needs {error.name}: pip install 'mmspec[train]'") from None
        train(self.recipe, self.work, self.out, torch_device(self.device), self.stages)
        return 0


@dataclass
class Info:
    """Models, drafters, acceptance rules, devices and versions.

    Example: mmspec info --json
    """

    json: bool = False
    """Machine-readable."""

    def run(self) -> int:
        import torch

        from mmspec import zoo
        from mmspec.accept import RULES, acceptance
        from mmspec.bench.provenance import versions
        from mmspec.drafters import names

        facts = {
            **versions(),
            "devices": ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))],
            "threads": torch.get_num_threads(),
            "models": {
                entry.name: {"drafters": entry.drafters, "megabytes": round(entry.bytes / 1e6, 1)} for entry in zoo.bundled().values()
            },
            "drafters": list(names()),
            "acceptance": {name: "lossless" if acceptance(name).lossless else "lossy" for name in RULES},
        }
        if self.json:
            print(json.dumps(facts, indent=1))
            return 0
        table = Table(show_header=False)
        for key, value in facts.items():
            text = (
                "\n".join(f"{k}: {v}" for k, v in value.items())
                if isinstance(value, dict)
                else ", ".join(map(str, value))
                if isinstance(value, list)
                else str(value)
            )
            table.add_row(key, text)
        Console().print(table)
        return 0


Command = (
    Annotated[Image, tyro.conf.subcommand("image")]
    | Annotated[Speak, tyro.conf.subcommand("speak")]
    | Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def quiet_libraries() -> None:
    """No progress bars, advice or warnings from the libraries below; warnings of mmspec in one line each."""
    import warnings

    import diffusers
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="mmspec")
    warnings.showwarning = lambda message, *rest, **more: console.print(f"mmspec: warning: {message}", markup=False, soft_wrap=True)


def sample_prompts(folder: Path, count: int) -> list[str]:
    """Prompts spread evenly over the model's own list; the benchmark's where it has none."""
    from mmspec.pipelines import task_of

    path = folder / "prompts.jsonl"
    if not path.exists():
        known = suite(task_of(folder).rpartition("-")[2]).PROMPTS
    else:
        try:
            known = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        except (ValueError, KeyError, TypeError):
            known = []
    if not known:
        raise MmspecError(f'{path} must hold a line such as {{"prompt": "a cat"}} for each prompt: restore it or remove it')
    return [known[i * len(known) // count % len(known)] for i in range(count)]


def suite(name: str) -> ModuleType:
    """A suite of the benchmark: image or speech."""
    from importlib import import_module

    try:
        return import_module(f"mmspec.bench.{name}")
    except ModuleNotFoundError as error:
        raise MmspecError(f"the benchmark needs {error.name}: pip install 'mmspec[{name}]'") from None


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"mmspec {__version__}")
        raise SystemExit(0)
    try:
        command = tyro.cli(
            Command,
            prog="mmspec",
            description="Same output, several times sooner.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        raise SystemExit(command.run())
    except MmspecError as error:
        console.print(f"mmspec: error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("mmspec: interrupted", markup=False)
        raise SystemExit(130) from None
