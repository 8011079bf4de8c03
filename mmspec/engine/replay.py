"""The cache of models with recurrent layers: for each row one of transformers' own, and what it has yet to read.

A recurrent state cannot be cut back to an earlier token. So a chain of guesses is read into a copy of a row's cache. If
all of it is accepted, the copy is kept; else it is dropped, and the accepted nodes are read again: with the next chain,
or in a pass of their own once they are more than `MAX_UNREAD`.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from mmspec.errors import MmspecError

# Most accepted nodes that are read again with every chain that follows: a pass of some more nodes instead of a second
# pass a round. On one thread of a CPU 0, 8 and 16 take the same time (random LFM2 and Falcon-H1, width 1,024, fp32).
MAX_UNREAD = 8


@dataclass(frozen=True, slots=True)
class Nodes:
    """What a decoder reads of one row: `ids` as `decoder_inputs` of the target takes them (`1 node`), and positions."""

    ids: Int[Tensor, "1 node"]
    position_ids: Int[Tensor, "*axis 1 node"]

    def __len__(self) -> int:
        return self.ids.shape[1]

    def first(self, count: int) -> "Nodes":
        """The first `count` of them."""
        return Nodes(self.ids[:, :count], self.position_ids[..., :count])

    def then(self, others: "Nodes") -> "Nodes":
        """These, and others after them."""
        return Nodes(torch.cat([self.ids, others.ids], 1), torch.cat([self.position_ids, others.position_ids], -1))


@dataclass(slots=True)
class ReplayRow:
    """A row of `length` committed tokens.

    `cache` has read them but for the last, `unread`. `trial` has read `nodes` after that: the unread ones, and the
    chain that was verified last.
    """

    length: int = 0
    cache: Cache | None = None
    unread: Nodes | None = None
    trial: Cache | None = None
    nodes: Nodes | None = None

    def verify(self, chain: Nodes, read: Callable[[Cache, Nodes], Tensor]) -> Tensor:
        """What `read(cache, nodes)`, which the cache follows, says at the nodes of a chain: `1 node width`."""
        assert self.cache is not None, "the first token comes from the prompt's pass: commit it first"
        if self.unread is not None and len(self.unread) > MAX_UNREAD:
            read(self.cache, self.unread)
            self.unread = None
        self.nodes = chain if self.unread is None else self.unread.then(chain)
        self.trial = copy_of(self.cache)
        return read(self.trial, self.nodes)[:, -len(chain) :]

    def commit(self, count: int) -> None:
        """Keep the first `count` nodes of the chain."""
        assert self.trial is not None
        self.length += count
        if self.nodes is None:  # of a prompt, whose last token is always kept
            self.cache = self.trial
        else:
            kept = count + (0 if self.unread is None else len(self.unread))
            if kept == len(self.nodes):
                self.cache, self.unread = self.trial, None
            elif kept:
                self.unread = self.nodes.first(kept)
        self.trial = self.nodes = None


class ReplayCache:
    """Committed tokens of every row, followed by at most one chain.

    It offers to `State` and to targets what `TreeCache` does. `capacity` is tokens per row.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device):
        self.capacity, self.device = capacity, device
        self.rows = [ReplayRow() for _ in range(rows)]

    @property
    def lengths(self) -> Int[Tensor, "row"]:
        """Committed tokens of each row."""
        return torch.tensor([row.length for row in self.rows], device=self.device)

    @property
    def bytes(self) -> int:
        """Memory held by keys, values and states."""
        return sum(part.nbytes for row in self.rows for part in _tensors(row.cache))

    def open_row(self, row: int, cache: Cache) -> None:
        """A row's prompt was read into a cache of the model's own."""
        self.rows[row] = ReplayRow(trial=cache)

    def advance(self, counts: list[int]) -> None:
        """Count the first `counts[row]` tokens of each row's prompt as committed."""
        for row, count in zip(self.rows, counts, strict=True):
            row.length += count

    def commit(self, paths: list[list[int]]) -> None:
        """Keep the nodes of each row's path. Raises MmspecError for paths that are no beginnings of chains."""
        for row, path in zip(self.rows, paths, strict=True):
            if path != list(range(len(path))):
                raise MmspecError(f"a recurrent state follows chains alone, and path {path} is none: draft chains")
            row.commit(len(path))

    def keep(self, rows: list[int]) -> None:
        """These rows in this order; all others leave."""
        self.rows = [self.rows[row] for row in rows]

    def join(self, other: "ReplayCache") -> None:
        """The rows of another cache of the same model come after the present ones."""
        self.capacity = max(self.capacity, other.capacity)
        self.rows = self.rows + other.rows


def copy_of(cache: Cache) -> Cache:
    """A copy that can read on by itself.

    Keys and values are shared: reading replaces them by longer ones. States are written in place, and are copied.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    shared = {id(part): part for layer in layers for part in (layer.keys, layer.values) if part is not None}
    return deepcopy(cache, shared)


def _tensors(part: object) -> Iterator[Tensor]:
    """All tensors in a cache or a part of it."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict | list | tuple):
        for item in part.values() if isinstance(part, dict) else part:
            yield from _tensors(item)
    elif hasattr(part, "__dict__") and not isinstance(part, type):
        yield from _tensors(vars(part))
