"""Codecs of transformers: tokens of whole frames, and parity with transformers."""

import pytest
import torch
import torchaudio
import transformers
from codec_cases import MODELS, Sums, audio, codec, encodec, model, random_tokens, streamed
from transformers import (
    Wav2Vec2BertConfig,
)

from mmspec.codecs.base import Codec, StreamDecoder
from mmspec.codecs.hub import FAMILIES, HubCodec, Xcodec2
from mmspec.errors import MmspecError

KINDS = pytest.mark.parametrize("kind", MODELS)


@KINDS
def test_round_trip(kind: str) -> None:
    """Audio of three frames and a bit is four whole frames of tokens in their codebooks, and four frames of samples;
    rows are alone.
    """
    it = codec(kind)
    assert isinstance(it, Codec)
    tokens = it.encode(audio(2, 3 * it.frame_samples + it.frame_samples // 2), it.sampling_rate)
    assert tokens.shape == (2, 4 * it.frame_tokens) and len(tokens.unique()) > 2
    books = tokens.view(2, 4, it.frame_tokens) // (it.vocabulary_size // it.frame_tokens)
    assert (books == torch.arange(it.frame_tokens)).all()
    sound = it.decode(tokens)
    assert sound.shape == (2, 4 * it.frame_samples) and sound.dtype == torch.float64 and not sound.requires_grad
    torch.testing.assert_close(sound[1:], it.decode(tokens[1:]), rtol=1e-9, atol=1e-9)


@KINDS
def test_parity_with_transformers(kind: str) -> None:
    """Codes and samples are those of the model's own forward pass."""
    it, given_audio = codec(kind), audio(2, 5 * codec(kind).frame_samples - 1)
    inputs = {"input_values": torch.nn.functional.pad(given_audio, (0, 1))[:, None]}
    if kind.startswith("encodec"):
        inputs["bandwidth"] = it.model.config.target_bandwidths[-1]
    if kind == "xcodec2":
        extract = transformers.Xcodec2FeatureExtractor(sampling_rate=it.sampling_rate, hop_length=it.frame_samples)
        inputs = extract(list(given_audio.float()), sampling_rate=it.sampling_rate, return_tensors="pt")
        inputs = {name: inputs[name].double() for name in ("input_values", "input_features")}
    with torch.no_grad():
        out = it.model(**inputs)
    tokens = it.encode(given_audio, it.sampling_rate)
    codes = out.audio_codes[0] if kind.startswith("encodec") else out.audio_codes
    offsets = torch.arange(it.frame_tokens)[:, None] * (it.vocabulary_size // it.frame_tokens)
    assert torch.equal(tokens.view(2, 5, it.frame_tokens).mT, codes + offsets)
    wanted = out.audio_values.flatten(1)
    torch.testing.assert_close(it.decode(tokens)[:, : wanted.shape[1]], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mimi", "dac", "encodec"])
def test_first_codebooks(kind: str) -> None:
    """`codebooks` takes the first tokens of every frame, and decodes them as the model decodes so many codes."""
    it, two = codec(kind), codec(kind, codebooks=2)
    assert two.vocabulary_size == 64 and two.frame_tokens == 2
    tokens = two.encode(audio(1, 40), it.sampling_rate)
    assert torch.equal(tokens, it.encode(audio(1, 40), it.sampling_rate).view(1, -1, 3)[:, :, :2].flatten(1))
    codes = tokens.view(1, -1, 2).mT - torch.tensor([[0], [32]])
    with torch.no_grad():
        wanted = (
            it.model.decode(codes[None], [None]) if kind == "encodec" else it.model.decode(audio_codes=codes)
        ).audio_values.flatten(1)
    torch.testing.assert_close(two.decode(tokens)[:, : wanted.shape[1]], wanted)


@KINDS
def test_short_audio_is_heard(kind: str) -> None:
    """One sample is one frame of tokens; one frame of tokens, pushed or flushed, is its samples."""
    it = codec(kind)
    tokens = it.encode(audio(1, 1), it.sampling_rate)
    assert tokens.shape == (1, it.frame_tokens)
    sound = it.decode(tokens)[0]
    assert len(sound) == it.frame_samples and sound.abs().max() > 0
    assert torch.equal(streamed(it, tokens[0].tolist(), 0, 1), sound)
    assert it.decode(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)


def test_resamples() -> None:
    """Audio at another rate is resampled first, for a model of half precision too."""
    it, wave = codec("dac"), audio(1, 200)
    resampled = torchaudio.functional.resample(wave, 4000, it.sampling_rate)
    assert torch.equal(it.encode(wave, 4000), it.encode(resampled, it.sampling_rate))
    half = HubCodec(model("dac", torch.bfloat16))
    assert half.decode(half.encode(wave.float(), 4000)).shape == (1, 50)


@KINDS
def test_from_pretrained(kind: str, tmp_path) -> None:
    """A saved model loads by its model_type and decodes the same."""
    it = codec(kind)
    it.model.save_pretrained(tmp_path)
    loaded = HubCodec.from_pretrained(tmp_path, codebooks=1, dtype=torch.float64)
    assert type(loaded.family) is FAMILIES[it.model.config.model_type] and loaded.frame_tokens == 1
    tokens = torch.tensor([random_tokens(loaded, 3, 0)])
    torch.testing.assert_close(loaded.decode(tokens), codec(kind, codebooks=1).decode(tokens))


def test_refuses_tokens() -> None:
    """Part of a frame, and a token of another codebook, by its place."""
    it = codec("mimi")
    with pytest.raises(MmspecError, match="^4 tokens are not whole frames of 3: give a multiple of 3$"):
        it.decode(torch.tensor([[0, 32, 64, 1]]))
    tokens = torch.tensor([[0, 32, 64, 1, 33, 65], [0, 32, 64, 1, 64, 65]])
    with pytest.raises(
        MmspecError,
        match="^token 64 at position 4 is not in codebook 1, whose tokens are 32 to 63: "
        "give the tokens of a frame in codebook order$",
    ):
        it.decode(tokens)
    for wrong in (-1, 32, 96):
        with pytest.raises(MmspecError, match=f"^token {wrong} at position 0 "):
            it.decode(torch.tensor([[wrong, 32, 64]]))


def test_refuses_options() -> None:
    """Codebooks that the model has not, a negative hold, audio without samples."""
    for wrong in (0, 4, -1):
        with pytest.raises(
            MmspecError, match=f"^codebooks is {wrong}, and this MimiModel has 3: take 1 to all of them$"
        ):
            codec("mimi", codebooks=wrong)
    with pytest.raises(MmspecError, match="^hold is -1: give the frames of right context to wait for, 0 or more$"):
        StreamDecoder(Sums(), hold=-1)
    with pytest.raises(MmspecError, match="^the audio has no samples: give at least one$"):
        codec("mimi").encode(torch.zeros(1, 0), 8000)


def test_refuses_models(tmp_path, monkeypatch) -> None:
    """Stereo, scaled audio, another model, a class that transformers has not, and no model at all."""
    with pytest.raises(MmspecError, match="^this EncodecModel has 2 audio channels: use a codec of one channel$"):
        HubCodec(encodec(audio_channels=2))
    for option in ({"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.1}, {"norm_type": "time_group_norm"}):
        with pytest.raises(
            MmspecError,
            match="^this EncodecModel scales or normalises whole pieces of audio .* use one such as facebook",
        ):
            HubCodec(encodec(**option))
    Wav2Vec2BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        MmspecError, match="^unknown codec model_type 'wav2vec2-bert': known are dac, encodec, mimi, xcodec2$"
    ):
        HubCodec.from_pretrained(tmp_path)
    monkeypatch.setattr(Xcodec2, "kind", "Xcodec9Model")
    with pytest.raises(MmspecError, match="^transformers .* has no Xcodec9Model: pip install --upgrade transformers$"):
        codec("xcodec2")
    with pytest.raises(MmspecError, match="^no codec .*nowhere .*: give a folder or a hub id of a codec$"):
        HubCodec.from_pretrained(tmp_path / "nowhere")
