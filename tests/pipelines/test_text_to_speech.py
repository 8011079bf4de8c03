"""Text to speech: equal tokens with every drafter, voices, seeds, statistics and refusals."""

import json
from pathlib import Path

import pytest
import torch
from speech_cases import LONG, TEXT

import mmspec
from mmspec import drafters
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

soundfile = pytest.importorskip("soundfile")


def test_output(pipe) -> None:
    """One entry of everything for each sentence; the tokens, without the end, are codes; samples are finite, and
    ordinary tensors.
    """
    out = pipe(LONG, seed=3)
    assert [one.text for one in out.sentences] == ["Hello there, how are you?", "I am fine.", "And you?"]
    assert len(out.tokens) == len(out.sentence_stats) == len(out.ended) == len(out.seeds) == 3
    assert all(0 <= token < 32 for row in out.tokens for token in row)
    assert out.sampling_rate == 22050 and out.audio.dtype == torch.float32 and out.audio.isfinite().all()
    assert out.seconds == len(out.audio) / 22050 and 0 < out.first_audio < 60 and out.unsaid == []
    assert out.audio.std() > 1e-3 and not out.audio.is_inference()
    assert out.stats.lossless and out.stats.drafter == "jacobi" and out.stats.acceptance == "exact"


@pytest.mark.slow
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
    assert found.tokens == plain(temperature, penalty) and found.stats.lossless
    assert found.stats.drafter == name.split()[-1] and len(found.tokens[0]) > 20


def test_equality_could_fail(pipe, plain) -> None:
    """The negative control: another seed, penalty, temperature or a lossy rule says something else; drafts were
    accepted.
    """
    wanted = plain(1.0, 1.0)
    assert len({str(tokens) for tokens in (wanted, plain(0.0, 1.0), plain(0.8, 1.0), plain(1.0, 1.5))}) == 4
    assert pipe(TEXT, seed=5).tokens != wanted
    assert pipe(TEXT, seed=4, drafter="vadusa", acceptance="tolerance:5").tokens != wanted
    for drafter in ("jacobi", "vadusa"):
        assert pipe(TEXT, seed=4, drafter=drafter).stats.mean_acceptance_length > 1.5


def test_sampling_options(pipe) -> None:
    """top-k and top-p reach the law: one token left is greedy decoding."""
    greedy = pipe(TEXT, temperature=0.0, seed=1).tokens
    assert pipe(TEXT, seed=4, top_k=1).tokens == pipe(TEXT, seed=4, top_p=1e-6).tokens == greedy


def test_voices(pipe) -> None:
    """Voices speak differently, the first one unless told; an unknown voice is named with its near matches."""
    ada, ben = (pipe(TEXT, seed=4, voice=voice).tokens for voice in ("ada", "ben"))
    assert ada != ben and ada == pipe(TEXT, seed=4).tokens
    with pytest.raises(MmspecError, match="unknown voice 'bne': did you mean 'ben'"):
        pipe(TEXT, voice="bne")
    with pytest.raises(MmspecError, match="unknown voice ''"):
        pipe(TEXT, voice="")


def test_seeds(pipe) -> None:
    """Sentence i has seed + i, alone as in a text; a list gives each its own; without one, torch's own
    generator draws.
    """
    text = "Hello there. And you?"
    out = pipe(text, seed=4)
    assert out.seeds == [4, 5] and out.tokens == pipe(TEXT, seed=4).tokens + pipe("And you?", seed=5).tokens
    assert pipe(text, seed=[4, 5]).tokens == out.tokens != pipe(text, seed=[5, 4]).tokens
    torch.manual_seed(4)
    drawn = pipe("And you?")
    torch.manual_seed(4)
    again = pipe("And you?")
    assert drawn.seeds == again.seeds and drawn.tokens == again.tokens == pipe("And you?", seed=drawn.seeds[0]).tokens


def test_stats_sum(pipe) -> None:
    """The total counts every sentence: tokens, rounds, nodes and seconds add up; drafter and rule are theirs."""
    out = pipe(LONG, seed=3)
    total = out.stats
    assert total.tokens == sum(one.tokens for one in out.sentence_stats) and total.nodes == sum(
        one.nodes for one in out.sentence_stats
    )
    assert total.rounds == sum(one.rounds for one in out.sentence_stats) > max(one.rounds for one in out.sentence_stats)
    for name in ("prefill", "draft", "target", "accept", "total"):
        assert getattr(total, name) == pytest.approx(sum(getattr(one, name) for one in out.sentence_stats))
    assert total.mean_acceptance_length == pytest.approx(total.tokens / total.rounds)
    assert total.cache_bytes == max(one.cache_bytes for one in out.sentence_stats)
    assert (total.drafter, total.acceptance, total.lossless) == ("jacobi", "exact", True)


@pytest.mark.parametrize(
    ("rule", "lossless"), [("tolerance:3", False), ("typical", False), ("rejection", True), ("tolerance:1", True)]
)
def test_lossy_rules_are_labelled(pipe, plain, rule: str, lossless: bool) -> None:
    """Every result says by which rule it came about and whether that is lossless; tolerance:1 is exact."""
    out = pipe(TEXT, seed=4, drafter="vadusa", acceptance=rule)
    assert (out.stats.acceptance, out.stats.lossless) == (rule, lossless)
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


@pytest.mark.slow
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
        ({"text": 3}, "text must be a string"),
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


def test_whole_penalty(pipe, plain) -> None:
    """A repetition penalty may be a whole number, which transformers would refuse."""
    assert pipe(TEXT, seed=4, repetition_penalty=2).tokens != plain(1.0, 1.0)


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
