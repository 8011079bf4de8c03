"""A second, small language model as drafter (Leviathan et al. 2023, arXiv 2211.17192)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoTokenizer, Cache, PreTrainedModel

from mmspec.drafters.layouts import Files
from mmspec.drafters.recurrent_drafter import RecurrentDrafter
from mmspec.drafters.shapes import drafted_tokens
from mmspec.drafters.tree_drafter import model_ids
from mmspec.engine.cache import cache_kwarg
from mmspec.engine.state import State
from mmspec.errors import MmspecError, short
from mmspec.targets.base import Target
from mmspec.targets.causal import windows_of
from mmspec.targets.probe import is_recurrent
from mmspec.targets.registry import target_of


class ModelDrafter(RecurrentDrafter):
    """A causal language model of transformers that says what it would go on with, as a chain with a second choice at
    every level.

    It reads the text of a prompt alone: tokens that stand for pictures and sounds are left out. Its tokenizer must be
    the target's (`check_vocabulary`). `rows` are the ids that it drafts from, all if None, and `tokens` the target's
    tokens for them.
    """

    name = "model"
    rows: Tensor | None
    needs_features, guided = False, False

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        depth: int = 5,
    ):
        super().__init__("", depth, tokens=tokens, beam=1, ranks=2)
        self.model, self._small = model, target_of(model)
        self.cached_layers = model.config.get_text_config().num_hidden_layers
        self.register_buffer("rows", None if rows is None else torch.tensor(rows), persistent=False)

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "ModelDrafter":
        """A folder of transformers. Raises MmspecError for a model that is not read or that has another vocabulary."""
        from mmspec.pipelines.transformer import describe, load_transformer  # a room above this one, for models alone

        kind, config = describe(files.folder)
        if is_recurrent(config):
            raise MmspecError(
                f"the model in {files.folder}, a {kind.__name__}, has recurrent layers, whose states a drafter cannot "
                "cut back: use a small model with attention alone"
            )
        loaded = Path(target.model.name_or_path or "/dev/null")  # of a target of its own, without a pipeline
        check_vocabulary(files.folder, files.model or (loaded if loaded.is_dir() else None))
        model = load_transformer(files.folder, target.dtype).to(target.device)
        rows, tokens = drafted_tokens(target, torch.arange(len(model.get_output_embeddings().weight)))
        whole = rows == tokens == list(range(target.vocabulary_size)) and len(rows) == target.vocabulary_size
        return cls(model, None if whole else rows, None if whole else tokens)

    def constructor_arguments(self) -> dict:
        raise MmspecError("a small model as drafter is saved by its own save_pretrained: drafter.model.save_pretrained")

    def _vectors(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        table = self.model.get_input_embeddings()
        return table(ids.clamp(max=len(table.weight) - 1))

    def embed(self, target: Target, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        return self._vectors(model_ids(target, tokens))

    def fuse(
        self,
        vectors: Float[Tensor, "*shape width"],
        features: Float[Tensor, "*shape width"],
        is_text: Bool[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape width"]:
        return vectors

    def prompt_inputs(
        self, state: State, sequence: int
    ) -> tuple[Float[Tensor, "read width"], Int[Tensor, "read"], int]:
        # Without padding, which no model reads.
        length = int(state.cache.lengths[sequence]) + 1 - state.counts[sequence]
        ids = model_ids(self.target, torch.tensor(state.prompt_ids[sequence][-length:], device=self.target.device))
        read = self._vectors(ids[self.target.is_text(ids)])
        return read, torch.arange(len(read), device=ids.device), 0

    def _committed(self, state: State, sequence: int, new: int) -> Float[Tensor, "position width"]:
        count = state.counts[sequence]
        tokens = torch.tensor(state.tokens[sequence][count - new :], dtype=torch.long, device=state.roots.device)
        return self.embed(self.target, tokens)

    def layer(
        self,
        inputs: Float[Tensor, "row node width"],
        mask: Bool[Tensor, "row 1 node slot"],
        position_ids: Int[Tensor, "row node"],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        decoder, slots = self._small.decoder, torch.arange(mask.shape[-1], device=mask.device)
        masks = {}
        for kind, window in windows_of(decoder.config).items():
            near = (slots > position_ids[:, :, None] - window)[:, None]
            masks[kind] = mask & near if window and kind == "sliding_attention" else mask
        return decoder(
            inputs_embeds=inputs,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=position_ids,
            use_cache=True,
            **cache_kwarg(decoder, cache),
        ).last_hidden_state

    def drafted_logits(self, hidden: Float[Tensor, "row node width"]) -> Float[Tensor, "row node drafted"]:
        logits = self._small.logits(hidden)
        return logits if self.rows is None else logits[..., self.rows]


def check_vocabulary(folder: Path, model: Path | None) -> None:
    """Raise MmspecError unless every token of the small model's tokenizer has the same id in the target's.

    The target may have more tokens. A model is refused where either has no tokenizer.
    """
    own, theirs = read_vocabulary(folder), read_vocabulary(model) if model else None
    if own is None or theirs is None:
        raise MmspecError(
            f"{folder if own is None else model or 'the target'} has no tokenizer, so it is not known whether the "
            f"model in {folder} has the same tokens as the target: put the tokenizer's files beside the model"
        )
    wrong = sorted((token for token, number in own.items() if theirs.get(token) != number), key=own.__getitem__)
    if wrong:
        shown = ", ".join(f"{token!r} is {own[token]}, there {theirs.get(token)}" for token in wrong[:3])
        raise MmspecError(
            f"the model in {folder} has another vocabulary than the target ({len(wrong)} of {len(own)} tokens differ: "
            f"{shown}): use a model of the same family"
        )


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """The ids of a folder's tokenizer, None if it has none. Raises MmspecError for one that does not load."""
    for path in (folder, folder / "tokenizer", folder / "processor"):
        if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
            try:
                return AutoTokenizer.from_pretrained(path).get_vocab()
            except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
                raise MmspecError(f"the tokenizer in {path} does not load ({short(error)}): restore it") from None
    return None
