"""From logits to a law, and the positional noise that makes sampling a function of the seed."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation import logits_process as hf

from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.engine.state import State
    from mmspec.engine.tree import DraftTree

# Processors whose output does not depend on the prefix: one call serves every node of a tree.
PREFIX_FREE = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.SuppressTokensLogitsProcessor,
)


@dataclass(frozen=True)
class Sampling:
    """How logits become a law: transformers' processors in transformers' order.

    `processors` (a `LogitsProcessorList` or any list of its objects) come first, then temperature, top-k, top-p,
    min-p. `temperature=0` is greedy decoding: no noise, no warping.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: list = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 2**31),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
        ):
            value = getattr(self, name)
            kind = int if name == "top_k" else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                raise MmspecError(f"{name}={value} is out of range: give a number from {low} to {high}")
        if self.top_p == 0.0:
            raise MmspecError(
                "top_p=0.0 leaves no token to sample: give a number above 0, or temperature=0 for greedy decoding"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def warpers(self) -> hf.LogitsProcessorList:
        """The whole list, in the order in which it is applied."""
        chosen = list(self.processors)
        if not self.greedy:
            if self.temperature != 1.0:
                chosen.append(hf.TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                chosen.append(hf.TopKLogitsWarper(self.top_k))
            if self.top_p < 1.0:
                chosen.append(hf.TopPLogitsWarper(self.top_p))
            if self.min_p > 0.0:
                chosen.append(hf.MinPLogitsWarper(self.min_p))
        return hf.LogitsProcessorList(chosen)

    def scores(
        self, logits: Float[Tensor, "row node vocab"], prefixes: "Prefixes | None" = None
    ) -> Float[Tensor, "row node vocab"]:
        """Processed logits of every node, each with its own prefix (the part that lies in the vocabulary); at least float32."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        warpers = self.warpers()
        if not warpers:
            return logits
        if all(isinstance(warper, PREFIX_FREE) for warper in warpers):
            flat = logits.flatten(0, 1)
            return warpers(flat.new_zeros(len(flat), 1, dtype=torch.long), flat).view_as(logits)
        out = torch.empty_like(logits)
        assert prefixes is not None, "processors that read the prefix need the tree's prefixes"
        for row in range(logits.shape[0]):
            for node in range(logits.shape[1]):
                prefix = prefixes(row, node)
                known = prefix[(prefix >= 0) & (prefix < logits.shape[2])]
                out[row, node] = warpers(known[None], logits[row, node][None])[0]
        return out


class Prefixes:
    """The tokens that precede each node's prediction: committed ones, then the path to the node."""

    def __init__(self, state: "State", tree: "DraftTree"):
        self.histories = [state.history(row)[:-1] for row in range(state.rows)]
        self.tokens, self.ancestors = tree.tokens, tree.ancestors()

    def __call__(self, row: int, node: int) -> Int[Tensor, "position"]:
        return torch.cat([self.histories[row], self.tokens[row][self.ancestors[row, node]]])
