"""Hydra: heads in sequence, each of which reads the tokens that were drafted before it (Ankner et al., arXiv
2402.05109).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.heads import ResidualHead
from mmspec.drafters.path_drafter import PathDrafter
from mmspec.targets.base import Target


class HydraDrafter(PathDrafter):
    """Head k predicts from the target's last hidden state and the embeddings of the root and of the k tokens drafted
    after it: z = h + SiLU(W_k [h; e(x_0); ...; e(x_k)]), `layers` - 1 residual layers more (Hydra++ has four), and the
    target's own output head.

    That inputs are normalised, and that W is zero at first, were our choices; the paper's heads have output matrices of
    their own. Hydra++'s layer of attention over the prefix is left out.
    """

    name = "hydra"

    def __init__(
        self,
        hidden_size: int,
        heads: int = 4,
        layers: int = 1,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
    ):
        super().__init__(target, heads, beta, coupling, beam=4, ranks=4)
        self.feature, self.token = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.heads = nn.ModuleList(nn.Linear((k + 2) * hidden_size, hidden_size) for k in range(heads))
        self.more = nn.ModuleList(
            nn.Sequential(*(ResidualHead(hidden_size) for _ in range(layers - 1))) for _ in range(heads)
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def begin(self, features: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape state"]:
        return torch.cat([features, self.feature(features)], -1)

    def step(
        self,
        target: Target,
        state: Float[Tensor, "*shape state"],
        tokens: Int[Tensor, "*other"],
        depth: int,
        context: Tensor | None,
    ) -> tuple[Float[Tensor, "*shape next"], Float[Tensor, "*shape vocab"]]:
        width = self.token.weight.shape[0]
        read = self.token(self.embedded(target, tokens))
        state = torch.cat([state, read.expand(*state.shape[:-1], width)], -1)
        hidden = state[..., :width] + nn.functional.silu(self.heads[depth](state[..., width:]))
        return state, self.target_logits(target, self.more[depth](hidden))
