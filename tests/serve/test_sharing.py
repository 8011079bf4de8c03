"""What concurrent batches must not share: a drafter's state, and another caller's processors."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest
import torch
from tiny import drafter, plain, prompts, text_target
from transformers import SuppressTokensLogitsProcessor

from mmspec.drafters.base import Drafter
from mmspec.engine.accept import acceptance
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.engine.tree import chain
from mmspec.errors import MmspecError
from mmspec.serve.batcher import Batcher, batch_key, fresh

LENGTH = 30


class ListingDrafter(Drafter):
    """Keeps a list that is made once and changed in place, as a user's drafter may."""

    name = "listing"

    def __init__(self) -> None:
        self.rows: list[int] = []

    def start(self, target, state, sampling, needs_draft_probs) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        self.rows.clear()
        self.rows.extend(range(state.rows))

    def draft(self, state, noise, limit):
        assert len(self.rows) == state.rows, f"{len(self.rows)} rows known, {state.rows} present"
        return chain(state.roots, torch.zeros(state.rows, min(limit, 2), dtype=torch.long))


def run(batcher: Batcher, name: str, texts: list[list[int]], sampling: SamplingOptions, seed: int) -> list[list[int]]:
    """The tokens of one call."""
    tokens: list[list[int]] = [[] for _ in texts]
    given = prompts(texts)
    rounds = batcher(batcher.target, None, name, given, LENGTH)(
        given,
        len(texts),
        Stop(LENGTH),
        sampling=sampling,
        seeds=[seed + i for i in range(len(texts))],
        rule=acceptance("exact"),
        stats=GenerationStats(),
    )
    for result in rounds:
        for row, new in zip(tokens, result.tokens):
            row += new
    return tokens


@pytest.fixture
def batcher():
    batcher = Batcher(text_target(), None, rows=8)
    batcher.drafters["listing"] = ListingDrafter()
    yield batcher
    batcher.close()


def test_batches_do_not_share_a_drafters_state(batcher) -> None:
    """Two batches at once, of different sampling, under a drafter that changes in place what its constructor made."""
    texts = [[[1, 3, 4, 2]], [[1, 5, 2], [1, 2], [1, 4, 2]]]
    options = [SamplingOptions(1.0), SamplingOptions(0.7)]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(run, batcher, "listing", *call, 5) for call in zip(texts, options)]
        results = [call.result(60) for call in calls]
    assert results == [plain(text_target(), LENGTH, sampling, texts=rows) for rows, sampling in zip(texts, options)]


def test_fresh_drafters_share_weights_alone() -> None:
    """A copy for another batch has the same tensors, and everything else of its own."""
    heads = drafter("hawk", text_target())
    heads.widths.append(7)
    copy = fresh(heads)
    assert all(a is b for a, b in zip(heads.parameters(), copy.parameters(), strict=True))
    assert copy.widths == heads.widths and copy.widths is not heads.widths
    assert fresh(ListingDrafter()).rows is not fresh(ListingDrafter()).rows


class LockedDrafter(ListingDrafter):
    """Holds what cannot be copied."""

    name = "locked"

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()


def test_a_drafter_that_cannot_be_copied(batcher) -> None:
    """Its caller is told, and the batcher serves others."""
    batcher.drafters["locked"] = LockedDrafter()
    with pytest.raises(MmspecError, match="drafter 'locked' cannot be copied for another batch"):
        run(batcher, "locked", [[1, 3]], SamplingOptions(1.0), 0)
    assert run(batcher, "none", [[1, 3]], SamplingOptions(1.0), 0)


def test_processors_are_not_taken_for_each_other(batcher) -> None:
    """Two callers suppress different tokens, whose long lists look alike when printed: nobody gets a forbidden
    token.
    """
    even, odd = ([token for token in range(40) if token % 2 == rest] for rest in (0, 1))
    suppressed = [even * 60, odd * 60]
    processors = [SuppressTokensLogitsProcessor(tokens) for tokens in suppressed]
    options = [SamplingOptions(1.0, logits_processor=[processor]) for processor in processors]
    keys = [batch_key("none", sampling, acceptance("exact"), prompts()) for sampling in options]
    assert keys[0] != keys[1]
    assert (
        batch_key("none", SamplingOptions(1.0, logits_processor=[processors[0]]), acceptance("exact"), prompts())
        == keys[0]
    )
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(run, batcher, "none", [[1, 3, 2]] * 2, sampling, 3) for sampling in options]
        results = [call.result(60) for call in calls]
    for rows, tokens in zip(results, suppressed, strict=True):
        assert not {token for row in rows for token in row} & set(tokens)
