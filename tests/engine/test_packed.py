"""Weights in the matrix library's layout: the same products, whatever the width, from one copy."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from mmspec.engine.packed import PackedLinear, can_pack, pack_weights

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no x86 CPU with oneDNN")
HALF = can_pack(torch.bfloat16)
DTYPE = torch.bfloat16 if HALF else torch.float32


def linear(inner: int, outer: int, bias: bool = False) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inner)
        return nn.Linear(inner, outer, bias=bias).to(DTYPE)


@pytest.mark.skipif(not HALF, reason="this CPU does not multiply bfloat16")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inner", "outer"), [(512, 1376), (576, 576), (576, 192), (1536, 576), (100, 36)])
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_every_width(inner: int, outer: int, bias: bool) -> None:
    """A row's product does not depend on how many others there are, and is as near as `nn.Linear`'s."""
    plain = linear(inner, outer, bias)
    packed = copy.deepcopy(plain)
    assert pack_weights(nn.Sequential(packed)) == 1
    x = torch.randn(64, inner, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = packed(x)
    for width in range(1, 65):
        assert torch.equal(packed(x[:width]), whole[:width]), width
    assert torch.equal(packed(x.view(2, 32, inner)), whole.view(2, 32, -1))
    exact = x.double() @ plain.weight.double().T + (plain.bias.double() if bias else 0)
    error, own = ((values.double() - exact).abs().max() for values in (whole, plain(x)))
    assert error <= 1.5 * own + 1e-6


@pytest.mark.parametrize(("inner", "outer"), [(512, 1376), (576, 192), (100, 36)])
@torch.inference_mode()
def test_float32(inner: int, outer: int) -> None:
    """As near as `nn.Linear`'s products, though not in equal bits for every width."""
    plain = linear(inner, outer, True).float()
    packed = copy.deepcopy(plain)
    assert pack_weights(nn.Sequential(packed)) == 1
    x = torch.randn(64, inner, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ plain.weight.double().T + plain.bias.double()
    for width in (1, 3, 4, 16, 33, 64):
        error, own = ((layer(x[:width]) - exact[:width]).abs().max() for layer in (packed, plain))
        assert error <= 4 * own


def two_layers() -> nn.Sequential:
    return nn.Sequential(linear(64, 32, True), nn.SiLU(), linear(32, 16))


def test_there_is_one_copy_which_can_be_had_back() -> None:
    """State dictionaries, copies and pickles have plain weights, and leave layers packed."""
    model = two_layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model[0].weight
    assert pack_weights(model) == 2
    assert weight.numel() == 0
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    file = BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(other[0]) is nn.Linear and type(model[0]) is PackedLinear
        assert torch.equal(other[0].weight, before["0.weight"])
        other.load_state_dict({name: value + 1 for name, value in before.items()})
        pack_weights(other)
        x = torch.ones(1, 64, dtype=DTYPE)
        with torch.no_grad():
            assert not torch.equal(other[0](x), model[0](x))


@pytest.mark.parametrize("touch", ["weight", "parameters", "float", "load", "gradient"])
def test_who_touches_parameters_finds_those_that_were_there(touch: str) -> None:
    """The very objects, with their numbers, and what is done to them has effect."""
    model = two_layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    pack_weights(model)
    x, factor = torch.ones(3, 64, dtype=DTYPE), 1
    if touch == "weight":
        model[0].weight.data.mul_(2)
        assert model[2].weight is parameters["2.weight"]
        factor = 2
    elif touch == "parameters":
        assert dict(model.named_parameters()).items() == parameters.items()
    elif touch == "float":
        model.float() if HALF else model.double()
    elif touch == "load":
        model.load_state_dict({name: 2 * value for name, value in before.items()})
        assert torch.equal(model[2].weight, 2 * before["2.weight"])
        factor = 2
    else:
        model(x).float().square().sum().backward()
        assert all(parameter.grad is not None for parameter in parameters.values())
    assert [type(module) for module in model] == [nn.Linear, nn.SiLU, nn.Linear]
    assert model[0].weight is parameters["0.weight"]
    assert torch.equal(model[0].weight, factor * before["0.weight"].to(model[0].weight.dtype))


def test_autocast() -> None:
    plain, packed = linear(64, 32), linear(64, 32)
    pack_weights(nn.Sequential(packed))
    x = torch.ones(3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(x), packed(x))
    assert isinstance(packed, PackedLinear) == HALF


def test_what_is_left_as_it_is() -> None:
    """Weights that are shared, of another dtype, or of a subclass."""

    class Own(nn.Linear):
        pass

    tied, embedding = nn.Linear(16, 40, bias=False).to(DTYPE), nn.Embedding(40, 16).to(DTYPE)
    tied.weight = embedding.weight
    pruned, trained, outside = (nn.Linear(16, 16).to(DTYPE) for _ in range(3))
    prune.l1_unstructured(pruned, "weight", 0.5)
    trained.weight.grad = torch.zeros_like(trained.weight)
    empty = [nn.Linear(0, 5).to(DTYPE), nn.Linear(5, 0).to(DTYPE)]
    model = nn.ModuleList([tied, embedding, nn.Linear(16, 16).double(), Own(16, 16).to(DTYPE), pruned, trained, *empty])
    model.append(outside)
    other = nn.Linear(16, 16).to(DTYPE)
    other.weight = outside.weight
    assert pack_weights(model, nn.ModuleList([model, other])) == 0
    assert not any(isinstance(module, PackedLinear) for module in model)


def test_weights_are_written_through_their_parameters() -> None:
    """A state dictionary that asks for the parameters has them, and not copies."""
    layer = nn.Linear(16, 16).to(DTYPE)
    weight = layer.weight
    assert pack_weights(nn.ModuleList([layer])) == 1
    held = layer.state_dict(keep_vars=True)["weight"]
    assert held is weight and held.shape == (16, 16) and type(layer) is nn.Linear


def test_threads_unpack_at_once() -> None:
    """Several threads look at the parameters of layers that another one computes with."""
    layers = nn.ModuleList(nn.Linear(16, 16).to(DTYPE) for _ in range(50))
    wanted = [layer.weight.clone() for layer in layers]
    x = torch.randn(3, 16, dtype=DTYPE)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            for _ in range(5):
                pack_weights(layers)
                compute = pool.submit(lambda: torch.inference_mode()(lambda: [layer(x) for layer in layers])())
                looks = [pool.submit(lambda: list(layers.parameters())) for _ in range(2)]
                assert [len(look.result()) for look in looks] == [100, 100] and len(compute.result()) == 50
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(layer.weight, own) for layer, own in zip(layers, wanted, strict=True))
