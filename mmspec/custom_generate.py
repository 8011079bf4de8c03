"""Speculative decoding inside `generate` of transformers: `model.generate(..., custom_generate=mmspec.speculate())`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import logits_process as hf
from transformers.generation import stopping_criteria as criteria
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from mmspec import drafters
from mmspec.engine.accept import Committed, acceptance
from mmspec.engine.loop import Stop, stream
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.stats import GenerationStats
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.generate_inputs import READ_VECTORS, prompts_of
from mmspec.targets.causal import CausalTarget
from mmspec.targets.registry import target_of

if TYPE_CHECKING:
    from mmspec.drafters.base import Drafter
    from mmspec.engine.accept import AcceptanceRule

# Processors that keep something of their own from token to token, that mix the rows of two batches, or that read the
# prompts of the whole batch.
STATEFUL = (hf.UnbatchedClassifierFreeGuidanceLogitsProcessor, hf.SynthIDTextWatermarkLogitsProcessor)
OF_TWO_BATCHES = (hf.ClassifierFreeGuidanceLogitsProcessor, hf.DiaClassifierFreeGuidanceLogitsProcessor)
OF_THE_BATCH = (
    hf.EncoderRepetitionPenaltyLogitsProcessor,
    hf.EncoderNoRepeatNGramLogitsProcessor,
)

# Options of `generate` that have no meaning here, by the value that asks for nothing.
REFUSED = {
    "num_beams": (1, "there is no beam search: leave it out"),
    "penalty_alpha": (None, "there is no contrastive search: leave it out"),
    "dola_layers": (None, "there is no DoLa decoding: leave it out"),
    "use_cache": (True, "the tree cache is always used: leave it out"),
    "output_attentions": (False, "attentions of a draft tree are not kept: leave it out"),
    "output_hidden_states": (False, "hidden states of a draft tree are not kept: leave it out"),
    "prompt_lookup_num_tokens": (None, "use mmspec.speculate(drafter='lookup')"),
    "token_healing": (False, "it changes the prompt: leave it out"),
    "force_words_ids": (None, "there is no constrained beam search: leave it out"),
    "constraints": (None, "there is no constrained beam search: leave it out"),
    "assistant_early_exit": (None, "use a drafter: leave it out"),
}

_targets: "WeakKeyDictionary[PreTrainedModel, tuple[tuple, CausalTarget]]" = WeakKeyDictionary()


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with `return_dict_in_generate`, and mmspec's statistics of it."""

    mmspec: GenerationStats | None = None


@dataclass(frozen=True)
class Recorded(SamplingOptions):
    """Sampling options of several rows, each with processors of its own, that keep what the last pass said."""

    rows: int = 1
    last: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def options(self) -> list[SamplingOptions]:
        """The options of each row."""
        return [
            SamplingOptions(self.temperature, logits_processor=[_of_row(item, row) for item in self.logits_processor])
            for row in range(self.rows)
        ]

    def scores(self, logits: Tensor, prefixes: Callable[[int, int], Tensor] | None = None) -> Tensor:
        if prefixes is None:
            scores = super().scores(logits)
        else:
            parts = [
                options.scores(logits[row : row + 1], partial(_prefix_of, prefixes, row))
                for row, options in enumerate(self.options)
            ]
            scores = torch.cat(parts)
        self.last.update(logits=logits, scores=scores)
        return scores


