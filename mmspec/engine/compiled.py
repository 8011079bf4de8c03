"""The decoder's pass as one compiled graph for each of a few widths."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from mmspec.engine.cache import TreeCache, cache_kwarg
from mmspec.engine.packed import kept_packed
from mmspec.errors import short
from mmspec.targets.hidden import LayerInputs

# Nodes of a pass, padding included: a pass takes the smallest number that holds its tree.
WIDTHS = (4, 8, 16, 32, 64)

# Sequences of a pass, at most: a prompt in both branches of guidance. Batches come in too many sizes.
SEQUENCES = 2


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


class CompiledPass:
    """A decoder's pass, compiled by `torch.compile` for each width and shape of the cache when it is first needed; all
    graphs share the decoder's weights. What the compiler made is kept on disk by torch. `layer_inputs` keeps what
    enters layers in an uncompiled pass (`targets.hidden`); graphs give it as transformers' `hidden_states`.

    Batches of more than `SEQUENCES` run uncompiled. The first pass of every shape is compared with the decoder's own.
    Where they differ by more than `tolerance` of their spread, or the compiler fails, a warning says so, and the
    decoder runs uncompiled from then on.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        tolerance: float,
        layer_inputs: Callable[[Sequence[int]], AbstractContextManager[LayerInputs]],
    ):
        self.decoder, self.tolerance, self.layer_inputs = decoder, tolerance, layer_inputs
        (self._cache_name,) = cache_kwarg(decoder, Cache(layers=[]))
        self._graphs: dict[tuple, Callable[..., tuple[Tensor, Tensor]]] = {}
        self._failed = False

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
            **{self._cache_name: cache},
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
        if self._failed or cache.size > SEQUENCES:
            return self._uncompiled(*given)
        shape = (*cache.slots.shape, cache.capacity, *numbers)
        known = shape in self._graphs
        own = None if known else self._uncompiled(*given)
        try:
            if not known:
                if numbers:
                    self._pass(*given)  # transformers puts its hooks for hidden states in place, which no graph can
                self._graphs[shape] = self._compile()
            with kept_packed():
                compiled = self._graphs[shape](*given)
        except Exception as error:  # of the compiler or the C++ compiler that it calls
            self._give_up(short(error))
            return self._uncompiled(*given)
        for ours, theirs in zip(compiled, own or (), strict=own is not None):
            difference = float((ours - theirs).abs().max() / theirs.float().std())
            if not difference <= self.tolerance:
                self._give_up(f"its hidden states differ by {difference:.1e} of their spread")
                return self._uncompiled(*given)
        return compiled

    def _compile(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """A graph of its own: torch looks for the one that fits among all those of one code object."""
        run = CompiledPass._pass
        own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__)
        return torch.compile(own.__get__(self), fullgraph=True, dynamic=False)

    def _give_up(self, why: str) -> None:
        self._failed = True
        name = type(self.decoder).__name__
        warnings.warn(f"{name} runs uncompiled, since its compiled pass cannot be used: {why}", stacklevel=2)
