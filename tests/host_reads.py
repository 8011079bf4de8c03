"""How often the device is read while drafting, and in a round."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode

from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Batch, Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.targets.base import Prompts, Target

READS = {"tolist", "item", "__int__", "__float__", "__bool__", "__index__", "cpu", "numpy", "nonzero", "unique"}


class CountReads(TorchFunctionMode):
    """Counts the calls that wait for a tensor's values; indexing by a mask is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            self.reads[name] += 1
        if name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in index):
                self.reads["mask"] += 1
        return function(*args, **(kwargs or {}))


def count_reads(target: Target, guesser: Drafter, given: Prompts, rows: int, stop: Stop) -> tuple[list[int], int]:
    """Reads of each of some rounds, and reads while drafting in all of them."""
    batch = Batch(target, guesser, SamplingOptions(1.0))
    batch.join(given, list(range(rows)), stop)
    batch.round()  # in which the drafter begins
    draft, drafting, counts = guesser.draft, CountReads(), []

    def counted(*args):
        with drafting:
            return draft(*args)

    guesser.draft = counted
    for _ in range(4):
        if any(batch.running):
            with CountReads() as counter:
                batch.round()
            counts.append(counter.reads.total())
    del guesser.draft
    return counts, drafting.reads.total()
