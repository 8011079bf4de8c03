"""Text to speech: equal tokens with every drafter, chunks, voices, seeds, pauses, endings, saving, and what is refused."""

import json
import random
import shutil
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import llama
from transformers import DacConfig, DacModel

import mmspec
from mmspec import drafters, zoo
from mmspec.codecs.hub import HubCodec
from mmspec.codecs.mel import MelCodec
from mmspec.drafters.base import Drafter
from mmspec.drafters.jacobi import JacobiDrafter
from mmspec.drafters.none import NoDrafter
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.engine.loop import generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.targets.speech import SpeechTarget
from mmspec.train.capture import read_features

soundfile = pytest.importorskip("soundfile")

TEXT, LONG = "Hello there.", "Hello there, how are you? I am fine.\n\nAnd you?"

# Greatest difference between joined chunks and the whole, relative to the loudest sample: the codec decodes in float32.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def pipe(speech_folder: Path) -> TextToSpeechPipeline:
    return mmspec.pipeline("text-to-speech", str(speech_folder), device="cpu", dtype="fp64")


@pytest.fixture
def copy(speech_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(speech_folder, tmp_path / "model"))


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Random models hardly ever end by themselves; tests of the warning catch it again."""
    warnings.filterwarnings("ignore", "sentence . (did not end|came out empty)")


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


def test_output(pipe) -> None:
    """One entry of everything for each sentence; the tokens, without the end, are codes; samples are finite, and
    ordinary tensors.
    """
    out = pipe(LONG, seed=3)
    assert [one.text for one in out.sentences] == ["Hello there, how are you?", "I am fine.", "And you?"]
    assert len(out.tokens) == len(out.stats) == len(out.ended) == len(out.seeds) == 3
    assert all(0 <= token < 32 for row in out.tokens for token in row)
    assert out.sampling_rate == 22050 and out.audio.dtype == torch.float32 and out.audio.isfinite().all()
    assert out.seconds == len(out.audio) / 22050 and 0 < out.first_audio < 60 and out.unsaid == []
    assert out.audio.std() > 1e-3 and not out.audio.is_inference()
    assert out.total.lossless and out.total.drafter == "jacobi" and out.total.acceptance == "exact"


@pytest.fixture(scope="module")
def plain(pipe):
    """What plain decoding says."""
    return cache(
        lambda temperature, penalty: (
            pipe(TEXT, seed=4, drafter="none", temperature=temperature, repetition_penalty=penalty).tokens
        )
    )


@pytest.mark.parametrize("name", ["lookup", "jacobi", "vadusa", "sparse vadusa"])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_equality(pipe, plain, name: str, temperature: float, penalty: float) -> None:
    """The same seed gives the tokens of plain decoding with every drafter, with and without a repetition penalty
    (fp64).
    """
    option, _, kind = name.rpartition(" ")
    drafter = drafters.load(kind, pipe.folder, pipe.target, **{option: 1}) if option else name
    found = pipe(TEXT, seed=4, drafter=drafter, temperature=temperature, repetition_penalty=penalty)
    assert found.tokens == plain(temperature, penalty) and found.total.lossless
    assert found.total.drafter == name.split()[-1] and len(found.tokens[0]) > 20


def test_equality_could_fail(pipe, plain) -> None:
    """The negative control: another seed, penalty, temperature or a lossy rule says something else; drafts were
    accepted.
    """
    wanted = plain(1.0, 1.0)
    assert len({str(tokens) for tokens in (wanted, plain(0.0, 1.0), plain(0.8, 1.0), plain(1.0, 1.5))}) == 4
    assert pipe(TEXT, seed=5).tokens != wanted
    assert pipe(TEXT, seed=4, drafter="vadusa", acceptance="tolerance:5").tokens != wanted
    for drafter in ("jacobi", "vadusa"):
        assert pipe(TEXT, seed=4, drafter=drafter).total.mean_acceptance_length > 1.5


def test_sampling_options(pipe) -> None:
    """top-k and top-p reach the law: one token left is greedy decoding."""
    greedy = pipe(TEXT, temperature=0.0, seed=1).tokens
    assert pipe(TEXT, seed=4, top_k=1).tokens == pipe(TEXT, seed=4, top_p=1e-6).tokens == greedy


@pytest.mark.parametrize("piece", [0.01, 0.06, 0.2, None])
def test_chunks_join_to_the_whole(pipe, piece: float | None) -> None:
    """Chunks joined are the whole call's audio to 1e-5 of its loudest sample, whatever their size; tokens are the same."""
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


