"""Training of MSD: the loss follows paths, and only positions of answers count."""

import pytest
import torch
from transformers import DynamicCache

from mmspec.drafters.msd import ChatBatch, MsdDrafter, drafted_positions

pytestmark = pytest.mark.slow


def test_steps_of_the_loss_are_paths() -> None:
    """Step k's prediction at a place is what drafting gives after k places of its own predictions on true features
    before them.
    """
    torch.manual_seed(0)
    drafter = MsdDrafter(hidden_size=16, intermediate_size=24, heads=2, kv_heads=2).double()
    rows, length = 2, 7
    vectors, before, after = (torch.randn(rows, length, 16, dtype=torch.float64) for _ in range(3))
    text = torch.rand(rows, length) > 0.3
    batch = ChatBatch(vectors, before, after, text, torch.ones(rows, length, dtype=torch.bool))
    seen = []
    layer = drafter.layer
    drafter.layer = lambda *given: seen.append(layer(*given)) or seen[-1]
    head = torch.randn(9, 16, dtype=torch.float64)
    drafter.unrolled_loss(lambda hidden: hidden @ head.T, batch, 3)
    for place in range(2, length):
        cache, features = DynamicCache(), before[:, : place - 1]
        for step in range(3):
            start = 0 if step == 0 else place - 2 + step
            end = place - 1 + step
            inputs = drafter.fuse(vectors[:, start:end], features, text[:, start:end])
            where = torch.arange(start, end).expand(rows, -1)
            mask = (torch.arange(end) <= torch.arange(start, end)[:, None]).expand(rows, 1, -1, -1)
            out = layer(inputs, mask, where, cache)
            torch.testing.assert_close(seen[step][:, end - 1], out[:, -1])
            features = out[:, -1:]


def test_places_that_are_drafted_positions() -> None:
    """At depth k the k tokens before the predicted one are an answer's too."""
    wanted = torch.tensor([[False, True, True, True, False, False]])
    assert drafted_positions(wanted, 0).tolist() == wanted.tolist()
    assert drafted_positions(wanted, 1).tolist() == [[False, False, True, True, False, False]]
    assert drafted_positions(wanted, 2).tolist() == [[False, False, False, True, False, False]]
