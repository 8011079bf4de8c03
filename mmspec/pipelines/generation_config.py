"""What a model's `generation_config.json` says of how to sample. This module imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path

from mmspec.errors import MmspecError

# What sampling options are where nobody says anything.
NEUTRAL: dict[str, object] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

# What `generate` of transformers keeps where it samples and nobody says how many.
TOP_K = 50

# Other entries that change what `generate` gives, and the values that change nothing: those that a pipeline applies by
# processors, and those of which it warns.
APPLIED = {"no_repeat_ngram_size": (None, 0), "suppress_tokens": (None, []), "bad_words_ids": (None, [])}
NOT_APPLIED = {
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "begin_suppress_tokens": (None, []),
    "exponential_decay_length_penalty": (None,),
    "num_beams": (None, 1),
}


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


def read_generation_config(folder: Path) -> dict[str, object]:
    """A folder's `generation_config.json`, empty where there is none. Raises MmspecError for one that is damaged."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None


def applied(config: Mapping[str, object]) -> dict[str, object]:
    """The other entries that a pipeline applies, as `generate` does."""
    return {name: config[name] for name, neutral in APPLIED.items() if config.get(name) not in neutral}


def not_applied(config: Mapping[str, object]) -> list[str]:
    """The entries that change what `generate` gives and that no pipeline applies."""
    return [name for name, neutral in NOT_APPLIED.items() if config.get(name) not in neutral]
