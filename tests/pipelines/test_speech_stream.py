"""Streams of speech: chunks that join to the whole, callbacks and interruption."""

import pytest
import torch
from speech_cases import CLOSE, LONG, TEXT

from mmspec.drafters.base import Drafter
from mmspec.errors import MmspecError

pytest.importorskip("soundfile")


@pytest.mark.parametrize("piece", [0.01, 0.06, 0.2, None])
def test_chunks_join_to_the_whole(pipe, piece: float | None) -> None:
    """Chunks joined are the whole call's audio to 1e-5 of its loudest sample, whatever their size; tokens are
    the same.
    """
    whole = pipe(LONG, seed=3)
    chunks = list(pipe.stream(LONG, seed=3, piece=piece))
    joined = torch.cat([chunk.audio for chunk in chunks])
    assert chunks[-1].output.tokens == whole.tokens and torch.equal(chunks[-1].output.audio, joined)
    assert joined.shape == whole.audio.shape and (joined - whole.audio).abs().max() < CLOSE * whole.audio.abs().max()
    assert [chunk.sentence for chunk in chunks] == sorted(chunk.sentence for chunk in chunks)
    assert not any(chunk.audio.is_inference() for chunk in chunks)
    assert len(chunks) == 3 if piece is None else len(chunks) > 5


def test_chunks_without_context_differ(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with a codec that hides its right context, chunks do not join to the whole."""
    whole = pipe(LONG, seed=3).audio
    monkeypatch.setattr(pipe.codec, "context", (0, 0))
    joined = torch.cat([chunk.audio for chunk in pipe.stream(LONG, seed=3)])
    assert (joined - whole).abs().max() > 100 * CLOSE * whole.abs().max()


def test_stream_to(pipe) -> None:
    """A call can hand on its pieces as they come: none is empty, the first comes before the end, and they are the
    audio.
    """
    pieces, seen = [], []

    def hear(piece) -> None:
        pieces.append(piece)
        seen.append(pipe_tokens[-1])

    pipe_tokens = [0]
    out = pipe(LONG, seed=3, stream_to=hear, callback=lambda so_far: pipe_tokens.append(sum(map(len, so_far.tokens))))
    assert torch.equal(torch.cat(pieces), out.audio) and all(map(len, pieces))
    assert seen[0] < 60 < sum(map(len, out.tokens))


def test_two_streams_at_once(pipe) -> None:
    """Two streams of one pipeline and one drafter's name do not disturb each other."""
    one, other = pipe.stream(TEXT, seed=4), pipe.stream("And you?", seed=3)
    pairs = list(zip(one, other))
    rest = [*one, *other, *pairs[-1]]
    found = {id(chunk.output): chunk.output for chunk in rest}.values()
    wanted = [pipe(TEXT, seed=4).tokens, pipe("And you?", seed=3).tokens]
    assert sorted(output.tokens for output in found) == sorted(wanted)


def test_callback_and_interrupt(pipe) -> None:
    """The callback sees every round and can stop between two: what was verified is spoken, nothing more is begun."""
    rounds = []

    def watch(so_far) -> None:
        rounds.append(len(so_far.tokens[-1]))
        pipe.interrupt = rounds[-1] >= 10

    whole, out = pipe("Hello there. And you?", seed=4), pipe("Hello there. And you?", seed=4, callback=watch)
    assert rounds == sorted(rounds) and out.ended == ["interrupted"] and len(out.tokens) == 1
    assert 10 <= len(out.tokens[0]) == rounds[-1] < len(whole.tokens[0])
    assert out.tokens[0] == whole.tokens[0][: rounds[-1]] and len(out.audio) == 256 * rounds[-1]
    assert pipe("Hello there. And you?", seed=4).tokens == whole.tokens


def test_leaving_a_stream(pipe) -> None:
    """A stream may be interrupted or closed between chunks; the next call is whole."""
    whole = pipe(LONG, seed=3)
    chunks = []
    for chunk in pipe.stream(LONG, seed=3):
        chunks.append(chunk)
        pipe.interrupt = True
    assert len(chunks) == 2 and chunks[-1].output.ended == ["interrupted"]
    assert whole.tokens[0][: len(chunks[-1].output.tokens[0])] == chunks[-1].output.tokens[0]
    other = pipe.stream(LONG, seed=3)
    next(other)
    other.close()
    assert pipe(LONG, seed=3).tokens == whole.tokens


def test_interrupt_at_the_end_hides_nothing(pipe) -> None:
    """An interrupt that comes with a sentence's last token leaves why it ended."""

    known = pipe(TEXT, seed=4).tokens[0]

    def watch(so_far) -> None:
        pipe.interrupt = so_far.tokens[0] == known

    assert pipe(TEXT, seed=4, drafter=Knows(known, pipe.end), callback=watch).ended == ["end"]


class Knows(Drafter):
    """A drafter that guesses all of the rest in one round."""

    name = "knows"

    def __init__(self, tokens: list[int], end: int):
        self.answer, self.max_nodes = [*tokens, end], len(tokens) + 1

    def draft(self, state, noise, limit):
        from mmspec.engine.tree import chain

        count = state.counts[0]
        return chain(state.roots, torch.tensor([self.answer[count : count + limit]]))

    def observe(self, state, tree, verdict, keys) -> None: ...


@pytest.mark.parametrize("piece", [0, -1.0, "long"])
def test_piece_is_checked(pipe, piece) -> None:
    with pytest.raises(
        MmspecError, match=f"piece={piece}: give the seconds of a chunk, more than 0, or None for whole sentences"
    ):
        pipe.stream(TEXT, piece=piece)


def test_pieces_wait_for_their_context(pipe) -> None:
    """The first piece of a sentence has its right context and 0.3 s of speech, later ones 0.6 s; shorter ones are as
    short as asked.
    """
    right, second = pipe.codec.context[1], 22050 / 256
    assert pipe.min_tokens_for_chunk(0) == right + round(0.3 * second) and pipe.min_tokens_for_chunk(40) == round(
        0.6 * second
    )
    assert (
        pipe.min_tokens_for_chunk(0, 0.1) == right + round(0.1 * second) and pipe.min_tokens_for_chunk(40, 0.001) == 1
    )
    lengths = [
        len(chunk.audio) / 22050
        for chunk in pipe.stream("Hello there, how are you this morning?", seed=3, temperature=0.0)
    ]
    assert 0.28 < lengths[0] < 0.5 and all(0.6 - 0.2 < length < 0.85 for length in lengths[1:-1]) and len(lengths) > 2
