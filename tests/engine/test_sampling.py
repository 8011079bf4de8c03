"""Processor parity: what a node's law is, transformers says."""

import random
import re

import pytest
import torch
from tiny import OFFSET, TEXTS, drafter, forest, image_target, prompts, random_parents, text_target
from transformers.generation import logits_process as hf

from mmspec.engine.largest import argmax
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import Prefixes
from mmspec.errors import MmspecError

CHAINS = {
    "temperature": (SamplingOptions(0.7), [hf.TemperatureLogitsWarper(0.7)]),
    "top_k": (SamplingOptions(1.3, top_k=5), [hf.TemperatureLogitsWarper(1.3), hf.TopKLogitsWarper(5)]),
    "top_p": (SamplingOptions(1.0, top_p=0.6), [hf.TopPLogitsWarper(0.6)]),
    "all": (
        SamplingOptions(0.8, top_k=20, top_p=0.9, min_p=0.05),
        [hf.TemperatureLogitsWarper(0.8), hf.TopKLogitsWarper(20), hf.TopPLogitsWarper(0.9), hf.MinPLogitsWarper(0.05)],
    ),
    "prefix": (
        SamplingOptions(
            0.8,
            top_k=20,
            logits_processor=[hf.RepetitionPenaltyLogitsProcessor(1.7), hf.NoBadWordsLogitsProcessor([[3], [4, 5]])],
        ),
        [
            hf.RepetitionPenaltyLogitsProcessor(1.7),
            hf.NoBadWordsLogitsProcessor([[3], [4, 5]]),
            hf.TemperatureLogitsWarper(0.8),
            hf.TopKLogitsWarper(20),
        ],
    ),
    "greedy": (
        SamplingOptions(0, top_k=3, top_p=0.1, logits_processor=[hf.SuppressTokensLogitsProcessor([1, 2])]),
        [hf.SuppressTokensLogitsProcessor([1, 2])],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_scores_equal_transformers(name: str) -> None:
    """Every node's scores are those of transformers' processors, in transformers' order, on that node's own prefix."""
    sampling, chain = CHAINS[name]
    target, rng = text_target(), random.Random(0)
    state = target.prefill(prompts(), 30)
    state.tokens = [[6, 7], [], [8]]
    state.roots = torch.tensor([7, 2, 8])
    shapes = [random_parents(rng, size) for size in (9, 5, 1)]
    tree = forest(
        shapes,
        [[int(root)] + [rng.randrange(40) for _ in shape[1:]] for root, shape in zip(state.roots, shapes, strict=True)],
    )
    logits = torch.randn(3, tree.size, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = sampling.scores(logits.clone(), Prefixes(state, tree))
    for row, shape in enumerate(shapes):
        for node in range(len(shape)):
            above, at = [], node
            while at:
                above.insert(0, int(tree.tokens[row, at]))
                at = shape[at]
            prefix = torch.tensor([[token for token in state.history(row) + above if token >= 0]])
            wanted = hf.LogitsProcessorList(chain)(prefix, logits[row, node][None].clone())[0]
            torch.testing.assert_close(found[row, node], wanted, rtol=0, atol=0)


def test_logits_are_widened() -> None:
    """bfloat16 logits become float32 scores; float64 ones stay."""
    assert SamplingOptions().scores(torch.zeros(1, 1, 4, dtype=torch.bfloat16)).dtype == torch.float32
    assert SamplingOptions().scores(torch.zeros(1, 1, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_repetition_penalty_with_an_offset(rule: str) -> None:
    """Where prompt ids lie outside the generated vocabulary, a processor that reads the prefix sees the generated
    tokens alone.
    """
    target, penalty = image_target(), hf.RepetitionPenaltyLogitsProcessor(1.5)
    found = generate(
        target,
        prompts(),
        3,
        Stop(5),
        drafter("jacobi", target),
        sampling=SamplingOptions(0, logits_processor=[penalty]),
        rule=rule,
    )
    for text, row in zip(TEXTS, found.tokens, strict=True):
        for count, token in enumerate(row):
            ids = torch.tensor([text + [OFFSET + code for code in row[:count]]])
            with torch.inference_mode():
                logits = target.model(ids).logits[:, -1, OFFSET : OFFSET + target.vocabulary_size]
            codes = logits[:, :-1]  # no end of row within a row
            assert token == int(penalty(torch.tensor([row[:count]], dtype=torch.long), codes)[0].argmax())


ERRORS = {
    "temperature=-0.1 is out of range: give a number from 0.0 to 100.0": {"temperature": -0.1},
    "top_k=-1 is out of range: give a number from 0 to 2147483648": {"top_k": -1},
    "top_p=1.5 is out of range: give a number from 0.0 to 1.0": {"top_p": 1.5},
    "min_p=nan is out of range: give a number from 0.0 to 1.0": {"min_p": float("nan")},
    "top_p=0.0 leaves no token to sample: give a number above 0, or temperature=0 for greedy decoding": {"top_p": 0.0},
}


@pytest.mark.parametrize(("text", "options"), ERRORS.items())
def test_errors(text: str, options: dict) -> None:
    """A number out of range is refused with its name, its value and the range."""
    with pytest.raises(MmspecError, match=f"^{re.escape(text)}$"):
        SamplingOptions(**options)


LARGE = {
    "top_k": SamplingOptions(0.7, top_k=50),
    "top_p": SamplingOptions(0.7, top_p=0.9),
    "flat": SamplingOptions(1.0, top_p=0.99),
    "both": SamplingOptions(0.7, top_k=50, top_p=0.9),
    "all": SamplingOptions(1.3, top_k=20, top_p=0.99, min_p=0.02),
}


@pytest.mark.parametrize("vocabulary", [5000, 16384, 50001])
@pytest.mark.parametrize("name", LARGE)
def test_large_vocabularies_equal_transformers(name: str, vocabulary: int) -> None:
    """Where a part of the scores decides what is kept, and where it does not, since they tie or are too flat, the bits
    are those of transformers' warpers.
    """
    sampling, generator = LARGE[name], torch.Generator().manual_seed(0)
    warpers = list(sampling.cuts) + ([hf.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else [])
    sharp = torch.randn(1, 4, vocabulary, generator=generator) * 4
    rare = torch.rand(vocabulary, generator=generator) < 0.002
    for logits in (sharp, sharp / 8, sharp.round(), sharp.bfloat16(), sharp.masked_fill(~rare, -torch.inf)):
        wanted = hf.LogitsProcessorList(warpers)(torch.zeros(4, 1, dtype=torch.long), logits[0].float())
        assert torch.equal(sampling.scores(logits)[0], wanted)


@pytest.mark.parametrize("vocabulary", [40, 2047, 2048, 50001])
def test_argmax_takes_the_first_of_equals(vocabulary: int) -> None:
    """Blocks make it faster, and no different: in the last tokens, among equals, among nothing but -inf, and for NaN,
    too.
    """
    scores = torch.randn(2, 3, vocabulary, generator=torch.Generator().manual_seed(0))
    last = scores.clone()
    last[..., -1] = 100
    broken = scores.clone()
    broken[..., [7, vocabulary - 1]] = torch.nan
    ended = scores.clone()
    ended[..., -1] = torch.nan
    for given in (scores, last, broken, ended, scores.round(), torch.full_like(scores, -torch.inf), scores.double()):
        assert torch.equal(argmax(given), given.argmax(2))
