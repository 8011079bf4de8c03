"""The codec over mel spectrograms: whole frames and streams."""

import random

import pytest
import torch
from codec_cases import audio, difference, streamed

from mmspec.codecs.base import Codec
from mmspec.errors import MmspecError


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("samples", [0, 1, 200, 256, 257, 385, 1000, 5000])
def test_mel_codec_has_whole_frames(stride: int, samples: int) -> None:
    """Any audio, however short, is its whole frames of tokens and back; nothing is nothing; other tokens are
    refused.
    """
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


@pytest.mark.slow
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
