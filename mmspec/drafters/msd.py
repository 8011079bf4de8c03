"""MSD (arXiv 2505.14260): one decoder layer over the target's own features; text and visual tokens enter it by different doors."""

import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from mmspec.drafters.base import TrainedDrafter
from mmspec.engine.accept import Verdict
from mmspec.engine.cache import TreeCache, cache_kwarg, causal, positions
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import PromptEmbeds, State
from mmspec.engine.tree import Candidates, DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget

# In a released file, but without effect: recomputed, or not in use in the first layer.
IDLE = ("layers.0.input_layernorm.weight", "layers.0.self_attn.rotary_emb.inv_freq")


class MsdDrafter(TrainedDrafter):
    """Position t reads token t + 1 and the target's feature at t, and predicts the feature at t + 1, hence token t + 2.

    A text position enters as `fc([embedding; feature])`, a visual one as the projector's output alone; with `decoupled=False` all enter
    through `fc`, which is EAGLE-2. Embedding and output head are the target's, unless the weights bring their own embedding. `tokens` is the reduced
    drafting vocabulary (ids of the target; all if None). `layer` is "llama" or "qwen2". softmax(greedy[depth] log q) is the chance of a candidate where
    there is no noise.
    """

    name = "msd"
    tokens: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        heads: int,
        kv_heads: int,
        eps: float = 1e-5,
        rope_theta: float = 10000.0,
        layer: str = "llama",
        bias: bool = True,
        decoupled: bool = True,
        tokens: Sequence[int] | None = None,
        own_embedding: int = 0,
        depth: int = 6,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        greedy: list[float] | None = None,
    ):
        super().__init__(target, depth, beta, coupling, beam=4, ranks=4)
        self.greedy = greedy or [1.0] * depth
        self.decoupled, self.depth = decoupled, depth
        shape: dict[str, Any] = dict(hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=1)
        shape |= dict(
            num_attention_heads=heads, num_key_value_heads=kv_heads, rms_norm_eps=eps, attn_implementation="sdpa"
        )
        config_kind, layer_kind = {
            "llama": (LlamaConfig, LlamaDecoderLayer),
            "qwen2": (Qwen2Config, Qwen2DecoderLayer),
        }[layer]
        config = config_kind(**shape, rope_parameters={"rope_type": "default", "rope_theta": rope_theta})
        self.fc = nn.Linear(2 * hidden_size, hidden_size, bias=bias)
        self.layers = nn.ModuleList([layer_kind(config, 0)])
        self.layers[0].input_layernorm = nn.Identity()
        self.rotary = LlamaRotaryEmbedding(config)
        self.embed_tokens = nn.Embedding(own_embedding, hidden_size) if own_embedding else None
        self.register_buffer("tokens", None if tokens is None else torch.tensor(tokens), persistent=False)

    def enter(
        self,
        vectors: Float[Tensor, "*shape width"],
        features: Float[Tensor, "*shape width"],
        text: Bool[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape width"]:
        """What the layer reads: input vectors of the next tokens, the features before them, and which of them are text."""
        fused = self.fc(torch.cat([vectors, features.to(vectors.dtype)], -1))
        return fused if text is None or not self.decoupled else torch.where(text[..., None], fused, vectors)

    def layer(
        self,
        inputs: Float[Tensor, "row node width"],
        mask: Bool[Tensor, "row 1 node slot"],
        places: Int[Tensor, "row node"],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        """Predicted features."""
        around = self.rotary(inputs, places)
        kept = cache_kwarg(self.layers[0], cache)
        return self.layers[0](
            inputs, attention_mask=mask, position_ids=places, use_cache=True, position_embeddings=around, **kept
        )

    def embed(self, target: CausalTarget, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Input vectors of text tokens, numbered as the loop does."""
        if self.embed_tokens is None:
            return target.embed(ids + target.offset)
        known = ids < self.embed_tokens.num_embeddings
        return torch.where(known[..., None], self.embed_tokens(ids.where(known, 0)), target.embed(ids + target.offset))

    def logits(
        self, head: Float[Tensor, "vocab width"], features: Float[Tensor, "*shape width"]
    ) -> Float[Tensor, "*shape vocab"]:
        return nn.functional.linear(features.to(head.dtype), head)

    def head(self, target: CausalTarget) -> Float[Tensor, "vocab width"]:
        """The rows of the target's output head that are drafted from: those of tokens that this drafter can read, too."""
        known = target.head if self.embed_tokens is None else target.head[: self.embed_tokens.num_embeddings]
        return known if self.tokens is None else known[self.tokens]

    def read(self, reading: PromptEmbeds, prompt: Int[Tensor, "position"]) -> Float[Tensor, "position width"]:
        """Input vectors of a prompt, text by this drafter's embedding."""
        if self.embed_tokens is None:
            return reading.vectors
        known = reading.text & (prompt >= 0) & (prompt < self.embed_tokens.num_embeddings)
        return torch.where(known[:, None], self.embed_tokens(prompt.masked_fill(~known, 0)), reading.vectors)

    def start(self, target: CausalTarget, state: State, sampling: SamplingOptions, drawn: bool) -> None:
        if state.branches > 1:
            raise MmspecError(
                "this drafter reads one stream, and guidance needs two: set guidance to 1, or use another drafter"
            )
        self._target, self._drawn, self._sampling = target, drawn, sampling.without_processors()
        self._head = self.head(target).to(self.fc.weight.dtype)
        self._length = 3.0
        self._cache, self._tail = self._begun(state, list(range(state.rows)))

    def reseat(self, state: State, former: list[int | None]) -> None:
        kept, new = [row for row in former if row is not None], [row for row, was in enumerate(former) if was is None]
        self._cache.keep(kept)
        self._tail = self._tail[kept]
        if new:
            cache, tail = self._begun(state, new)
            self._cache.join(cache)
            seats = [row for row, was in enumerate(former) if was is not None] + new
            order = sorted(range(state.rows), key=seats.__getitem__)
            self._cache.keep(order)
            self._tail = torch.cat([self._tail, tail])[order]

    @torch.inference_mode()
    def _begun(self, state: State, rows: list[int]) -> tuple[TreeCache, Float[Tensor, "row width"]]:
        """A cache that has read all of some rows, and their last predictions."""
        cache = TreeCache(1, len(rows), state.cache.capacity + self.beam * self.depth, self._target.device)
        tail = state.features.new_zeros(len(rows), self.fc.out_features)
        parts = []
        for row in rows:
            reading, hidden = state.context[row]
            read = self.enter(self.read(reading, state.prompts[row])[1:], hidden, reading.text[1:])
            parts.append(torch.cat([read, self._committed(state, row, state.counts[row])]))
        self._feed(cache, tail, pad_sequence(parts, batch_first=True), [len(part) for part in parts])
        return cache, tail

    @torch.inference_mode()
    def _feed(self, cache: TreeCache, tail: Tensor, inputs: Float[Tensor, "row node width"], counts: list[int]) -> None:
        """Read committed positions, `counts[row]` of each row; the last prediction of each goes to `tail`."""
        width = inputs.shape[1]
        cache.open(width)
        ahead = torch.arange(width, device=inputs.device).expand(len(counts), -1)
        out = self.layer(
            inputs, cache.mask(causal(len(counts), width, inputs.device)), positions(cache.lengths, ahead), cache
        )
        cache.lengths = [length + count for length, count in zip(cache.lengths, counts)]
        for row, count in enumerate(counts):
            if count:
                tail[row] = out[row, count - 1]

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None:
        fresh = [len(new) for new in verdict.tokens]
        committed = sum(fresh) / max(1, sum(map(bool, fresh)))
        self._length += 0.1 * (committed - self._length)
        if not max(fresh):
            return
        parts = [self._committed(state, row, new) for row, new in enumerate(fresh)]
        self._feed(self._cache, self._tail, pad_sequence(parts, batch_first=True), fresh)

    def _committed(self, state: State, row: int, new: int) -> Float[Tensor, "position width"]:
        """What the layer reads of the last `new` tokens of a row."""
        count = state.counts[row]
        tokens = torch.tensor(state.tokens[row][count - new :], dtype=torch.long, device=state.roots.device)
        return self.enter(self.embed(self._target, tokens), state.features[0, row, count - new : count])

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, self.depth)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        committed, rows = list(self._cache.lengths), torch.arange(state.rows, device=state.roots.device)[:, None]
        hidden = self._tail[:, None]
        above = torch.zeros(state.rows, 1, 0, dtype=torch.bool, device=state.roots.device)

        def scores(depth: int, tokens: Tensor, places: Tensor) -> Float[Tensor, "row beam vocab"]:
            nonlocal hidden, above
            if depth:
                inputs = self.enter(self.embed(self._target, tokens), hidden[rows, places])
                own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(state.rows, -1, -1)
                above = torch.cat([above[rows, places], own], 2)
                hidden = self._look(inputs, above, committed, depth)
            return self._sampling.scores(self.logits(self._head, hidden))

        try:
            if self._drawn:
                return self.drawn(state, noise, lambda *where: self.spread(scores(*where)), height)
            gumbel = None if noise.greedy or not self.coupled else noise.gumbel(state.counts, height)

            def expand(depth: int, tokens: Tensor, places: Tensor) -> Candidates:
                keys = scores(depth, tokens, places)
                if gumbel is not None:
                    shaken = (
                        gumbel[:, depth, None, : keys.shape[2]]
                        if self.tokens is None
                        else gumbel[:, depth, None, self.tokens]
                    )
                    keys = torch.log_softmax(keys, -1) + self.coupling[depth] * shaken.to(keys.dtype)
                    keys = keys * self.beta[depth]
                elif noise.greedy:
                    keys = keys * self.greedy[depth]
                found = self.candidates(keys)
                return found if self.tokens is None else Candidates(self.tokens[found.tokens], found.chances)

            return self.grown(state, expand, height, began, self._length)
        finally:
            self._cache.lengths = committed

    def _look(
        self, inputs: Float[Tensor, "row beam width"], above: Tensor, committed: list[int], depth: int
    ) -> Float[Tensor, "row beam width"]:
        """One level of the tree: every node sees what is committed, its own ancestors and itself (`above[row, node, tree slot]`)."""
        cache, width = self._cache, inputs.shape[1]
        seen = above.shape[2]
        cache.lengths = [length + seen - width for length in committed]
        cache.open(width)
        first = torch.tensor(committed, device=inputs.device)[:, None]
        allowed = (torch.arange(cache.visible, device=inputs.device) < first)[:, None].repeat(1, width, 1)
        slots = first + torch.arange(seen, device=inputs.device)
        allowed.scatter_(2, slots[:, None].expand(-1, width, -1), above)
        return self.layer(inputs, allowed[:, None], (first + depth - 1).expand(-1, width), cache)

    def spread(self, scores: Float[Tensor, "row beam drafted"]) -> Float[Tensor, "row beam vocab"]:
        """Scores over the target's whole vocabulary; what is not drafted from is impossible."""
        if scores.shape[2] == self._target.vocabulary_size:
            return scores
        whole = scores.new_full((*scores.shape[:2], self._target.vocabulary_size), -torch.inf)
        whole[..., slice(scores.shape[2]) if self.tokens is None else self.tokens] = scores
        return whole

    @classmethod
    def from_released(cls, folder: Path) -> "MsdDrafter":
        """Weights as the authors of MSD publish them: `config.json` with LLaMA's field names, and one file of tensors.

        Missing and unexpected tensors are errors; those of no effect are passed over. A pickle is read with weights_only.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            shape = {
                "hidden_size": config["hidden_size"],
                "intermediate_size": config["intermediate_size"],
                "heads": config["num_attention_heads"],
                "kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
                "own_embedding": config["vocab_size"],
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MmspecError(
                f"{folder / 'config.json'} is no configuration of a released MSD drafter ({error!r}): restore it"
            ) from None
        kind = str(config.get("model_type"))
        layer = "qwen2" if kind.startswith("qwen2") else "llama"
        theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10000.0))
        drafter = cls(
            **shape, eps=config.get("rms_norm_eps", 1e-6), rope_theta=theta, layer=layer, bias=config.get("bias", True)
        )
        safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
        if not (safe.is_file() or pickled.is_file()):
            raise MmspecError(f"{folder} has neither model.safetensors nor pytorch_model.bin: download it again")
        try:
            found = load_file(safe) if safe.is_file() else torch.load(pickled, map_location="cpu", weights_only=True)
        except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise MmspecError(
                f"{safe if safe.is_file() else pickled} is truncated or foreign ({error!r:.120}): download it again"
            ) from None
        wanted = drafter.state_dict()
        missing, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys() - set(IDLE))
        for what, names in (("lacks", missing), ("has unexpected", foreign)):
            if names:
                raise MmspecError(f"{folder}: the file {what} {', '.join(names)}: it is no MSD drafter of this layout")
        for name, value in wanted.items():
            if found[name].shape != value.shape:
                raise MmspecError(
                    f"{folder}: {name} is {list(found[name].shape)} and should be {list(value.shape)}: config.json is of another model"
                )
        drafter.load_state_dict({name: found[name] for name in wanted})
        return drafter