def test_voices(pipe) -> None:
    """Voices speak differently, the first one unless told; an unknown voice is named with its near matches."""
    ada, ben = (pipe(TEXT, seed=4, voice=voice).tokens for voice in ("ada", "ben"))
    assert ada != ben and ada == pipe(TEXT, seed=4).tokens
    with pytest.raises(MmspecError, match="unknown voice 'bne': did you mean 'ben'"):
        pipe(TEXT, voice="bne")
    with pytest.raises(MmspecError, match="unknown voice ''"):
        pipe(TEXT, voice="")


def test_seeds(pipe) -> None:
    """Sentence i has seed + i, alone as in a text; a list gives each its own; without one, torch's own generator draws."""
    text = "Hello there. And you?"
    out = pipe(text, seed=4)
    assert out.seeds == [4, 5] and out.tokens == pipe(TEXT, seed=4).tokens + pipe("And you?", seed=5).tokens
    assert pipe(text, seed=[4, 5]).tokens == out.tokens != pipe(text, seed=[5, 4]).tokens
    torch.manual_seed(4)
    drawn = pipe("And you?")
    torch.manual_seed(4)
    again = pipe("And you?")
    assert drawn.seeds == again.seeds and drawn.tokens == again.tokens == pipe("And you?", seed=drawn.seeds[0]).tokens


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
    """A sentence with more phonemes than the model has positions for is cut into parts that fit, and all of it is read."""
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
    assert out.ended == ["end"] and out.stats[0].tokens == len(out.tokens[0]) + 1


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


def test_stats_sum(pipe) -> None:
    """The total counts every sentence: tokens, rounds, nodes and seconds add up; drafter and rule are theirs."""
    out = pipe(LONG, seed=3)
    total = out.total
    assert total.tokens == sum(one.tokens for one in out.stats) and total.nodes == sum(one.nodes for one in out.stats)
    assert total.rounds == sum(one.rounds for one in out.stats) > max(one.rounds for one in out.stats)
    for name in ("prefill", "draft", "target", "accept", "total"):
        assert getattr(total, name) == pytest.approx(sum(getattr(one, name) for one in out.stats))
    assert total.mean_acceptance_length == pytest.approx(total.tokens / total.rounds)
    assert total.cache_bytes == max(one.cache_bytes for one in out.stats)
    assert (total.drafter, total.acceptance, total.lossless) == ("jacobi", "exact", True)


@pytest.mark.parametrize(
    ("rule", "lossless"), [("tolerance:3", False), ("typical", False), ("rejection", True), ("tolerance:1", True)]
)
def test_lossy_rules_are_labelled(pipe, plain, rule: str, lossless: bool) -> None:
    """Every result says by which rule it came about and whether that is lossless; tolerance:1 is exact."""
    out = pipe(TEXT, seed=4, drafter="vadusa", acceptance=rule)
    assert (out.total.acceptance, out.total.lossless) == (rule, lossless)
    assert rule != "tolerance:1" or out.tokens == plain(1.0, 1.0)


