"""The tree KV cache: preallocated, a length for each row, accepted paths compacted in place."""

from inspect import signature
from typing import cast
from weakref import proxy

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from mmspec.errors import MmspecError

# Attention reads slots in whole blocks of this many. In bfloat16 the last bits of an attention output depend on how many slots
# it was given, masked or not; a constant number makes wide and narrow passes agree bit for bit.
KV_BLOCK = 512


def cache_kwarg(module: nn.Module, cache: Cache) -> dict[str, Cache]:
    """The argument by which a module of transformers takes a cache: `cache` from 5.24 on, `past_key_values` before."""
    return {"cache" if "cache" in signature(module.forward).parameters else "past_key_values": cache}


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer, `row head slot dim`; new entries go where the cache says."""

    is_compileable = False

    def __init__(self, owner: "TreeCache"):
        super().__init__()
        self.owner = cast(
            TreeCache, proxy(owner)
        )  # a cycle would keep keys and values until the garbage collector runs

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, self.owner.capacity, width)
        self.values = value_states.new_zeros(rows, heads, self.owner.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner = self.owner
        if owner.aligned is not None:
            span = slice(owner.aligned, owner.aligned + key_states.shape[2])
            self.keys[:, :, span] = key_states
            self.values[:, :, span] = value_states
        else:
            self.keys[owner.rows, :, owner.slots] = key_states.transpose(1, 2)
            self.values[owner.rows, :, owner.slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : owner.visible], self.values[:, :, : owner.visible]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        rows = self.owner.rows
        self.keys[rows, :, targets] = self.keys[rows, :, sources]
        self.values[rows, :, targets] = self.values[rows, :, sources]

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def join(self, other: "TreeLayer") -> None:
        for mine, name in ((self.keys, "keys"), (self.values, "values")):
            theirs = getattr(other, name)
            whole = mine.new_zeros(len(mine) + len(theirs), mine.shape[1], self.owner.capacity, mine.shape[3])
            whole[: len(mine), :, : mine.shape[2]] = mine
            whole[len(mine) :, :, : theirs.shape[2]] = theirs
            setattr(self, name, whole)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.visible, 0

    def get_seq_length(self) -> int:
        return max(self.owner.lengths)

    def get_max_length(self) -> int:
        return self.owner.capacity

    def reset(self) -> None:
        self.owner.lengths = [0] * len(self.owner.lengths)


class TreeCache(Cache):
    """Committed entries of every row, followed by at most one draft tree.

    `open(width)` says where the next `width` entries of each row go (right after its committed ones);
    `commit(paths)` keeps those on the accepted path and forgets the others. Slots beyond a row's length hold
    garbage that the mask hides. `capacity` is slots per row: committed tokens plus one tree.
    """

    def __init__(self, layers: int, rows: int, capacity: int, device: torch.device | str = "cpu"):
        super().__init__(layers=[TreeLayer(self) for _ in range(layers)])
        self.capacity = capacity
        self.device = torch.device(device)
        self.visible = 0
        self.aligned: int | None = 0
        self.lengths = [0] * rows
        self.rows = torch.arange(rows, device=device)[:, None]
        self.slots = self.rows

    @property
    def bytes(self) -> int:
        """Memory held by keys and values."""
        return sum(t.nbytes for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values))

    def open(self, width: int) -> None:
        """Place the next `width` entries of each row after its committed ones."""
        longest = max(self.lengths)
        needed = longest + width
        if needed > self.capacity:
            raise MmspecError(
                f"the cache holds {self.capacity} positions a row and {needed} are needed: ask for fewer tokens or a smaller tree"
            )
        self.visible = min(self.capacity, -(-needed // KV_BLOCK) * KV_BLOCK)
        self.aligned = longest if min(self.lengths) == longest else None
        if self.aligned is None:
            start = torch.tensor(self.lengths, device=self.device)[:, None]
            self.slots = start + torch.arange(width, device=self.device)

    def mask(self, ancestors: Bool[Tensor, "row node node"]) -> Bool[Tensor, "row 1 node slot"]:
        """What each new entry may attend to: its row's committed slots and its own ancestors."""
        rows, width = ancestors.shape[:2]
        lengths = torch.tensor(self.lengths, device=self.device)
        slots = torch.arange(self.visible, device=self.device)
        allowed = (slots < lengths[:, None])[:, None].expand(-1, width, -1).clone()
        if self.aligned is not None:
            allowed[:, :, self.aligned : self.aligned + width] = ancestors
        else:
            allowed.scatter_(2, self.slots[:, None].expand(-1, width, -1), ancestors)
        return allowed[:, None]

    def commit(self, paths: list[list[int]]) -> None:
        """Keep the nodes of each row's path, in order, right after what was committed."""
        if any(path != list(range(len(path))) for path in paths):
            longest = max(map(len, paths))
            padded = torch.tensor([path + list(range(len(path), longest)) for path in paths], device=self.device)
            start = torch.tensor(self.lengths, device=self.device)[:, None]
            sources, targets = start + padded, start + torch.arange(longest, device=self.device)
            for layer in self.layers:
                layer.move(sources, targets)
        self.lengths = [length + len(path) for length, path in zip(self.lengths, paths, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """These rows in this order; all others leave."""
        index = torch.tensor(rows, device=self.device)
        for layer in self.layers:
            layer.keep(index)
        self._seat([self.lengths[row] for row in rows])

    def join(self, other: "TreeCache") -> None:
        """The rows of another cache of the same model come after the present ones."""
        self.capacity = max(self.capacity, other.capacity)
        for layer, fresh in zip(self.layers, other.layers, strict=True):
            layer.join(fresh)
        self._seat(self.lengths + other.lengths)

    def _seat(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.rows = torch.arange(len(lengths), device=self.device)[:, None]


def causal(rows: int, width: int, device: torch.device | str) -> Bool[Tensor, "row node node"]:
    """Ancestors of a chain, for prefill."""
    return torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)


def positions(lengths: list[int], depths: Int[Tensor, "row node"]) -> Int[Tensor, "row node"]:
    """Position ids of tree nodes: the row's committed length plus the node's depth."""
    return torch.tensor(lengths, device=depths.device)[:, None] + depths
