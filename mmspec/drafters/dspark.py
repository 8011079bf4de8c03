"""DSpark (in `speculators` and DeepSpec): DFlash whose tokens also follow from the token drafted before them."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.blocks import Blocks
from mmspec.drafters.dflash import IDLE, DFlashDrafter
from mmspec.drafters.lattice import joined_tree
from mmspec.drafters.layouts import Files
from mmspec.drafters.tree_drafter import Scores, model_ids
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target


class MarkovHead(nn.Module):
    """A bias of logits by the token before, through `rank` numbers of it; by kind

    - vanilla: W2 e(token),
    - gated: W2 (sigmoid(gate[hidden; e]) * e),
    - rnn: W2 tanh(o), where z, c, o are parts of joint[state; e; hidden], and the next state is sigmoid(z) * state +
      (1 - sigmoid(z)) * tanh(c).
    """

    def __init__(self, kind: str, ids: int, drafted: int, rank: int, width: int):
        super().__init__()
        self.kind = kind
        self.markov_w1 = nn.Embedding(ids, rank)
        self.markov_w2 = nn.Linear(rank, drafted, bias=False)
        if kind == "gated":
            self.gate_proj = nn.Linear(width + rank, rank)
        if kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + width, 3 * rank)

    def forward(
        self,
        ids: Int[Tensor, "row beam"],
        hidden: Float[Tensor, "row beam width"],
        state: Float[Tensor, "row beam rank"],
    ) -> tuple[Float[Tensor, "row beam drafted"], Float[Tensor, "row beam rank"]]:
        """The bias after tokens at a slot with that hidden state, and the next state."""
        latent = self.markov_w1(ids.clamp(max=self.markov_w1.num_embeddings - 1))
        if self.kind == "gated":
            latent = torch.sigmoid(self.gate_proj(torch.cat([hidden, latent], -1))) * latent
        if self.kind == "rnn":
            gate, candidate, output = self.joint_proj(torch.cat([state, latent, hidden], -1)).chunk(3, -1)
            keep = torch.sigmoid(gate)
            state, latent = keep * state + (1 - keep) * torch.tanh(candidate), torch.tanh(output)
        return self.markov_w2(latent), state


class DSparkDrafter(DFlashDrafter):
    """DFlash with a `MarkovHead`: its tree is grown token by token, from the hidden states of one pass; of the vanilla
    kind, whose bias depends on two tokens alone, candidates are joined in a lattice (`mmspec.drafters.lattice`).

    The head of confidence, which says how probably a slot's token is accepted, is not needed: how much of a tree is
    verified follows from the probabilities of its nodes.
    """

    name = "dspark"
    architecture = "DSparkDraftModel"

    def __init__(self, *, markov: str, markov_ids: int, rank: int, **options: Any):
        super().__init__(**options)
        width, drafted = self.fc.out_features, options.get("own_head") or markov_ids
        self.markov_head = MarkovHead(markov, markov_ids, drafted, rank, width)

    def block_scores(self, hidden: Float[Tensor, "row slot width"]) -> Scores:
        head, target = self.markov_head, self.target
        logits = self.logits(target, hidden)
        first = 0 if self.from_anchor else 1
        memory = hidden.new_zeros(len(hidden), 1, head.markov_w1.embedding_dim)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]

        def scores(
            depth: int, tokens: Int[Tensor, "row beam"], parent_index: Int[Tensor, "row beam"]
        ) -> Float[Tensor, "row beam drafted"]:
            nonlocal memory
            ids, memory = model_ids(target, tokens), memory[rows, parent_index]
            for slot in range(0 if depth == 0 else depth + first, depth + first + 1):
                bias, memory = head(ids, hidden[:, slot, None].expand(-1, tokens.shape[1], -1), memory)
            return self.sampling.scores(logits[:, depth + first, None] + bias.to(logits.dtype))

        return scores

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        began, height, head = perf_counter(), min(limit, self.depth), self.markov_head
        if height < 1:
            return root(state.roots)
        if head.kind != "vanilla" or self.needs_draft_probs:
            return super().draft(state, noise, limit)
        logits = self.logits(self.target, self.predicting(self.block(state))[:, :height])
        bias = head.markov_w2(self.table_rows(state.roots)).to(logits.dtype)
        scores = self.sampling.scores(torch.cat([logits[:, :1] + bias[:, None], logits[:, 1:]], 1))

        def pairs(before: Tensor, after: Tensor) -> Float[Tensor, "row after candidate candidate"]:
            rows = self.table_rows(before if self.tokens is None else self.tokens[before])
            return (rows @ head.markov_w2.weight[after].transpose(-1, -2)).to(logits.dtype)

        return joined_tree(self, state, noise, scores, pairs, began, self.tokens)

    def table_rows(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape rank"]:
        """What the vanilla head makes of tokens."""
        table = self.markov_head.markov_w1
        return table(model_ids(self.target, tokens).clamp(max=table.num_embeddings - 1))

    def path_logits(
        self, target: Target, blocks: Blocks, hidden: Float[Tensor, "row block slot width"]
    ) -> Float[Tensor, "row block depth drafted"]:
        logits, head, biases = super().path_logits(target, blocks, hidden), self.markov_head, []
        memory = hidden.new_zeros(*hidden.shape[:2], head.markov_w1.embedding_dim)
        first = 0 if self.from_anchor else 1
        for depth in range(self.depth):
            ids = model_ids(target, blocks.before[..., depth])
            for slot in range(0 if depth == 0 else depth + first, depth + first + 1):
                bias, memory = head(ids, hidden[:, :, slot], memory)
            biases.append(bias)
        return logits + torch.stack(biases, 2).to(logits.dtype)

    @classmethod
    def default_options(cls, target: Target) -> dict:
        return {"markov": "vanilla", "markov_ids": int(target.vocabulary.max()) + 1, "rank": 64}

    def settings(self) -> dict:
        markov = {"markov_rank": self.markov_head.markov_w1.embedding_dim, "markov_head_type": self.markov_head.kind}
        return super().settings() | markov | {"enable_confidence_head": False}

    def uncarried(self) -> list[str]:
        return [*super().uncarried(), "a head of confidence, if there was one: mmspec does not read it"]

    def keep_rows(self, rows: list[int]) -> None:
        super().keep_rows(rows)
        self.markov_head.markov_w2.weight = nn.Parameter(self.markov_head.markov_w2.weight[rows])

    @classmethod
    def known_keys(cls) -> tuple[str, ...]:
        return (
            *("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov"),
            *("ce_loss_alpha", "l1_loss_alpha", "confidence_head_alpha", "loss_decay_gamma"),
        )

    @classmethod
    def idle(cls, tensors: dict[str, Tensor]) -> Sequence[str]:
        return (*IDLE, *(name for name in tensors if name.startswith("confidence_head.")))

    @classmethod
    def spelled(cls, name: str) -> str:
        return super().spelled(name).removeprefix("logit_head.")

    @classmethod
    def released_options(cls, files: Files, tensors: dict[str, Tensor]) -> dict:
        own = files.config.get("dflash_config") or {}
        kind = files.config.get("markov_head_type") or own.get("markov_head_type") or "vanilla"
        if kind not in ("vanilla", "gated", "rnn"):
            raise MmspecError(f"{files.folder}: markov_head_type {kind!r} is not known: vanilla, gated and rnn are")
        table = tensors.get("markov_head.markov_w1.weight")
        if table is None:
            raise MmspecError(f"{files.folder}: the file lacks markov_head.markov_w1.weight: it is no DSpark drafter")
        return {
            "markov": kind,
            "markov_ids": len(table),
            "rank": table.shape[1],
            "from_anchor": bool(files.config.get("sample_from_anchor", True)),
        }