def test_save_audio(pipe, tmp_path: Path) -> None:
    """The file holds the samples in 16 bits, how they came about, and what was said about them; other endings are
    refused.
    """
    out = pipe(TEXT, seed=4, drafter="jacobi", acceptance="tolerance:3")
    out.save(tmp_path / "a.wav", of="a test")
    back, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 22050 and (torch.from_numpy(back) - out.audio.clamp(-1, 1)).abs().max() < 1e-4
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        facts = json.loads(file.comment)
    wanted = {
        "of": "a test",
        "seed": 4,
        "drafter": "jacobi",
        "acceptance": "tolerance:3",
        "lossless": "no",
        "ended": out.ended,
    }
    assert facts.items() >= wanted.items()
    for name in ("a.mp3", "-"):
        with pytest.raises(MmspecError, match="its ending must be one of .wav, .flac, .ogg"):
            out.save(name)


def test_round_trip(pipe, tmp_path: Path) -> None:
    """A saved pipeline gives the same tokens and samples; settings, drafters and card travel along."""
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    again = TextToSpeechPipeline.from_pretrained(folder, torch_dtype=torch.float64)
    again.reader = pipe.phonemizer
    wanted, found = (one(LONG, seed=3, drafter="vadusa") for one in (pipe, again))
    assert found.tokens == wanted.tokens and torch.equal(found.audio, wanted.audio)
    assert (again.voices, again.drafter, again.tokens_per_phoneme, again.silence) == (
        ["ada", "ben"],
        "jacobi",
        3.0,
        frozenset(),
    )
    again.save_pretrained(folder)
    twice = TextToSpeechPipeline.from_pretrained(folder, dtype=torch.float64)
    twice.reader = pipe.phonemizer
    assert twice(TEXT, seed=4).tokens == pipe(TEXT, seed=4).tokens


def test_drafters_follow_the_weights(copy: Path, tmp_path: Path) -> None:
    """Saved in another dtype, the weights have another name, and drafters of theirs know it: loading them does not
    warn.
    """
    config = copy / "drafters" / "vadusa" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target": zoo.weights_hash(copy / "transformer")}))
    (copy / "README.md").write_text("card")
    pipe = TextToSpeechPipeline.from_pretrained(copy, torch_dtype=torch.bfloat16)
    pipe.save_pretrained(tmp_path / "saved")
    assert zoo.weights_hash(tmp_path / "saved" / "transformer") != pipe.target.weights_hash
    again = TextToSpeechPipeline.from_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drafters.load("vadusa", again.folder, again.target)
    assert (tmp_path / "saved" / "README.md").read_text() == "card"


def test_precision(speech_folder: Path, pipe) -> None:
    """The transformer takes the dtype, the codec stays in float32; settings may be overridden on loading; another dtype
    is a new target.
    """
    found = TextToSpeechPipeline.from_pretrained(
        speech_folder, torch_dtype=torch.bfloat16, temperature=0.5, silence=[3]
    )
    assert found.transformer.dtype == torch.bfloat16 and found.codec.codebook.dtype == torch.float32
    assert found.temperature == 0.5 and found.silence == {3}
    found.reader = pipe.phonemizer
    found(TEXT, seed=4, drafter="vadusa")
    assert found.to(torch.float64) is found and found.to("cpu", torch.float64).target.dtype == torch.float64
    assert found.codec.codebook.dtype == torch.float32
    assert found(TEXT, seed=4, drafter="vadusa").tokens == found(TEXT, seed=4, drafter="none").tokens


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"text": ""}, "there is nothing to say: the text has no letter and no digit"),
        ({"text": "..."}, "there is nothing to say"),
        ({"text": "日本"}, "there is nothing to say: '日', '本' cannot be said"),
        ({"text": ["Hello"]}, "text must be a string, not list"),
        ({"text": "caf\udce9"}, "the text is not valid UTF-8"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range"),
        ({"top_k": -1}, "top_k=-1 is out of range"),
        ({"top_p": 1.5}, "top_p=1.5 is out of range"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range: give a number above 0 and up to 10"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 sentences"),
        ({"drafter": "vadsua"}, "unknown drafter 'vadsua': did you mean 'vadusa'"),
        ({"drafter": "hawk-path"}, "drafter 'hawk-path' has no weights for this model"),
        ({"acceptance": "exakt"}, "unknown acceptance 'exakt': did you mean 'exact'"),
        ({"acceptance": "tolerance:0"}, "tolerance takes one whole number from 1 to 64"),
    ],
)
def test_refusals(pipe, options: dict, text: str) -> None:
    """Each wrong call says what is wrong, and a stream says it before its first chunk is asked for."""
    for call in (pipe, pipe.stream):
        with pytest.raises(MmspecError, match=text):
            call(**({"text": TEXT} | options))


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


