"""What drafters are trained on: the hidden states that the target had before each token of a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Example, PromptFeatures
from mmspec.engine.state import State
from mmspec.engine.tree import MAX_TREE_NODES, chain
from mmspec.targets.base import Prompts, Target


@dataclass(frozen=True, slots=True)
class Reading:
    """What a kind of drafter is trained on beside the last hidden states of answers: prompts, and what enters these
    layers.
    """

    prompts: bool = False
    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, kind: type[TrainedDrafter], target: Target) -> "Reading":
        return cls(kind.needs_prompt, kind.layers_read(target))


@torch.inference_mode()
def read_features(
    target: Target,
    prompts: Prompts,
    tokens: Sequence[Tensor],
    seeds: Sequence[int],
    temperature: float = 1.0,
    reading: Reading = Reading(),
) -> list[Example]:
    """One example for each row of prompts and its tokens, features in the target's dtype.

    The tokens are verified as chains that are accepted whole, so features are those that a drafter meets when it
    drafts, whatever the family.
    """
    longest = max(map(len, tokens))
    layers = (*reading.layers, target.model.config.get_text_config().num_hidden_layers) if reading.layers else True
    state = target.prefill(prompts, longest + MAX_TREE_NODES + 1, layers)
    state.commit([[0]] * len(tokens), [row[:1].tolist() for row in tokens], state.prefill_output.hidden)
    while any(left := [len(row) - count for row, count in zip(tokens, state.counts, strict=True)]):
        _read_chains(target, state, tokens, [min(count, MAX_TREE_NODES) for count in left])
    examples, wide = [], len(reading.layers) * target.hidden_size
    for row, generated in enumerate(tokens):
        prompt = None
        if reading.prompts:
            embeds, hidden = state.prompt_hidden[row]
            hidden = hidden[:, : wide or None]
            visual = embeds.vectors[~embeds.is_text].cpu()
            ids = torch.tensor(prompts.conditional[row])
            prompt = PromptFeatures(ids, hidden.cpu(), embeds.is_text.cpu(), visual)
        features = state.features[:, row, : len(generated)].cpu()
        entered, last = (features[0, :, :wide], features[..., wide:]) if wide else (None, features)
        examples.append(Example(generated.cpu(), last, seeds[row], temperature, prompts.guidance, prompt, entered))
    return examples


def _read_chains(target: Target, state: State, tokens: Sequence[Tensor], counts: list[int]) -> None:
    """Read the last committed token of each row and those after it, and commit `counts[row]` further tokens."""
    device = state.roots.device
    guesses = torch.zeros(len(tokens), max(counts) - 1, dtype=torch.long, device=device)
    new = [row[done : done + count] for row, done, count in zip(tokens, state.counts, counts, strict=True)]
    for row, part in enumerate(new):
        guesses[row, : max(0, len(part) - 1)] = part[:-1].to(device)
    tree = chain(state.roots, guesses, torch.tensor([max(0, count - 1) for count in counts], device=device))
    output = target.forward(state, tree)
    state.commit([list(range(count)) for count in counts], [part.tolist() for part in new], output.hidden)
