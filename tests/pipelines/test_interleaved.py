"""Interleaved models: phonemes are read in turn between the codes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from speech_cases import CLOSE, TEXT, said
from tiny import llama

from mmspec import drafters
from mmspec.drafters.jacobi import JacobiDrafter
from mmspec.drafters.none import NoDrafter
from mmspec.engine.loop import generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.targets.speech import SpeechTarget
from mmspec.train.capture import read_features

pytest.importorskip("soundfile")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_interleaved(mixed, temperature: float, penalty: float) -> None:
    """Marks are verified and counted, and not heard; every drafter gives the same, and chunks join to the whole."""
    how: dict = dict(seed=4, temperature=temperature, repetition_penalty=penalty)
    wanted = mixed(TEXT, drafter="none", **how)
    assert (
        wanted.tokens[0]
        and len(wanted.tokens[0]) < wanted.stats.tokens
        and all(0 <= code < 32 for code in wanted.tokens[0])
    )
    assert torch.equal(wanted.audio, mixed.codec.decode(torch.tensor(wanted.tokens))[0])
    for drafter in ("lookup", "jacobi", "vadusa"):
        found = mixed(TEXT, drafter=drafter, **how)
        assert found.tokens == wanted.tokens and found.stats.tokens == wanted.stats.tokens and found.stats.lossless
        assert [len(found.rounds[0]), sum(map(sum, found.rounds[0]))] == [
            len(found.stats.runs[0]),
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
    assert out.ended == ["silence"] and out.tokens == [[7] * 172] and out.stats.tokens == 172 + 10


def test_interleaved_is_saved(mixed, hub, tmp_path: Path) -> None:
    """The setting is kept; a codec of several tokens a frame, and a model without the mark, are refused."""
    mixed.save_pretrained(tmp_path)
    again = TextToSpeechPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert again.interleaved and again(TEXT, seed=4).tokens == mixed(TEXT, seed=4).tokens
    for model, text in (
        (hub, "interleaved is set, and the codec has 3 tokens a frame: give one of a single token"),
        (mixed, "the end token and the boundary token: give parts"),
    ):
        speaker = llama(len(hub.tokenizer) + 3 * 16 + 2) if model is hub else llama(len(hub.tokenizer) + 33)
        with pytest.raises(MmspecError, match=text):
            TextToSpeechPipeline(hub.tokenizer, speaker, model.codec, ["ada"], interleaved=True)
