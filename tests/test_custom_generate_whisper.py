"""Whisper's own `generate`, long recordings and timestamps included, with `custom_generate=mmspec.speculate(...)`."""

import pytest
import torch
from encoder_decoders import LENGTHS, asked, model
from tiny_whisper import FRAMES, PREVIOUS, heard, whisper
from torch.nn import functional as F

import mmspec
from mmspec.errors import MmspecError

DRAFTERS = ("none", "jacobi", "lookup")
FALLBACK = dict(compression_ratio_threshold=1.35, logprob_threshold=-1.0, no_speech_threshold=0.6)
PROMPT, SWEEP = torch.tensor([PREVIOUS, 4, 5]), [pytest.mark.slow, pytest.mark.sweep]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"return_timestamps": False, "language": "en"},
        {"return_timestamps": True, "language": "en", "task": "translate"},
        {"return_timestamps": True},
        pytest.param({"return_timestamps": True, "language": "fr", "no_repeat_ngram_size": 2}, marks=SWEEP),
        pytest.param({"return_timestamps": True, "language": "en", "prompt_ids": PROMPT}, marks=SWEEP),
        pytest.param({"return_timestamps": False, "language": "fr", "max_new_tokens": 9}, marks=SWEEP),
    ],
    ids=lambda options: "-".join(map(str, options.values())).replace(" ", ""),
)
def test_short_recordings(options: dict, rows: int) -> None:
    """equality: greedy ids are those of `generate`, up to the last position, with suppression and timestamps."""
    sounds, options = heard(rows), {"do_sample": False} | options
    expected = whisper().generate(sounds, **options)
    assert len(set(expected.flatten().tolist())) > 3
    for drafter in DRAFTERS:
        assert torch.equal(whisper().generate(sounds, **options, custom_generate=mmspec.speculate(drafter)), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"language": "en"},
        pytest.param(
            {"language": "en", "prompt_ids": PROMPT, "prompt_condition_type": "first-segment"},
            marks=SWEEP,
        ),
        pytest.param({"language": ["en", "fr", "en"], "condition_on_prev_tokens": True}, marks=SWEEP),
        pytest.param({"language": "en", "condition_on_prev_tokens": True, "temperature": 0.0, **FALLBACK}, marks=SWEEP),
    ],
    ids=["plain", "prompt", "conditioned", "thresholds"],
)
def test_long_recordings(options: dict) -> None:
    """equality: segment after segment, of rows that are of different length and end one after the other."""
    sounds, mask = heard(3, 5 * FRAMES // 2), torch.ones(3, 5 * FRAMES // 2)
    mask[1, 33:] = mask[2, 21:] = 0
    options |= {"return_timestamps": True, "attention_mask": mask, "return_segments": True}
    expected = whisper().generate(sounds, **options)
    assert [len(row) for row in expected["segments"]] != [1, 1, 1]
    for drafter in DRAFTERS:
        actual = whisper().generate(sounds, **options, custom_generate=mmspec.speculate(drafter))
        assert torch.equal(actual["sequences"], expected["sequences"])


@pytest.mark.slow
@pytest.mark.sweep
def test_fallback_to_sampling() -> None:
    """`torch.manual_seed` decides what is sampled where a temperature above zero is tried, whatever drafts."""

    def sampled(drafter: str, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        options = dict(language="en", return_timestamps=True, temperature=(0.0, 0.8), logprob_threshold=0.0)
        return whisper().generate(heard(2), **options, custom_generate=mmspec.speculate(drafter))

    plain = sampled("none", 1)
    assert torch.equal(sampled("jacobi", 1), plain) and torch.equal(sampled("lookup", 1), plain)
    other = sampled("none", 2)
    assert other.shape != plain.shape or not torch.equal(other, plain)


def test_results_as_objects() -> None:
    """`return_dict_in_generate` brings the scores that `generate` gives."""
    options = dict(language="en", max_new_tokens=9, return_dict_in_generate=True, output_scores=True)
    expected = whisper().generate(heard(2), **options)
    actual = whisper().generate(heard(2), **options, custom_generate=mmspec.speculate())
    assert torch.equal(actual.sequences, expected.sequences)
    for mine, theirs in zip(actual.scores, expected.scores, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double())


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timestamps of single tokens, which are read off the attention; and silence that is measured of a whole batch."""
    config = whisper().generation_config
    monkeypatch.setattr(config, "alignment_heads", [[0, 0]], raising=False)
    monkeypatch.setattr(config, "is_multilingual", False)
    monkeypatch.delattr(config, "lang_to_id")
    for rows, options, text in (
        (1, {"return_token_timestamps": True}, "takes no output_attentions=True"),
        (2, FALLBACK, "WhisperNoSpeechDetection reads the prompts of a whole batch: generate one row at a time"),
    ):
        options = {"return_timestamps": True, "temperature": 0.0, "custom_generate": mmspec.speculate()} | options
        with pytest.raises(MmspecError, match=text):
            whisper().generate(heard(rows), **options)
    whisper().generate(
        heard(1), custom_generate=mmspec.speculate(), return_timestamps=True, temperature=0.0, **FALLBACK
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "moonshine" else pytest.mark.sweep) for n in [*LENGTHS][1:]]
)
def test_other_families(name: str) -> None:
    """equality: three rows of different length, padded on the right, as a processor gives them; and its statistics."""
    rows = [asked(name, row) for row in range(3)]
    ((key, _),) = rows[0].items()
    longest = max(LENGTHS[name])

    def padded(value: torch.Tensor) -> torch.Tensor:
        return F.pad(value, (0, 0) * (value.ndim - 2) + (0, longest - value.shape[1]))

    lengths = [torch.ones(1, row[key].shape[1], dtype=torch.long) for row in rows]
    batch = {key: torch.cat([padded(row[key]) for row in rows]), "attention_mask": torch.cat([*map(padded, lengths)])}
    options = dict(do_sample=False, max_new_tokens=20, return_dict_in_generate=True)
    expected = model(name).generate(**batch, **options).sequences
    for drafter in DRAFTERS:
        actual = model(name).generate(**batch, **options, custom_generate=mmspec.speculate(drafter))
        assert torch.equal(actual.sequences, expected) and actual.mmspec.tokens == 60