def test_whole_penalty(pipe, plain) -> None:
    """A repetition penalty may be a whole number, which transformers would refuse."""
    assert pipe(TEXT, seed=4, repetition_penalty=2).tokens != plain(1.0, 1.0)


def test_missing_library(pipe, monkeypatch) -> None:
    """Without hibari the extra that brings it is named."""
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.delitem(pipe.__dict__, "reader", raising=False)
    with pytest.raises(MmspecError, match=r"reading text needs hibari: pip install 'mmspec\[speech\]'"):
        pipe(TEXT)


WEIGHTS = ("transformer/model.safetensors", "codec/model.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(copy: Path, name: str) -> None:
    """Truncated, replaced by text, or missing: the error names the file."""
    path, whole = copy / name, (copy / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(MmspecError, match=f"{name} is truncated or is no safetensors file"):
            TextToSpeechPipeline.from_pretrained(copy)
    path.unlink()
    with pytest.raises(MmspecError, match=f"{name} is missing: restore it"):
        TextToSpeechPipeline.from_pretrained(copy)


def test_foreign_weights(copy: Path) -> None:
    """Sound files of another model, or of another size of this one, are refused instead of loaded in part."""
    first, second = (copy / name for name in WEIGHTS)
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(MmspecError, match="transformer/model.safetensors holds the weights of another model"):
        TextToSpeechPipeline.from_pretrained(copy)
    first.write_bytes(whole)
    own = second.read_bytes()
    second.write_bytes(whole)
    with pytest.raises(MmspecError, match="codec/model.safetensors holds the weights of another model"):
        TextToSpeechPipeline.from_pretrained(copy)
    second.write_bytes(own)
    config = copy / "codec" / "config.json"
    for old, new in (('"width": 16', '"width": 24'), ('"width": 16', '"breadth": 16')):
        whole = config.read_text()
        config.write_text(whole.replace(old, new))
        with pytest.raises(
            MmspecError, match="codec/model.safetensors holds the weights of another model than .*codec/config.json"
        ):
            TextToSpeechPipeline.from_pretrained(copy)
        config.write_text(whole)


@pytest.mark.parametrize("name", ["tokenizer", "transformer", "codec"])
def test_missing_component(copy: Path, name: str) -> None:
    """A folder that lacks a component is refused by the component's name, unless it is given."""
    given = getattr(TextToSpeechPipeline.from_pretrained(copy), name)
    shutil.rmtree(copy / name)
    with pytest.raises(MmspecError, match=f"model/{name}"):
        TextToSpeechPipeline.from_pretrained(copy)
    assert getattr(TextToSpeechPipeline.from_pretrained(copy, **{name: given}), name) is given


@pytest.mark.parametrize(
    "name", ["model_index.json", "tokenizer/tokenizer.json", "transformer/config.json", "codec/config.json"]
)
@pytest.mark.parametrize("text", ["{ not json", "[]", ""])
def test_damaged_json(copy: Path, name: str, text: str) -> None:
    """The error names the file, or its component's folder."""
    (copy / name).write_text(text)
    with pytest.raises(MmspecError, match=name.split("/")[0]):
        TextToSpeechPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"_class_name": "TextToImagePipeline"},
            "holds a TextToImagePipeline, not a TextToSpeechPipeline: give a text-to-speech model",
        ),
        ({"_class_name": None}, "holds a None, not a TextToSpeechPipeline"),
        ({"voices": None}, "model_index.json: voices is None"),
        ({"voices": "ada"}, "model_index.json: voices is 'ada'"),
        ({"voices": []}, "model_index.json: voices is empty: name at least one"),
        ({"voices": ["ada", "eve"]}, "model_index.json: the tokenizer has no token <eve>"),
        ({"temperature": "hot"}, "model_index.json: temperature is 'hot'"),
        ({"tokens_per_phoneme": None}, "model_index.json: tokens_per_phoneme is None"),
        ({"silence": 3}, "model_index.json: silence is 3"),
        ({"silence": [[3]]}, "model_index.json: "),
        ({"transformer": None}, "model_index.json: transformer is None, which is no model class of transformers"),
        ({"transformer": ["transformers", "LlamaConfig"]}, "LlamaConfig.*, which is no model class of transformers"),
        ({"transformer": ["transformers", "GPT2LMHeadModel"]}, "transformer"),
    ],
)
def test_damaged_settings(copy: Path, change: dict, text: str) -> None:
    """What model_index.json says wrongly is named, and not used."""
    index = json.loads((copy / zoo.INDEX).read_text())
    (copy / zoo.INDEX).write_text(json.dumps(index | change))
    with pytest.raises(MmspecError, match=text):
        TextToSpeechPipeline.from_pretrained(copy)


