"""The speech model: a voice and phonemes as prefix, then each phoneme once more before its codec tokens, one Llama over
all, with VADUSA's heads.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmspec.drafters.heads import ResidualHead
from mmspec.targets.speech import phoneme_ids, substitute_phonemes
from mmspec.train.loop import Budget, fit, optimizers

SPECIAL = ["<pad>", "<bos>", "<speech>", "<unk>"]


def phoneme_tokenizer(alphabet: list[str], voices: list[str]) -> PreTrainedTokenizerFast:
    """One token a phoneme; `<voice>phonemes` becomes `<bos> <voice> phonemes <speech>`."""
    marks = [f"<{voice}>" for voice in voices]
    table = {token: i for i, token in enumerate([*SPECIAL, *marks, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <speech>", special_tokens=[("<bos>", 1), ("<speech>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={"speech_token": "<speech>"}
        | {f"{voice}_token": mark for voice, mark in zip(voices, marks)},
    )


@dataclass(frozen=True, slots=True)
class Spoken:
    """One training sequence: who speaks, prompt ids, and what is said: codec tokens, a mark where each phoneme begins,
    the end.
    """

    voice: str
    prompt: list[int]
    tokens: Tensor


def marked(codes: Int[Tensor, "code"], places: Int[Tensor, "phoneme"], end: int) -> Int[Tensor, "token"]:
    """`codes` with a mark, `end + 1`, before those from each of `places` on, and the end."""
    order = torch.cat([2 * places, 2 * torch.arange(len(codes)) + 1]).argsort(stable=True)
    return torch.cat([torch.cat([torch.full_like(places, end + 1), codes])[order], torch.tensor([end])])


def batches(
    found: list[Spoken],
    offset: int,
    end: int,
    phonemes: Bool[Tensor, "id"],
    widths: list[int],
    tokens: int,
    noise: float,
    balance: float,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (input ids, labels), labels -100 on prompts and padding.

    Sequences are padded to the least of `widths` that holds them (few shapes for a compiled model) and batched with
    their like, about `tokens` places a batch. In half of the rows a share of the input codes, uniform in [0, noise], is
    replaced by other codes. A voice with n sequences is drawn in proportion to n^balance: 1 draws all sequences alike,
    0 all voices.
    """
    chance, dice = random.Random(seed), torch.Generator().manual_seed(seed)
    rooms: list[list[Spoken]] = [[] for _ in widths]
    for one in found:
        room = next((i for i, width in enumerate(widths) if len(one.prompt) + len(one.tokens) <= width), None)
        if room is not None:
            rooms[room].append(one)
    heard = Counter(one.voice for one in found)
    weights = [[heard[one.voice] ** (balance - 1) for one in room] for room in rooms]
    shares = [sum(room) * width for room, width in zip(weights, widths)]
    every = torch.cat([one.tokens[:-1] for one in found]).long()
    every = every[every < end]
    while True:
        room = chance.choices(range(len(widths)), shares)[0]
        rows = chance.choices(rooms[room], weights[room], k=max(1, tokens // widths[room]))
        ids = torch.zeros(len(rows), widths[room], dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, one in enumerate(rows):
            prompt, said = torch.tensor(one.prompt), one.tokens.long()
            begin, last = len(prompt), len(prompt) + len(said)
            labels[row, begin:last] = said
            if noise and chance.random() < 0.5:
                wrong = (torch.rand(len(said), generator=dice) < chance.random() * noise) & (said < end)
                said = torch.where(wrong, every[torch.randint(len(every), said.shape, generator=dice)], said)
            ids[row, :last] = torch.cat(
                [prompt, substitute_phonemes(prompt[phonemes[prompt]], said, said + offset, end + 1)]
            )
        yield ids, labels


def phoneme_mask(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which ids of a tokenizer are phonemes."""
    mask = torch.zeros(len(tokenizer), dtype=torch.bool)
    mask[list(phoneme_ids(tokenizer))] = True
    return mask


class JointModel(nn.Module):
    """A language model and the heads that are trained with it (VADUSA: joint training is part of the method)."""

    def __init__(self, language: LlamaForCausalLM, offset: int, heads: int):
        super().__init__()
        self.language, self.offset = language, offset
        self.heads = nn.ModuleList(ResidualHead(language.config.hidden_size) for _ in range(heads))

    def terms(self, body, batch: tuple[Tensor, Tensor], weight: float, decay: float) -> dict[str, Tensor]:
        """Cross entropy of the next token plus weight * sum_k decay^k that of head k = 1, 2, ..., k places further;
        nats a token.
        """
        ids, labels = (part.to(self.language.device) for part in batch)
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        table = self.language.lm_head.weight[self.offset :]

        def error(hidden: Tensor, ahead: int) -> Tensor:
            wanted = labels[:, ahead:]
            kept = wanted != -100
            return F.cross_entropy(F.linear(hidden[:, :-ahead][kept], table).float(), wanted[kept])

        own = error(hidden, 1)
        aside = [error(head(hidden), k + 2) for k, head in enumerate(self.heads)]
        total = own + weight * sum(
            (decay ** (k + 1) * term for k, term in enumerate(aside)), start=torch.zeros_like(own)
        )
        return {"loss": total, "own": own.detach()} | (
            {"head": aside[0].detach(), "last": aside[-1].detach()} if aside else {}
        )


def train_target(
    found: list[Spoken],
    tokenizer: PreTrainedTokenizerFast,
    codes: int,
    config: dict,
    budget: Budget,
    checkpoint: Path,
    seed: int = 0,
    device: str | None = None,
) -> JointModel:
    """Train the decoder over `len(tokenizer) + codes + 2` tokens, and its heads; `checkpoint` is written and resumed."""
    torch.manual_seed(seed)
    special = dict(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=len(tokenizer) + codes
    )
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + codes + 2, **special, **config["model"]))
    model = JointModel(language, len(tokenizer), config["heads"])
    phonemes = phoneme_mask(tokenizer)
    chosen = optimizers(model, config["lr"], config.get("weight_decay", 0.01), config.get("muon_lr"))
    body = torch.compile(language.model, dynamic=False) if config.get("compile") else language.model

    def source(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        noise, balance = config.get("noise", 0.0), config.get("balance", 1.0)
        return batches(
            found,
            len(tokenizer),
            codes,
            phonemes,
            config["widths"],
            config["tokens"],
            noise,
            balance,
            seed + 7919 * step,
        )

    def loss(model: JointModel, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return model.terms(body, batch, config["head_weight"], config["head_decay"])

    return fit("target", model, source, loss, chosen, budget, checkpoint, device=device)


@torch.inference_mode()
def held_out_loss(model: JointModel, tokenizer: PreTrainedTokenizerFast, codes: int, found: list[Spoken]) -> float:
    """Cross entropy of the next token on sequences that were not trained on, nats a token."""
    total = count = 0.0
    for one in found:
        batch = batches(
            [one], len(tokenizer), codes, phoneme_mask(tokenizer), [len(one.prompt) + len(one.tokens)], 1, 0.0, 1.0, 0
        )
        ids, labels = (part.to(model.language.device) for part in next(batch))
        total += float(model.terms(model.language.model, (ids, labels), 0.0, 1.0)["own"]) * len(one.tokens)
        count += len(one.tokens)
    return total / count
