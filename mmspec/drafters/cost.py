"""What a target pass of N nodes costs on this machine, measured once, and the node budget that follows."""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmspec.engine.cache import KV_BLOCK
from mmspec.engine.tree import chain
from mmspec.targets.base import Target

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmspec" / "cost.json"


@dataclass(slots=True)
class Cost:
    """Seconds of a target pass by tree size; `overhead` is what a round costs beside target and drafter."""

    sizes: list[int]
    seconds: list[float]
    overhead: float = 1e-3
    _passes: list[float] = field(default_factory=list, repr=False, compare=False)  # `target` of 2, 3, ... nodes

    def target(self, nodes: int) -> float:
        """Interpolated seconds of a pass over `nodes` nodes, the root included."""
        return float(np.interp(nodes, self.sizes, self.seconds))

    def cut(self, drafting: float, slack: float = 0.0) -> Callable[[Tensor], int]:
        """The node count with the most expected tokens per second, from each node's chance of being reached; with `slack`,
        the smallest count whose rate is at most that share below the best."""

        def best(reach: Tensor) -> int:
            while len(self._passes) < len(reach):
                self._passes.append(self.target(len(self._passes) + 2))
            expected = islice(accumulate(reach.tolist(), initial=1.0), 1, None)
            rates = [tokens / (seconds + drafting + self.overhead) for tokens, seconds in zip(expected, self._passes)]
            enough = (1 - slack) * max(rates)
            return 1 + next(count for count, rate in enumerate(rates) if rate >= enough)

        return best


@torch.inference_mode()
def measure(target: Target, prompts: Any, rows: int, length: int, repeats: int = 7) -> Cost:
    """Time passes of growing width after the given prompts, with a cache that has place for `length` new tokens: attention reads whole blocks
    of `cache.KV_BLOCK` slots, or all of a cache that is smaller.

    Each width takes its best time of `repeats` (fewer where passes are long), and the curve is made monotone from above,
    so that another program that wakes for a moment does not count.
    """
    seconds: list[float] = []
    state = target.prefill(prompts, length + max(SIZES) + 1, False)
    for size in SIZES:
        tree = chain(state.roots, torch.zeros(rows, size - 1, dtype=torch.long, device=state.roots.device))
        times: list[float] = []
        while len(times) < 2 or (len(times) < repeats and sum(times) < 0.25):
            began = perf_counter()
            target.forward(state, tree).logits.argmax(-1).tolist()
            times.append(perf_counter() - began)
        seconds.append(min(times))
    return Cost(list(SIZES), [min(seconds[i:]) for i in range(len(SIZES))])


def measured(target: Target, prompts: Any, name: str, length: int) -> Cost:
    """`measure`, remembered on disk for this model, device, dtype, thread count, batch and length (in steps of 128, up to one block)."""
    length = min(length, KV_BLOCK)
    rows = len(prompts.conditional)
    streams = len(prompts.branches) // rows
    card = torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else platform.processor()
    what = (
        getattr(target, "hash", "") or name,
        getattr(target, "min_query_len", 1),
        str(target.device),
        str(target.dtype),
        torch.get_num_threads(),
        rows,
        streams,
        -(-length // 128),
        card,
        torch.__version__,
    )
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
    path = cache_file()
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        cost = measure(target, prompts, rows, length)
        known[key] = {"sizes": cost.sizes, "seconds": cost.seconds}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(known))
            partial.replace(path)
        except OSError:
            return cost
    return Cost(known[key]["sizes"], known[key]["seconds"])
