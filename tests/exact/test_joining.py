"""Joining: rows come and go between rounds, and each says what it says alone."""

import random

import pytest
import torch
from tiny import DRAFTERS, GRID, drafter, image_target, plain, prompts
from tiny_vlm import FAMILIES, IMAGES, KINDS, asked, built, model

from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.vision_language import VisionLanguageTarget, VisualPrompts

pytestmark = pytest.mark.slow

TEXTS = [[1, 3, 4, 2], [1, 5, 2], [1, 2], [1, 6, 7, 4, 2], [1, 4, 2]]


def shuffled(batch: Batch, asked: list, stop: Stop, seed: int) -> list[list[int]]:
    """What rows say that join at random times and in random numbers, and leave when they have ended; some places are
    swapped.

    Every second row has room for more than it says, so that caches and features of different sizes meet.
    """
    rng, waiting = random.Random(seed), list(range(len(asked)))
    said: list[list[int]] = [[] for _ in asked]
    present: list[int] = []
    while waiting or present:
        while waiting and (not present or rng.random() < 0.3):
            present.append(waiting.pop(0))
            ends = (
                stop
                if present[-1] % 2
                else Stop(stop.length + 200, when=lambda row, tokens: len(tokens) >= stop.length)
            )
            said[present[-1]] += batch.join(asked[present[-1]], [5 + present[-1]], ends).tokens[-1]
        if any(batch.running):
            for row, new in zip(present, batch.round().tokens):
                said[row] += new
        staying = [row for row, on in enumerate(batch.running) if on]
        if len(staying) < len(present) or rng.random() < 0.2:
            rng.shuffle(staying)
            batch.keep(staying)
            present = [present[place] for place in staying]
    return said


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_images(name: str, guidance: float, temperature: float) -> None:
    """Equality (fp64): every drafter, with and without a second stream."""
    target, sampling = image_target(), SamplingOptions(temperature)
    wanted = plain(target, GRID.tokens, sampling, texts=TEXTS, guidance=guidance)
    for seed in range(2):
        batch = Batch(target, drafter(name, target), sampling)
        assert shuffled(batch, [prompts([text], guidance) for text in TEXTS], Stop(GRID.tokens), seed) == wanted


@pytest.mark.parametrize("kind", ["decoupled", "few tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chats(family: str, kind: str) -> None:
    """Equality (fp64): rows with different images under MSD, whose own cache is read anew."""
    rows = [VisualPrompts.of([asked(family, sizes, seed)]) for seed, sizes in enumerate(IMAGES)]
    target, sampling = VisionLanguageTarget(model(family)), SamplingOptions(1.0)
    wanted = [
        generate(target, row, 1, Stop(12), sampling=sampling, seeds=[5 + i]).tokens[0] for i, row in enumerate(rows)
    ]
    assert shuffled(Batch(target, built(**KINDS[kind]), sampling), rows, Stop(12), 1) == wanted


def test_bfloat16() -> None:
    """What joining changes in the last bits hardly ever changes a token (no equality is promised here)."""
    target = image_target(torch.bfloat16)
    wanted = plain(target, GRID.tokens, texts=TEXTS)
    found = shuffled(
        Batch(target, drafter("jacobi", target)), [prompts([text]) for text in TEXTS], Stop(GRID.tokens), 0
    )
    assert sum(one == other for one, other in zip(found, wanted)) >= 4


def test_a_drafter_keeps_what_it_knows() -> None:
    """A row's acceptance does not start anew when another one leaves."""
    target = image_target()
    lengths = []
    for leaving in (False, True):
        batch = Batch(target, drafter("jacobi", target), SamplingOptions(0.5))
        runs = [len(batch.join(prompts(TEXTS[:2]), [5, 6], Stop(GRID.tokens)).tokens[0])]
        while batch.running[0]:
            runs.append(len(batch.round().tokens[0]))
            if leaving and len(runs) == 3:
                batch.keep([0])
        lengths.append(runs)
    assert lengths[0] == lengths[1]


def test_an_empty_batch_can_be_joined_again() -> None:
    target = image_target()
    batch = Batch(target, drafter("hawk", target))
    for text in TEXTS[:2]:
        batch.join(prompts([text]), [5], Stop(4))
        while any(batch.running):
            batch.round()
        batch.keep([])
    assert batch.state is None
    assert not batch.running


def test_different_guidance_is_refused() -> None:
    batch = Batch(image_target())
    batch.join(prompts(TEXTS[:1], 2.0), [5], Stop(4))
    with pytest.raises(MmspecError, match="rows with different guidance cannot be generated together"):
        batch.join(prompts(TEXTS[1:2], 3.0), [5], Stop(4))


def test_memory_is_given_back() -> None:
    """The cache is as large as the rows that are there."""
    batch = Batch(image_target())
    batch.join(prompts(TEXTS), list(range(5)), Stop(8))
    batch.round()
    assert batch.state is not None
    whole = batch.state.cache.bytes
    batch.keep([3])
    assert batch.state.cache.bytes * 5 == whole
    assert isinstance(batch.state.roots, torch.Tensor)