def test_wrong_parts(pipe, speech_folder: Path, model_folder: Path) -> None:
    """An image model, an unknown option, a codec of another model, and what is no codec are refused."""
    for call, text in (
        (
            lambda: mmspec.pipeline("text-to-speech", model_folder),
            "holds a TextToImagePipeline, not a TextToSpeechPipeline",
        ),
        (
            lambda: TextToSpeechPipeline.from_pretrained(speech_folder, device_map="auto"),
            "unknown option of from_pretrained 'device_map'",
        ),
        (
            lambda: TextToSpeechPipeline.from_pretrained(speech_folder, codec=MelCodec(width=8, codes=16)),
            "give parts of one model",
        ),
        (
            lambda: TextToSpeechPipeline.from_pretrained(speech_folder, codec=dac()),
            r"codec is a DacModel, which is no codec.*HubCodec\(model\)",
        ),
    ):
        with pytest.raises(MmspecError, match=text):
            call()


def dac() -> DacModel:
    """Random: 20 frames a second of three tokens each, heard well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = dict(encoder_hidden_size=4, decoder_hidden_size=16, n_codebooks=3, codebook_size=16, codebook_dim=4)
        model = DacModel(DacConfig(sampling_rate=800, downsampling_ratios=[5, 8], hop_length=40, **sizes))
        for name, value in model.named_parameters():
            if value.dim() > 1 and name.endswith("weight"):
                torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return model


@pytest.fixture
def hub(pipe) -> TextToSpeechPipeline:
    """A pipeline over a codec of transformers, all of its codebooks."""
    speaker = llama(len(pipe.tokenizer) + 3 * 16 + 1)
    found = TextToSpeechPipeline(pipe.tokenizer, speaker, HubCodec(dac()), ["ada", "ben"], tokens_per_phoneme=4.0)
    found.reader = pipe.phonemizer
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_hub_codec(hub, temperature: float) -> None:
    """Frames of three tokens: each from its codebook, the end only between frames; equal with every drafter; chunks
    join to the whole.
    """
    wanted = hub(TEXT, seed=2, drafter="none", temperature=temperature)
    assert len(wanted.tokens[0]) > 30 and all(token // 16 == place % 3 for place, token in enumerate(wanted.tokens[0]))
    assert wanted.ended != ["end"] or len(wanted.tokens[0]) % 3 == 0
    vadusa = VadusaDrafter(hidden_size=32, heads=4).to(torch.float64)
    for drafter in ("lookup", "jacobi", vadusa):
        found = hub(TEXT, seed=2, drafter=drafter, temperature=temperature)
        assert found.tokens == wanted.tokens and torch.equal(found.audio, wanted.audio)
    joined = torch.cat([chunk.audio for chunk in hub.stream(TEXT, seed=2, temperature=temperature)])
    assert wanted.sampling_rate == 800 and len(joined) == len(wanted.audio) == len(wanted.tokens[0]) // 3 * 40
    assert (joined - wanted.audio).abs().max() < CLOSE * wanted.audio.abs().max() and wanted.audio.std() > 1e-3


def test_hub_codec_ends_between_frames(hub, monkeypatch) -> None:
    """A model that would rather end at once, or in the middle of a frame, ends after whole frames."""
    honest = torch.nn.functional.one_hot(torch.tensor(hub.end), hub.end + 1).double()
    plain = SpeechTarget.logits
    monkeypatch.setattr(SpeechTarget, "logits", lambda self, hidden: plain(self, hidden) + 2.5 * honest)
    ended = [hub(TEXT, seed=seed) for seed in (3, 5, 8)]
    assert [out.ended for out in ended] == [["end"]] * 3 and all(len(out.tokens[0]) % 3 == 0 for out in ended)


def test_hub_codec_is_saved(hub, tmp_path: Path) -> None:
    """A codec of transformers is saved with its codebooks and context, and loads; damaged, its file is named."""
    hub.codec = HubCodec(hub.codec.model, context=(30, 9))
    hub.save_pretrained(tmp_path)
    again = TextToSpeechPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert isinstance(again.codec, HubCodec) and again.codec.context == (30, 9) and again.codec.frame_tokens == 3
    wanted, found = hub(TEXT, seed=2), again(TEXT, seed=2)
    assert found.tokens == wanted.tokens and torch.allclose(found.audio, wanted.audio, atol=CLOSE)
    assert again.to("cpu").codec.model.device.type == "cpu"
    index = json.loads((tmp_path / zoo.INDEX).read_text())
    for options in (None, {"codebooks": 3}, {"codebooks": 4, "context": [1, 2]}):
        (tmp_path / zoo.INDEX).write_text(json.dumps(index | {"codec": options}))
        with pytest.raises(MmspecError, match="model_index.json: codec is |codebooks is 4"):
            TextToSpeechPipeline.from_pretrained(tmp_path)
    (tmp_path / zoo.INDEX).write_text(json.dumps(index))
    file = tmp_path / "codec" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MmspecError, match="codec/model.safetensors is truncated"):
        TextToSpeechPipeline.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def mixed(pipe) -> TextToSpeechPipeline:
    """A random model that says where its phonemes begin."""
    speaker = llama(len(pipe.tokenizer) + 32 + 2, seed=3)
    options: dict = dict(tokens_per_phoneme=8.0, longest_sentence=50, interleaved=True)
    found = TextToSpeechPipeline(pipe.tokenizer, speaker, pipe.codec, ["ada", "ben"], **options)
    speaker.lm_head.weight.data[-1] = (
        2 * speaker.lm_head.weight[len(pipe.tokenizer)]
    )  # marks are not rare, even when greedy
    found.folder = pipe.folder
    return found


def said(mixed, **how) -> list[int]:
    """What the model says of one text, marks and end too, in plain decoding."""
    prompts, stop = mixed.encode_examples([{"prompt": TEXT, "voice": "ada"}])
    return generate(mixed.target, prompts, 1, stop, **how).tokens[0]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_interleaved(mixed, temperature: float, penalty: float) -> None:
    """Marks are verified and counted, and not heard; every drafter gives the same, and chunks join to the whole."""
    how: dict = dict(seed=4, temperature=temperature, repetition_penalty=penalty)
    wanted = mixed(TEXT, drafter="none", **how)
    assert (
        wanted.tokens[0]
        and len(wanted.tokens[0]) < wanted.stats[0].tokens
        and all(0 <= code < 32 for code in wanted.tokens[0])
    )
    assert torch.equal(wanted.audio, mixed.codec.decode(torch.tensor(wanted.tokens))[0])
    for drafter in ("lookup", "jacobi", "vadusa"):
        found = mixed(TEXT, drafter=drafter, **how)
        assert (
            found.tokens == wanted.tokens and found.stats[0].tokens == wanted.stats[0].tokens and found.total.lossless
        )
        assert [len(found.rounds[0]), sum(map(sum, found.rounds[0]))] == [
            len(found.stats[0].runs[0]),
            len(found.tokens[0]),
        ]
    joined = torch.cat([chunk.audio for chunk in mixed.stream(TEXT, **how)])
    assert len(joined) == len(wanted.audio) and (joined - wanted.audio).abs().max() < CLOSE * wanted.audio.abs().max()


def test_interleaved_law(mixed) -> None:
    """As many marks as phonemes, and only then the end; a batch of different texts gives what each gives alone, with
    drafts too.
    """
    texts = [TEXT, "And you?", "I am fine, thank you."]
    prompts, stop = mixed.encode_examples([{"prompt": text, "voice": "ben"} for text in texts])
    stop = replace(stop, length=400)
    alone = [
        generate(mixed.target, prompts.select(slice(i, i + 1), 1.0), 1, stop, seeds=[i]).tokens[0] for i in range(3)
    ]
    for row, prompt in zip(alone, prompts.conditional):
        assert row[-1] == mixed.end and row.count(mixed.end) == 1 and row.count(mixed.end + 1) == len(prompt) - 3
    for drafter in (NoDrafter(), JacobiDrafter(6), drafters.load("vadusa", mixed.folder, mixed.target)):
        assert generate(mixed.target, prompts, 3, stop, drafter, seeds=0).tokens == alone


def test_interleaved_reads_its_phonemes(mixed) -> None:
    """What the model reads in a mark's place is the phoneme that begins: greedy decoding is that of
    `transformers.generate` over the ids themselves, and one pass over all of them gives the same features.
    """
    prompts, stop = mixed.encode_examples([{"prompt": TEXT, "voice": "ada"}])
    greedy = said(mixed, sampling=SamplingOptions(0.0))
    start, target = len(prompts.conditional[0]), mixed.target
    law: dict = dict(
        max_new_tokens=stop.length, do_sample=False, eos_token_id=int(target.vocabulary[mixed.end]), pad_token_id=0
    )
    ids = mixed.transformer.generate(
        torch.tensor(prompts.conditional), logits_processor=[target.generate_processor(start)], **law
    )[0]
    assert ids[start:].tolist() == target.model_ids(torch.tensor(prompts.conditional[0]), torch.tensor(greedy)).tolist()
    assert [i for i in ids[start:].tolist() if i in target.phonemes] == prompts.conditional[0][2:-1] and greedy[
        -1
    ] == mixed.end
    codes = torch.tensor([token < mixed.end for token in greedy])
    [example] = read_features(target, prompts, [torch.tensor(greedy)], [-1])
    best = target.logits(example.features[0])[:, : mixed.end].argmax(1)
    assert codes.sum() > 10 and (best[codes] == torch.tensor(greedy)[codes]).all()


def test_interleaved_stall(mixed, monkeypatch) -> None:
    """Silence is found among phonemes: 172 silent codes end a sentence however many marks stand between."""
    honest = SpeechTarget.guide

    def guide(self, state, logits, places):
        turn = torch.where(places % 20 == 0, mixed.end + 1, 7)[..., None]
        return honest(self, state, logits, places).masked_fill(torch.arange(self.vocabulary_size) != turn, -torch.inf)

    monkeypatch.setattr(SpeechTarget, "guide", guide)
    monkeypatch.setattr(mixed, "silence", frozenset({7}))
    with pytest.warns(UserWarning, match=r"did not end by itself \(silence\)"):
        out = mixed("Hello there, how are you this morning?", seed=1)
    assert out.ended == ["silence"] and out.tokens == [[7] * 172] and out.stats[0].tokens == 172 + 10


def test_interleaved_is_saved(mixed, hub, tmp_path: Path) -> None:
    """The setting is kept; a codec of several tokens a frame, and a model without the mark, are refused."""
    mixed.save_pretrained(tmp_path)
    again = TextToSpeechPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert again.interleaved and again(TEXT, seed=4).tokens == mixed(TEXT, seed=4).tokens
    for model, text in (
        (hub, "interleaved is set, and the codec has 3 tokens a frame: give one of a single token"),
        (mixed, "the mark are"),
    ):
        speaker = llama(len(hub.tokenizer) + 3 * 16 + 2) if model is hub else llama(len(hub.tokenizer) + 33)
        with pytest.raises(MmspecError, match=text):
            TextToSpeechPipeline(hub.tokenizer, speaker, model.codec, ["ada"], interleaved=True)


class Clicks:
    """Somebody's own codec: a click for every token."""

    sampling_rate, vocabulary_size, frame_tokens, frame_samples, context = 100, 32, 1, 4, (0, 0)

    def encode(self, audio, sampling_rate):
        raise NotImplementedError

    def decode(self, tokens):
        return torch.nn.functional.pad(tokens[..., None] * self.loudness / 32, (0, 3)).flatten(1)

    def to(self, device):
        return self

    loudness = 1.0


