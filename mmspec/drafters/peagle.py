"""P-EAGLE (in `speculators`, github.com/vllm-project/speculators): EAGLE-3 that drafts all tokens in one pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmspec.drafters.eagle3 import Eagle3Drafter
from mmspec.drafters.layouts import Files
from mmspec.drafters.speculators import SpeculatorsDrafter
from mmspec.engine.cache import causal
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root


class PEagleDrafter(Eagle3Drafter):
    """What was committed is read as in EAGLE-3; after it come the mask token and `mask_hidden`, a learnt stand-in for
    the target's states, once for each further token, which are all predicted at once: no token reads what is drafted
    before it.
    """

    name = "peagle"
    architecture = "PEagleDraftModel"

    def __init__(self, *, mask_token: int, **options: Any):
        super().__init__(**options)
        self.mask_token = mask_token
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, self.fc.in_features))

    @classmethod
    def known_keys(cls) -> tuple[str, ...]:
        return (
            *("para_depths", "ptd_token_id", "down_sample_ratio", "down_sample_ratio_min", "prediction_loss_weight"),
            *("max_seq_len", "mask_token_id"),
        )

    @classmethod
    def released_options(cls, files: Files, width: int) -> dict:
        return {
            "mask_token": files.get("mask_token_id", "ptd_token_id"),
            "depth": files.config.get("para_depths") or 8,
        }

    def settings(self) -> dict:
        return super().settings() | {"mask_token_id": self.mask_token, "para_depths": self.depth}

    def uncarried(self) -> list[str]:
        return SpeculatorsDrafter.uncarried(self)  # the depth is carried

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, self.depth)
        if height < 1:
            return root(state.roots)
        assert self._last is not None
        hidden = torch.cat([self._last[:, None], self._masked(state, height - 1)], 1)
        device = state.roots.device
        positions = torch.tensor(state.counts, device=device)[:, None] + torch.arange(height, device=device)
        logits = self.guided_scores(state, self.drafted_logits(hidden), positions)

        def scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row beam drafted"]:
            return logits[:, depth, None].expand(-1, tokens.shape[1], -1)

        return self.grow(state, noise, height, scores)

    def _masked(self, state: State, count: int) -> Float[Tensor, "sequence node width"]:
        """Hidden states of `count` masked positions after what is committed."""
        assert self._last is not None
        size, device = len(self._last), state.roots.device
        if not count:
            return self.fc.weight.new_zeros(size, 0, self.fc.out_features)
        if self.embed_tokens is not None:
            vector = self.embed_tokens.weight[self.mask_token]
        else:
            vector = self.target.model.get_input_embeddings()(torch.tensor(self.mask_token, device=device))
        entry = self.fuse(vector, self.project(self.mask_hidden)[0, 0])
        self._cache.open(count)
        positions = self._positions(torch.arange(count, device=device).expand(size, -1))
        mask = self._cache.mask(causal(size, count, device))
        return self.layer(entry.expand(size, count, -1), mask, positions, self._cache)
