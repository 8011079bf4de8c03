"""`mmspec speak`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro
from rich.progress import BarColumn, Progress, TextColumn

from mmspec.cli.common import console, quiet_libraries, torch_device, torch_dtype
from mmspec.errors import MmspecError


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
        from mmspec import files
        from mmspec.media import audio as sound
        from mmspec.pipelines.phonemize import source
        from mmspec.versions import versions

        text, to_pipe = source(" ".join(self.text) if self.text else None, self.file), str(self.out) == "-"
        sound.check_output(self.out)
        if not to_pipe:
            sound.library("soundfile")
        if self.plot:
            files.check_output(self.plot, {".png": "PNG"})
            sound.library("matplotlib", "bench")
        if self.tolerance is not None and self.acceptance is not None:
            raise MmspecError(
                f"--tolerance {self.tolerance} and --acceptance {self.acceptance} are both given: give one"
            )
        acceptance = "exact" if self.acceptance is None else self.acceptance
        if self.tolerance is not None:
            acceptance = f"tolerance:{self.tolerance}"
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
                acceptance=acceptance,
                stream_to=hear if self.stream else None,
                callback=watch,
            )
        stats, spent = done.total, perf_counter() - began
        facts = {
            "text": text,
            "voice": pipe.voices[0] if self.voice is None else self.voice,
            "model": self.model,
            "temperature": pipe.temperature if self.temperature is None else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "dtype": self.dtype,
            "software": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        if pipe_out is None:
            done.save(self.out, **facts)
        elif not self.stream:
            pipe_out.write(done.audio)
        if self.plot:
            number = next(i for i, tokens in enumerate(done.tokens) if tokens)
            first = done.audio[round(sum(one.pause for one in done.sentences[:number]) * done.sampling_rate) :]
            first = first[: round(len(done.tokens[number]) * token_samples)]
            sound.plot(first, done.sampling_rate, done.rounds[number], round(token_samples), self.plot)
        if not self.quiet:
            kept = "lossless" if stats.lossless else "NOT lossless"
            heard = f", first sound after {done.first_audio:.2f} s" if self.stream else ""
            console.print(
                f"{self.out}: {done.seconds:.2f} s of speech in {spent:.2f} s{heard}, "
                f"{stats.tokens_per_second:.0f} tokens/s, mean acceptance length {stats.mean_acceptance_length:.2f}, "
                f"{stats.drafter}, {stats.acceptance} ({kept}), seed {done.seeds[0]}",
                highlight=False,
                soft_wrap=True,
            )
        return 0
