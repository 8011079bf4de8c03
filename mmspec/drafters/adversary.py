"""The adversarial loss of KOALA (Zhang et al., arXiv 2408.08146)."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmspec.drafters.examples import masked_mean


class Reverse(torch.autograd.Function):
    """The identity, whose gradient changes its sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Discriminator(nn.Module):
    """Tells the target's hidden states from a drafter's, in training alone.

    The paper's tells logits apart and is trained in turns with the drafter; here it reads the hidden states that the
    same output head makes logits of, and both learn in one step, by a reversed gradient: our choices.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.layers = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, 1))

    def forward(
        self,
        drafted: Float[Tensor, "row branch position width"],
        true: Float[Tensor, "row branch position width"],
        valid: Bool[Tensor, "row position"],
    ) -> Float[Tensor, ""]:
        """How badly they are told apart, in nats; the drafter learns to raise it."""
        own, theirs = self.layers(Reverse.apply(drafted))[..., 0], self.layers(true)[..., 0]
        return masked_mean((nn.functional.softplus(own) + nn.functional.softplus(-theirs)).mean(1), valid)
