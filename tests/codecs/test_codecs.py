"""Codecs: tokens of whole frames, parity with transformers, and streams whose chunks are the whole."""

import random
from functools import cache

import pytest
import torch
import torchaudio
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2Model,
)

from mmspec.codecs.base import Codec, StreamDecoder
from mmspec.codecs.hub import FAMILIES, HubCodec, Xcodec2
from mmspec.errors import MmspecError

CAUSAL = dict(hidden_size=16, num_filters=4, upsampling_ratios=[4, 2], codebook_size=32)


def mimi(**options) -> MimiModel:
    shape = dict(
        num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32, upsample_groups=16
    )
    codes = dict(codebook_dim=8, vector_quantization_hidden_dimension=8, num_quantizers=3)
    return MimiModel(
        MimiConfig(
            sampling_rate=1600,
            sliding_window=32,
            layer_scale_initial_scale=0.1,
            initializer_range=0.25,
            **CAUSAL,
            **shape,
            **codes,
            **options,
        )
    )


def dac() -> DacModel:
    """Its stride 5 is odd, as that of the 24 kHz model."""
    sizes = dict(encoder_hidden_size=4, decoder_hidden_size=16, n_codebooks=3, codebook_size=32, codebook_dim=4)
    return DacModel(DacConfig(sampling_rate=1000, downsampling_ratios=[2, 5], **sizes))


def encodec(**options) -> EncodecModel:
    return EncodecModel(EncodecConfig(**dict(sampling_rate=400, target_bandwidths=(0.25, 0.75), **CAUSAL) | options))


