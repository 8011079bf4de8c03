"""The tree KV cache: preallocated, a length for each row, accepted paths compacted in place."""

from inspect import signature
from typing import Protocol, TypeVar, cast, runtime_checkable
from weakref import proxy

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from mmspec.errors import MmspecError

# Attention reads slots in whole blocks of this many. In bfloat16 the last bits of an attention output depend on how
# many slots it was given, masked or not; a constant number makes wide and narrow passes agree bit for bit.
KV_BLOCK = 512


# What classes of modules call their cache, once they were asked: compilers cannot ask.
_CACHE_NAMES: dict[type, str] = {}


def cache_kwarg(module: nn.Module, cache: Cache) -> dict[str, Cache]:
    """The argument by which a module of transformers takes a cache: `cache` from 5.24 on, `past_key_values` before."""
    kind = type(module)
    if kind not in _CACHE_NAMES:
        _CACHE_NAMES[kind] = "cache" if "cache" in signature(module.forward).parameters else "past_key_values"
    return {_CACHE_NAMES[kind]: cache}


OneCache = TypeVar("OneCache")


@runtime_checkable
class RowCache(Protocol):
    """What a `State` asks of a cache: the committed entries of every row, and those of the tree that was read last."""

    capacity: int

    @property
    def lengths(self) -> Int[Tensor, "row"]: ...

    @property
    def bytes(self) -> int: ...

    def advance(self, counts: list[int]) -> None: ...

    def commit(self, paths: list[list[int]]) -> None: ...

    def keep(self, rows: list[int]) -> None: ...

    def join(self: OneCache, other: OneCache) -> None: ...


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer, `row head slot dim`, on the layer's device; new entries go where the cache says."""

    is_compileable = False

    def __init__(self, owner: "TreeCache"):
        super().__init__()
        # A cycle would keep keys and values until the garbage collector runs.
        self.owner = cast(TreeCache, proxy(owner))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, width = self.owner.size, key_states.shape[1], key_states.shape[3]
        self.keys = key_states.new_zeros(rows, heads, self.owner.capacity, width)
        self.values = value_states.new_zeros(rows, heads, self.owner.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner = self.owner
        self._write(self.keys, key_states, owner.slots)
        self._write(self.values, value_states, owner.slots)
        return self.keys[owner.span, :, : owner.visible], self.values[owner.span, :, : owner.visible]

    def _write(self, entries: Tensor, states: Tensor, slots: Tensor) -> None:
        slots = slots.to(entries.device)
        if len(states) == 1:
            entries[self.owner.span].index_copy_(2, slots[0], states)
        else:
            entries[self.owner.rows.to(entries.device), :, slots] = states.transpose(1, 2)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the entries of each row from the slots `sources` to `targets`, both `row slot`."""
        device = self.keys.device
        rows, sources, targets = (index.to(device) for index in (self.owner.rows, sources, targets))
        self.keys[rows, :, targets] = self.keys[rows, :, sources]
        self.values[rows, :, targets] = self.values[rows, :, sources]

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]

    def join(self, other: "TreeLayer") -> None:
        self.keys, self.values = self._joined(self.keys, other.keys), self._joined(self.values, other.values)

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        joined = first.new_zeros(len(first) + len(second), first.shape[1], self.owner.capacity, first.shape[3])
        joined[: len(first), :, : first.shape[2]] = first
        joined[len(first) :, :, : second.shape[2]] = second
        return joined

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.visible, 0

    def get_seq_length(self) -> int:
        return self.owner.longest

    def get_max_length(self) -> int:
        return self.owner.capacity

    def reset(self) -> None:
        self.owner.clear()


class TreeCache(Cache):
    """Committed entries of every row, followed by at most one draft tree.

    `open(width)` chooses the slots of the next `width` entries of each row, right after its committed ones;
    `commit(paths)` keeps those on the accepted path and forgets the others. Slots beyond a row's length hold values
    that the mask hides. `capacity` is slots per row: committed tokens plus one tree. Attention reads `visible` of them:
    whole blocks, and at least `min_visible`. `open_row` opens the first slots of one row alone, for its prompt.

    `lengths` and `slots` are tensors on the device, so that a pass of a given width has static shapes; the cache knows
    the lengths as numbers too, and never reads the device. Only its own methods change them.
    """

    def __init__(self, layers: int, rows: int, capacity: int, device: torch.device | str = "cpu", min_visible: int = 0):
        super().__init__(layers=[TreeLayer(self) for _ in range(layers)])
        self.capacity, self.min_visible = capacity, min_visible
        self.device = torch.device(device)
        self.visible, self.span = 0, slice(None)
        self._set_rows([0] * rows)
        self.slots: Int[Tensor, "row entry"] = self.rows

    def _set_rows(self, lengths: list[int]) -> None:
        self._counts = lengths
        self.lengths: Int[Tensor, row] = torch.tensor(lengths, device=self.device)
        self.rows = torch.arange(len(lengths), device=self.device)[:, None]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self._counts)

    @property
    def longest(self) -> int:
        """Committed entries of the longest row."""
        return max(self._counts, default=0)

    @property
    def shortest(self) -> int:
        """Committed entries of the shortest row."""
        return min(self._counts, default=0)

    @property
    def written(self) -> list[TreeLayer]:
        """The layers that hold entries: all of them after the first pass, but those that use another layer's."""
        return [layer for layer in self.layers if isinstance(layer, TreeLayer) and layer.is_initialized]

    @property
    def bytes(self) -> int:
        """Memory held by keys and values."""
        return sum(entries.nbytes for layer in self.written for entries in (layer.keys, layer.values))

    def open(self, width: int, offset: int = 0) -> None:
        """Place the next `width` entries of each row `offset` slots after its committed ones.

        Raises MmspecError if they do not fit.
        """
        needed = self.longest + offset + width
        if needed > self.capacity:
            raise MmspecError(
                f"the cache holds {self.capacity} positions a row and {needed} are needed: "
                "ask for fewer tokens or a smaller tree"
            )
        self.span = slice(None)
        self.visible = min(self.capacity, max(self.min_visible, -(-needed // KV_BLOCK) * KV_BLOCK))
        self.slots = self.lengths[:, None] + torch.arange(offset, offset + width, device=self.device)

    def open_row(self, row: int, width: int) -> None:
        """Place the next `width` entries, of this row alone, in its first slots; attention reads no others."""
        self.span, self.visible = slice(row, row + 1), width
        self.slots = torch.arange(width, device=self.device)[None]

    def committed(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer keeps, `row head slot dim`, for who else would read them: in whole blocks of
        slots, of which the first `lengths` of each row are committed and the others mean nothing.
        """
        entries = self.layers[layer]
        assert isinstance(entries, TreeLayer) and entries.is_initialized, f"layer {layer} keeps no entries"
        slots = min(self.capacity, -(-max(1, self.longest) // KV_BLOCK) * KV_BLOCK)
        return entries.keys[:, :, :slots].to(self.device), entries.values[:, :, :slots].to(self.device)

    def indices(self, depths: Int[Tensor, "row node"]) -> tuple[Int[Tensor, "row node 1"], Int[Tensor, "row 1 slot"]]:
        """Each new entry's place in its sequence, by its depth below the committed ones; and that of what each slot
        holds.
        """
        places = self.lengths[:, None] + depths
        slots = torch.arange(self.visible, device=self.device).expand(self.size, -1)
        return places[..., None], slots.scatter(1, self.slots, places)[:, None]

    def mask(self, seen: Bool[Tensor, "row node entry"]) -> Bool[Tensor, "row 1 node slot"]:
        """What each new entry may attend to: its row's committed slots, and those of the entries after them that it
        `seen`s.

        The entries are counted from the first slot that is not committed; those that were opened last are the last of
        them.
        """
        allowed = (torch.arange(self.visible, device=self.device) < self.lengths[:, None])[:, None]
        allowed = allowed.repeat(1, seen.shape[1], 1)
        slots = self.lengths[:, None] + torch.arange(seen.shape[2], device=self.device)
        return allowed.scatter_(2, slots[:, None].expand(-1, seen.shape[1], -1), seen)[:, None]

    def commit(self, paths: list[list[int]]) -> None:
        """Keep the nodes of each row's path, in order, right after what was committed."""
        if any(path != list(range(len(path))) for path in paths):
            longest = max(map(len, paths))
            padded = torch.tensor([path + list(range(len(path), longest)) for path in paths], device=self.device)
            start = self.lengths[:, None]
            sources, targets = start + padded, start + torch.arange(longest, device=self.device)
            for layer in self.written:
                layer.move(sources, targets)
        self.advance([len(path) for path in paths])

    def advance(self, counts: list[int]) -> None:
        """Keep the first `counts[row]` entries of each row that are not committed yet."""
        self._counts = [length + count for length, count in zip(self._counts, counts, strict=True)]
        self.lengths = torch.tensor(self._counts, device=self.device)

    def keep(self, rows: list[int]) -> None:
        """These rows in this order; all others leave."""
        index = torch.tensor(rows, device=self.device)
        for layer in self.written:
            layer.keep(index)
        self._set_rows([self._counts[row] for row in rows])

    def join(self, other: "TreeCache") -> None:
        """The rows of another cache of the same model come after the present ones."""
        self.capacity = max(self.capacity, other.capacity)
        for layer, joining in zip(self.written, other.written, strict=True):
            layer.join(joining)
        self._set_rows(self._counts + other._counts)

    def clear(self) -> None:
        """Forget all entries."""
        self._set_rows([0] * len(self._counts))


def causal(rows: int, width: int, device: torch.device | str) -> Bool[Tensor, "row node node"]:
    """Ancestors of a chain, for prefill."""
    return torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)
