"""Passes of decoders and of drafters as compiled graphs, one for each of a few widths."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from mmspec.engine.cache import KV_BLOCK, TreeCache, cache_kwarg
from mmspec.engine.packed import kept_packed
from mmspec.errors import short
from mmspec.targets.hidden import LayerInputs

# Nodes of a pass, padding included: a pass takes the smallest number that holds its tree. A single node is for plain
# decoding where `min_query_len` allows it.
WIDTHS = (1, 4, 8, 16, 32, 64)

# A difference from an uncompiled run that rounding explains, as a share of the spread, in float32 and shorter ones.
# Hidden states have entries of twenty times their spread, so that in float32 it has reached 1.2e-3.
ROUNDING = 1e-2

# Sequences of a pass, at most: a prompt in both branches of guidance. Batches come in too many sizes.
SEQUENCES = 2


def graph_slots(length: int) -> int:
    """How many slots a cache for so many entries has where graphs read it: few numbers, each of which is compiled."""
    return max(KV_BLOCK, 2 ** (length - 1).bit_length())


def padded_width(nodes: int) -> int:
    """The width of the graph that reads so many nodes."""
    return next((width for width in WIDTHS if width >= nodes), nodes)


class GraphLayer(CacheLayerMixin):
    """Keys and values of one layer, `sequence head slot dim`: tensors that a graph is given and writes to."""

    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, slots: Int[Tensor, "sequence node"]):
        super().__init__()
        self.keys, self.values, self.slots, self.is_initialized = keys, values, slots, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        for entries, states in ((self.keys, key_states), (self.values, value_states)):
            if len(states) == 1:
                entries.index_copy_(2, self.slots[0], states)
            else:
                rows = torch.arange(len(states), device=states.device)[:, None]
                entries[rows, :, self.slots] = states.transpose(1, 2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True, slots=True)
class Written:
    """Where a pass writes keys and values: `slots` of `entries`."""

    entries: list[tuple[Tensor, Tensor]]
    slots: Int[Tensor, "sequence node"]

    def take(self) -> list[Tensor]:
        """What is there, which becomes zeros."""
        taken, rows = self.read(), torch.arange(len(self.slots), device=self.slots.device)[:, None]
        for tensor in (tensor for each in self.entries for tensor in each):
            tensor[rows, :, self.slots] = 0.0
        return taken

    def read(self) -> list[Tensor]:
        """What is there."""
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]
        return [tensor[rows, :, self.slots] for each in self.entries for tensor in each]


class Graphs:
    """Compiled graphs of functions that give tensors, made by `torch.compile` when a shape is first needed. What the
    compiler made is kept on disk by torch.

    The first run of every shape is compared with the function's own, what they return and the keys and values that they
    write. Where these differ by more than `tolerance` of
    their spread (or `ROUNDING`, if larger, but in float64), or the compiler fails, a warning says so of `name`, and
    functions run uncompiled from then on (`failed`). A copy has no graphs yet.
    """

    def __init__(self, name: str, tolerance: float):
        self.name, self.tolerance, self.failed = name, tolerance, False
        self.made: dict[tuple, Callable[..., tuple[Tensor, ...]]] = {}

    def __deepcopy__(self, memo: dict) -> "Graphs":
        return Graphs(self.name, self.tolerance)

    def run(
        self,
        shape: tuple,
        function: Callable[..., tuple[Tensor, ...]],
        given: tuple,
        written: Written,
        uncompiled: Callable[..., tuple[Tensor, ...]] | None = None,
        prepare: Callable[[], object] = lambda: None,
    ) -> tuple[Tensor, ...]:
        """What `function`, a method, makes of `given`, by the graph of that shape. `uncompiled` is what is run in its
        place without a compiler, itself if None, and `prepare` is called before it is compiled.
        """
        uncompiled = uncompiled or function
        if self.failed:
            return uncompiled(*given)
        known = shape in self.made
        own = () if known else uncompiled(*given)
        try:
            if not known:
                prepare()
                own = (*own, *written.take())  # a graph that writes nothing finds nothing
                self.made[shape] = self._compile(function)
            with kept_packed():
                results = self.made[shape](*given)
        except Exception as error:  # of the compiler or the C++ compiler that it calls
            self._give_up(short(error))
            return uncompiled(*given)
        for ours, theirs in zip(() if known else (*results, *written.read()), own, strict=True):
            difference = float((ours - theirs).abs().max() / theirs.float().std().clamp(min=1e-30))
            limit = self.tolerance if ours.dtype == torch.float64 else max(self.tolerance, ROUNDING)
            if not difference <= limit:
                self._give_up(f"its results differ by {difference:.1e} of their spread")
                return uncompiled(*given)
        return results

    def _compile(self, function: Any) -> Callable[..., tuple[Tensor, ...]]:
        """A graph of its own: torch looks for the one that fits among all those of one code object."""
        run = function.__func__
        own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
        return torch.compile(own.__get__(function.__self__), fullgraph=True, dynamic=False)

    def _give_up(self, why: str) -> None:
        self.failed = True
        warnings.warn(f"{self.name} runs uncompiled, since its compiled pass cannot be used: {why}", stacklevel=2)


class CompiledPass:
    """A decoder's pass as graphs for each width and shape of the cache, which share the decoder's weights.
    `layer_inputs` keeps what enters layers in an uncompiled pass (`targets.hidden`); graphs give it as transformers'
    `hidden_states`. Batches of more than `SEQUENCES` run uncompiled.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        tolerance: float,
        layer_inputs: Callable[[Sequence[int]], AbstractContextManager[LayerInputs]],
    ):
        self.decoder, self.layer_inputs = decoder, layer_inputs
        self.graphs = Graphs(type(decoder).__name__, tolerance)

    def _pass(
        self,
        inputs: dict[str, Tensor],
        masks: dict[str, Tensor] | Tensor,
        position_ids: Tensor,
        slots: Tensor,
        entries: list[tuple[Tensor, Tensor]],
        numbers: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        cache = Cache(layers=[GraphLayer(keys, values, slots) for keys, values in entries])
        output = self.decoder(
            attention_mask=masks,
            position_ids=position_ids,
            use_cache=True,
            **inputs,
            **cache_kwarg(self.decoder, cache),
            **({"output_hidden_states": True} if numbers else {}),
        )
        last = output.last_hidden_state
        return last, torch.cat([output.hidden_states[number] for number in numbers], -1) if numbers else last

    def _uncompiled(self, *given: Any) -> tuple[Tensor, Tensor]:
        *rest, numbers = given
        with self.layer_inputs(numbers) as entered:
            last, _ = self._pass(*rest, ())  # type: ignore[call-arg]
        return last, entered.or_last(last)

    def __call__(
        self,
        inputs: dict[str, Tensor],
        masks: dict[str, Tensor] | Tensor,
        position_ids: Int[Tensor, "*axis sequence node"],
        cache: TreeCache,
        numbers: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "sequence node width"], Float[Tensor, "sequence node wide"]]:
        """Last hidden states, and what entered the layers of these numbers (the last states again without any); keys
        and values go to the slots that the cache has opened.
        """
        entries = [(layer.keys, layer.values) for layer in cache.written]
        given = (inputs, masks, position_ids, cache.slots, entries, tuple(numbers))
        if cache.size > SEQUENCES:
            return self._uncompiled(*given)
        # transformers puts its hooks for hidden states in place, which no graph can.
        prepare = (lambda: self._pass(*given)) if numbers else (lambda: None)
        shape = (*cache.slots.shape, cache.capacity, *numbers)
        last, entered = self.graphs.run(
            shape, self._pass, given, Written(entries, cache.slots), self._uncompiled, prepare
        )
        return last, entered
