"""MSD (arXiv 2505.14260): one decoder layer over the target's features, in which visual tokens skip the fusion
of text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from mmspec.drafters.examples import DepthPredictions, Example, divergence, masked_mean, uniform
from mmspec.drafters.layouts import Files
from mmspec.drafters.recurrent_drafter import RecurrentDrafter
from mmspec.drafters.release import Release, Verifier, layer_settings
from mmspec.drafters.shapes import Rotary, check_size, layer_config, layer_shape, plain_layer, shape_like
from mmspec.engine.cache import cache_kwarg
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.placement import has_fast_bf16
from mmspec.targets.base import Target

# How deep trees are, at most, where nothing is said.
DEPTH = 6

# In published files, but without effect: recomputed, or not in use in the first layer.
IDLE = ("layers.0.input_layernorm.weight", "layers.0.self_attn.rotary_emb.inv_freq")


class MsdDrafter(RecurrentDrafter):
    """Position t reads token t + 1 and the target's feature at t, and predicts the feature at t + 1, hence token t + 2.

    A text position enters as `fc([embedding; feature])`, a visual one as the projector's output alone; with
    `decoupled=False` all enter through `fc`, which is EAGLE-2. Embedding and output head are the target's, unless the
    weights bring their own embedding. `tokens` is the reduced drafting vocabulary (tokens of the target; all if None).
    `layer` is "llama" or "qwen2". softmax(greedy[depth] log q) is the probability of a candidate where there is no
    noise.
    """

    name = "msd"
    format = "eagle"
    similar_lengths = True
    calibrates_greedy = True
    loss_options = ("steps", "noise", "feature", "soft", "tv")
    recipe = {"steps": 600, "batch": 8, "lr": 1e-3, "muon_lr": 1e-3, "weight_decay": 0.0, "vocabulary": 8192}

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
        depth: int = DEPTH,
        target: str = "",
        beta: list[float] | None = None,
        coupling: list[float] | None = None,
        greedy: list[float] | None = None,
        rope: dict | None = None,
    ):
        super().__init__(target, depth, beta, coupling, greedy, tokens)
        self.decoupled = decoupled
        rope = rope or {"rope_type": "default", "rope_theta": rope_theta}
        self.shape: dict = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": hidden_size // heads,
            "eps": eps,
            "rope": rope,
            "kind": layer,
        }
        config = layer_config(**self.shape)
        self.fc = nn.Linear(2 * hidden_size, hidden_size, bias=bias)
        self.layers = nn.ModuleList([plain_layer(config, layer, 0)])
        self.layers[0].input_layernorm = nn.Identity()
        self.rotary: nn.Module = Rotary(config, rope)
        self.embed_tokens = nn.Embedding(own_embedding, hidden_size) if own_embedding else None

    def fuse(
        self,
        vectors: Float[Tensor, "*shape width"],
        features: Float[Tensor, "*shape width"],
        is_text: Bool[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape width"]:
        """What the layer reads: input vectors of the next tokens, fused with the features before them where they are
        text.
        """
        fused = self.fc(torch.cat([vectors, features.to(vectors.dtype)], -1))
        return fused if is_text is None or not self.decoupled else torch.where(is_text[..., None], fused, vectors)

    def layer(
        self,
        inputs: Float[Tensor, "row node width"],
        mask: Bool[Tensor, "row 1 node slot"],
        position_ids: Int[Tensor, "row node"],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        """Predicted features."""
        return self.layers[0](
            inputs,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=True,
            position_embeddings=self.rotary(inputs, position_ids),
            **cache_kwarg(self.layers[0], cache),
        )

    def head(self, target: Target) -> Float[Tensor, "drafted width"]:
        """The rows of the target's output head that are drafted from: those of tokens that this drafter can
        read, too.
        """
        weight = target.head.weight
        if self.embed_tokens is not None:
            weight = weight[: self.embed_tokens.num_embeddings]
        return weight if self.tokens is None else weight[self.tokens]

    def logits(
        self, target: Target, head: Float[Tensor, "drafted width"], features: Float[Tensor, "*shape width"]
    ) -> Float[Tensor, "*shape drafted"]:
        """Logits of predicted features, by rows of the target's output head (`head`)."""
        products = nn.functional.linear(features.to(head.dtype), head)
        return target.head.finish(products, slice(len(head)) if self.tokens is None else self.tokens)

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        self._head = self.head(target).to(self.fc.weight.dtype)

    def drafted_logits(self, hidden: Float[Tensor, "row node width"]) -> Float[Tensor, "row node drafted"]:
        return self.logits(self.target, self._head, hidden)

    @classmethod
    def from_released(cls, files: Files, target: Target) -> "MsdDrafter":
        """Weights as the authors of MSD publish them (github.com/Lyn-Lucy/MSD)."""
        shape = layer_shape(files.config, files.names, files.folder)
        check_size(files.folder, target, hidden_size=shape["hidden_size"])
        drafter = cls(
            **{key: shape[key] for key in ("hidden_size", "intermediate_size", "heads", "kv_heads", "eps", "rope")},
            layer=shape["kind"],
            bias="fc.bias" in files.names,
            own_embedding=len(files.tensors["embed_tokens.weight"]) if "embed_tokens.weight" in files.names else 0,
            **cls.released_options(files),
        )
        drafter.load_state_dict(files.read(drafter.state_dict(), drafter.name.upper(), IDLE))
        return drafter

    @classmethod
    def released_options(cls, files: Files) -> dict:
        """Further arguments of the constructor that published files decide."""
        return {}

    def to_released(self, target: Target, verifier: Verifier) -> Release:
        """The layout of EAGLE's authors: a flat configuration, and vectors of all ids."""
        table = target.model.get_input_embeddings()
        tensors = dict(self.state_dict())
        if self.embed_tokens is None:
            tensors["embed_tokens.weight"] = table(torch.arange(verifier.vocabulary, device=target.device))
        kind = self.shape["kind"]
        vocabulary = len(tensors["embed_tokens.weight"])
        config = layer_settings(self.shape, 1, vocabulary, verifier.positions) | {
            "architectures": [f"{kind.capitalize()}ForCausalLM"],
            "bias": self.fc.bias is not None,
            "qkv_bias": kind == "qwen2",
            "base_model_name_or_path": verifier.name,
        }
        return Release(config, tensors, self.uncarried(vocabulary))

    def uncarried(self, vocabulary: int) -> list[str]:
        """What EAGLE's layout has no place for."""
        lost = self.uncalibrated()
        if self.decoupled:
            lost.append("the decoupled path of pictures: EAGLE reads them through fc, as text, and not by themselves")
        if self.tokens is not None:
            lost.append(f"the drafting vocabulary of {len(self.tokens)} tokens: EAGLE drafts from all {vocabulary} ids")
        if self.depth != DEPTH:
            lost.append(f"the depth of its trees in mmspec, {self.depth}: {DEPTH} is taken for this layout")
        if self.fc.bias is not None:
            lost.append("fc.bias in vLLM, whose EAGLE has none (that of SGLang and of its authors has)")
        return lost

    @classmethod
    def build(cls, target: Target, **options: object) -> "MsdDrafter":
        """A drafter whose layer has about the shape of the target's."""
        return cls(**shape_like(target) | options, target=target.weights_hash)

    def drafted_tokens(self, target: Target) -> Tensor | None:
        return self.tokens

    def loss(
        self,
        target: Target,
        examples: Sequence[Example],
        steps: int = 3,
        noise: float = 0.05,
        feature: float = 1.0,
        soft: float = 0.1,
        tv: float = 0.0,
        **options: object,
    ) -> dict[str, Tensor]:
        """SmoothL1 of the predicted features and `divergence` of their distributions, where they predict answers.

        Step k reads, for its last k positions, what the drafter itself predicted in the steps before (HASS, EAGLE-3);
        all earlier ones are the target's. `noise` is the amplitude of uniform noise on the true ones, as a share of
        their root mean square in a sequence (MSD's 0.2 * 512 / length suits long chats, and drowns short ones). Weights
        of the two terms are MSD's; distributions are over the drafting vocabulary.
        """
        dtype = torch.bfloat16 if has_fast_bf16(target.device) else torch.float32
        head, batch = self.head(target).to(dtype), ChatBatch.pack(target, examples)
        if noise:
            lengths = torch.tensor([example.length - 2 for example in examples], device=head.device)
            amplitudes = 2 * noise * (batch.before.square().mean(-1).sum(1) / lengths).sqrt()
            # As many numbers for a sequence in any batch: those of its own length.
            width = target.hidden_size
            parts = [uniform([row], row.length - 2, width, device=head.device)[0] - 0.5 for row in examples]
            before = batch.before + amplitudes[:, None, None] * pad_sequence(parts, batch_first=True)
            batch = replace(batch, before=before)
        return self.unrolled_loss(partial(self.logits, target, head), batch, steps, feature, soft, tv)

    def unrolled_loss(
        self,
        logits_of: Callable[[Tensor], Tensor],
        batch: "ChatBatch",
        steps: int,
        feature: float = 1.0,
        soft: float = 0.1,
        tv: float = 0.0,
    ) -> dict[str, Tensor]:
        """See `loss`; `logits_of` gives those of hidden states."""
        rows, length = batch.is_text.shape
        probs = logits_of(batch.after).float().softmax(-1)
        positions = torch.arange(length, device=probs.device)
        cache, features = DynamicCache(), batch.before
        terms: dict[str, list[Tensor]] = {"feature": [], "soft": [], "right": []}
        for step in range(steps):
            mask = path_mask(positions, step).expand(rows, 1, -1, -1)
            inputs = self.fuse(batch.vectors, features, batch.is_text)
            output = self.layer(inputs, mask, positions.expand(rows, -1), cache)
            valid = drafted_positions(batch.is_answer, step)
            logits = logits_of(output).float()
            errors = nn.functional.smooth_l1_loss(output.float(), batch.after.float(), reduction="none").mean(-1)
            terms["feature"].append(masked_mean(errors, valid))
            terms["soft"].append(masked_mean(divergence(logits, probs, tv), valid))
            terms["right"].append(masked_mean((logits.argmax(-1) == probs.argmax(-1)).float(), valid))
            features = torch.cat([output[:, :1], output[:, :-1]], 1)
        total = sum(feature * a + soft * b for a, b in zip(terms["feature"], terms["soft"]))
        shown = {name: values[0].detach() for name, values in terms.items()}
        return {"loss": torch.as_tensor(total) / steps, **shown, "last": terms["right"][-1].detach()}

    def predictions(self, target: Target, example: Example) -> list[DepthPredictions]:
        assert example.prompt is not None, "the example has no prompt"
        batch, head = ChatBatch.pack(target, [example]), self.head(target).to(self.fc.weight.dtype)
        positions = torch.arange(batch.is_text.shape[1], device=target.device)
        cache, features = DynamicCache(), batch.before.to(self.fc.weight.dtype)
        vectors, predictions = batch.vectors.to(features.dtype), []
        for depth in range(self.depth):
            mask = path_mask(positions, depth)[None, None]
            output = self.layer(self.fuse(vectors, features, batch.is_text), mask, positions[None], cache)
            rows = drafted_positions(batch.is_answer, depth)[0].nonzero()[:, 0]
            log_q = torch.log_softmax(self.logits(target, head, output[0, rows]).float(), -1)
            predictions.append(DepthPredictions(rows + 2 - len(example.prompt.ids), log_q))
            features = torch.cat([output[:, :1], output[:, :-1]], 1)
        return predictions


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """Chats padded on the right.

    At index t there are the input vector of token t + 1, the features of tokens t (`before`) and t + 1 (`after`),
    whether token t + 1 is text, and whether token t + 2 is an answer's.
    """

    vectors: Tensor
    before: Tensor
    after: Tensor
    is_text: Tensor
    is_answer: Tensor

    @classmethod
    @torch.no_grad()
    def pack(cls, target: Target, examples: Sequence[Example]) -> "ChatBatch":
        """Examples with their prompts, on the target's device, in float32."""
        parts: list[list[Tensor]] = [[] for _ in range(5)]
        for example in examples:
            prompt = example.prompt
            assert prompt is not None, "the example has no prompt"
            hidden = torch.cat([prompt.hidden, example.features[0]]).float()
            text = prompt.ids.where(prompt.is_text, 0).to(target.device)
            read = target.model.get_input_embeddings()(text).float().cpu()
            read[~prompt.is_text] = prompt.visual.float()
            vectors = torch.cat([read, target.embed(example.tokens.to(target.device)).float().cpu()])
            is_text = torch.cat([prompt.is_text, torch.ones(len(example.tokens), dtype=torch.bool)])
            is_answer = torch.arange(len(vectors)) >= len(prompt.ids)
            values = (vectors[1:-1], hidden[:-1], hidden[1:], is_text[1:-1], is_answer[2:])
            for part, value in zip(parts, values, strict=True):
                part.append(value)
        return cls(*(pad_sequence(part, batch_first=True).to(target.device) for part in parts))


def path_mask(positions: Int[Tensor, "position"], step: int) -> Bool[Tensor, "position key"]:
    """What a position sees at `step`, among the keys of all steps so far.

    It sees true features up to `step` positions before it, and of every later step the one position on its own path.
    """
    distance = positions[:, None] - positions
    return torch.cat([distance >= step, *(distance == step - k for k in range(1, step + 1))], 1)


def drafted_positions(is_answer: Bool[Tensor, "row position"], step: int) -> Bool[Tensor, "row position"]:
    """Positions whose prediction a draft makes at depth `step`: all tokens of the draft are an answer's."""
    return is_answer & nn.functional.pad(is_answer, (step, 0))[:, : is_answer.shape[1]]
