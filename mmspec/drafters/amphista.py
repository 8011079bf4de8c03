"""Amphista: heads that attend to each other, on features that were adapted in two stages (Li et al., arXiv
2406.13170).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.drafters.examples import Batch
from mmspec.drafters.heads import HeadDrafter
from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.base import Target


class Attention(nn.Module):
    """A pre-norm layer of self-attention and a gated feed-forward layer; the identity at first.

    With `window` a position sees itself and the window - 1 positions before it, with a learnt bias for each distance;
    without, all positions see each other.
    """

    def __init__(self, width: int, heads: int, window: int = 0):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.read, self.write = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, window)) if window else None
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.down.weight)

    def forward(
        self, x: Float[Tensor, "*row position width"], real: Bool[Tensor, "*#row position"] | None = None
    ) -> Float[Tensor, "*row position width"]:
        """`real` tells which positions may be seen by others."""
        query, key, value = self.read(self.norm(x)).unflatten(-1, (3 * self.heads, -1)).transpose(-2, -3).chunk(3, -3)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(x, real))
        x = x + self.write(seen.transpose(-2, -3).flatten(-2))
        gate, inner = self.up(self.between(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * inner)

    def _mask(self, x: Tensor, real: Tensor | None) -> Float[Tensor, "*row head position position"] | None:
        if self.bias is None:
            return None
        positions = torch.arange(x.shape[-2], device=x.device)
        distance = positions[:, None] - positions
        seen = (distance >= 0) & (distance < self.window)
        if real is not None:
            seen = seen & real[..., None, None, :] | (distance == 0)
        bias = self.bias[:, distance.clamp(0, self.window - 1)].to(x.dtype)
        return torch.where(seen, bias, -torch.inf)


class AmphistaDrafter(HeadDrafter):
    """`heads` residual heads on one adapted feature, whose outputs attend to each other in both directions (the
    auto-embedding block) before the target's own output head reads them.

    The adaptation has two stages: a layer of causal attention over the target's last hidden states, and another after
    the token that each of them predicted was added. Both see the last `window` positions, so that nothing need be
    cached: our choice, as are one layer in each stage and learnt biases in the place of positions.
    """

    name = "amphista"

    def __init__(
        self,
        hidden_size: int,
        heads: int = 5,
        window: int = 8,
        attention_heads: int = 4,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        stride: int = 0,
    ):
        if window < 1:
            raise MmspecError(f"amphista's stages see 1 position or more, not window={window}")
        super().__init__(hidden_size, stride, [(0, k + 2) for k in range(heads)], target, beta, coupling)
        self.window = window
        self.first = Attention(hidden_size, attention_heads, window)
        self.second = Attention(hidden_size, attention_heads, window)
        self.token = nn.Sequential(nn.RMSNorm(hidden_size), nn.Linear(hidden_size, hidden_size, bias=False))
        self.slot = nn.Embedding(heads, hidden_size)
        self.block = Attention(hidden_size, attention_heads)
        nn.init.zeros_(self.slot.weight)

    @classmethod
    def default_options(cls, target: Target) -> dict:
        return {}

    def adapt(
        self,
        target: Target,
        features: Float[Tensor, "branch row position width"],
        tokens: Int[Tensor, "row position"],
        real: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "branch row position width"]:
        """Adapted features, each by the token that it predicted and by what came before."""
        adapted = self.first(features, real)
        return self.second(adapted + self.token(target.embed(tokens).detach().to(features.dtype)), real)

    def attend(self, stacked: Float[Tensor, "*shape depth width"]) -> Float[Tensor, "*shape depth width"]:
        """The auto-embedding block: outputs of all heads read each other."""
        return self.block(stacked + self.slot.weight)

    def hidden_ahead(self, state: State, height: int) -> Float[Tensor, "branch row depth width"]:
        # As far back as the second stage sees, and as the first stage sees from there.
        device = state.roots.device
        back = torch.arange(1 - 2 * self.window, 1, device=device)
        positions = torch.tensor(state.counts, device=device)[:, None] - 1 + back
        longest = max(state.counts)
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in state.tokens], device=device)
        known = positions.clamp(min=0)
        rows = torch.arange(state.rows, device=device)[:, None]
        adapted = self.adapt(self.target, state.features[:, rows, known], tokens.gather(1, known), positions >= 0)
        return self.attend(self.across(adapted[:, :, -1]))[:, :, :height]

    def _hidden(self, target: Target, batch: Batch) -> list[Float[Tensor, "row branch _ width"]]:
        length = batch.tokens.shape[1]
        adapted = self.adapt(target, batch.features.transpose(0, 1), batch.tokens).transpose(0, 1)
        stacked = self.attend(torch.stack([self.moved(head, adapted) for head in range(len(self.heads))], 3))
        return [stacked[:, :, : max(0, length + 1 - offset), k] for k, offset in enumerate(self.offsets)]
