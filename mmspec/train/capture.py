"""Sequences and target features for drafter training, from data and from the target's own samples."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from mmspec.drafters.examples import Example, PromptFeatures
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.files import write_atomically
from mmspec.targets.base import Prompts, Target


@torch.inference_mode()
def read_features(
    target: Target,
    prompts: Prompts,
    tokens: Sequence[Tensor],
    seeds: Sequence[int],
    greedy: bool = False,
    with_prompts: bool = False,
) -> list[Example]:
    """One example for each row of prompts and its tokens; features are read in one pass, in the target's dtype."""
    rows = len(tokens)
    read = [
        target.model_ids(torch.tensor(prompt), row.to(target.device)).tolist()
        for prompt, row in zip(prompts.conditional, tokens, strict=True)
    ]
    branches = [part for part in (prompts.conditional, prompts.unconditional) if part]
    whole = [[prompt + ids for prompt, ids in zip(branch, read, strict=True)] for branch in branches]
    unconditional = whole[1] if len(whole) > 1 else None
    state = target.prefill(replace(prompts, conditional=whole[0], unconditional=unconditional), 1, True)
    examples = []
    for row, generated in enumerate(tokens):
        hidden = [state.prompt_hidden[branch * rows + row][1] for branch in range(len(branches))]
        # The hidden state before a token predicted it; prompts of the branches differ in length.
        features = torch.stack([states[len(states) - len(generated) :] for states in hidden]).cpu()
        prompt = None
        if with_prompts:
            embeds, length = state.prompt_hidden[row][0], len(prompts.conditional[row])
            is_text = embeds.is_text[:length].cpu()
            visual = embeds.vectors[:length][~embeds.is_text[:length]].cpu()
            ids = torch.tensor(prompts.conditional[row])
            prompt = PromptFeatures(ids, hidden[0][: length - 1].cpu(), is_text, visual)
        examples.append(Example(generated.cpu(), features, seeds[row], greedy, prompts.guidance, prompt))
    return examples


def capture(
    target: Target,
    prompts: Iterable[tuple[Prompts, bool]],
    stop: Stop,
    data: Iterable[tuple[Prompts, list[Tensor]]],
    cache: Path,
    with_prompts: bool = False,
) -> list[Example]:
    """The target's own answers to batches of prompts, sampled at T = 1 or greedy, and the sequences of `data`.

    `prompts` says of each batch whether it is sampled. Written to `cache`, and read from it if it is there.
    """
    if cache.exists():
        return load_examples(cache)
    examples: list[Example] = []
    for batch, sampled in track(list(prompts), "generating sequences"):
        rows = len(batch.conditional)
        seeds = list(range(len(examples), len(examples) + rows))
        guided = batch if batch.guidance != 1 or batch.unconditional is None else replace(batch, unconditional=None)
        sampling = SamplingOptions(1.0 if sampled else 0.0)
        tokens = generate(target, guided, rows, stop, sampling=sampling, seeds=seeds).tokens
        noise = seeds if sampled else [-1] * rows
        parts = [torch.tensor(row) for row in tokens]
        examples += read_features(target, batch, parts, noise, not sampled, with_prompts)
    for batch, parts in track(list(data), "reading sequences"):
        examples += read_features(target, batch, parts, [-1] * len(parts), with_prompts=with_prompts)
    save_examples(examples, cache)
    return examples


def save_examples(examples: Sequence[Example], path: Path) -> None:
    """Write examples as plain tensors and numbers."""
    rows = [asdict(example) for example in examples]
    write_atomically(path, lambda partial: torch.save(rows, partial))


def load_examples(path: Path) -> list[Example]:
    """Read what `save_examples` wrote."""
    return [
        Example(**row | {"prompt": PromptFeatures(**row["prompt"]) if row["prompt"] else None})
        for row in torch.load(path, weights_only=True)
    ]
