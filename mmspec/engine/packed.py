"""Linear layers whose weights lie as the CPU's matrix library wants them (oneDNN's blocked layout)."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import RLock, local
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Rows of the products that the layout is chosen for; products of other widths use it, too.
ROWS = 16

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Whether layers stay packed that are looked at in this thread.
_THREAD = local()

# Whoever turns a plain layer into a packed one, or back, has it.
_LOCK = RLock()

# Graphs cannot hold weights in this layout: they name a layer by its number.
_LAYERS: "WeakValueDictionary[int, nn.Linear]" = WeakValueDictionary()
_NUMBERS = count()
_LIBRARY = torch.library.Library("mmspec", "DEF")
_LIBRARY.define("packed_linear(Tensor input, int layer, int width) -> Tensor")


def _product(input: Tensor, layer: int, width: int) -> Tensor:
    linear = _LAYERS[layer]
    packed = linear.__dict__.get("_packed")
    if packed is None:  # unpacked since the graph was made
        return nn.functional.linear(input, linear.weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(input, packed, linear.bias, "none", [], "")


def _shape(input: Tensor, layer: int, width: int) -> Tensor:
    return input.new_empty(*input.shape[:-1], width)


_LIBRARY.impl("packed_linear", _product, "CPU")
_LIBRARY.impl("packed_linear", _shape, "Meta")


class PackedLinear(nn.Linear):
    """A linear layer on a CPU, kept in oneDNN's layout alone.

    A product of 16-bit weights sums in the same order whatever the number of rows, so that the bits of a row do not
    depend on how many others there are. Whoever looks at the weight or the parameters, moves the layer, loads weights
    into it, or computes with gradients or float32 under autocast finds a plain `nn.Linear` with the parameter that it
    had, and it stays one. State dictionaries, copies and pickles have copies of plain weights, and leave it packed: to
    write to weights in place, take them from `parameters()` or from `state_dict(keep_vars=True)`.
    """

    _packed: Tensor
    _number: int

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def pack(cls, linear: nn.Linear) -> None:
        """Turn a linear layer into this kind, in place."""
        with _LOCK:
            weight = linear._parameters.pop("weight")
            assert weight is not None
            own = linear.__dict__
            own["_packed"] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            # The parameter is kept without its numbers, for who holds it, such as an optimiser.
            own["_emptied"] = weight
            weight.data = weight.new_empty(0)
            # Graphs know a layer that was packed before by its number; a copy of it needs another.
            if _LAYERS.get(own.get("_number", -1)) is not linear:
                own["_number"] = next(_NUMBERS)
                _LAYERS[own["_number"]] = linear
            linear.__class__ = cls

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self) -> None:
        """Turn it into a plain linear layer again, in place, unless another thread has done so."""
        with _LOCK:
            own = self.__dict__
            if "_packed" not in own:
                return
            weight = own["_emptied"]
            weight.data = own["_packed"].to_dense()
            own["_parameters"] = {"weight": weight, **own["_parameters"]}
            self.__class__ = nn.Linear  # type: ignore[assignment]
            del own["_emptied"], own["_packed"]

    @property
    def _parameters(self) -> dict[str, nn.Parameter | None]:  # type: ignore[override]
        if not getattr(_THREAD, "keeps", False):
            PackedLinear.unpack(self)  # its class may have changed in another thread
        return self.__dict__["_parameters"]

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def forward(self, input: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        autocast, packed = torch.is_autocast_enabled("cpu"), self.__dict__.get("_packed")
        if packed is None or torch.is_grad_enabled() or (autocast and packed.dtype == torch.float32):
            PackedLinear.unpack(self)
            return nn.Linear.forward(self, input)
        if autocast:
            input = input.to(packed.dtype)
        return torch.ops.mmspec.packed_linear(input, self._number, self.out_features)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _plain(self) -> nn.Linear:
        """A plain layer with a weight of its own, and all else shared."""
        own = dict(self.__dict__)
        weight = nn.Parameter(own.pop("_packed").to_dense(), own.pop("_emptied").requires_grad)
        del own["_number"]
        return _plain_linear(own | {"_parameters": {"weight": weight, **own["_parameters"]}})

    def __deepcopy__(self, memo: dict) -> nn.Linear:
        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain_linear, (self._plain().__dict__,)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        if keep_vars:
            PackedLinear.unpack(self)
            return nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)
        self._plain()._save_to_state_dict(destination, prefix, keep_vars)


def _plain_linear(state: dict) -> nn.Linear:
    plain = nn.Linear.__new__(nn.Linear)
    plain.__dict__ = state
    return plain


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies weights of the dtype in oneDNN's layout."""
    if not torch.backends.mkldnn.is_available() or dtype not in _DTYPES:
        return False
    if dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    known = torch.ops.mkldnn
    return known._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else known._is_mkldnn_fp16_supported()


def pack_weights(model: nn.Module, whole: nn.Module | None = None) -> int:
    """Pack the linear layers of a model that lies on a CPU, in place; returns how many there were.

    Left as they are: float64, empty weights, those that other modules share (of the `whole` that the model is a part
    of, if it is one) or that have a gradient, subclasses of `nn.Linear`, and layers whose weight is no parameter of
    their own, such as pruned ones.
    """
    held = [module.__dict__["_parameters"] for module in (whole or model).modules()]
    uses = Counter(id(parameter) for parameters in held for parameter in parameters.values() if parameter is not None)
    packed = 0
    for module in model.modules():
        if type(module) is not nn.Linear:
            continue
        weight = module._parameters.get("weight")
        if weight is None or weight.device.type != "cpu" or not weight.numel() or uses[id(weight)] > 1:
            continue
        if weight.grad is None and can_pack(weight.dtype):
            PackedLinear.pack(module)
            packed += 1
    return packed


@contextmanager
def kept_packed() -> Iterator[None]:
    """For compilers, which look at all that a layer has: their graphs call packed layers by number."""
    before = getattr(_THREAD, "keeps", False)
    _THREAD.keeps = True
    try:
        yield
    finally:
        _THREAD.keeps = before


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
