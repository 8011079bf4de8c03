"""CSM (Sesame, github.com/SesameAILabs/csm) as one stream of codes: a backbone that reads frames, and a depth decoder
that says the codes of a frame.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.cache import TreeCache, cache_kwarg, causal
from mmspec.engine.state import Output, State
from mmspec.engine.tree import MAX_TREE_NODES, DraftTree, chain
from mmspec.errors import MmspecError
from mmspec.targets.base import Features, Grid, Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.head import OutputHead
from mmspec.targets.masks import as_attention_takes
from mmspec.targets.probe import share_of_spread
from mmspec.targets.vision_language import VisualPrompts


@dataclass
class FrameCache:
    """What the backbone has read of every row, the prompt and whole frames (`frames`), and its last hidden state
    `hidden`, from which the frame that is being said comes.

    `read` are the states of the frames that the last pass read, and `fresh` says in which rows there was one. They are
    kept when a token after them is committed.
    """

    frames: TreeCache
    capacity: int
    hidden: Float[Tensor, "row width"]
    read: Float[Tensor, "row width"]
    fresh: list[bool]

    @property
    def lengths(self) -> Int[Tensor, "row"]:
        return self.frames.lengths

    @property
    def bytes(self) -> int:
        return self.frames.bytes

    def advance(self, counts: list[int]) -> None:
        self.frames.advance(counts)

    def commit(self, paths: list[list[int]]) -> None:
        """Keep the frames of rows in which something was accepted after them."""
        kept = [fresh and bool(path) for fresh, path in zip(self.fresh, paths, strict=True)]
        if any(kept):
            self.frames.advance([int(one) for one in kept])
            chosen = torch.tensor(kept, device=self.hidden.device)[:, None]
            self.hidden = torch.where(chosen, self.read, self.hidden)
        self.fresh = [False] * len(paths)

    def keep(self, rows: list[int]) -> None:
        self.frames.keep(rows)
        self.hidden = self.read = self.hidden[rows]
        self.fresh = [False] * len(rows)

    def join(self, other: "FrameCache") -> None:
        self.frames.join(other.frames)
        self.hidden = self.read = torch.cat([self.hidden, other.hidden])
        self.fresh = [False] * len(self.hidden)


class CsmTarget(CausalTarget):
    """A `CsmForConditionalGeneration` that speaks.

    Token t is code t % K of frame t // K, by its number in its codebook, of which there are K. The first code of a
    frame comes from the backbone, which then has read all frames before, and the others from the depth decoder. It
    ignores the positions that it is given, so drafts are chains; it is given a frame from its beginning, so rows need
    not be at the same place of their frames. A pass reads a chain up to the last code of a frame, which takes at most
    one step of the backbone: as many as plain decoding.

    Prompts are text; recordings of a row are the processor's `input_values` and `input_values_cutoffs`, in
    `VisualPrompts.images`.
    """

    families: ClassVar[tuple[str, ...]] = ("csm",)

    def __init__(self, model: PreTrainedModel, weights_hash: str = "", check: bool = True):
        if model.config.model_type not in self.families:
            raise MmspecError(f"{type(model).__name__} is no CSM: give a CsmForConditionalGeneration")
        self.codebooks: int = model.config.num_codebooks
        self.heads = [OutputHead(weight.T) for weight in model.depth_decoder.codebooks_head.weight]
        super().__init__(model, weights_hash=weights_hash, check=check)
        self.grid = Grid(1, self.codebooks)

    def find_decoder(self) -> PreTrainedModel:
        return self.model.backbone_model

    @property
    def chains_only(self) -> bool:
        return True

    def readable(self, state: State, tree: DraftTree) -> DraftTree:
        return super().readable(state, tree).within([self.codebooks - 1 - place for place in self._places(state)])

    @property
    def max_positions(self) -> int:
        """Those of the backbone: text, and frames."""
        return self.model.config.max_position_embeddings

    def tokens(self, ids: list[int]) -> list[int]:  # type: ignore[override]
        """Text ids as tokens: all of them are negative, though codes have the same numbers."""
        return [-1 - model_id for model_id in ids]

    def embed(self, tokens: Int[Tensor, "*shape"], positions: Int[Tensor, "*shape"] | None = None) -> Tensor:
        raise MmspecError("CSM reads frames of codes, and has no vectors of single ones: use none, jacobi or lookup")

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        media, codec = prompts.images if isinstance(prompts, VisualPrompts) else [], self.model.codec_model.dtype
        return [
            {key: value.to(self.device, codec if value.is_floating_point() else None) for key, value in row.items()}
            for row in media or [{}] * len(prompts.conditional)
        ]

    @torch.inference_mode()
    def prefill(self, prompts: Prompts, capacity: int, features: Features = False) -> State:
        if features or prompts.unconditional is not None:
            raise MmspecError("CSM takes neither drafters that read its hidden states nor guidance: use none or jacobi")
        if not all(prompts.conditional):
            raise MmspecError("a prompt has no tokens: give its text")
        rows, lengths = len(prompts.conditional), [len(prompt) for prompt in prompts.conditional]
        new = -(-(capacity - MAX_TREE_NODES - 1) // self.codebooks)
        if max(lengths) + new > self.max_positions:
            raise MmspecError(
                f"{max(lengths)} prompt tokens and {new} frames exceed the model's {self.max_positions} positions: "
                "shorten the prompt or ask for fewer tokens"
            )
        inputs = self.prompt_inputs(prompts)
        cache = cast(TreeCache, self.new_cache(max(lengths) + new + 1, inputs))
        read = [self.read_prompt(cache, i, *row) for i, row in enumerate(zip(prompts.conditional, inputs, strict=True))]
        cache.advance(lengths)
        last = torch.stack([hidden[-1] for _, hidden in read])
        return State(
            cache=FrameCache(cache, cache.capacity, last, last, [False] * rows),
            branches=1,
            guidance=1.0,
            roots=torch.tensor(self.tokens([prompt[-1] for prompt in prompts.conditional]), device=self.device),
            tokens=[[] for _ in range(rows)],
            prompt_ids=[self.tokens(prompt) for prompt in prompts.conditional],
            features=last.new_zeros(1, rows, 0, self.hidden_size),
            prompt_hidden=[],
            position_shift=torch.zeros(rows, 1, dtype=torch.long, device=self.device),
            prefill_output=Output(self.head(last)[:, None], last[None, :, None]),
        )

    @torch.inference_mode()
    def first_layers(self, count: int) -> CausalTarget:
        """Raises MmspecError: most of a frame's codes are another decoder's."""
        raise MmspecError("the codes of a frame are drafted by no part of CSM's backbone: use jacobi")

    def forward(self, state: State, tree: DraftTree) -> Output:
        """One pass over chains that `readable` has cut; nothing is committed."""
        cache, places = cast(FrameCache, state.cache), self._places(state)
        cache.fresh = [place == 0 for place in places]
        begins = torch.tensor(cache.fresh, device=self.device)[:, None]
        if any(cache.fresh):
            cache.read = torch.where(begins, self._read_frames(state, cache.frames), cache.hidden)
        hidden = cache.read if any(cache.fresh) else cache.hidden
        # What the depth decoder reads of each row: a place for the backbone's state, what is said, and the guesses.
        said = [tokens[len(tokens) - place :] for tokens, place in zip(state.tokens, places)]
        width = min(max(places) + tree.size, self.codebooks)
        ids = torch.zeros(len(places), width, dtype=torch.long, device=self.device)
        start = torch.tensor(places, device=self.device)[:, None]
        index = torch.arange(width, device=self.device)
        known = torch.tensor([row + [0] * (width - 1 - len(row)) for row in said], device=self.device)
        ids[:, 1:] = torch.where(
            index[1:] <= start, known, tree.tokens.gather(1, (index[1:] - start).clamp(0, tree.size - 1))
        ).clamp(min=0)
        logits = self._depth_logits(ids, hidden, min(places))
        nodes = (start + tree.depths).clamp(max=width - 1)  # where in its frame each node's next code is
        first = nodes[..., None] == 0
        picked = logits.gather(1, (nodes - min(places))[..., None].expand(-1, -1, logits.shape[2]))
        return Output(
            torch.where(first, self.head(hidden)[:, None], picked), hidden[None, :, None].expand(1, -1, tree.size, -1)
        )

    def _places(self, state: State) -> list[int]:
        """The place in its frame of each row's next code."""
        return [count % self.codebooks for count in state.counts]

    def _read_frames(self, state: State, frames: TreeCache) -> Float[Tensor, "row width"]:
        """Let the backbone read the last K codes of every row; it matters to rows whose frame is complete."""
        codes = torch.tensor(
            [([0] * self.codebooks + row)[-self.codebooks :] for row in state.tokens], device=self.device
        )
        frames.open(1)
        seen = frames.mask(torch.ones(len(codes), 1, 1, dtype=torch.bool, device=self.device))
        output = self.decoder(
            input_ids=codes[:, None],
            attention_mask=as_attention_takes(self.decoder, seen),
            position_ids=frames.lengths[:, None].clamp(max=self.max_positions - 1),
            use_cache=True,
            **cache_kwarg(self.decoder, frames),
        )
        return output.last_hidden_state[:, 0]

    def _depth_logits(
        self, ids: Int[Tensor, "row place"], hidden: Float[Tensor, "row width"], first: int
    ) -> Float[Tensor, "row later_place vocab"]:
        """What is said at the places of a frame from `first` on; nothing at place 0, whose code is the backbone's."""
        depth, width = self.model.depth_decoder.model, ids.shape[1]
        # Its positions have one axis, which transformers' masks stumble over where neither mask nor cache are given.
        mask = as_attention_takes(depth, causal(len(ids), width, self.device)[:, None])
        read = depth(input_ids=ids, backbone_last_hidden_state=hidden, attention_mask=mask, use_cache=False)
        states = read.last_hidden_state
        parts = [self.heads[max(place - 1, 0)](states[:, place]) for place in range(first, ids.shape[1])]
        return torch.stack(parts, 1)

    def own_frame(
        self, prompt: list[int], frames: list[list[int]], inputs: dict[str, Tensor]
    ) -> Float[Tensor, "place vocab"]:
        """What the model itself says at each place of the last of some frames, by its own forward without a cache."""
        text = self.model._merge_input_ids_with_input_values(torch.tensor([prompt], device=self.device), **inputs)
        codes = torch.tensor(frames, device=self.device)[None]
        vectors = torch.cat([text["inputs_embeds"], self.decoder.embed_tokens(codes[:, :-1])], 1)
        last = self.decoder(inputs_embeds=vectors, use_cache=False).last_hidden_state[:, -1]
        ids = torch.nn.functional.pad(codes[:, -1, :-1], (1, 0))
        others = self.model.depth_decoder(
            input_ids=ids, backbone_last_hidden_state=last, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits
        return torch.cat([self.model.lm_head(last)[:, None], others], 1)[0]

    def largest_error(self, slots: int) -> float:
        """Two frames after a prompt, the second in one pass, against the model's own forward."""
        prompt, count = [*range(1, 7)], self.codebooks
        codes = torch.arange(2 * count, device=self.device) * 7919 % self.vocabulary_size
        state = self.prefill(Prompts([prompt]), 2 * count + MAX_TREE_NODES + 1)
        said = [state.prefill_output.logits[0, 0]]
        for start, stop in ((0, 1), (1, count), (count, 2 * count)):
            taken = codes[start:stop].tolist()
            tree = chain(state.roots, codes[None, start : stop - 1])
            if start:
                output = self.forward(state, tree)
                said.extend(output.logits[0])
            state.commit([[*range(len(taken))]], [taken], state.prefill_output.hidden)
        frames = codes.view(2, count).tolist()
        expected = [self.own_frame(prompt, frames[: n + 1], {}) for n in range(2)]
        return share_of_spread(torch.stack(said), torch.cat(expected))

    def own_ids(self, **options: object) -> Int[Tensor, "row token"]:
        """What the model's own `generate` says: the codes of whole frames, one after the other."""
        inputs, length = options.pop("inputs"), cast(int, options.pop("max_new_tokens"))
        options = {key: value for key, value in options.items() if key not in ("eos_token_id", "pad_token_id")}
        frames = -(-length // self.codebooks)
        # The decoder of the other codebooks samples as the backbone does.
        sampled = ("do_sample", "temperature", "top_k", "top_p", "min_p")
        depth = {f"depth_decoder_{name}": options[name] for name in sampled if name in options}
        codes = self.model.generate(input_ids=inputs, max_new_tokens=frames, **options, **depth)
        return codes.flatten(1)

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        return "penalty of a CSM" if penalty != 1 else ""
