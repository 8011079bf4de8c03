"""What a target pass of N nodes costs on this machine, measured once, and the node budget that follows."""

import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice
from math import inf
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from mmspec.engine.cache import KV_BLOCK
from mmspec.engine.compiled import WIDTHS
from mmspec.engine.tree import DraftTree, chain
from mmspec.errors import MmspecError
from mmspec.files import cache_folder, write_atomically
from mmspec.targets.base import Prompts, Target

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Compiled passes cost as much as the widest tree of their width.
STEPS = tuple(size for width in WIDTHS for size in (width, width + 1))[:-1]

# Counts up when passes change, so that old measurements are not used.
EDITION = 3


def cache_file() -> Path:
    return cache_folder() / "cost.json"


@dataclass(slots=True)
class Cost:
    """Seconds of a target pass by tree size; `overhead` is what a round costs beside target and drafter."""

    sizes: list[int]
    seconds: list[float]
    overhead: float = 1e-3
    # `target` of 2, 3, ... nodes.
    _passes: list[float] = field(default_factory=list, repr=False, compare=False)

    def target(self, nodes: int) -> float:
        """Interpolated seconds of a pass over `nodes` nodes, the root included."""
        return float(np.interp(nodes, self.sizes, self.seconds))

    def best_node_count(self, path_probs: list[float], drafting: float, slack: float = 0.0) -> int:
        """The number of draft nodes with the most expected tokens per second, at least 1.

        `path_probs` are the probabilities of reaching each node, sorted downwards, and `drafting` the seconds that the
        round has taken so far. With `slack`, it is the smallest number whose rate is at most that share below the best.
        """
        while len(self._passes) < len(path_probs):
            self._passes.append(self.target(len(self._passes) + 2))
        expected = islice(accumulate(path_probs, initial=1.0), 1, None)
        rates = [tokens / (seconds + drafting + self.overhead) for tokens, seconds in zip(expected, self._passes)]
        enough = (1 - slack) * max(rates)
        return 1 + next(count for count, rate in enumerate(rates) if rate >= enough)


def choose_width(tree: DraftTree, nodes: int | None, cost: Cost | None, drafting: float) -> DraftTree:
    """The part of a sorted tree that one target pass verifies: `nodes` draft nodes, or as many as `cost` says pay.

    Without either it is 16 draft nodes. The width is that of the row which needs most. Reads the device once.
    """
    if tree.path_probs is None:
        return tree
    path_probs, depths = torch.stack([tree.path_probs.double(), tree.depths.double()]).tolist()
    width = best_width([row[1:] for row in path_probs], nodes, cost, drafting)
    return tree.first(1 + width, int(max(max(row[: 1 + width]) for row in depths)))


def best_width(path_probs: list[list[float]], nodes: int | None, cost: Cost | None, drafting: float) -> int:
    """How many draft nodes of sorted trees to verify: see `choose_width`."""
    if nodes is not None:
        return nodes
    return max(cost.best_node_count(row, drafting) for row in path_probs) if cost else 16


def sizes_of(target: Target) -> tuple[int, ...]:
    """The widths of passes that are measured."""
    return STEPS if target.compiled else SIZES


@torch.inference_mode()
def measure(target: Target, prompts: Prompts, length: int, repeats: int = 7) -> Cost:
    """Time passes of growing width after the given prompts, with a cache that has room for `length` new tokens.

    Attention reads whole blocks of `cache.KV_BLOCK` slots, or all of a cache that is smaller. Each width takes its best
    time of `repeats` (fewer where passes are long), and the curve is made monotone from above, so that another program
    that wakes for a moment does not count.
    """
    seconds: list[float] = []
    rows, sizes = len(prompts.conditional), sizes_of(target)
    state = target.prefill(prompts, length + max(SIZES) + 1, False)
    state.commit([[0]] * rows, [[0]] * rows, state.prefill_output.hidden)  # a first token, as the passes come after it
    for size in sizes:
        tree = chain(state.roots, torch.zeros(rows, size - 1, dtype=torch.long, device=state.roots.device))
        target.forward(state, tree)  # compiled passes are made when they are first needed
        times: list[float] = []
        while len(times) < 2 or (len(times) < repeats and sum(times) < 0.25):
            began = perf_counter()
            target.forward(state, tree).logits.argmax(-1).tolist()
            times.append(perf_counter() - began)
        seconds.append(min(times))
    return Cost(list(sizes), [min(seconds[i:]) for i in range(len(sizes))])


def measured(target: Target, prompts: Prompts, name: str, length: int) -> Cost:
    """`measure`, remembered on disk.

    What is measured once is a model, device, dtype, number of threads, batch and length (in steps of 128 tokens, up to
    one block); `name` stands for a model whose weights have no hash.
    """
    length = min(length, KV_BLOCK)
    rows = len(prompts.conditional)
    cuda = target.device.type == "cuda"
    setting = (
        EDITION,
        target.weights_hash or name,
        target.min_query_len,
        target.compiled,
        str(target.device),
        str(target.dtype),
        torch.get_num_threads(),
        rows,
        len(prompts.branches) // rows,
        -(-length // 128),
        torch.cuda.get_device_name(target.device) if cuda else platform.processor(),
        torch.__version__,
    )
    key = hashlib.sha256(repr(setting).encode()).hexdigest()[:24]
    path, compiled = cache_file(), target.compiled
    try:
        curves = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        curves = {}
    if not isinstance(curves, dict):
        curves = {}
    if (cost := _stored(curves.get(key), sizes_of(target))) is None:
        cost = measure(target, prompts, length)
        curves[key] = {"sizes": cost.sizes, "seconds": cost.seconds}
        if target.compiled == compiled:  # graphs may have failed in between
            with suppress(OSError, MmspecError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, partial(Path.write_text, data=json.dumps(curves)))
    return cost


def _stored(entry: object, sizes: Sequence[int]) -> Cost | None:
    """A curve as `measured` writes it; None for anything else."""
    if not isinstance(entry, dict) or entry.get("sizes") != list(sizes):
        return None
    seconds = entry.get("seconds")
    if not isinstance(seconds, list) or len(seconds) != len(sizes):
        return None
    fit = all(isinstance(each, float) and 0 < each < inf for each in seconds)
    return Cost(list(sizes), seconds) if fit else None
