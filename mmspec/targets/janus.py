"""Janus and Janus-Pro as models that draw: pictures have an embedding and an output head of their own."""

from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid
from mmspec.targets.head import LayeredHead
from mmspec.targets.image import ImageTarget
from mmspec.targets.probe import plain_ids


def janus_twin(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """The unconditional prompt, as the model's `generate` makes it: padding that is attended to, but for the
    beginnings of the sequence and of the picture, the last id.
    """
    config = model.generation_config
    if config.pad_token_id is None:
        raise MmspecError("this Janus has no pad_token_id in its generation_config: set it")
    kept = {config.bos_token_id, prompt[-1]}
    return [model_id if model_id in kept else config.pad_token_id for model_id in prompt]


class JanusTarget(ImageTarget):
    """A `JanusForConditionalGeneration` that draws.

    Tokens are the VQ model's codes, which the text's vocabulary lacks: all ids of prompts are negative tokens. The root
    of the first pass is the prompt's last text token, and all nodes are given to the decoder as vectors.
    """

    families: ClassVar[tuple[str, ...]] = ("janus",)
    head: LayeredHead

    def __init__(self, model: PreTrainedModel, weights_hash: str = "", check: bool = True):
        if model.config.model_type not in self.families:
            raise MmspecError(f"{type(model).__name__} is no Janus: give a JanusForConditionalGeneration")
        side, count = model.config.vq_config.num_patches, model.config.vision_config.num_image_tokens
        if side * side != count:
            raise MmspecError(f"this Janus draws {count} codes and decodes {side} rows of {side}, which differ")
        super().__init__(model, range(self._codes(model)), Grid(side, side), None, weights_hash, check)

    @staticmethod
    def _codes(model: PreTrainedModel) -> int:
        return model.config.vq_config.num_embeddings

    def head_rows(self) -> int:
        return self._codes(self.model)

    def build_head(self, ids: Sequence[int]) -> LayeredHead:
        head = self.model.model.generation_head
        return LayeredHead(head.proj_out, head.activation_fn, head.vision_head)

    def tokens(self, ids: Sequence[int]) -> list[int]:
        """Text ids as tokens: all of them are negative, though codes may have the same numbers."""
        return [-1 - model_id for model_id in ids]

    def embed(
        self, tokens: Int[Tensor, "*shape"], positions: Int[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape width"]:
        """Input vectors: codes by the embedding for pictures, negative tokens by that of text."""
        text = self.model.get_input_embeddings()((-1 - tokens).clamp(min=0))
        pictures = self.model.prepare_embeddings_for_image_generation(tokens.clamp(min=0))
        return torch.where((tokens < 0)[..., None], text, pictures)

    def node_ids(self, state: State, tree: DraftTree) -> Int[Tensor, "row node"]:
        return tree.tokens

    def decoder_inputs(self, nodes: Int[Tensor, "sequence node"]) -> dict[str, Tensor]:
        return {"inputs_embeds": self.embed(nodes)}

    def own_logits(
        self, nodes: Int[Tensor, "row node"], mask: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """What the model itself says: the steps of its `generate`, without a cache."""
        hidden = self.decoder(inputs_embeds=self.embed(nodes), attention_mask=mask, use_cache=False).last_hidden_state
        return self.model.model.generation_head(hidden)

    def sample_nodes(self, count: int, prompt: int) -> list[int]:
        text = self.tokens(plain_ids(self.model, prompt))
        return text + [node * 7919 % self.vocabulary_size for node in range(count - prompt)]

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        """What the model's own `generate` draws; it makes the unconditional prompts itself, and draws to the end."""
        inputs = options["inputs"]
        assert isinstance(inputs, Tensor)
        config = deepcopy(self.model.generation_config)
        config.generation_kwargs = {"boi_token_id": int(inputs[0, -1])}
        config.guidance_scale = options["guidance_scale"]
        for name in ("do_sample", "temperature", "top_k", "top_p"):
            setattr(config, name, options.get(name))
        config.max_length, config.max_new_tokens = inputs.shape[1] + self.grid.tokens, None
        return self.model.generate(
            inputs, attention_mask=options["attention_mask"], generation_mode="image", generation_config=config
        )

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        """Its `generate` fails without guidance, and penalises codes for text ids of the same numbers."""
        if guidance <= 1:
            return "Janus without guidance"
        return "penalty of a Janus" if penalty != 1 else ""
