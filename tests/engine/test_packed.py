"""Weights in the matrix library's layout: the same products, whatever the width, from one copy."""

import copy

import pytest
import torch
from torch import nn

from mmspec.engine.packed import PackedLinear, can_pack, pack_weights

pytestmark = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU does not multiply bfloat16")


def linear(inner: int, outer: int, bias: bool = False) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inner)
        return nn.Linear(inner, outer, bias=bias).bfloat16()


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


def test_there_is_one_copy_which_can_be_had_back() -> None:
    model = nn.Sequential(linear(64, 32, True), nn.SiLU(), linear(32, 16))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert pack_weights(model) == 2
    assert [name for name, _ in model.named_parameters()] == ["0.bias"]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    copied = copy.deepcopy(model)
    assert type(copied[0]) is nn.Linear and type(model[0]) is PackedLinear
    assert torch.equal(copied[0].weight, before["0.weight"])
    copied.load_state_dict({name: value + 1 for name, value in before.items()})
    pack_weights(copied)
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    assert not torch.equal(copied[0](x), model[0](x))
    twin = nn.Sequential(linear(64, 32, True), nn.SiLU(), linear(32, 16))
    pack_weights(twin)
    twin.load_state_dict({name: value + 1 for name, value in before.items()})
    assert all(torch.equal(twin.state_dict()[name], value + 1) for name, value in before.items())
    model.float()
    assert [type(module) for module in model] == [nn.Linear, nn.SiLU, nn.Linear]
    assert all(torch.equal(model.state_dict()[name], value.float()) for name, value in before.items())


def test_a_gradient_passes_through() -> None:
    plain = linear(64, 32)
    packed = copy.deepcopy(plain)
    pack_weights(nn.Sequential(packed))
    grads = []
    for layer in (plain, packed):
        x = torch.ones(3, 64, dtype=torch.bfloat16, requires_grad=True)
        layer(x).float().square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_what_is_left_as_it_is() -> None:
    """Weights that are shared, of another dtype, or of a subclass."""

    class Own(nn.Linear):
        pass

    tied, embedding = nn.Linear(16, 40, bias=False).bfloat16(), nn.Embedding(40, 16).bfloat16()
    tied.weight = embedding.weight
    model = nn.ModuleList([tied, embedding, nn.Linear(16, 16), Own(16, 16).bfloat16()])
    assert pack_weights(model) == 0
    assert not any(isinstance(module, PackedLinear) for module in model)
