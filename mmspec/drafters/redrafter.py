"""ReDrafter: one recurrent head for all depths (Zhang et al., arXiv 2403.09919)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.heads import ResidualHead
from mmspec.drafters.path_drafter import PathDrafter
from mmspec.targets.base import Target


class ReDrafter(PathDrafter):
    """s' = SiLU(W e(x) + U s) along the path, from s = h, the target's last hidden state (normalised); tokens are
    predicted from [h; s'] by `layers` residual layers and the target's own output head.

    The paper searches by beams, whose common prefixes are found and merged afterwards; a tree that grows from the best
    nodes of each level has none to merge. That [h; s'] is h at first, and that tokens' embeddings are normalised, were
    our choices; the paper's head has an output matrix of its own.
    """

    name = "redrafter"

    def __init__(
        self,
        hidden_size: int,
        depth: int = 5,
        layers: int = 2,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
    ):
        super().__init__(target, depth, beta, coupling, beam=4, ranks=4)
        self.feature, self.token = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.read, self.carry = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)
        self.join = nn.Linear(2 * hidden_size, hidden_size)
        self.layers = nn.Sequential(*(ResidualHead(hidden_size) for _ in range(layers)))
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.join.bias)

    def begin(self, features: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape state"]:
        return torch.cat([features, self.feature(features)], -1)

    def step(
        self,
        target: Target,
        state: Float[Tensor, "*shape state"],
        tokens: Int[Tensor, "*other"],
        depth: int,
        context: Tensor | None,
    ) -> tuple[Float[Tensor, "*shape state"], Float[Tensor, "*shape vocab"]]:
        feature, carried = state.chunk(2, -1)
        read = self.read(self.token(self.embedded(target, tokens)))
        carried = nn.functional.silu(read + self.carry(carried))
        hidden = feature + self.join(torch.cat([self.feature(feature), carried], -1))
        return torch.cat([feature, carried], -1), self.target_logits(target, self.layers(hidden))