@dataclass(frozen=True)
class Speculate:
    """A `custom_generate` of transformers that drafts and verifies; see `speculate`."""

    drafter: "str | Drafter"
    rule: "AcceptanceRule"

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Int[Tensor, "row position"],
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: object,
    ) -> Int[Tensor, "row token"] | SpeculativeOutput | GenerateEncoderDecoderOutput:
        """Generate as `generate` does, which calls this with all that it has prepared."""
        (rows, width), call = input_ids.shape, _call()
        streamer, asked = call.get("streamer"), call.get("kwargs") or {}
        _refuse(model, rows, width, logits_processor, generation_config, model_kwargs)
        if asked.get("position_ids") is not None:
            raise MmspecError("mmspec.speculate counts positions as generate does: leave position_ids out")
        if streamer is not None and rows > 1:
            raise MmspecError("mmspec.speculate streams one row: generate one row at a time, or leave streamer out")
        target, device = _target(model), input_ids.device
        prompts = prompts_of(target, input_ids, model_kwargs, asked, generation_config.num_return_sequences or 1)
        stop = _stop(stopping_criteria, generation_config, input_ids)
        greedy = not generation_config.do_sample
        sampling = Recorded(0.0 if greedy else 1.0, logits_processor=tuple(logits_processor), rows=rows)
        seed = 0 if greedy else int(torch.randint(2**31, ()))
        ready = drafters.load(self.drafter, None, target, prompts, stop.length)
        stats, kept = GenerationStats(), _Kept(sampling, rows, generation_config)
        tokens: list[list[int]] = [[] for _ in range(rows)]
        for part in stream(
            target, prompts, rows, stop, ready, sampling, seed, self.rule, stats=stats, on_accept=kept.add
        ):
            for row, new in zip(tokens, part.tokens, strict=True):
                row.extend(new)
            if streamer is not None:
                for token in part.tokens[0]:
                    streamer.put(torch.tensor([token]))
        if streamer is not None:
            streamer.end()
        longest = max(map(len, tokens))
        pad = generation_config._pad_token_tensor
        filler = 0 if pad is None else int(pad)
        padded = torch.tensor([row + [filler] * (longest - len(row)) for row in tokens], device=device)
        sequences = torch.cat([input_ids, padded], 1)
        if not generation_config.return_dict_in_generate:
            return sequences
        steps = {name: kept.steps(name, longest) for name in ("scores", "logits")}
        if model.config.model_type == "whisper":  # its `generate` takes the result apart by rows, and joins segments
            return GenerateEncoderDecoderOutput(sequences, **steps)
        return SpeculativeOutput(sequences, **steps, mmspec=stats)


def speculate(drafter: "str | Drafter" = "jacobi", acceptance: "str | AcceptanceRule" = "exact") -> Speculate:
    """What makes `generate` of transformers speculative: `model.generate(**inputs, custom_generate=speculate())`.

    Greedy output is `generate`'s own, and sampled output that of `drafter="none"` (with the default rule `exact`);
    `torch.manual_seed` decides it. `generate` prepares processors, stopping criteria, streamers, padding and pictures
    as ever; what has no meaning here is refused by name. With `return_dict_in_generate` the result has `mmspec`, the
    statistics.

    Args:
        drafter: "none", "lookup", "jacobi", or a `Drafter` made for the model.
        acceptance: a rule, as in pipelines; lossy ones say so in the statistics.

    Raises MmspecError for a wrong rule; `generate` raises it for models and options that are not supported.
    """
    return Speculate(drafter, _acceptance(acceptance))


_acceptance = acceptance


class _Kept:
    """Logits and scores of every committed token, if they are asked for."""

    def __init__(self, sampling: Recorded, rows: int, config: GenerationConfig):
        asked = config.return_dict_in_generate
        names = [name for name in ("scores", "logits") if asked and getattr(config, f"output_{name}")]
        self.sampling, self.rows = sampling, {name: [list[Tensor]() for _ in range(rows)] for name in names}

    def add(self, state: State, tree: DraftTree, gumbel_scores: Tensor, accepted: Committed) -> None:
        """Keep what the nodes of an accepted path say."""
        for name, rows in self.rows.items():
            for row, (kept, path) in enumerate(zip(rows, accepted.paths, strict=True)):
                kept.extend(self.sampling.last[name][row, path])

    def steps(self, name: str, count: int) -> tuple[Tensor, ...] | None:
        """One tensor `row vocab` for each of `count` steps; rows that have ended repeat their last."""
        if name not in self.rows:
            return None
        return tuple(torch.stack([kept[min(step, len(kept) - 1)] for kept in self.rows[name]]) for step in range(count))


