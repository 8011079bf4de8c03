"""Sentences: how text is cut, and how each of them ends."""

import random
import sys
import warnings

import pytest
import torch
from speech_cases import LONG, TEXT

from mmspec.errors import MmspecError
from mmspec.targets.speech import SpeechTarget

pytest.importorskip("soundfile")

pytestmark = pytest.mark.slow


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch):
    """Make the model say one token only, after prompts of `prompt` tokens if given."""

    def call(token: int, prompt: int | None = None) -> None:
        honest = SpeechTarget.guide

        def guide(self, state, logits, places):
            mixed = honest(self, state, logits, places)
            if prompt not in (None, len(state.prompt_ids[0])):
                return mixed
            return mixed.masked_fill(torch.arange(self.vocabulary_size) != token, -torch.inf)

        monkeypatch.setattr(SpeechTarget, "guide", guide)

    return call


def test_long_text(pipe) -> None:
    """Sentences are joined with their pauses, which are silent: 0.35 s, 0.7 s after a paragraph, none at the end."""
    out = pipe(LONG, seed=3)
    pauses = [round(pause * 22050) for pause in (0.35, 0.7, 0)]
    assert [round(one.pause * 22050) for one in out.sentences] == pauses
    at = 0
    for tokens, pause, seed, sentence in zip(out.tokens, pauses, out.seeds, out.sentences):
        said = out.audio[at : at + len(tokens) * 256]
        assert torch.equal(said, pipe(sentence.text, seed=seed).audio)
        at += len(said)
        assert not out.audio[at : at + pause].any()
        at += pause
    assert at == len(out.audio)


def test_endless_sentence(pipe) -> None:
    """A sentence with more phonemes than the model has positions for is cut into parts that fit, and all of it
    is read.
    """
    text = "This sentence, which is long, goes on and on, as some do, " * 6 + "and ends."
    pipe.phonemizer.read(text)
    parts = pipe.phonemizer.read(text).sentences
    assert len(parts) > 2 and " ".join(one.text for one in parts) == text
    longest = max(parts, key=lambda one: len(one.phonemes)).phonemes
    prompt = pipe.encode([longest], "ada")
    pipe.target.prefill(prompt, pipe.longest(longest) + 65, False)


def test_characters_that_cannot_be_said(pipe) -> None:
    """They are named in a warning and in the output; the rest is said."""
    with pytest.warns(UserWarning, match="left out what cannot be said: '日', '本'"):
        assert pipe("Hello 日本 there.", seed=4).unsaid == ["日", "本"]


def test_length_is_reported(pipe) -> None:
    """A random model that never ends is stopped after the longest duration for the text, and the warning says so."""
    with pytest.warns(
        UserWarning, match=r"sentence 1 did not end by itself \(length\): 'Hello there.'; try another seed"
    ):
        out = pipe(TEXT, temperature=0.0)
    assert out.ended == ["length"] and len(out.tokens[0]) == pipe.longest(out.sentences[0].phonemes)


def test_end_is_reported(pipe) -> None:
    """The negative control: a sentence that ends by itself is not warned of, and its end token is no part of its
    tokens.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = pipe(TEXT, seed=4)
    assert out.ended == ["end"] and out.stats.tokens == len(out.tokens[0]) + 1


@pytest.mark.parametrize("drafter", ["none", "jacobi"])
@pytest.mark.parametrize("why", ["silence", "loop"])
def test_stall_ends_a_sentence(pipe, force, monkeypatch, why: str, drafter: str) -> None:
    """Two seconds of silence, or of a loop, end a sentence at the same token with any drafter, and are reported."""
    force(7)
    monkeypatch.setattr(pipe, "silence", frozenset({7} if why == "silence" else ()))
    with pytest.warns(UserWarning, match=rf"did not end by itself \({why}\)"):
        out = pipe("Hello there, how are you this morning, and how is your old mother today?", drafter=drafter, seed=1)
    assert out.ended == [why] and out.tokens == [[7] * 172]


def test_stalled(pipe, monkeypatch) -> None:
    """Silence and loops in the last two seconds (172 tokens) are found, whatever came before; less, or one token else,
    is none.
    """
    monkeypatch.setattr(pipe, "silence", frozenset({1, 2}))
    dice = random.Random(0)
    speech = [dice.randrange(3, 32) for _ in range(300)]
    quiet = [dice.choice([1, 2]) for _ in range(172)]
    assert pipe.stall.reason(quiet) == pipe.stall.reason(speech + quiet) == "silence"
    assert pipe.stall.reason([1] * 172) == "silence" and pipe.stall.reason([3] * 172) == "loop"
    for period in (1, 2, 5, 57):
        unit = list(range(3, 3 + period)) if period < 57 else speech[:57]
        assert (
            pipe.stall.reason((unit * 180)[: 172 + period // 2])
            == pipe.stall.reason(speech + (unit * 180)[:172])
            == "loop"
        )
    assert [pipe.stall.reason(speech[:count]) for count in (0, 1, 171, 172, 300)] == [""] * 5
    for tokens in (
        quiet[:171],
        [3] * 171,
        [*quiet, 3],
        [*quiet[:40], 3, *quiet[40:-1]],
        [3] * 86 + [4] + [3] * 85,
        speech[:58] * 3,
    ):
        assert pipe.stall.reason(tokens) == ""
    monkeypatch.setattr(pipe, "silence", frozenset())
    assert pipe.stall.reason(quiet) == ""


@pytest.mark.parametrize("call", [lambda pipe: pipe(TEXT, seed=6), lambda pipe: next(pipe.stream(TEXT, seed=6))])
def test_empty_speech_is_an_error(pipe, force, call) -> None:
    """A model that ends at once said nothing: an error, streamed (before any chunk) or not."""
    force(pipe.end)
    with pytest.raises(
        MmspecError, match="the model said nothing for 'Hello there.' with seed 6: try another seed or a longer text"
    ):
        call(pipe)


def test_empty_sentence_is_reported(pipe, force) -> None:
    """One sentence of two that is empty is warned of, and the other is said after its pause."""
    sentences = pipe.phonemizer.read("Hello there. And you?").sentences
    force(pipe.end, prompt=len(pipe.encode([sentences[0].phonemes], "ada").conditional[0]))
    with pytest.warns(UserWarning, match="sentence 1 came out empty: 'Hello there.'; try another seed"):
        out = pipe("Hello there. And you?", seed=3)
    assert out.tokens[0] == [] and len(out.tokens[1]) > 3 and out.ended[0] == "end"
    assert len(out.audio) == round(0.35 * 22050) + 256 * len(out.tokens[1])


def test_missing_library(pipe, monkeypatch) -> None:
    """Without hibari the extra that brings it is named."""
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.delitem(pipe.__dict__, "phonemizer", raising=False)
    with pytest.raises(MmspecError, match=r"reading text needs hibari: pip install 'mmspec\[speech\]'"):
        pipe(TEXT)
