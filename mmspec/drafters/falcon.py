"""Falcon: a semi-autoregressive head, which predicts several tokens at a time (Gao et al., arXiv 2412.12639)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.amphista import Attention
from mmspec.drafters.examples import Batch
from mmspec.drafters.path_drafter import PathDrafter
from mmspec.errors import MmspecError
from mmspec.targets.base import Target


class FalconDrafter(PathDrafter):
    """An LSTM reads the path from the target's last hidden state on; at every `block`-th token, the root being the
    first, its state is turned into `block` hidden states, which attend to each other (relaxed causal attention) and
    predict the next `block` tokens at once, by the target's own output head.

    In training, glancing replaces the state before a block by the target's own feature there, for a `glance` share of
    the positions (coupled sequential glancing distillation). Candidates of a block are joined level by level, as those
    of other drafters are, and the share is the same throughout: our choices.
    """

    name = "falcon"

    def __init__(
        self,
        hidden_size: int,
        block: int = 2,
        depth: int = 6,
        attention_heads: int = 4,
        glance: float = 0.3,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
    ):
        if block < 1:
            raise MmspecError(f"falcon predicts 1 token or more at a time, not block={block}")
        super().__init__(target, depth, beta, coupling, beam=4, ranks=4)
        self.block, self.glance = block, glance
        self.feature, self.token = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.cell = nn.LSTMCell(hidden_size, hidden_size)
        self.slots = nn.Linear(hidden_size, block * hidden_size)
        self.attention = Attention(hidden_size, attention_heads)
        nn.init.zeros_(self.slots.weight)
        nn.init.zeros_(self.slots.bias)

    def begin(self, features: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape state"]:
        carried = self.feature(features)
        # The feature, the LSTM's output and memory, and the hidden states of a block.
        return torch.cat([features, carried, torch.zeros_like(carried), *[features] * self.block], -1)

    def training_context(
        self, batch: Batch, anchors: Int[Tensor, "row anchor"], positions: Int[Tensor, "row anchor"]
    ) -> Float[Tensor, "row branch anchor width"]:
        row = torch.arange(len(positions), device=positions.device)[:, None]
        return batch.features[row, :, positions - 1].transpose(1, 2)

    def step(
        self,
        target: Target,
        state: Float[Tensor, "*shape state"],
        tokens: Int[Tensor, "*other"],
        depth: int,
        context: Float[Tensor, "*more width"] | None,
    ) -> tuple[Float[Tensor, "*shape state"], Float[Tensor, "*shape vocab"]]:
        width, begins = self.token.weight.shape[0], depth % self.block == 0
        if self.training and context is not None and begins and depth:
            seen = torch.rand(context[:, :1].shape[:-1], device=context.device) < self.glance
            state = torch.where(seen[..., None], self.begin(context), state)
        feature, output, memory, slots = state.split([width, width, width, self.block * width], -1)
        read = self.token(self.embedded(target, tokens)).expand_as(output)
        flat = (part.reshape(-1, width) for part in (output, memory))
        output, memory = (part.view_as(read) for part in self.cell(read.reshape(-1, width), tuple(flat)))
        if begins:
            ahead = feature[..., None, :] + self.slots(output).unflatten(-1, (self.block, width))
            slots = self.attention(ahead).flatten(-2)
        hidden = slots.unflatten(-1, (self.block, width))[..., depth % self.block, :]
        return torch.cat([feature, output, memory, slots], -1), self.target_logits(target, hidden)
