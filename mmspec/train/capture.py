"""Sequences and target features for drafter training, from data and from the target's own samples."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.files import write_atomically
from mmspec.targets.causal import CausalTarget, Prompts


@dataclass(frozen=True, slots=True)
class Captured:
    """`tokens[n, :lengths[n]]` of one sequence and `features[n, stream]` that predicted each of them (conditional, unconditional).

    `seeds` are those of the sampling noise; -1 marks a sequence that comes from data.
    """

    tokens: Tensor
    features: Tensor
    lengths: list[int]
    seeds: list[int]
    guidance: list[float]

    def rows(self, chosen: list[int]) -> "Captured":
        """Some of the sequences, features in float32."""
        lengths, seeds = ([values[row] for row in chosen] for values in (self.lengths, self.seeds))
        return Captured(
            self.tokens[chosen], self.features[chosen].float(), lengths, seeds, [self.guidance[row] for row in chosen]
        )


@torch.inference_mode()
def features_of(target: CausalTarget, prompts: list[list[int]], tokens: list[Tensor]) -> list[Tensor]:
    """Hidden states that predicted each token of each row given its prompt: `position width` per row."""
    longest = max(len(prompt) + len(row) - 1 for prompt, row in zip(prompts, tokens, strict=True))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=target.device)
    for row, (prompt, found) in enumerate(zip(prompts, tokens)):
        given = torch.tensor(prompt)
        ids[row, : len(prompt) + len(found) - 1] = torch.cat(
            [given, target.model_ids(given, found[:-1].to(target.device)).cpu()]
        ).to(target.device)
    hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return [hidden[row, len(prompt) - 1 :][: len(found)] for row, (prompt, found) in enumerate(zip(prompts, tokens))]


def capture(
    target: CausalTarget,
    asked: Iterable[Prompts],
    stop: Stop,
    given: Iterable[tuple[Prompts, list[Tensor]]],
    cache: Path,
) -> Captured:
    """The target's own samples at T = 1 for every batch of `asked`, and the sequences of `given`; features of all streams."""
    if cache.exists():
        return Captured(**torch.load(cache, weights_only=True))
    tokens: list[Tensor] = []
    features: list[Tensor] = []
    seeds: list[int] = []
    guidance: list[float] = []

    def keep(prompts: Prompts, found: list[Tensor], noise: list[int]) -> None:
        streams = [features_of(target, part, found) for part in (prompts.conditional, prompts.unconditional) if part]
        features.extend(torch.stack(parts).cpu() for parts in zip(*streams, strict=True))
        tokens.extend(found)
        seeds.extend(noise)
        guidance.extend([prompts.guidance] * len(found))

    for prompts in track(list(asked), "sampling sequences"):
        rows = list(range(len(seeds), len(seeds) + len(prompts.conditional)))
        streams = prompts if prompts.guidance != 1 else Prompts(prompts.conditional)
        done = generate(target, streams, len(rows), stop, sampling=SamplingOptions(), seeds=rows)
        keep(prompts, [torch.tensor(row) for row in done.tokens], rows)
    for prompts, codes in track(list(given), "reading sequences"):
        keep(prompts, codes, [-1] * len(codes))
    lengths = [len(row) for row in tokens]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    seen = features[0].new_zeros(len(tokens), len(features[0]), padded.shape[1], features[0].shape[2])
    for row, part in enumerate(features):
        seen[row, :, : part.shape[1]] = part
    found = Captured(padded, seen, lengths, seeds, guidance)
    write_atomically(
        cache, lambda partial: torch.save({part.name: getattr(found, part.name) for part in fields(found)}, partial)
    )
    return found
