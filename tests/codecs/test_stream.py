"""Streams of audio whose chunks join to the whole."""

import pytest
import torch
from codec_cases import Sums, codec, difference, random_tokens, streamed
from hypothesis import given, settings
from hypothesis import strategies as st

from mmspec.codecs.base import StreamDecoder

# Greatest difference between joined chunks and the whole, relative to the greatest sample, in fp64.
CLOSE = {"mimi": 1e-4, "dac": 1e-12, "encodec": 1e-9, "encodec two-sided": 1e-9}


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
