"""What a model's `generation_config.json` says of how to sample. This module imports no torch."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmspec import zoo
from mmspec.errors import MmspecError

# What sampling options are where nobody says anything.
NEUTRAL: dict[str, object] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

# What `generate` of transformers keeps where it samples and nobody says how many.
TOP_K = 50

# Entries that every pipeline applies, and those that a pipeline of texts applies by processors.
SAMPLING = ("do_sample", "temperature", *NEUTRAL)
APPLIED = ("no_repeat_ngram_size", "suppress_tokens", "bad_words_ids")

# Entries that change no token: lengths, caches, what `generate` returns, assistants, what beams alone look at, and what
# a family's own `generate` keeps for itself. So do ids of tokens, but for those that are forced.
NO_TOKENS = frozenset(
    (
        "max_length max_new_tokens num_return_sequences "
        "use_cache cache_implementation cache_config max_cache_len prefill_chunk_size low_memory compile_config "
        "disable_compile continuous_batching_config "
        "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
        "return_legacy_cache "
        "is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
        "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind "
        "assistant_ensemble_weight use_mtp speculation_type "
        "early_stopping length_penalty diversity_penalty num_beam_groups "
        "renormalize_logits remove_invalid_values transformers_version generation_kwargs"
    ).split()
)

# Values of others that change nothing, beside None, False and what is empty.
INERT = dict.fromkeys(("num_beams", "typical_p", "guidance_scale", "encoder_repetition_penalty"), 1)
INERT |= dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0)
INERT |= dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "penalty_alpha"), 0)


def sampling_defaults(config: Mapping[str, object], samples: bool = False) -> dict[str, object]:
    """Temperature, top-k, top-p, min-p and repetition penalty, as `generate` takes them from this configuration.

    Temperature 0 is greedy: without `do_sample`, unless models of this kind are known to be sampled from (`samples`).
    """
    stated = {name: config[name] for name in ("temperature", *NEUTRAL) if config.get(name) is not None}
    do_sample = config.get("do_sample")
    if do_sample:
        return {"temperature": 1.0} | NEUTRAL | {"top_k": TOP_K} | stated
    greedy = do_sample is not None or not samples
    return {"temperature": 1.0} | NEUTRAL | stated | ({"temperature": 0.0} if greedy else {})


def speaker_defaults(config: Mapping[str, object], authors: Mapping[str, object]) -> dict[str, object]:
    """How a speech language model samples: as this configuration says, else as its authors do; greedy where it says
    that it does not sample.
    """
    stated = {name: config[name] for name in ("temperature", *NEUTRAL) if config.get(name) is not None}
    greedy = {"temperature": 0.0} if config.get("do_sample") is False else {}
    return {"temperature": 1.0} | dict(authors) | stated | greedy


def read_generation_config(folder: Path) -> dict[str, object]:
    """A folder's `generation_config.json`, empty where there is none. Raises MmspecError for one that is damaged."""
    path = folder / "generation_config.json"
    return zoo.read_object(path) if path.is_file() else {}


def applied(config: Mapping[str, object]) -> dict[str, object]:
    """The other entries that a pipeline of texts applies, as `generate` does."""
    return {name: config[name] for name in APPLIED if not _inert(name, config.get(name))}


def not_applied(config: Mapping[str, object], names: Iterable[str] = ()) -> list[str]:
    """The entries that may change what `generate` gives, and are neither applied by all pipelines nor among `names`."""
    known = NO_TOKENS.union(SAMPLING, names)
    return [name for name, value in config.items() if not (name in known or _only_named(name) or _inert(name, value))]


def warn_of_others(config: Mapping[str, object], names: Iterable[str] = ()) -> None:
    """Warn the caller's caller of what is `not_applied`."""
    if others := not_applied(config, names):
        warnings.warn(
            f"the model's generation_config.json has {', '.join(others)}, which mmspec does not apply", stacklevel=3
        )


def check_entries(config: Mapping[str, object], vocabulary: int | None) -> None:
    """Raise MmspecError for ends, or for what is `applied`, of a wrong type or outside a vocabulary of that size."""

    def is_number(value: object, end: int | None) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return value >= 0 and (end is None or value < end)

    def are_ids(value: object) -> bool:
        return isinstance(value, list) and all(is_number(token, vocabulary) for token in value)

    def check(name: str, fits: bool, wanted: str) -> None:
        if config.get(name) is not None and not fits:
            raise MmspecError(f"generation_config.json says {name}={config[name]!r:.60}: it must be {wanted}")

    below = "ids of tokens" if vocabulary is None else f"ids of tokens, below {vocabulary}"
    ends, size, words = config.get("eos_token_id"), config.get("no_repeat_ngram_size"), config.get("bad_words_ids")
    check("eos_token_id", are_ids(ends) or is_number(ends, vocabulary), f"one id or a list of {below}")
    check("suppress_tokens", are_ids(config.get("suppress_tokens")), f"a list of {below}")
    check("no_repeat_ngram_size", is_number(size, None), "a whole number from 0 up")
    lists = isinstance(words, list) and all(word and are_ids(word) for word in words)
    check("bad_words_ids", lists, f"a list of lists of {below}")


def _only_named(name: str) -> bool:
    """Whether an entry is internal, or says which token means what."""
    return name.startswith("_") or (name.endswith("_token_id") and not name.startswith("forced_"))


def _inert(name: str, value: object) -> bool:
    """Whether a value of an entry changes nothing."""
    return value is None or value is False or value in ([], {}, "") or (name in INERT and value == INERT[name])
