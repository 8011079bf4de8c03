"""KOALA's heads: several layers, and a discriminator that tells their hidden states from the target's."""

import pytest
import torch
from tiny import GRID, image_target

from mmspec.drafters.adversary import Discriminator
from mmspec.drafters.examples import Example
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.errors import MmspecError

VALID = torch.ones(2, 6, dtype=torch.bool)


def states(seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_drafter_learns_against_the_discriminator() -> None:
    """A step along the gradient of drafted states raises the loss, one along that of its own weights lowers it."""
    torch.manual_seed(0)
    adversary = Discriminator(8, 16)
    drafted, true = states(1).requires_grad_(), states(2, 0.5)
    loss = adversary(drafted, true, VALID)
    loss.backward()
    assert drafted.grad is not None
    with torch.no_grad():
        assert adversary(drafted - 0.1 * drafted.grad / drafted.grad.norm(), true, VALID) > loss
        for weight in adversary.parameters():
            weight -= 0.01 * weight.grad
        assert adversary(drafted, true, VALID) < loss


def test_it_tells_them_apart_and_padding_says_nothing() -> None:
    torch.manual_seed(0)
    adversary = Discriminator(8, 16)
    optimiser = torch.optim.Adam(adversary.parameters(), 1e-2)
    drafted, true, valid = states(1), states(2, 2.0), VALID.clone()
    valid[1, 3:] = False
    for _ in range(60):
        optimiser.zero_grad()
        loss = adversary(drafted, true, valid)
        loss.backward()
        optimiser.step()
    assert loss < 0.3
    drafted[1, :, 3:] = 100.0
    assert float(adversary(drafted, true, valid)) == pytest.approx(float(adversary(states(1), true, valid)), abs=1e-6)


def heads(**options: object) -> MedusaDrafter:
    torch.manual_seed(3)
    drafter = MedusaDrafter(32, GRID.stride, [(0, 2), (0, 3)], **options)
    for weight in drafter.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return drafter.double()


def test_a_loss_with_a_discriminator() -> None:
    """It adds to the loss as much as its weight says, and is refused where there is none."""
    target = image_target()
    generator = torch.Generator().manual_seed(0)
    example = Example(
        torch.randint(0, 32, (12,), generator=generator), torch.randn(1, 12, 32, generator=generator).double()
    )
    drafter = heads(layers=2, discriminator=16)
    none, some, more = (
        float(drafter.loss(target, [example], adversarial=weight)["loss"]) for weight in (0.0, 0.1, 0.3)
    )
    assert more - none == pytest.approx(3 * (some - none)) and some > none
    drafter.loss(target, [example])["loss"].backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in drafter.discriminator.parameters())
    with pytest.raises(MmspecError, match="give discriminator=64"):
        heads().loss(target, [example], adversarial=0.1)
