"""Linear layers whose weights lie as the CPU's matrix library wants them (oneDNN's blocked layout)."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Rows of the products that the layout is chosen for; products of other widths use it, too.
ROWS = 16

_DTYPES = (torch.bfloat16, torch.float16)

# Graphs cannot hold weights in this layout: they name a layer by its number.
_LAYERS: "WeakValueDictionary[int, PackedLinear]" = WeakValueDictionary()
_NUMBERS = count()
_LIBRARY = torch.library.Library("mmspec", "DEF")
_LIBRARY.define("packed_linear(Tensor input, int layer, int width) -> Tensor")


def _product(input: Tensor, layer: int, width: int) -> Tensor:
    linear = _LAYERS[layer]
    return torch.ops.mkldnn._linear_pointwise(input, linear._packed, linear.bias, "none", [], "")


def _shape(input: Tensor, layer: int, width: int) -> Tensor:
    return input.new_empty(*input.shape[:-1], width)


_LIBRARY.impl("packed_linear", _product, "CPU")
_LIBRARY.impl("packed_linear", _shape, "Meta")


class PackedLinear(nn.Linear):
    """A linear layer of 16-bit weights on a CPU, kept in oneDNN's layout alone and not as a parameter.

    A product sums in the same order whatever the number of rows, so that the bits of a row do not depend on how many
    others there are. `weight` is a copy in the common layout, made each time. A product that needs a gradient is taken
    with that copy. Moving the module to a device or dtype, or loading weights, makes it a plain `nn.Linear` again.
    """

    _packed: Tensor
    _number: int

    @classmethod
    def pack(cls, linear: nn.Linear) -> None:
        """Turn a linear layer into this kind, in place."""
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        del linear._parameters["weight"]
        linear.__class__ = cls
        assert isinstance(linear, cls)
        linear._packed = packed
        # Graphs know a layer that was packed before by its number; a copy of it needs another.
        if _LAYERS.get(getattr(linear, "_number", -1)) is not linear:
            linear._number = next(_NUMBERS)
            _LAYERS[linear._number] = linear

    def unpack(self) -> None:
        """Turn it into a plain linear layer again, in place."""
        weight = nn.Parameter(self.weight, requires_grad=False)
        del self._packed
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self.register_parameter("weight", weight)

    @property
    def weight(self) -> Float[Tensor, "out in"]:  # type: ignore[override]
        return self._packed.to_dense()

    def forward(self, input: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        if torch.is_grad_enabled() and input.requires_grad:
            return nn.functional.linear(input, self.weight, self.bias)
        return torch.ops.mmspec.packed_linear(input, self._number, self.out_features)

    def __deepcopy__(self, memo: dict) -> nn.Linear:
        self.unpack()
        try:
            return copy.deepcopy(self, memo)
        finally:
            PackedLinear.pack(self)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self.unpack()
        return self._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        self._load_from_state_dict(*args, **kwargs)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies weights of the dtype in oneDNN's layout."""
    if not torch.backends.mkldnn.is_available() or dtype not in _DTYPES:
        return False
    known = torch.ops.mkldnn
    return known._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else known._is_mkldnn_fp16_supported()


def pack_weights(model: nn.Module) -> int:
    """Pack the 16-bit linear layers of a model that lies on a CPU, in place; returns how many there were.

    Left as they are: weights that other modules share, subclasses of `nn.Linear`, and layers that are being trained
    through hooks or parametrisations of their own.
    """
    tensors = (parameter for module in model.modules() for parameter in module._parameters.values())
    uses = Counter(id(parameter) for parameter in tensors if parameter is not None)
    packed = 0
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.device.type != "cpu" or uses[id(module.weight)] > 1:
            continue
        if can_pack(module.weight.dtype):
            PackedLinear.pack(module)
            packed += 1
    return packed


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Plain linear layers for a while, as transformers made them."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    for layer in layers:
        layer.unpack()
    try:
        yield
    finally:
        for layer in layers:
            PackedLinear.pack(layer)