class SavedClicks(Clicks):
    """The same, of a kind that other packages could register."""

    kind = "clicks"

    def __init__(self, loudness: float = 1.0):
        self.loudness = loudness

    @property
    def options(self) -> dict:
        return {"loudness": self.loudness}

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    @classmethod
    def from_pretrained(cls, folder: Path, **options) -> "SavedClicks":
        assert (folder / "config.json").is_file()
        return cls(**options)


def test_own_codec(pipe, tmp_path: Path) -> None:
    """Any object that follows the protocol speaks; it cannot be saved, which is said before anything is written."""
    own = TextToSpeechPipeline(pipe.tokenizer, pipe.transformer, Clicks(), ["ada"]).to("cpu")
    out = own(TEXT, seed=4)
    assert (out.audio[::4] * 32).long().tolist() == out.tokens[0] and own.drafter == "jacobi"
    with pytest.raises(
        MmspecError, match="a Clicks cannot be saved: save the parts yourself, and give codec= to from_pretrained"
    ):
        own.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_own_codec_is_saved(pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec of a registered kind round-trips with the model, its options too."""
    from mmspec.codecs import registry

    monkeypatch.setitem(registry.KINDS, "clicks", f"{__name__}:SavedClicks")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(SavedClicks=SavedClicks))
    own = TextToSpeechPipeline(pipe.tokenizer, pipe.transformer, SavedClicks(0.5), ["ada"])
    own.save_pretrained(tmp_path / "saved")
    again = TextToSpeechPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float64)
    assert isinstance(again.codec, SavedClicks) and again.codec.loudness == 0.5
    assert torch.equal(again(TEXT, seed=4).audio, own(TEXT, seed=4).audio)


@pytest.mark.gpu
def test_gpu(speech_folder: Path, pipe) -> None:
    """The GPU says the same tokens as the CPU in float64, and its audio comes back to the CPU."""
    found = mmspec.pipeline("text-to-speech", str(speech_folder), device="cuda", dtype="fp64")
    out, wanted = found(LONG, seed=3), pipe(LONG, seed=3)
    assert out.tokens == wanted.tokens and out.audio.device.type == "cpu"
    assert (out.audio - wanted.audio).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"acceptance": 3}, "acceptance is a int: give one of exact"), ({"drafter": 3}, "drafter is a int")],
)
def test_wrong_kinds(pipe, wrong: dict, why: str) -> None:
    """A rule or a drafter of a wrong type is a clear error."""
    with pytest.raises(MmspecError, match=why):
        pipe(TEXT, seed=4, **wrong)
