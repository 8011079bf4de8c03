"""What `mmspec verify` is made of: where rows part, and plain decoding against the model's own `generate`."""

import pytest
import torch
from tiny import CODES, OFFSET, TEXTS, llama, plain, prompts, text_target
from tiny_vlm import asked, model
from transformers import SuppressTokensLogitsProcessor

from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.image import ImageTarget
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts
from mmspec.verify import Parting, Plain, compare_with_generate, decode_plainly, parting

GREEDY = SamplingOptions(0.0)


def test_parting() -> None:
    """The first position that differs, with the lead of plain decoding there; a row may also differ at its end."""
    row = Plain([4, 5, 6], [0.1, 0.2, 0.3])
    assert parting(0, row, row.tokens, [4, 5, 6]) is None
    assert parting(2, row, row.tokens, [4, 7, 6]) == Parting(row=2, position=1, expected=5, found=7, margin=0.2)
    assert parting(0, row, row.tokens, [4, 5]) == Parting(0, 2, expected=6, found=-1, margin=0.3)
    assert parting(0, row, row.tokens, [4, 5, 6, 8]) == Parting(0, 3, expected=-1, found=8, margin=0.3)


def test_leads() -> None:
    """Plain decoding of one row, and the lead of each of its tokens, which is positive."""
    target = text_target()
    row = decode_plainly(target, prompts(TEXTS[:1]), SamplingOptions(1.0), 3, Stop(9))
    assert row.tokens == plain(target, 9, SamplingOptions(1.0), 3, TEXTS[:1])[0]
    assert len(row.leads) == 9 and min(row.leads) > 0


def open_image_target() -> ImageTarget:
    """Codes on a grid without end-of-row tokens."""
    return ImageTarget(llama(OFFSET + CODES), range(OFFSET, OFFSET + CODES), Grid(5, 5))


@pytest.mark.parametrize(("guidance", "penalty"), [(1.0, 1.0), (1.0, 1.4), (2.5, 1.0)])
def test_pictures_are_those_of_generate(guidance: float, penalty: float) -> None:
    """equality: greedy codes with and without guidance, and under a repetition penalty."""
    target, sampling, stop = open_image_target(), SamplingOptions(0.0, repetition_penalty=penalty), Stop(25)
    rows = [prompts([text], guidance) for text in TEXTS]
    decoded = [decode_plainly(target, row, sampling, 0, stop) for row in rows]
    assert compare_with_generate(target, rows, decoded, sampling, stop) == ([], "")


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_answers_are_those_of_generate(penalty: float) -> None:
    """equality: greedy text with pictures and without, ended by an end token or by a rule that `generate` lacks."""
    target, sampling = VisionLanguageTarget(model("llava")), SamplingOptions(0.0, repetition_penalty=penalty)
    rows = [VisualPrompts.of([asked("llava", sizes)]) for sizes in ([(32, 32)], [], [(32, 32), (32, 32)])]
    for stop in (Stop(16), Stop(16, frozenset(range(3, 12))), Stop(16, when=lambda row, tokens: len(tokens) == 5)):
        decoded = [decode_plainly(target, row, sampling, 0, stop) for row in rows]
        assert compare_with_generate(target, rows, decoded, sampling, stop) == ([], "")


def test_processors_are_those_of_generate() -> None:
    """equality: what a model never says, `generate` does not say either, though it keeps one processor of a class."""
    target, stop, row = CausalTarget(llama()), Stop(16), Prompts([[1, 2, 3]])
    free = decode_plainly(target, row, GREEDY, 0, stop)
    never = SuppressTokensLogitsProcessor(sorted(set(free.tokens)), device="cpu")
    target.model.generation_config.suppress_tokens = sorted(set(free.tokens))
    sampling = SamplingOptions(0.0, logits_processor=[never])
    decoded = decode_plainly(target, row, sampling, 0, stop)
    assert not set(decoded.tokens) & set(free.tokens)
    assert compare_with_generate(target, [row], [decoded], sampling, stop) == ([], "")
    codes = open_image_target()
    _, skipped = compare_with_generate(codes, [prompts(TEXTS[:1], 1.0)], [decoded], sampling, stop)
    assert skipped == "logits processors of tokens that are no ids"


def test_a_difference_is_found() -> None:
    """negative control: other weights, and a token that is changed, part from `generate` at the right position."""
    target, stop, rows = text_target(), Stop(12), [prompts([text]) for text in TEXTS]
    decoded = [decode_plainly(target, row, GREEDY, 0, stop) for row in rows]
    assert compare_with_generate(target, rows, decoded, GREEDY, stop) == ([], "")
    other = CausalTarget(llama(40, seed=1))
    assert len(compare_with_generate(other, rows, decoded, GREEDY, stop)[0]) == 3
    decoded[1].tokens[7] ^= 1
    ((difference,), _) = compare_with_generate(target, rows, decoded, GREEDY, stop)
    assert (difference.row, difference.position, difference.margin) == (1, 7, decoded[1].leads[7])


class Biased(CausalTarget):
    """A target that favours one token, as a wrong final norm or a missing soft cap would."""

    def logits(self, *arguments, **options):
        scores = super().logits(*arguments, **options)
        scores[..., 7] += 5
        return scores


def test_a_biased_target_is_found() -> None:
    """negative control: drafters equal plain decoding of a wrong target, and only `generate` shows that it is wrong."""
    target, stop, rows = Biased(llama(40), check=False), Stop(12), [prompts([text]) for text in TEXTS]
    decoded = [decode_plainly(target, row, GREEDY, 0, stop) for row in rows]
    partings, skipped = compare_with_generate(target, rows, decoded, GREEDY, stop)
    assert len(partings) == 3 and not skipped


def test_what_is_not_compared() -> None:
    """Sampling uses other noise than `generate`, and a penalty under guidance is of other numbers."""
    target = open_image_target()
    rows = [prompts(TEXTS[:1], 2.0)]
    assert compare_with_generate(target, rows, [], SamplingOptions(1.0), Stop(4)) == ([], "sampled")
    penalty = SamplingOptions(0.0, repetition_penalty=1.2)
    assert compare_with_generate(target, rows, [], penalty, Stop(4)) == ([], "penalty with guidance")
    guided = torch.tensor(rows[0].unconditional)
    assert guided.numel(), "the prompts are guided"
