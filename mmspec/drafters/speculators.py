"""The layout of `speculators` (github.com/vllm-project/speculators), which vLLM reads, as it is written."""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mmspec.drafters.release import Release, Verifier, layer_settings
from mmspec.drafters.tree_drafter import TreeDrafter
from mmspec.targets.base import Target

# Of the layout that is written.
VERSION = "0.5.0"


class SpeculatorsDrafter(TreeDrafter):
    """A drafter that has a place in this layout: layers of a `shape`, and an embedding and a head of its own, or the
    target's, which are then left out.

    A subclass says what its own part of the configuration is (`settings`), and which class of speculators it is for.
    """

    format = "speculators"
    architecture: ClassVar[str]
    layers: nn.ModuleList
    lm_head: nn.Linear | None

    @abstractmethod
    def settings(self) -> dict:
        """The part of the configuration that other kinds do not have."""

    def uncarried(self) -> list[str]:
        """What this layout has no place for."""
        qwen2 = self.constructor_arguments()["shape"]["kind"] == "qwen2"
        biases = "biases of q, k and v alone in vLLM, which reads layers of Llama and of Qwen3"
        return self.uncalibrated() + [biases] * qwen2

    def constructor_arguments(self) -> dict:
        own_head = 0 if self.lm_head is None else len(self.lm_head.weight)  # without ids that the target lacks
        return super().constructor_arguments() | {"own_head": own_head}

    def to_released(self, target: Target, verifier: Verifier) -> Release:
        own, tensors = self.constructor_arguments(), dict(self.state_dict())
        vocabulary = verifier.vocabulary if self.embed_tokens is None else len(self.embed_tokens.weight)
        if self.lm_head is not None:
            tensors |= vocabulary_maps(
                target.vocabulary if self.tokens is None else target.vocabulary[self.tokens], vocabulary
            )
        config = {
            "architectures": [self.architecture],
            "speculators_model_type": self.name,
            "speculators_version": VERSION,
            "speculators_config": {
                "algorithm": self.name,
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": self.depth}],
                "default_proposal_method": "greedy",
                "verifier": {"name_or_path": verifier.name, "architectures": verifier.architectures},
            },
            "transformer_layer_config": layer_settings(own["shape"], len(self.layers), vocabulary, verifier.positions),
            "draft_vocab_size": own["own_head"] or vocabulary,
            "target_hidden_size": own.get("target_size") or own["shape"]["hidden_size"],
            "tie_word_embeddings": False,
        }
        return Release(config | self.settings(), tensors, self.uncarried())


def vocabulary_maps(
    ids: Int[Tensor, "drafted"], vocabulary: int
) -> dict[str, Int[Tensor, "drafted"] | Bool[Tensor, "vocab"]]:
    """`d2t`, which is added to a draft id to give the model's, and `t2d`, which marks the model ids that are drafted;
    nothing where these are all ids, in order.
    """
    ids = ids.cpu()
    numbers = torch.arange(len(ids))
    if len(ids) == vocabulary and torch.equal(ids, numbers):
        return {}
    marks = torch.zeros(max(vocabulary, int(ids.max()) + 1), dtype=torch.bool)
    return {"d2t": ids - numbers, "t2d": marks.index_fill(0, ids, True)}
