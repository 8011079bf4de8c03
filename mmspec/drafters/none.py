"""The empty drafter: plain autoregressive decoding."""

from torch import Tensor

from mmspec.engine.accept import Verdict
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.targets.base import Target


class NoDrafter:
    name = "none"
    max_nodes = 0
    needs_features = False

    def start(self, target: Target, state: State, sampling: SamplingOptions, drawn: bool) -> None: ...

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        return root(state.roots)

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None: ...
