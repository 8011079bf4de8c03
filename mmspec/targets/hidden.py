"""Hidden states between the layers of a decoder, as drafters such as EAGLE-3 read them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.errors import MmspecError


def layers_of(decoder: PreTrainedModel, count: int) -> nn.ModuleList:
    """The `count` layers of a decoder. Raises MmspecError for a model in which they are not found."""
    lists = (part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    if (layers := next(lists, None)) is None:
        raise MmspecError(
            f"{type(decoder).__name__} has no list of {count} layers to read hidden states from: use a drafter that "
            "reads the last ones alone"
        )
    return layers


class LayerInputs:
    """What entered layers in the last pass of a decoder, by the number of the layer."""

    def __init__(self, numbers: Sequence[int]):
        self.numbers, self.entered = numbers, dict[int, Tensor]()

    def or_last(self, last: Tensor) -> Tensor:
        """`sequence node width`: the inputs of all layers side by side, as many nodes as there are in `last`, which is
        given back where no layers were asked for.
        """
        if not self.numbers:
            return last
        parts = [self.entered[number][:, : last.shape[1]].to(last.device) for number in self.numbers]
        return torch.cat(parts, -1)


def in_this_thread(hook: Callable[..., object]) -> Callable[..., None]:
    """A forward hook that is called in this thread alone: others may run the same model."""
    own = get_ident()

    def called(*arguments: object) -> None:
        if get_ident() == own:
            hook(*arguments)

    return called


@contextmanager
def layer_inputs(decoder: PreTrainedModel, count: int, numbers: Sequence[int]) -> Iterator[LayerInputs]:
    """Keep what enters the layers of these numbers while the decoder of `count` layers runs.

    As in transformers' `hidden_states`, the number `count` stands for the decoder's output.
    """
    inputs = LayerInputs(numbers)

    def keep(number: int, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        if number == count:
            return module.register_forward_hook(
                in_this_thread(lambda _, args, output: inputs.entered.update({number: output[0]}))
            )
        return module.register_forward_pre_hook(
            in_this_thread(
                lambda _, args, kwargs: inputs.entered.update({number: args[0] if args else kwargs["hidden_states"]})
            ),
            with_kwargs=True,
        )

    layers = [*layers_of(decoder, count), decoder] if numbers else []
    hooks = [keep(number, layers[number]) for number in set(numbers)]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
