"""Sequences and target features for drafter training, from data and from the target's own samples."""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmspec.decode import Stop, generate
from mmspec.picture import replace
from mmspec.sampling import Sampling
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.training.emoji import BACKGROUNDS, caption
from mmspec.training.target import CodeSet


@dataclass(frozen=True, slots=True)
class Captured:
    """`tokens[n]` of one sequence and `features[n, stream]` that predicted each of them (conditional, unconditional).

    `seeds` are those of the sampling noise; -1 marks a sequence that comes from data.
    """

    tokens: Tensor
    features: Tensor
    seeds: list[int]
    guidance: list[float]


def some_prompts(data: CodeSet, count: int, seed: int) -> list[str]:
    """Prompts as users write them: any training name, style and background."""
    chance = random.Random(seed)
    colours = list(BACKGROUNDS)
    found = []
    for _ in range(count):
        picture = chance.choice(data.pictures)
        found.append(caption(picture.name, picture.style, "white" if chance.random() < 0.6 else chance.choice(colours)))
    return found


@torch.inference_mode()
def features_of(target: CausalTarget, prompts: list[list[int]], tokens: Tensor) -> Tensor:
    """Hidden states that predicted each token of `row position` given each row's prompt: `row position width`."""
    length = tokens.shape[1]
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest + length - 1, dtype=torch.long, device=target.device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt) + length - 1] = torch.cat(
            [torch.tensor(prompt, device=target.device), tokens[row, :-1].to(target.device) + target.offset]
        )
    hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return torch.stack([hidden[row, len(prompt) - 1 : len(prompt) - 1 + length] for row, prompt in enumerate(prompts)])


@torch.inference_mode()
def capture(
    target: CausalTarget,
    tokenizer: PreTrainedTokenizerFast,
    data: CodeSet,
    sampled: int,
    taken: int,
    cache: Path,
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0),
    batch: int = 32,
) -> Captured:
    """`sampled` sequences generated at T = 1 with each guidance in turn, and `taken` ones from data."""
    if cache.exists():
        return Captured(**torch.load(cache, weights_only=True))
    chance = random.Random(0)
    length = data.codes.shape[2]
    empty = tokenizer("").input_ids
    tokens, features, seeds, guidance = [], [], [], []
    for start in track(range(0, sampled, batch), "sampling sequences"):
        texts = some_prompts(data, min(batch, sampled - start), start)
        prompts = [tokenizer(text).input_ids for text in texts]
        scale = guidances[(start // batch) % len(guidances)]
        streams = Prompts(prompts, [empty] * len(prompts) if scale != 1 else None, scale)
        rows = list(range(start, start + len(prompts)))
        done = generate(target, streams, len(prompts), Stop(length), sampling=Sampling(), seeds=rows)
        tokens.append(torch.tensor(done.tokens))
        features.append(both_features(target, prompts, empty, tokens[-1]))
        seeds += rows
        guidance += [scale] * len(prompts)
    for start in track(range(0, taken, batch), "reading sequences"):
        count = min(batch, taken - start)
        chosen = [chance.randrange(len(data.pictures)) for _ in range(count)]
        variants = [chance.randrange(data.codes.shape[1]) for _ in range(count)]
        prompts = [
            tokenizer(caption(data.pictures[i].name, data.pictures[i].style, data.backgrounds[i][v])).input_ids
            for i, v in zip(chosen, variants)
        ]
        tokens.append(torch.stack([data.codes[i, v] for i, v in zip(chosen, variants)]).long())
        features.append(both_features(target, prompts, empty, tokens[-1]))
        seeds += [-1] * count
        guidance += [1.0] * count
    found = Captured(torch.cat(tokens), torch.cat(features), seeds, guidance)
    replace(cache, lambda partial: torch.save(asdict(found), partial))
    return found


def both_features(target: CausalTarget, prompts: list[list[int]], empty: list[int], tokens: Tensor) -> Tensor:
    """Conditional and unconditional features, `row stream position width`."""
    return torch.stack([features_of(target, prompts, tokens), features_of(target, [empty] * len(prompts), tokens)], 1).cpu()
