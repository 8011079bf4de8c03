"""Sound on disk and on a pipe: round trips, metadata, pauses, loudness, plots and the text of every error."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmspec.errors import MmspecError
from mmspec.media import audio as sound

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE, height: float = 0.5) -> torch.Tensor:
    return height * torch.sin(2 * torch.pi * 220 * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "A.WAV"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    """Round trip: 16 bits of every sample, the rate, one channel and the metadata come back; nothing is left beside the
    file.
    """
    facts = {"text": "naïve “café” \u0000\n日本", "seed": 7, "place": Path("x")}
    sound.save(tone(), RATE, tmp_path / name, facts)
    with soundfile.SoundFile(tmp_path / name) as file:
        assert (file.samplerate, file.channels, file.subtype) == (RATE, 1, "PCM_16")
        assert json.loads(file.comment) == facts | {"place": "x"}
        assert torch.equal(torch.from_numpy(file.read(dtype="int16")), sound.pcm(tone()))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ogg(tmp_path: Path) -> None:
    """A minute of Vorbis, longer than libsndfile takes in one block, has the length, the metadata and nearly the
    samples.
    """
    audio = tone(60)
    sound.save(audio, RATE, tmp_path / "a.ogg", {"seed": 7})
    with soundfile.SoundFile(tmp_path / "a.ogg") as file:
        assert json.loads(file.comment) == {"seed": 7}
        back = torch.from_numpy(file.read(dtype="float32"))
    assert back.shape == audio.shape and (back - audio).abs().mean() < 0.02


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("length", [1, 20_000])
def test_any_length(tmp_path: Path, name: str, length: int) -> None:
    """One sample and one word, and a text of 100 kB as metadata, of which a WAV keeps the beginning and all other
    facts.
    """
    facts = {"text": "söme wörds " * length, "seed": 7, "software": "torch 2"}
    sound.save(torch.zeros(length), RATE, tmp_path / name, facts)
    with soundfile.SoundFile(tmp_path / name) as file:
        back = json.loads(file.comment)
        assert file.frames == length
    if length == 1 or name != "a.wav":
        assert back == facts
    else:
        assert (
            back["text"].startswith("söme wörds " * 10)
            and back["text"].endswith("…")
            and back | {"text": facts["text"]} == facts
        )


def test_no_room(tmp_path: Path) -> None:
    """More facts than a WAV has room for, and no audio, are refused."""
    with pytest.raises(
        MmspecError,
        match=r"the metadata take \d+ characters and this format has room for 2000: give fewer, or write .flac",
    ):
        sound.save(tone(), RATE, tmp_path / "a.wav", {f"fact {i}": i for i in range(300)})
    with pytest.raises(MmspecError, match="there is no audio to write: give at least one sample"):
        sound.save(torch.zeros(0), RATE, tmp_path / "a.wav", {})
    assert not list(tmp_path.iterdir())


def test_clips(tmp_path: Path) -> None:
    """What is above 1 is clipped and does not wrap; half precision is taken; what is not finite is refused."""
    assert sound.pcm(torch.tensor([2.0, 1.0, -1.0, -9.0])).tolist() == [32767, 32767, -32767, -32767]
    assert sound.pcm(torch.tensor([0.5, -0.5], dtype=torch.bfloat16)).tolist() == [16384, -16384]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(MmspecError, match="values that are not finite: use another dtype"):
            sound.save(torch.tensor([0.0, bad]), RATE, tmp_path / "a.wav", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mp3", "its ending must be one of .wav, .flac, .ogg"),
        ("a", "its ending must be one of .wav, .flac, .ogg"),
        ("nowhere/a.wav", "there is no folder"),
        ("folder.wav", "it is not writable"),
    ],
)
def test_check_output(tmp_path: Path, name: str, text: str) -> None:
    """Each place that cannot be written is refused before any work."""
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(MmspecError, match=text):
        sound.check_output(tmp_path / name)
    sound.check_output(tmp_path / "fine.OGG")


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is taken, a terminal and a closed output are not."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    sound.check_output(Path("-"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(
        MmspecError, match="cannot write sound to a terminal: add a pipe, such as | aplay, or give a file"
    ):
        sound.check_output(Path("-"))
    monkeypatch.setattr(sys, "stdout", None)  # as in a shell's >&-
    with pytest.raises(MmspecError, match="standard output is closed: give a file"):
        sound.check_output(Path("-"))


def test_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves the old file and nothing beside it."""
    old = tmp_path / "a.wav"
    old.write_bytes(b"old")

    def fail(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(MmspecError, match=r"cannot write .*a.wav: No space left on device; choose another place"):
        sound.save(tone(), RATE, old, {})
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("module", "extra"), [("soundfile", "speech"), ("torchaudio", "speech"), ("matplotlib", "bench")]
)
def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str) -> None:
    """The extra that brings a missing library is named."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MmspecError, match=rf"sound needs {module}: pip install 'mmspec\[{extra}\]'"):
        if module == "soundfile":
            sound.save(tone(), RATE, tmp_path / "a.wav", {})
        else:
            sound.plot(tone(), RATE, [(0, 1)], 100, tmp_path / "a.png")


class Stream(io.BytesIO):
    """Counts flushes; gone after `room` bytes."""

    def __init__(self, room: int = 10**9, error: type[OSError] = BrokenPipeError) -> None:
        super().__init__()
        self.flushes, self.room, self.error = 0, room, error

    def flush(self) -> None:
        self.flushes += 1
        if self.tell() > self.room:
            raise self.error(28, "No space left on device")


def test_pipe() -> None:
    """Nothing before the first chunk; then a header of unknown length and each chunk at once; readable once the lengths
    are filled in.
    """
    out = Stream()
    pipe = sound.Pipe(out, RATE)
    assert not out.getvalue()
    parts = tone().split(3000)
    for count, part in enumerate(parts, 1):
        pipe.write(part)
        assert out.flushes == count and len(out.getvalue()) == 44 + 2 * 3000 * (count - 1) + 2 * len(part)
    raw = bytearray(out.getvalue())
    assert struct.unpack_from("<I", raw, 4) == struct.unpack_from("<I", raw, 40) == (0xFFFFFFFF,)
    assert torch.equal(torch.frombuffer(raw[44:], dtype=torch.int16), sound.pcm(tone()))
    struct.pack_into("<I", raw, 4, len(raw) - 8)
    struct.pack_into("<I", raw, 40, len(raw) - 44)
    back, rate = soundfile.read(io.BytesIO(raw), dtype="int16")
    assert rate == RATE and torch.equal(torch.from_numpy(back), sound.pcm(tone()))


def test_pipe_unfixed(tmp_path: Path) -> None:
    """libsndfile also reads the stream as it is."""
    out = Stream()
    sound.Pipe(out, RATE).write(tone())
    (tmp_path / "a.wav").write_bytes(out.getvalue())
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == RATE


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionResetError])
def test_closed_pipe(error: type[OSError]) -> None:
    """Once the reader has gone, chunks go nowhere and nothing is raised."""
    out = Stream(10_000, error)
    pipe = sound.Pipe(out, RATE)
    pipe.write(torch.zeros(1000))
    assert pipe.open
    pipe.write(torch.zeros(5000))
    assert not pipe.open
    flushes = out.flushes
    pipe.write(torch.zeros(5000))
    assert out.flushes == flushes


def test_full_disk() -> None:
    """A stream that fails otherwise is an error."""
    with pytest.raises(
        MmspecError, match="cannot write to standard output: No space left on device; choose another place"
    ):
        sound.Pipe(Stream(10, OSError), RATE).write(torch.zeros(100))


def test_reader_leaves() -> None:
    """A process whose reader leaves ends with 0 and says nothing, not even when Python flushes at exit."""
    code = (
        "import sys, torch; from mmspec.media.audio import Pipe; pipe = Pipe(sys.stdout.buffer, 16000)\n"
        "while pipe.open: pipe.write(torch.zeros(5000))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        os.read(process.stdout.fileno(), 100)
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)


@given(
    lengths=st.lists(st.integers(0, 50), max_size=6),
    pauses=st.lists(st.floats(0, 2), min_size=6, max_size=6),
    rate=st.sampled_from([8000, 24000]),
)
@settings(deadline=None)
def test_join(lengths: list[int], pauses: list[float], rate: int) -> None:
    """The length is that of the parts and of the pauses, and each part is where it should be."""
    parts = [torch.full((length,), float(i + 1)) for i, length in enumerate(lengths)]
    joined = sound.join(parts, pauses[: len(parts)], rate)
    assert len(joined) == sum(lengths) + sum(round(pause * rate) for pause in pauses[: len(parts)])
    assert joined[joined > 0].tolist() == [float(i + 1) for i, length in enumerate(lengths) for _ in range(length)]
    at = 0
    for part, pause in zip(parts, pauses, strict=False):
        assert torch.equal(joined[at : at + len(part)], part)
        at += len(part) + round(pause * rate)


def test_join_needs_each_pause() -> None:
    """A pause too few is not passed over."""
    with pytest.raises(ValueError):
        sound.join([torch.zeros(3), torch.zeros(3)], [0.1], RATE)


@given(
    height=st.floats(1e-6, 100),
    length=st.integers(1, 20_000),
    lufs=st.floats(-60, 0),
    noise=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_never_clips(height: float, length: int, lufs: float, noise: bool) -> None:
    """Whatever the height, the length and the aim, no sample is above 0.99 and none is lost to NaN."""
    shape = (
        torch.randn(length, generator=torch.Generator().manual_seed(length))
        if noise
        else tone(length / RATE, height=1.0)
    )
    louder = sound.loudness(height * shape, RATE, lufs)
    assert louder.shape == (length,) and louder.isfinite().all() and louder.abs().max() <= 0.99


@pytest.mark.parametrize("height", [0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.4, 2.0])
def test_loudness(height: float, seconds: float) -> None:
    """A tone of any height and length comes out as loud as wanted, to 0.3 dB as torchaudio measures it."""
    from torchaudio.functional import loudness

    louder = sound.loudness(tone(seconds, height=height), RATE, -23.0)
    whole = louder.repeat(40)[: 2 * RATE]
    assert abs(float(loudness(whole[None], RATE)) + 23) < 0.3
    assert torch.allclose(louder / louder.abs().max(), tone(seconds) / tone(seconds).abs().max(), atol=1e-5)


def test_silence() -> None:
    """Silence, next to silence and nothing stay what they are."""
    for quiet in (torch.zeros(RATE), torch.zeros(5), torch.zeros(0), 1e-5 * torch.randn(RATE)):
        assert torch.equal(sound.loudness(quiet, RATE), quiet)


@pytest.mark.parametrize(
    ("rate", "seconds", "rounds", "samples"),
    [
        (RATE, 2.0, [(0, 1), (3, 1), (2, 0), (5, 1)] * 8, 320),
        (24000, 0.001, [(0, 1)], 320),
        (8000, 0.5, [], 320),
        (48000, 70.0, [(2, 1), (0, 1), (4, 1)] * 2000, 256),
    ],
)
def test_plot(tmp_path: Path, rate: int, seconds: float, rounds: list[tuple[int, int]], samples: int) -> None:
    """A PNG of a sane size for a sentence, a click, no rounds and a minute in 6,000 rounds; nothing is warned."""
    path = tmp_path / "a.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound.plot(tone(seconds, rate), rate, rounds, samples, path)
    with Image.open(path) as page:
        assert page.format == "PNG" and 1000 <= page.width <= 2000 and 400 <= page.height <= 1200
    assert path.stat().st_size < 2_000_000 and list(tmp_path.iterdir()) == [path]


def test_plot_colours(tmp_path: Path) -> None:
    """Rounds of three, of two without a bonus that sounds, and of one, in time: each colour in its place."""
    sound.plot(torch.full((600,), 1e-4), 100, [(2, 1), (2, 0), (0, 1)], 100, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as page:
        picture = page.convert("RGB")
    row = [picture.getpixel((x, 150)) for x in range(picture.width)]
    names = [sound.DRAFTED[0], sound.BONUS[0], sound.DRAFTED[1]]
    first, bonus, second = (
        [x for x, pixel in enumerate(row) if pixel == tuple(bytes.fromhex(name[1:]))] for name in names
    )
    last = [x for x in first + bonus if second and x > max(second)]  # the third round is dark again, its bonus alone
    first, bonus = ([x for x in part if x < min(second)] for part in (first, bonus))
    assert first and bonus and last and max(first) < min(bonus) and max(bonus) < min(second)
    for part, tokens in ((first, 2), (second, 2), (last, 1)):
        assert 0.9 * tokens < len(part) / len(bonus) < 1.1 * tokens


def test_nothing_to_plot(tmp_path: Path) -> None:
    """No sample, no plot."""
    with pytest.raises(MmspecError, match="there is no audio to plot: give at least one sample"):
        sound.plot(torch.zeros(0), RATE, [], 320, tmp_path / "a.png")
