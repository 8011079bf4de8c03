"""The empty drafter: plain autoregressive decoding."""

from mmspec.drafters.base import Drafter
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root


class NoDrafter(Drafter):
    """Drafts nothing: every round gives one token."""

    name = "none"
    max_nodes = 0

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        return root(state.roots)
