"""A codec language model as a target."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from mmspec.engine.state import Output, State
from mmspec.engine.tree import DraftTree
from mmspec.targets.base import Features, Prompts
from mmspec.targets.causal import CausalTarget


def phoneme_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that are phonemes: all that are no special tokens."""
    return frozenset(range(len(tokenizer))) - frozenset(tokenizer.all_special_ids)


def substitute_phonemes(
    phonemes: Int[Tensor, "phoneme"], tokens: Int[Tensor, "token"], ids: Int[Tensor, "token"], boundary: int
) -> Int[Tensor, "token"]:
    """`ids` of generated tokens, where the i-th `boundary` token is read as the i-th of `phonemes`."""
    if not len(phonemes):
        return ids
    number = (tokens == boundary).cumsum(0).clamp(min=1, max=len(phonemes)) - 1
    return torch.where(tokens == boundary, phonemes[number], ids)


class SpeechTarget(CausalTarget):
    """A causal model over a codec's tokens, with an end token.

    `codes` are the model's ids of the codec's tokens, codebook by codebook, and `end` is that of the end token. Where a
    frame has several tokens, only those of a position's codebook are possible there, and the end only between frames.

    With a `boundary` id the model is interleaved (ELLA-V, Song et al. 2024, arXiv 2401.07333): it says when a phoneme
    of its prompt begins, by the boundary token, and reads that phoneme in the boundary's place. So no phoneme is left
    out or said twice: there are as many boundaries as `phonemes` (ids) in the prompt, and the end comes after the last.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codes: Sequence[int],
        end: int,
        codebooks: int = 1,
        boundary: int | None = None,
        phonemes: frozenset[int] = frozenset(),
        weights_hash: str = "",
        check: bool = True,
    ):
        super().__init__(model, [*codes, end, *([] if boundary is None else [boundary])], weights_hash, check)
        self.codebooks, self.codebook_size = codebooks, len(codes) // codebooks
        self.end_token, self.boundary_token = len(codes), None if boundary is None else len(codes) + 1
        self.phonemes = phonemes
        self.protected = frozenset(range(len(codes), self.vocabulary_size))

    def guide(
        self, state: State, logits: Float[Tensor, "branch row node vocab"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        guided = super().guide(state, logits, positions)
        if self.codebooks == 1:
            return guided
        return guided.masked_fill(self.codebook_of != (positions % self.codebooks)[..., None], -torch.inf)

    @property
    def codebook_of(self) -> Int[Tensor, "vocab"]:
        """The codebook of each token; the end belongs to the first."""
        return torch.arange(self.vocabulary_size, device=self.device) // self.codebook_size % self.codebooks

    def prompt_phonemes(self, prompt: Sequence[int]) -> list[int]:
        """The phonemes among the model ids of a prompt."""
        return [model_id for model_id in prompt if model_id in self.phonemes]

    def _row_phonemes(self, state: State) -> list[list[int]]:
        """The phonemes of each row's prompt, whose tokens are negative ids."""
        return [self.prompt_phonemes([-1 - token for token in prompt]) for prompt in state.prompt_ids]

    def phonemes_started(self, state: State, tree: DraftTree) -> Int[Tensor, "row node"]:
        """How many phonemes have begun when a node has been read."""
        assert self.boundary_token is not None, "the target is not interleaved"
        boundaries = tree.tokens == self.boundary_token
        committed = torch.tensor([row.count(self.boundary_token) for row in state.tokens], device=boundaries.device)
        # The root is among what is committed.
        return committed[:, None] + (tree.ancestors[:, :, 1:] & boundaries[:, None, 1:]).sum(2)

    def mask_end_and_boundary(
        self, logits: Float[Tensor, "row node vocab"], phonemes_left: Bool[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """Forbid the end while phonemes are left, and the boundary afterwards."""
        logits = logits.clone()
        logits[..., self.end_token].masked_fill_(phonemes_left, -torch.inf)
        logits[..., self.boundary_token].masked_fill_(~phonemes_left, -torch.inf)
        return logits

    def prefill(self, prompts: Prompts, capacity: int, features: Features = False) -> State:
        state = super().prefill(prompts, capacity, features)
        if self.boundary_token is not None:
            phonemes_left = torch.tensor(
                [[bool(phonemes)] for phonemes in self._row_phonemes(state)], device=self.device
            )
            output = state.prefill_output
            state.prefill_output = Output(self.mask_end_and_boundary(output.logits, phonemes_left), output.hidden)
        return state

    def node_ids(self, state: State, tree: DraftTree) -> Int[Tensor, "row node"]:
        ids = super().node_ids(state, tree)
        if self.boundary_token is None:
            return ids
        phonemes = self._row_phonemes(state)
        longest = max(map(len, phonemes)) + 1
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in phonemes], device=self.device)
        totals = torch.tensor([[len(row)] for row in phonemes], device=self.device)
        number = (self.phonemes_started(state, tree) - 1).clamp(min=0).minimum(totals)
        return torch.where(tree.tokens == self.boundary_token, padded.gather(1, number), ids)

    def forward(self, state: State, tree: DraftTree) -> Output:
        output = super().forward(state, tree)
        if self.boundary_token is None:
            return output
        totals = torch.tensor([[len(row)] for row in self._row_phonemes(state)], device=self.device)
        phonemes_left = self.phonemes_started(state, tree) < totals
        return Output(self.mask_end_and_boundary(output.logits, phonemes_left), output.hidden)

    def model_ids(self, prompt: Int[Tensor, "position"], tokens: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
        ids = super().model_ids(prompt, tokens)
        if self.boundary_token is None:
            return ids
        phonemes = torch.tensor(self.prompt_phonemes(prompt.tolist()), dtype=torch.long, device=tokens.device)
        return substitute_phonemes(phonemes, tokens, ids, self.boundary_token)

    def generate_processor(self, start: int) -> LogitsProcessor:
        if self.boundary_token is not None:
            return InterleavedLogitsProcessor(self, start)
        return super().generate_processor(start) if self.codebooks == 1 else FrameLogitsProcessor(self, start)


class FrameLogitsProcessor(LogitsProcessor):
    """Makes `transformers.generate` keep to the codebook of each position after prompts of `start` ids."""

    def __init__(self, target: SpeechTarget, start: int):
        self.target, self.start = target, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        target, masked = self.target, torch.full_like(scores, -torch.inf)
        possible = target.vocabulary[target.codebook_of == (input_ids.shape[1] - self.start) % target.codebooks]
        masked[:, possible] = scores[:, possible]
        return masked


class InterleavedLogitsProcessor(LogitsProcessor):
    """Makes `transformers.generate` follow an interleaved target after prompts of `start` ids.

    The boundary is generated as the phoneme that comes next.
    """

    def __init__(self, target: SpeechTarget, start: int):
        self.target, self.start = target, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        target, masked = self.target, torch.full_like(scores, -torch.inf)
        assert target.boundary_token is not None, "the target is not interleaved"
        codes = target.vocabulary[: target.end_token]
        end, boundary = (int(target.vocabulary[token]) for token in (target.end_token, target.boundary_token))
        masked[:, codes] = scores[:, codes]
        for row, ids in enumerate(input_ids.tolist()):
            phonemes = target.prompt_phonemes(ids[: self.start])
            started = sum(model_id in target.phonemes for model_id in ids[self.start :])
            target_id, source = (phonemes[started], boundary) if started < len(phonemes) else (end, end)
            masked[row, target_id] = scores[row, source]
        return masked
