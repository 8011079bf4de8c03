"""Sequences with their features, loaded when a batch needs them: from files, or read again by the target."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open

from mmspec.drafters.examples import Example, PromptFeatures
from mmspec.train.capture import Reading
from mmspec.train.corpus import Corpus, SequenceFacts

# Loads sequences by what is known of them.
Load = Callable[[Sequence[SequenceFacts]], list[Example]]


def from_files(corpus: Corpus, reading: Reading) -> Load:
    """Sequences from the files that `Corpus.capture` wrote; memory holds no more than the batch."""

    @lru_cache(maxsize=16)
    def opened(path: Path) -> safe_open:
        return safe_open(path, "pt")

    def load(wanted: Sequence[SequenceFacts]) -> list[Example]:
        examples = []
        for facts in wanted:
            file = opened(corpus.feature_file(corpus.jobs[facts.job], reading))
            prefix = f"{facts.row}."
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
            seed, temperature, guidance = tensors.pop("numbers").tolist()
            tokens, features, entered = tensors.pop("tokens"), tensors.pop("features"), tensors.pop("entered", None)
            prompt = PromptFeatures(**tensors) if reading.prompts else None
            examples.append(Example(tokens, features, int(seed), temperature, guidance, prompt, entered))
        return examples

    return load


def online(corpus: Corpus, reading: Reading) -> Load:
    """Sequences that the target reads again each time, which takes no room on the disk."""

    def load(wanted: Sequence[SequenceFacts]) -> list[Example]:
        examples: dict[int, Example] = {}
        for number in dict.fromkeys(facts.job for facts in wanted):
            places = [place for place, facts in enumerate(wanted) if facts.job == number]
            rows = [wanted[place].row for place in places]
            examples |= dict(zip(places, corpus.read(corpus.jobs[number], rows, reading), strict=True))
        return [examples[place] for place in range(len(wanted))]

    return load
