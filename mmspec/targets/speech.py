"""A codec language model as a target."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from mmspec.codecs.base import Codec
from mmspec.engine.state import Output, State
from mmspec.engine.tree import DraftTree
from mmspec.targets.causal import CausalTarget, Prompts


def phonemes_of(tokenizer: PreTrainedTokenizerBase) -> Bool[Tensor, "id"]:
    """Which ids are phonemes: all that are no special tokens."""
    found = torch.ones(len(tokenizer), dtype=torch.bool)
    found[tokenizer.all_special_ids] = False
    return found


def spelled(
    phonemes: Int[Tensor, "phoneme"], tokens: Int[Tensor, "token"], offset: int, mark: int
) -> Int[Tensor, "token"]:
    """Model ids of generated tokens: the i-th `mark` is the i-th of `phonemes`, all others are `offset` further."""
    turn = (tokens == mark).cumsum(0).clamp(max=len(phonemes)) - 1
    return torch.where(tokens == mark, phonemes[turn], tokens + offset) if len(phonemes) else tokens + offset


class SpeechTarget(CausalTarget):
    """A causal model over a codec's tokens and, after them, an end token.

    Where a frame has several tokens, only those of a place's codebook are possible there, and the end only between frames.

    With `phonemes`, which ids of its text are some, the model is interleaved (ELLA-V, Song et al. 2024, arXiv 2401.07333): it says when a
    phoneme of its prompt begins, by one more token, the mark, and is given that phoneme to read in the mark's place. So no phoneme is left
    out or said twice: there are as many marks as phonemes, and the end comes after the last.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        offset: int,
        codec: Codec,
        weights_hash: str = "",
        phonemes: Bool[Tensor, "id"] | None = None,
    ):
        super().__init__(model, offset, codec.vocabulary_size + 1 + (phonemes is not None), weights_hash)
        self.codebooks, self.codes = codec.frame_tokens, codec.vocabulary_size // codec.frame_tokens
        self.phonemes, self.end, self.mark = phonemes, codec.vocabulary_size, codec.vocabulary_size + 1
        self.strict = frozenset({self.end, self.mark})

    def guide(
        self, state: State, logits: Float[Tensor, "stream row node vocab"], places: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        mixed = super().guide(state, logits, places)
        if self.codebooks == 1:
            return mixed
        book = (
            torch.arange(self.vocabulary_size, device=mixed.device) // self.codes % self.codebooks
        )  # the end counts to the first
        return mixed.masked_fill(book != (places % self.codebooks)[..., None], -torch.inf)

    def prompted(self, prompt: Int[Tensor, "position"]) -> Int[Tensor, "phoneme"]:
        """The phonemes of a prompt, as model ids."""
        assert self.phonemes is not None, "the model is not interleaved"
        return prompt[self.phonemes.to(prompt.device)[prompt]]

    def begun(self, state: State, tree: DraftTree) -> Int[Tensor, "row node"]:
        """How many phonemes have begun when a node has been read."""
        marks = tree.tokens == self.mark
        before = torch.tensor([row.count(self.mark) for row in state.tokens], device=marks.device)
        return before[:, None] + (tree.ancestors()[:, :, 1:] & marks[:, None, 1:]).sum(
            2
        )  # the root is among what is committed

    def spell(
        self, logits: Float[Tensor, "row node vocab"], left: Bool[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        """No end while phonemes are `left`, no mark afterwards."""
        logits = logits.clone()
        logits[..., self.end].masked_fill_(left, -torch.inf)
        logits[..., self.mark].masked_fill_(~left, -torch.inf)
        return logits

    def prefill(self, prompts: Prompts, capacity: int, features: bool = False) -> State:
        state = super().prefill(prompts, capacity, features)
        if self.phonemes is not None:
            for row, (prompt, first) in enumerate(zip(state.prompts, state.ahead, strict=True)):
                left = torch.full((1, 1), len(self.prompted(prompt + self.offset)) > 0, device=self.device)
                state.ahead[row] = Output(self.spell(first.logits, left), first.hidden) if first else None
        return state

    def forward(self, state: State, tree: DraftTree, ids: Int[Tensor, "row node"] | None = None) -> Output:
        if self.phonemes is None:
            return super().forward(state, tree, ids)
        due = [self.prompted(prompt + self.offset) for prompt in state.prompts]
        begun, every = self.begun(state, tree), torch.tensor([[len(row)] for row in due], device=self.device)
        turn = (begun - 1).clamp(min=0).minimum(every)
        read = torch.where(
            tree.tokens == self.mark,
            F.pad(pad_sequence(due, batch_first=True), (0, 1)).gather(1, turn),
            tree.tokens + self.offset,
        )
        out = super().forward(state, tree, read)
        return Output(self.spell(out.logits, begun < every), out.hidden)

    def sequence(self, prompt: Int[Tensor, "position"], tokens: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
        if self.phonemes is None:
            return super().sequence(prompt, tokens)
        return spelled(self.prompted(prompt), tokens, self.offset, self.mark)

    def processor(self, start: int) -> LogitsProcessor:
        return super().processor(start) if self.phonemes is None else Spelling(self, start)


class Spelling(LogitsProcessor):
    """The law of an interleaved target for `transformers.generate`, after prompts of `start` ids: the mark is the phoneme that is due."""

    def __init__(self, target: SpeechTarget, start: int):
        self.target, self.start = target, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        target, out = self.target, torch.full_like(scores, -torch.inf)
        codes, end, mark = (
            slice(target.offset, target.offset + target.end),
            target.offset + target.end,
            target.offset + target.mark,
        )
        out[:, codes] = scores[:, codes]
        for row, ids in enumerate(input_ids):
            due = target.prompted(ids[: self.start])
            said = int((ids[self.start :] < target.offset).sum())
            place, source = (int(due[said]), mark) if said < len(due) else (end, end)
            out[row, place] = scores[row, source]
        return out