def _refuse(
    model: PreTrainedModel,
    rows: int,
    width: int,
    processors: LogitsProcessorList,
    config: GenerationConfig,
    model_kwargs: dict[str, object],
) -> None:
    """Raise MmspecError for what `generate` was asked for and cannot be had here."""
    for name, (nothing, advice) in REFUSED.items():
        if getattr(config, name, None) not in (nothing, None):
            raise MmspecError(f"mmspec.speculate takes no {name}={getattr(config, name)}: {advice}")
    vectors = model_kwargs.get("inputs_embeds") is not None and model.config.model_type not in READ_VECTORS
    if not width or vectors:
        raise MmspecError("mmspec.speculate reads token ids, not inputs_embeds: give input_ids")
    cache = model_kwargs.get("cache", model_kwargs.get("past_key_values"))
    if isinstance(cache, Cache) and _has_read(cache):
        raise MmspecError("mmspec.speculate begins with an empty cache: leave past_key_values out, give all ids")
    if model.prepare_inputs_for_generation.__func__ is not type(model).prepare_inputs_for_generation:
        raise MmspecError(
            "the model's prepare_inputs_for_generation was replaced, as prompt tuning of PEFT does: what it adds to "
            "the prompt would be left out; merge the adapter, or use generate as it is"
        )
    for processor in processors:
        name = type(processor).__name__
        if isinstance(processor, OF_TWO_BATCHES):
            raise MmspecError(f"{name} mixes the rows of two batches, which are not generated here: leave it out")
        if isinstance(processor, STATEFUL):
            raise MmspecError(f"{name} keeps a state from token to token, which drafts would confuse: leave it out")
        batch = isinstance(processor, OF_THE_BATCH) or (
            isinstance(processor, hf.WhisperNoSpeechDetection) and processor.start_of_trans_offset <= 1
        )
        if batch and rows > 1:
            raise MmspecError(f"{name} reads the prompts of a whole batch: generate one row at a time")


def _has_read(cache: Cache) -> bool:
    """Whether a cache holds anything; one of recurrent layers alone has no length."""
    cache = getattr(cache, "self_attention_cache", cache)
    if cache.layers and all(getattr(cache, "is_linear", [False])):
        return cache.has_previous_state()
    return cache.get_seq_length() > 0


def _of_row(processor: hf.LogitsProcessor, row: int) -> hf.LogitsProcessor:
    """A processor as it treats one row of its batch."""
    if isinstance(processor, hf.RepetitionPenaltyLogitsProcessor):
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, Tensor):
            return hf.RepetitionPenaltyLogitsProcessor(processor.penalty, int(ignored[row]))
    if isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return hf.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), num_beams=1)
    return processor


def _prefix_of(prefixes: Callable[[int, int], Tensor], row: int, _: int, node: int) -> Int[Tensor, "position"]:
    """The prefix of a node of a row that is looked at alone."""
    return prefixes(row, node)


def _call() -> dict[str, Any]:
    """What `generate` itself was called with. A callable is not given the streamer, and of pictures only what the
    model's encoder made of them for the whole batch, so both are read from the frame of `generate`.
    """
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame and frame.f_back else None
    return dict(caller.f_locals) if caller else {}


def _target(model: PreTrainedModel) -> CausalTarget:
    """The model as a target; the one that was made of it before, as long as it is as it was."""
    head = model.get_output_embeddings()
    parts = () if head is None else head.parameters()
    weights = tuple((part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts)
    key = (model.device, model.dtype, weights, str(model.config.to_dict()))
    if model not in _targets or _targets[model][0] != key:
        _targets[model] = key, target_of(model)
    return _targets[model][1]


def _stop(stopping: StoppingCriteriaList, config: GenerationConfig, input_ids: Int[Tensor, "row position"]) -> Stop:
    """When a row ends: by the length and the end tokens that are among the criteria, and by all others, asked for each
    row alone.
    """
    rows, width = input_ids.shape
    lengths = [item.max_length for item in stopping if isinstance(item, criteria.MaxLengthCriteria)]
    ends = [item.eos_token_id for item in stopping if isinstance(item, criteria.EosTokenCriteria)]
    known = (criteria.MaxLengthCriteria, criteria.EosTokenCriteria)
    others = StoppingCriteriaList(item for item in stopping if not isinstance(item, known))
    if others and rows > 1 and not ends:
        raise MmspecError(
            "rows that have met a stopping criterion go on in generate until all have, where there is no eos_token_id: "
            "give one, or generate one row at a time"
        )

    def ended(row: int, tokens: list[int]) -> bool:
        new = torch.tensor([tokens], device=input_ids.device)
        return bool(others(torch.cat([input_ids[row : row + 1], new], 1), None)[0])

    eos = frozenset(token for part in ends for token in part.flatten().tolist())
    return Stop(min([config.max_length, *lengths]) - width, eos, ended if others else None)
