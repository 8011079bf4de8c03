"""Sound as clients take it: resampled in chunks, compressed, and a WAV that knows its length."""

import io
import wave

import numpy as np
import pytest
import torch

from mmspec.media import audio as sound

soundfile = pytest.importorskip("soundfile")
torchaudio = pytest.importorskip("torchaudio")

RATE = 16000


def tone() -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * 220 * torch.arange(RATE) / RATE)


@pytest.mark.parametrize(
    ("rate", "new"), [(22050, 24000), (24000, 24000), (44100, 24000), (48000, 24000), (16000, 24000)]
)
def test_resampled_chunks_join_to_the_whole(rate: int, new: int) -> None:
    """However sound is cut, its chunks are the resampled whole, up to rounding of floats."""
    generator = torch.Generator().manual_seed(0)
    audio = torch.rand(5003, generator=generator) * 2 - 1
    wanted = torchaudio.functional.resample(audio, rate, new)
    for sizes in ([5003], [1] * 5003, [700, 0, 3, 1300, 2999, 1], [146, 148, 4709]):
        resampler = sound.Resampler(rate, new)
        found = torch.cat([*map(resampler.push, audio.split(sizes)), resampler.flush()])
        assert len(found) == len(wanted) and torch.allclose(found, wanted, atol=1e-6)
    assert len(sound.Resampler(rate, new).flush()) == 0


@pytest.mark.parametrize(("kind", "container"), [("MP3", "MP3"), ("OPUS", "OGG")])
def test_compressed_kinds(kind: str, container: str) -> None:
    """Files that libsndfile reads back, of the right length and sound."""
    with soundfile.SoundFile(io.BytesIO(sound.encode(tone(), RATE, kind, {"seed": 3}))) as file:
        assert file.format == container
        samples, seconds = file.read(), len(file) / file.samplerate
    assert abs(seconds - len(tone()) / RATE) < 0.1
    middle = samples[len(samples) // 4 : len(samples) * 3 // 4]  # codecs ring at the ends
    assert abs(float(np.abs(middle).max()) - float(tone().abs().max())) < 0.03


def test_a_pipe_that_knows_its_length() -> None:
    """A WAV whose samples are told says how long it is."""
    out = io.BytesIO()
    sound.Pipe(out, RATE, samples=len(tone())).write(tone())
    with wave.open(io.BytesIO(out.getvalue())) as file:
        assert file.getnframes() == len(tone()) and len(file.readframes(10**6)) == 2 * len(tone())
