"""Blocks of sequences, as drafters that fill a block at once are trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmspec.drafters.examples import Example
from mmspec.targets.base import Target


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks behind tokens of sequences that are padded on the right, and what each may see.

    The block of token a predicts the tokens a + 1, a + 2, ...; it sees the target's states at all positions before that
    token (`context`, of the prompt, too), of which `seen` says how many they are. `before` are the tokens that precede
    each predicted one, `last` the target's last states for every token, and `valid` says which predicted tokens are
    there.
    """

    context: Float[Tensor, "row position wide"]
    seen: Int[Tensor, "row block"]
    before: Int[Tensor, "row block depth"]
    predicted: Int[Tensor, "row block depth"]
    valid: Bool[Tensor, "row block depth"]
    last: Float[Tensor, "row token width"]

    @classmethod
    @torch.no_grad()
    def of(cls, target: Target, examples: Sequence[Example], places: Int[Tensor, "row block"], depth: int) -> "Blocks":
        """The blocks of the tokens at these places."""
        device, contexts, prompts = target.device, [], []
        for example in examples:
            assert example.prompt is not None and example.entered is not None, "the example has no prompt or no layers"
            contexts.append(torch.cat([example.prompt.hidden, example.entered]))
            prompts.append(len(example.prompt.ids))
        tokens = pad_sequence([example.tokens for example in examples], batch_first=True).to(device)
        lengths = torch.tensor([len(example.tokens) for example in examples], device=device)
        predicted = places[:, :, None] + torch.arange(1, depth + 1, device=device)
        inside = predicted.clamp(max=tokens.shape[1] - 1)
        rows = torch.arange(len(examples), device=device)[:, None, None]
        return cls(
            pad_sequence(contexts, batch_first=True).to(device),
            torch.tensor(prompts, device=device)[:, None] + places,
            tokens[rows, (predicted - 1).clamp(max=tokens.shape[1] - 1)],
            inside,
            predicted < lengths[:, None, None],
            pad_sequence([example.features[0] for example in examples], batch_first=True).to(device),
        )

    @property
    def positions(self) -> Int[Tensor, "row position"]:
        """Positions of the context."""
        return torch.arange(self.context.shape[1], device=self.seen.device).expand(len(self.seen), -1)

    def slot_positions(self, slots: int) -> Int[Tensor, "row slot"]:
        """Positions of blocks of so many slots, one after the other."""
        return (self.seen[:, :, None] + torch.arange(slots, device=self.seen.device)).flatten(1)

    def mask(self, slots: int) -> Bool[Tensor, "row 1 slot key"]:
        """What slots see: the context before their block, and all of their block."""
        own = torch.arange(self.seen.shape[1], device=self.seen.device).repeat_interleave(slots)
        context = self.positions[:, None] < self.seen.repeat_interleave(slots, 1)[:, :, None]
        blocks = (own[:, None] == own).expand(len(self.seen), -1, -1)
        return torch.cat([context, blocks], 2)[:, None]

    def at(self, values: Float[Tensor, "row token vocab"]) -> Float[Tensor, "row block depth vocab"]:
        """Values of the predicted tokens."""
        rows = torch.arange(len(values), device=values.device)[:, None, None]
        return values[rows, self.predicted]
