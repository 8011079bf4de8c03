"""The empty drafter: plain autoregressive decoding."""

from torch import Tensor

from mmspec.accept import Verdict
from mmspec.sampling import Noise, Sampling
from mmspec.targets.base import State, Target
from mmspec.tree import DraftTree, root


class NoDrafter:
    name = "none"
    max_nodes = 0
    needs_features = False

    def start(self, target: Target, state: State, sampling: Sampling, drawn: bool) -> None: ...

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        return root(state.roots)

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None: ...
