"""What the loop asks of a target, and the prompts that it reads."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from mmspec.engine.state import Output, State
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.head import LayeredHead, OutputHead


@dataclass(frozen=True, slots=True)
class Grid:
    """The raster that tokens fill: `height` rows of `width` codes, each closed by an end-of-row token if there
    is one. `before` tokens come first, such as those of a preview.
    """

    height: int
    width: int
    end_of_row: bool = False
    before: int = 0

    @property
    def stride(self) -> int:
        """Tokens from one position to the position below it."""
        return self.width + self.end_of_row

    @property
    def tokens(self) -> int:
        return self.before + self.height * self.stride


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of every row; with `unconditional` prompts, a second CFG branch guides the first by `guidance`.

    guided logits = unconditional + guidance * (conditional - unconditional)

    `padding` are ids before each prompt, which processors see and the model does not.
    """

    conditional: list[list[int]]
    unconditional: list[list[int]] | None = None
    guidance: float = 1.0
    padding: list[list[int]] | None = None

    def __post_init__(self) -> None:
        if self.unconditional is not None and len(self.unconditional) != len(self.conditional):
            raise MmspecError(
                f"{len(self.conditional)} prompts have {len(self.unconditional)} unconditional twins: give one each"
            )

    @property
    def branches(self) -> list[list[int]]:
        """All prompts, branch by branch."""
        return self.conditional + (self.unconditional or [])

    def select(self, rows: slice, guidance: float) -> "Prompts":
        """Some of the rows, guided if they have unconditional prompts and guidance is not 1."""
        unconditional = self.unconditional[rows] if self.unconditional and guidance != 1 else None
        guidance = guidance if unconditional else 1.0
        padding = self.padding and self.padding[rows]
        return replace(
            self, conditional=self.conditional[rows], unconditional=unconditional, guidance=guidance, padding=padding
        )

    def repeat_first(self, rows: int) -> "Prompts":
        """The first row, `rows` times."""
        unconditional = self.unconditional and self.unconditional[:1] * rows
        return replace(self, conditional=self.conditional[:1] * rows, unconditional=unconditional)


# Whether hidden states are kept for a drafter: the last ones, or those that enter these layers.
Features = bool | tuple[int, ...]


@runtime_checkable
class Target(Protocol):
    """A model whose output must be kept.

    Generated tokens are numbered from 0 to `vocabulary_size` - 1, and `vocabulary[t]` is the model's own id of token t;
    prompt ids outside the vocabulary are negative tokens. A token's position is its number among those generated.

    `weights_hash` names the weights, so that a drafter trained on others can be told; "" if it is not known.
    `protected` tokens are those that lossy rules leave alone. `grid` is the raster that tokens fill, if there is one.
    `max_positions` is how many positions the model has, `model` the model of transformers. Passes are padded to
    `min_query_len` nodes. With `deterministic`, passes of every width agree bit for bit, at the price of drafts that
    are chains (docs/how-it-works.md). `chains_only` targets are given chains alone. `compiled` passes are graphs of a
    few widths.
    """

    model: PreTrainedModel
    vocabulary: Int[Tensor, "vocab"]
    vocabulary_size: int
    hidden_size: int
    weights_hash: str
    protected: frozenset[int]
    head: OutputHead | LayeredHead
    min_query_len: int
    deterministic: bool
    compiled: bool

    @property
    def grid(self) -> Grid | None: ...

    @property
    def chains_only(self) -> bool: ...

    @property
    def tolerance(self) -> float:
        """How much of their spread rounding may change hidden states and logits by."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def max_positions(self) -> int: ...

    def prefill(self, prompts: Prompts, capacity: int, features: Features) -> State:
        """Read the prompts. `capacity` is new tokens plus one tree, for each row.

        `features` asks for the last hidden states, or for those that enter layers of these numbers, side by side.
        """
        ...

    def readable(self, state: State, tree: DraftTree) -> DraftTree:
        """The part of a draft that one pass verifies."""
        ...

    def forward(self, state: State, tree: DraftTree) -> Output:
        """One pass over the tree; nothing is committed."""
        ...

    def embed(
        self, tokens: Int[Tensor, "*shape"], positions: Int[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape width"]:
        """Input vectors of tokens; `positions` matter to models whose embedding differs by position."""
        ...

    def logits(
        self, hidden: Float[Tensor, "*shape width"], positions: Int[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape vocab"]:
        """The output head that generates, in float32 or wider; `positions` are those of the predicted tokens."""
        ...

    def guide(
        self, state: State, logits: Float[Tensor, "branch row node vocab"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """Mix the CFG branches' logits for the tokens at `positions`, and force or forbid tokens: drafters apply it
        too.
        """
        ...

    def position_ids(self, state: State, depths: Int[Tensor, "row node"]) -> Int[Tensor, "*axis sequence node"]:
        """The model's position ids of tree nodes, for every sequence of the state."""
        ...

    def is_text(self, ids: Int[Tensor, "position"]) -> Bool[Tensor, "position"]:
        """Which of a prompt's model ids are text, and not in the place of a picture or a sound."""
        ...

    def model_ids(self, prompt: Int[Tensor, "position"], tokens: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
        """What the model reads for `tokens` after a prompt of model ids."""
        ...

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        """What the model's own `generate` gives for these options (see `mmspec.reference`): new ids alone."""
        ...

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        """Why `generate` gives other tokens than plain decoding under these options; "" if it gives the same."""
        ...

    def generate_processor(self, start: int) -> LogitsProcessor:
        """What `transformers.generate` needs to generate the same tokens after prompts of `start` ids."""
        ...
