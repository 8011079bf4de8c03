"""SNAC as seven tokens a frame: its own sound, in chunks or whole, and noise that is a function of the tokens."""

import sys
from pathlib import Path

import pytest
import torch
from codec_cases import audio, difference, random_tokens, streamed
from snac import SNAC
from tiny_speakers import SNAC_CODES, snac

from mmspec.codecs import registry
from mmspec.codecs.snac import SnacCodec, normal
from mmspec.errors import MmspecError


@pytest.fixture(scope="module")
def codec() -> SnacCodec:
    return SnacCodec(snac().double())


def orpheus_books(tokens: list[int]) -> list[torch.Tensor]:
    """Codes of the three codebooks, as Orpheus' inference code takes them from a stream of tokens."""
    frames = [
        [token - slot * SNAC_CODES for slot, token in enumerate(tokens[i : i + 7])] for i in range(0, len(tokens), 7)
    ]
    slots = ((0,), (1, 4), (2, 3, 5, 6))
    return [torch.tensor([[frame[slot] for frame in frames for slot in which]]) for which in slots]


def test_sound_is_that_of_snac() -> None:
    """parity: without noise, samples are those of SNAC's own decode, and codes those of its own encode."""
    model = snac(noise=False).double()
    plain = SnacCodec(snac(noise=False).double())
    tokens = random_tokens(plain, 30, seed=1)
    with torch.no_grad():
        wanted = model.decode(orpheus_books(tokens))[0]
        assert torch.equal(plain.decode(torch.tensor([tokens])), wanted)
        sound = audio(1, 777)
        found = plain.encode(sound, plain.sampling_rate)[0].tolist()
        assert all(map(torch.equal, orpheus_books(found), model.encode(sound[:, None])))
    assert len(wanted[0]) == 30 * plain.frame_samples and (plain.frame_tokens, plain.vocabulary_size) == (7, 112)


def test_chunks_are_the_whole(codec: SnacCodec) -> None:
    """equality: chunks, whatever their size, are the whole, noise included; each frame less of context would differ."""
    tokens = random_tokens(codec, 60, seed=2)
    for seed, most in enumerate((7, 40, 150)):
        assert difference(codec, tokens, streamed(codec, tokens, seed, most)) < 1e-12
    assert difference(codec, tokens, streamed(codec, tokens, 0, 7, hold=0)) > 1e-6
    assert torch.equal(codec.decode(torch.tensor([tokens])), codec.decode(torch.tensor([tokens])))


def test_noise_is_normal(codec: SnacCodec) -> None:
    """distribution: mean, variance and kurtosis of the noise, and that of neighbours is not alike."""
    words = torch.arange(2000, dtype=torch.int32)[None]
    noise = normal(words, 64, 1).view(2000, 64).double()
    assert abs(noise.mean()) < 0.02 and abs(noise.var() - 1) < 0.02 and abs((noise**4).mean() - 3) < 0.1
    for pair in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise * normal(words, 64, 2).view(2000, 64)):
        assert abs(pair.mean()) < 0.02
    silent = SnacCodec(snac(noise=False).double())
    tokens = torch.tensor([random_tokens(codec, 20, seed=3)])
    assert not torch.allclose(codec.decode(tokens), silent.decode(tokens))


def test_saved_and_loaded(codec: SnacCodec, tmp_path: Path) -> None:
    """round trip: our folder, and SNAC's own with `pytorch_model.bin`, by kind too."""
    tokens = torch.tensor([random_tokens(codec, 10, seed=4)])
    registry.save(codec, tmp_path / "ours")
    loaded = registry.load(tmp_path / "ours", registry.describe(codec), tmp_path)
    assert isinstance(loaded, SnacCodec) and torch.allclose(
        loaded.decode(tokens).double(), codec.decode(tokens), atol=1e-3
    )
    again = SNAC.from_config(tmp_path / "ours" / "config.json")
    again.load_state_dict(codec.model.state_dict())
    (tmp_path / "ours" / "model.safetensors").unlink()
    torch.save(again.state_dict(), tmp_path / "ours" / "pytorch_model.bin")
    assert torch.equal(SnacCodec.from_pretrained(tmp_path / "ours").decode(tokens), loaded.decode(tokens))
    SNAC.from_pretrained(str(tmp_path / "ours"))


def test_what_is_refused(codec: SnacCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of another slot, parts of frames, damaged folders, attention, and a missing package."""
    with pytest.raises(MmspecError, match="give a frame's 7 tokens in their order"):
        codec.decode(torch.tensor([[1, 0, 2, 3, 4, 5, 6]]))
    with pytest.raises(MmspecError, match="8 tokens are not whole frames of 7"):
        codec.decode(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(MmspecError, match="the audio has no samples"):
        codec.encode(torch.zeros(1, 0), 800)
    assert codec.decode(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)
    with pytest.raises(MmspecError, match="holds no SNAC that loads"):
        SnacCodec.from_pretrained(tmp_path)
    with pytest.raises(MmspecError, match="this SNAC attends within windows of 8 steps"):
        SnacCodec(snac(attn_window_size=8, encoder_dim=32, decoder_dim=128))
    monkeypatch.setitem(sys.modules, "snac", None)
    with pytest.raises(MmspecError, match=r"SNAC needs snac: pip install 'mmspec\[snac\]'"):
        SnacCodec.from_pretrained(tmp_path)
