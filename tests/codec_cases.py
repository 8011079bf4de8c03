"""Small codecs of transformers."""

import random
from functools import cache

import torch
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
from mmspec.codecs.hub import HubCodec

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
