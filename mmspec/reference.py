"""The model's own `generate` of transformers, made to follow the same options: what plain decoding must equal."""

from dataclasses import replace
from typing import cast

import torch
from transformers import LogitsProcessor

from mmspec.engine.rows import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.targets.base import Prompts, Target
from mmspec.targets.vision_language import VisualPrompts


def generate_kwargs(target: Target, prompts: Prompts) -> dict[str, object]:
    """What `generate` is given for one row: ids, guidance, pictures, and a processor that keeps to the vocabulary."""
    device, model = target.device, target.model
    ids = torch.tensor(prompts.conditional, device=device)
    processors: list[LogitsProcessor] = [target.generate_processor(ids.shape[1])]
    kwargs: dict[str, object] = dict(inputs=ids, attention_mask=torch.ones_like(ids), logits_processor=processors)
    if prompts.unconditional is not None:
        kwargs["guidance_scale"] = prompts.guidance
        kwargs["negative_prompt_ids"] = torch.tensor(prompts.unconditional, device=device)
    images = prompts.images[0] if isinstance(prompts, VisualPrompts) and prompts.images else {}
    for name, value in images.items():
        kwargs[name] = value.to(device, model.dtype) if value.is_floating_point() else value.to(device)
    return kwargs


def why_not_comparable(target: Target, prompts: Prompts, sampling: SamplingOptions) -> str:
    """Why `generate` cannot be compared with under these options; "" if it can.

    `generate` samples with another noise. It penalises the phonemes that an interleaved model reads in place of
    boundaries, and with guidance it penalises log probabilities.
    """
    if not sampling.greedy:
        return "sampled"
    if sampling.repetition_penalty != 1:
        plain_ids = torch.arange(target.vocabulary_size, device=target.device)
        prompt = torch.tensor(prompts.conditional[0], device=target.device)
        repeated = plain_ids[-1:].repeat(2)
        if not torch.equal(target.model_ids(prompt, repeated), target.vocabulary[repeated]):
            return "penalty of an interleaved model"
        if prompts.unconditional is not None:
            return "penalty with guidance"
    if sampling.logits_processor and not _has_model_ids(target):
        return "logits processors of tokens that are no ids"
    return target.why_not_comparable(prompts.guidance, sampling.repetition_penalty)


def _has_model_ids(target: Target) -> bool:
    """Whether tokens are the model's own ids, so that processors of tokens may be given to `generate`."""
    return torch.equal(target.vocabulary, torch.arange(target.vocabulary_size, device=target.device))


def sampling_kwargs(sampling: SamplingOptions) -> dict[str, object]:
    """How `generate` is told to sample, whatever the model's generation configuration says."""
    penalty: dict[str, object] = dict(repetition_penalty=sampling.repetition_penalty)
    if sampling.greedy:
        return penalty | dict(do_sample=False)
    warpers = dict(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return penalty | warpers | dict(do_sample=True, min_p=sampling.min_p or None)


@torch.inference_mode()
def own_ids(
    target: Target, prompts: Prompts, stop: Stop, sampling: SamplingOptions, options: dict[str, object] | None = None
) -> list[int]:
    """The ids that `generate` gives for one row, ends included, with more `options` of its own.

    Families that only know whole pictures or frames may give more than `stop.length`. Sampled ids depend on torch's
    global generator.
    """
    ends = sorted(int(target.vocabulary[token]) for token in stop.eos)
    special: dict[str, object] = dict(eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0)
    kwargs = generate_kwargs(target, prompts)
    kwargs["logits_processor"] = [*cast(list, kwargs["logits_processor"]), *sampling.logits_processor]
    kwargs |= special | sampling_kwargs(sampling) | (options or {})
    return target.own_ids(**kwargs, max_new_tokens=stop.length)[0].tolist()


def greedy_ids(target: Target, prompts: Prompts, stop: Stop, sampling: SamplingOptions) -> list[int]:
    """The ids that `generate` gives for one row without sampling, at most `stop.length` of them, ends included."""
    return own_ids(target, prompts, stop, replace(sampling, temperature=0.0))[: stop.length]