def xcodec2() -> Xcodec2Model:
    small = dict(num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    semantic = Wav2Vec2BertConfig(hidden_size=16, output_hidden_size=16, conv_depthwise_kernel_size=3, **small)
    sizes = dict(hidden_size=64, head_dim=32, num_key_value_heads=2, encoder_hidden_size=2, quantization_dim=80)
    return Xcodec2Model(Xcodec2Config(semantic_model_config=semantic, quantization_levels=[4, 4, 4], **sizes, **small))


MODELS = {
    "mimi": mimi,
    "dac": dac,
    "encodec": encodec,
    "encodec two-sided": lambda: encodec(use_causal_conv=False),  # as the 32 kHz model
    "xcodec2": xcodec2,
}
KINDS = pytest.mark.parametrize("kind", MODELS)

# Greatest difference between joined chunks and the whole, relative to the greatest sample, in fp64.
CLOSE = {"mimi": 1e-4, "dac": 1e-12, "encodec": 1e-9, "encodec two-sided": 1e-9}


@cache
def model(kind: str, dtype: torch.dtype = torch.float64):
    """A random model whose codebooks and convolutions are large enough that every frame is heard."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = MODELS[kind]()
        for name, value in [*made.named_parameters(), *made.named_buffers()]:
            if name.endswith(("embed", "embed_sum", "codebook.weight")):
                torch.nn.init.normal_(value)
            elif kind == "xcodec2" and name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.1)
            elif kind in ("dac", "xcodec2") and value.dim() > 1 and name.endswith("weight"):
                torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return made.to(dtype).eval()


def codec(kind: str, **options) -> HubCodec:
    return HubCodec(model(kind), **options)


def audio(rows: int, samples: int) -> Tensor:
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(samples), dtype=torch.float64) / 4


def random_tokens(codec: HubCodec, frames: int, seed: int) -> list[int]:
    rng, codes = random.Random(seed), codec.vocabulary_size // codec.frame_tokens
    return [rng.randrange(codes) + book * codes for _ in range(frames) for book in range(codec.frame_tokens)]


def streamed(codec: Codec, tokens: list[int], seed: int, most: int, hold: int | None = None) -> Tensor:
    """Joined chunks of random sizes, from one token up."""
    decoder, rng, chunks, rest = StreamDecoder(codec, hold), random.Random(seed), [], tokens
    while rest:
        size = rng.choice([1, rng.randint(1, most)])
        chunks.append(decoder.push(rest[:size]))
        rest = rest[size:]
    return torch.cat([*chunks, decoder.flush()])


def difference(codec: Codec, tokens: list[int], chunks: Tensor) -> float:
    """Greatest difference from the whole, relative to its greatest sample."""
    whole = codec.decode(torch.tensor([tokens]))[0]
    assert chunks.shape == whole.shape
    return float((chunks - whole).abs().max() / whole.abs().max())


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


@pytest.mark.parametrize("kind", CLOSE)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 130))
def test_stream_equals_whole(kind: str, seed: int, frames: int) -> None:
    """Chunks of random sizes join to the whole, up to the stated difference."""
    it = codec(kind)
    tokens = random_tokens(it, frames, seed)
    assert difference(it, tokens, streamed(it, tokens, seed, 20 * it.frame_tokens)) < CLOSE[kind]


@pytest.mark.parametrize("kind", CLOSE)
def test_stream_without_context_differs(kind: str) -> None:
    """The negative control: no left context and no hold."""
    it = codec(kind, context=(0, 0))
    tokens = random_tokens(it, 40, 0)
    assert difference(it, tokens, streamed(it, tokens, 0, 20)) > 100 * CLOSE[kind]


def test_stream_without_hold_differs() -> None:
    """The negative control of the right context: samples that do not wait for it."""
    it = codec("dac")
    tokens = random_tokens(it, 40, 0)
    assert difference(it, tokens, streamed(it, tokens, 0, 20, hold=0)) > 1e-2


def test_stream_of_xcodec2() -> None:
    """Its decoder hears all frames: the whole comes at the end; with less context chunks come sooner and are others."""
    it, decoder = codec("xcodec2"), StreamDecoder(codec("xcodec2"))
    tokens = random_tokens(it, 60, 0)
    assert len(decoder.push(tokens)) == 0 and difference(it, tokens, decoder.flush()) == 0
    near = codec("xcodec2", context=(20, 5))
    assert len(StreamDecoder(near).push(tokens)) == 55 * 320
    assert difference(near, tokens, streamed(near, tokens, 0, 20)) > 1e-2


@pytest.mark.parametrize("kind", CLOSE)
def test_context(kind: str) -> None:
    """A changed frame is heard in the frames whose context it is in, and beyond them no louder than the stated
    difference.
    """
    it = codec(kind)
    before, after = it.context
    place, frames = after + 2, before + after + 12
    tokens = torch.tensor([random_tokens(it, frames, 0)])
    other = tokens.clone()
    other[0, place * it.frame_tokens] = (other[0, place * it.frame_tokens] + 7) % 32
    change = (it.decode(tokens) - it.decode(other)).view(frames, -1).abs().amax(1) / it.decode(tokens).abs().max()
    assert change[: place - after].max() < CLOSE[kind] and change[place + before + 1 :].max() < CLOSE[kind]
    if kind == "dac":
        assert change[place - after] > 0 and change[place + before] > 0, "its context is exact"


class Sums:
    """A codec whose sample is the sum of the tokens from two frames before to one after; it counts the frames it
    decodes.
    """

    sampling_rate, vocabulary_size, frame_tokens, frame_samples, context = 8, 100, 2, 3, (2, 1)

    def __init__(self):
        self.longest = 0

    def encode(self, audio: Tensor, sampling_rate: int) -> Tensor:
        raise NotImplementedError

    def to(self, device: torch.device) -> "Sums":
        return self

    def decode(self, tokens: Tensor) -> Tensor:
        frames = tokens.view(len(tokens), -1, 2).sum(2).float()
        self.longest = max(self.longest, frames.shape[1])
        padded, count = torch.nn.functional.pad(frames, (2, 1)), frames.shape[1]
        return sum(padded[:, i : i + count] for i in range(4)).repeat_interleave(3, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=7), max_size=12), st.integers(1, 3))
def test_stream_window(chunks: list[list[int]], hold: int) -> None:
    """Any chunks, empty ones too: exact; no pass takes more than both contexts and the new frames; a last half frame is
    dropped.
    """
    it = Sums()
    decoder, tokens = StreamDecoder(it, hold), [token for chunk in chunks for token in chunk]
    joined = torch.cat([*map(decoder.push, chunks), decoder.flush()])
    assert it.longest <= 2 + hold + 4
    assert torch.equal(joined, it.decode(torch.tensor([tokens[: len(tokens) // 2 * 2]], dtype=torch.long))[0])


def test_stream_waits_and_starts_anew() -> None:
    """Samples come when their right context has; flush gives the rest once; the next push begins another row."""
    decoder = StreamDecoder(Sums())
    assert [len(decoder.push([token])) for token in (1, 2, 3, 4, 5)] == [0, 0, 0, 3, 0]
    assert decoder.flush().tolist() == [10, 10, 10]
    assert len(decoder.flush()) == 0
    assert len(decoder.push([1, 2])) == 0 and decoder.flush().tolist() == [3, 3, 3]
    assert StreamDecoder(Sums(), hold=0).push([1, 2]).tolist() == [3, 3, 3]
    assert len(decoder.push([1])) == 0 and len(decoder.flush()) == 0


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
        match="^token 64 at place 4 is not in codebook 1, whose tokens are 32 to 63: give the tokens of a frame in codebook order$",
    ):
        it.decode(tokens)
    for wrong in (-1, 32, 96):
        with pytest.raises(MmspecError, match=f"^token {wrong} at place 0 "):
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


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("samples", [0, 1, 200, 256, 257, 385, 1000, 5000])
def test_mel_codec_has_whole_frames(stride: int, samples: int) -> None:
    """Any audio, however short, is its whole frames of tokens and back; nothing is nothing; other tokens are refused."""
    from mmspec.codecs.mel import MelCodec

    torch.manual_seed(0)
    it = MelCodec(width=8, code_width=4, codes=16, stride=stride, dilations=(1,), vocoder_width=32)
    assert isinstance(it, Codec)
    tokens = it.encode(audio(2, samples).float(), 22050)
    assert tokens.shape == (2, -(-samples // (256 * stride)))
    assert it.decode(tokens).shape == (2, tokens.shape[1] * 256 * stride)
    if samples == 257:
        with pytest.raises(MmspecError, match="tokens must be from 0 to 15: give those of this codec"):
            it.decode(tokens + 16)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilations", [(1,), (1, 3)])
def test_mel_codec_streams(stride: int, dilations: tuple[int, ...]) -> None:
    """Chunks joined are the whole to 1e-9 (fp64); with one frame less of right context they are not."""
    from mmspec.codecs.mel import MelCodec

    torch.manual_seed(0)
    it = MelCodec(width=8, code_width=4, codes=16, stride=stride, dilations=dilations, vocoder_width=32).double().eval()
    for weight in (*it.decoder.parameters(), *it.vocoder.parameters()):
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    tokens = random.Random(0).choices(range(16), k=150)
    assert difference(it, tokens, streamed(it, tokens, 1, 40)) < 1e-9
    few = it.context[1] // 3
    assert difference(it, tokens, streamed(it, tokens, 1, 40, hold=few)) > 1e-9
