"""Operations and reads are counted once, by phase; accepted lengths at equal nodes."""

from collections.abc import Callable

import pytest
import torch
from tiny import drafter, image_target, prompts
from torch import Tensor

from mmspec.bench.counting import Counting, length_by_nodes
from mmspec.engine.loop import Stop

READS: dict[str, Callable[[Tensor], object]] = {
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x[1].item(),
    "int": lambda x: int(x[1]),
    "float": lambda x: float(x[1]),
    "bool": lambda x: bool(x[1]),
    "index": lambda x: range(9)[x[1].long()],
    "format": lambda x: f"{x[1]:.1f}",
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x),
    "unique": lambda x: x.unique(),
    "mask": lambda x: x[x > 1],
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("kind", READS)
def test_each_read_is_one(kind: str) -> None:
    x = torch.arange(4.0)
    with torch.inference_mode(), Counting() as counting, counting.during("draft"):
        READS[kind](x)
    assert counting.reads == {"draft": 1, "target": 0, "rest": 0}


def test_what_is_no_read() -> None:
    """Arithmetic, views and indexing by numbers; a product is one operation, a view none."""
    x, index = torch.ones(2, 2), torch.tensor([0])
    with torch.inference_mode(), Counting() as counting:
        torch.nn.functional.linear(x, x), x.view(4), x[index]
    assert counting.reads["rest"] == 0 and counting.operations["rest"] == 2


def test_lengths_by_nodes() -> None:
    """Every drafter verifies the same number of nodes, as far as rows go, and is left as it was."""
    target = image_target()
    for name in ("jacobi", "medusa"):
        guesser = drafter(name, target)
        before = guesser.nodes, guesser.max_nodes
        found = length_by_nodes(target, [(prompts([[1, 2]]), Stop(30))], guesser, (1, 4))
        assert found["1"]["nodes"] <= 1 < found["4"]["nodes"] <= 4 and (guesser.nodes, guesser.max_nodes) == before
        assert all(1 <= each["mean_acceptance_length"] <= 5 for each in found.values())
