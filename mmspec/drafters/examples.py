"""What drafters are trained on: sequences as the target read them, batches of them, and the terms of their losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """A prompt of one sequence, for drafters that read prompts.

    `ids` are the model's, `hidden` the hidden states of all positions but the last (or what entered layers, as
    `Example.entered`), and `visual` the input vectors of
    the positions that are not text, which `is_text` tells.
    """

    ids: Int[Tensor, "position"]
    hidden: Float[Tensor, "before_last wide"]
    is_text: Bool[Tensor, "position"]
    visual: Float[Tensor, "visual width"]


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: its tokens, and the hidden states that predicted each of them in every CFG branch.

    `seed` is that of the sampling noise, -1 for a sequence that the target did not sample, and `temperature` what it
    was sampled at, 0 for a greedy one. `prompt` is there for drafters that read it, and `entered`, what entered layers
    of the target where `features` left the last one, for drafters that read layers. `draw` is a seed for what a loss
    draws for this sequence, so that it does not depend on the rest of its batch.
    """

    tokens: Int[Tensor, "token"]
    features: Float[Tensor, "branch token width"]
    seed: int = -1
    temperature: float = 1.0
    guidance: float = 1.0
    prompt: PromptFeatures | None = None
    entered: Float[Tensor, "token wide"] | None = None
    draw: int = 0

    @property
    def length(self) -> int:
        """Positions, those of the prompt included if it is there."""
        return len(self.tokens) + (len(self.prompt.ids) if self.prompt else 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right, on one device."""

    tokens: Int[Tensor, "row token"]
    features: Float[Tensor, "row branch token width"]
    guidance: Float[Tensor, "row"]
    lengths: Int[Tensor, "row"]

    @property
    def valid(self) -> Bool[Tensor, "row token"]:
        """Which tokens are no padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


def pad(examples: Sequence[Example], device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """A batch of examples, features in `dtype` or as they were captured."""
    features = [example.features.transpose(0, 1) for example in examples]
    return Batch(
        pad_sequence([example.tokens for example in examples], batch_first=True).to(device),
        pad_sequence(features, batch_first=True).transpose(1, 2).contiguous().to(device, dtype),
        torch.tensor([example.guidance for example in examples], device=device),
        torch.tensor([len(example.tokens) for example in examples], device=device),
    )


@dataclass(frozen=True, slots=True)
class DepthPredictions:
    """A drafter's distribution at one depth along a sequence: which tokens it predicts, by number, and log q for each.

    log q is over the drafting vocabulary (`TrainedDrafter.drafted_tokens`).
    """

    positions: Int[Tensor, "prediction"]
    log_q: Float[Tensor, "prediction drafted"]


def cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """Cross entropy of soft labels in nats, one number per position."""
    return -(probs * torch.log_softmax(logits.float(), -1)).sum(-1)


def divergence(logits: Tensor, probs: Tensor, tv: float = 0.0) -> Tensor:
    """(1 - tv) cross entropy + tv total variation of softmax(logits) from soft labels, one number per position.

    1 - total variation is the chance that a sample of the drafter is accepted by speculative sampling.
    """
    errors = cross_entropy(logits, probs)
    if not tv:
        return errors
    distance = 0.5 * (torch.softmax(logits.float(), -1) - probs).abs().sum(-1)
    return (1 - tv) * errors + tv * distance


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over the positions that are `valid`.

    Where several processes share a batch, the mean of their results is the mean over all of their positions.
    """
    count = valid.sum().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    # Less than one position, as a share of a process, is possible; none at all makes the sum 0 as well.
    return (values * valid).sum() / count.clamp(min=1e-3)


def uniform(examples: Sequence[Example], *shape: int, device: torch.device) -> Float[Tensor, "row *shape"]:
    """Uniform numbers in [0, 1) for each sequence, which its `draw` alone decides."""
    rows = [torch.rand(shape, generator=torch.Generator().manual_seed(example.draw)) for example in examples]
    return torch.stack(rows).to(device)


def guide(logits: Float[Tensor, "row branch *shape"], guidance: Float[Tensor, "row"]) -> Float[Tensor, "row *shape"]:
    """Guided logits of each row; those of a single CFG branch as they are."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    conditional, unconditional = logits.unbind(1)
    scale = guidance.view(-1, *[1] * (conditional.ndim - 1)).to(logits.dtype)
    return unconditional + scale * (conditional - unconditional)
