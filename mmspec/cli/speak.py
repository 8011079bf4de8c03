"""`mmspec speak`."""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.progress import BarColumn, Progress, TextColumn

from mmspec.cli.common import (
    File,
    Model,
    ModelFlags,
    Name,
    SamplingFlags,
    Switch,
    Whole,
    check_model,
    console,
    loading,
    quiet_libraries,
    say,
    software,
    summary,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    from mmspec.pipelines.outputs import TextToSpeechOutput
    from mmspec.pipelines.text_to_speech import TextToSpeechPipeline


@dataclass
class Speak(SamplingFlags, ModelFlags):
    """Speak a text.

    Example: mmspec speak "Hello there." -o hello.wav --seed 7
    """

    text: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TEXT]", help_behavior_hint="")] = ()
    """What to say, in quotes or not; - is standard input, and left out it is read from --file."""
    file: File = None
    """A text file, or - for standard input."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = Path("speech.wav")
    """Where to write it: .wav, .flac or .ogg, with text, seed and settings in its comment; - writes a WAV to standard
    output, and .json the codes in the place of sound.
    """
    voice: Name = None
    """A voice of the model (mmspec info MODEL lists them), its first one if left out."""
    reference: File = None
    """A recording of the voice to speak with, for models that clone voices."""
    reference_text: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """What is said in the reference."""
    codec: Annotated[str | None, tyro.conf.arg(metavar="CODEC", help_behavior_hint="")] = None
    """A folder or hub id of the codec of a speech language model, in the place of its own."""
    tolerance: Whole = None
    """Short for --acceptance tolerance:N; 1 is exact."""
    stream: Switch = False
    """Decode piece by piece, as soon as tokens are verified; with -o - each is written at once, to be heard: | aplay"""
    plot: File = None
    """Also draw waveform and spectrogram of the first sentence with the accepted runs coloured (.png)."""
    model: Model = "wren-86"
    """A bundled name, a folder, or a hub id; of transformers if it is a speech language model such as Orpheus."""

    @property
    def rule(self) -> str:
        if self.tolerance is not None and self.acceptance is not None:
            raise MmspecError(
                f"--tolerance {self.tolerance} and --acceptance {self.acceptance} are both given: give one"
            )
        return super().rule if self.tolerance is None else f"tolerance:{self.tolerance}"

    def run(self) -> int:
        from mmspec import files

        text, to_pipe = self._read_arguments(), str(self.out) == "-"
        with loading(self.model, self.quiet):
            from mmspec.media import audio as media  # needs torch, which takes a second
            from mmspec.pipelines.reference import Reference

            self._check_outputs()
            pipe = self._load()
            reference = Reference(self.reference, self.reference_text or "") if self.reference else None
        writer = media.Pipe(sys.stdout.buffer, pipe.codec.sampling_rate) if to_pipe else None
        play = writer.write if writer else lambda audio: None
        token_samples = pipe.codec.frame_samples / pipe.codec.frame_tokens
        columns = (TextColumn("speaking"), BarColumn(), TextColumn("{task.fields[seconds]:.1f} s of speech"))
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=None, seconds=0.0)

            def show(pipe: "TextToSpeechPipeline", step: int, position: int, callback_kwargs: dict) -> None:
                so_far: TextToSpeechOutput = callback_kwargs["output"]
                seconds = position * token_samples / so_far.sampling_rate
                bar.update(task, total=len(so_far.sentences), completed=len(so_far.ended), seconds=seconds)
                pipe.interrupt = writer is not None and not writer.open

            began = perf_counter()
            output = pipe(
                text,
                voice=self.voice,
                seed=self.seed,
                reference=reference,
                output_type="codes" if self._codes_only else "audio",
                stream_to=play if self.stream else None,
                callback_on_step_end=show,
                **self.sampling_kwargs,
            )
        stats, spent = output.stats, perf_counter() - began
        facts = {
            "text": text,
            "voice": pipe.voices[0] if self.voice is None else self.voice,
            "model": self.model,
            **self.facts(pipe.sampling_defaults),
            "dtype": self.dtype,
            "software": software(),
        }
        if self._codes_only:
            facts |= {"seeds": output.seeds, "ended": output.ended, "codes": output.tokens}
            data = json.dumps(facts | output.stats.facts, ensure_ascii=False) + "\n"
            files.write_atomically(self.out, partial(Path.write_text, data=data))
        elif writer is None:
            output.save(self.out, **facts)
        elif not self.stream:
            media.Pipe(sys.stdout.buffer, output.sampling_rate, samples=len(output.audio)).write(output.audio)
        if self.plot:
            self._plot(output, token_samples)
        if not self.quiet:
            first = f", first sound after {output.first_audio:.2f} s" if self.stream else ""
            seconds = sum(map(len, output.tokens)) * token_samples / output.sampling_rate
            said = output.seconds or seconds
            written = ["standard output" if to_pipe else str(self.out), *([str(self.plot)] if self.plot else [])]
            say(
                f"{', '.join(written)}: {said:.2f} s of speech in {spent:.2f} s{first}, "
                f"{summary(stats, output.seeds[0])}"
            )
        return 0

    def _load(self) -> "TextToSpeechPipeline":
        try:
            from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
        except ModuleNotFoundError as error:
            raise MmspecError(f"speech needs {error.name}: pip install 'mmspec[speech]'") from None

        quiet_libraries()
        device = torch_device(self.device)
        options: dict = {"torch_dtype": torch_dtype(self.dtype)} | ({"codec": self.codec} if self.codec else {})
        pipe = TextToSpeechPipeline.from_pretrained(self.model, **options).to(device)
        pipe.deterministic, pipe.compiled = self.deterministic, self.compile
        return pipe

    def _read_arguments(self) -> str:
        """The text; all that can be checked without torch is."""
        from mmspec import zoo
        from mmspec.cli.source import read_text
        from mmspec.pipelines.families import WITHOUT_CODEC, no_codec, speaker_family

        dash = self.text == ("-",) and self.file is None
        text = read_text(" ".join(self.text) if self.text and not dash else None, Path("-") if dash else self.file)
        self.check_sampling()
        folder = check_model(self.model, "text-to-speech", self.drafter, self.dtype, self.device)
        if self.reference_text is not None and self.reference is None:
            raise MmspecError("--reference-text is what is said in --reference: give both")
        own = (folder / zoo.INDEX).is_file()
        if own and self.codec:
            raise MmspecError(f"{self.model} has a codec of its own: leave --codec out")
        if not self._codes_only and not self.codec and (family := speaker_family(folder)) in WITHOUT_CODEC:
            raise no_codec(family)
        voices = zoo.read_index(folder).get("voices") if own else None
        if self.voice is not None and isinstance(voices, list) and self.voice not in voices:
            raise unknown("voice", self.voice, map(str, voices))
        if not text.strip():
            raise MmspecError("there is nothing to say: the text is empty")
        return text

    @property
    def _codes_only(self) -> bool:
        return self.out.suffix.lower() == ".json"

    def _check_outputs(self) -> None:
        """Raise MmspecError for files that cannot be written."""
        from mmspec import files
        from mmspec.media import audio as media

        if self._codes_only:
            files.check_output(self.out, {".json": "JSON"})
            if self.plot or self.stream:
                raise MmspecError("codes make no sound to draw or to stream: leave --plot and --stream out")
            return
        media.check_output(self.out)
        if str(self.out) != "-":
            media.library("soundfile")
        if self.plot:
            files.check_output(self.plot, {".png": "PNG"})
            media.library("matplotlib", "bench")

    def _plot(self, output: "TextToSpeechOutput", token_samples: float) -> None:
        """Draw the first sentence that was said."""
        from mmspec.media import audio as media

        number = next(i for i, tokens in enumerate(output.tokens) if tokens)
        start = round(sum(sentence.pause for sentence in output.sentences[:number]) * output.sampling_rate)
        samples = round(len(output.tokens[number]) * token_samples)
        audio = output.audio[start : start + samples]
        assert self.plot is not None
        media.plot(audio, output.sampling_rate, output.rounds[number], round(token_samples), self.plot)
