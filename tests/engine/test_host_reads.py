"""How often the device is read: at most twice a round, while drafting once where the tree is searched on the host, else
never.
"""

import pytest
import torch
from host_reads import CountReads, count_reads
from tiny import DRAFTERS, drafter, image_target, prompts, text_target
from tiny_vlm import built

from mmspec import drafters, zoo
from mmspec.drafters.cascade import ComposedDrafter
from mmspec.drafters.heads import HeadDrafter
from mmspec.drafters.table_drafter import TableDrafter
from mmspec.engine.loop import Stop
from mmspec.pipelines import pipeline, task_of


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", [*DRAFTERS, "msd"])
def test_tiny_drafters(name: str, rows: int) -> None:
    """Every kind of drafter, whatever passes cost."""
    target = text_target() if name == "msd" else image_target()
    guesser = built() if name == "msd" else drafter(name, target)
    counts, drafting = count_reads(target, guesser, prompts([[1, 3, 2]] * rows), rows, Stop(40))
    searches = isinstance(guesser, HeadDrafter | TableDrafter | ComposedDrafter)
    assert counts and max(counts) <= 2 and min(counts) >= 1 and drafting == searches * len(counts)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["none", "jacobi"])
def test_one_read_a_round(name: str, rows: int) -> None:
    """Where no width is to be chosen, the accepted path is all that is read, whatever the drafts."""
    target = image_target()
    counts, drafting = count_reads(target, drafter(name, target), prompts([[1, 3, 2]] * rows), rows, Stop(40))
    assert set(counts) == {1} and drafting == 0


def test_reads_are_counted() -> None:
    """The negative control: each of these is a read."""
    with CountReads() as counter:
        x = torch.arange(4)
        x.tolist(), x[0].item(), int(x[0]), float(x[0]), bool(x[0]), x.nonzero(), x[x > 1], x.cpu(), x.numpy()
    assert counter.reads.total() >= 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji-64", "wren-86", "magpie-135"])
def test_bundled_drafters(name: str) -> None:
    """The models that ship, with all their drafters, told what passes cost."""
    folder = zoo.resolve(name)
    pipe = pipeline(task_of(folder), folder, device="cpu", dtype="bf16")
    given, stop = pipe.encode_examples(zoo.prompts(folder)[-1:])
    for usable in ("none", "lookup", "jacobi", *zoo.drafters(folder)):
        for rows in (1, 4):
            row = given.repeat_first(rows).select(slice(None), 1.0)
            guesser = drafters.load(usable, folder, pipe.target, row, stop.length)
            counts, drafting = count_reads(pipe.target, guesser, row, rows, Stop(24))
            searches = isinstance(guesser, HeadDrafter | TableDrafter)
            assert counts and max(counts) <= 2 and drafting == searches * len(counts), (usable, rows)
