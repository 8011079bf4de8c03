"""The speech model: one Llama over a prefix of voice and phonemes and then, for each phoneme, that phoneme and its
codec tokens; VADUSA's heads are trained with it."""

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
class SpeechSequence:
    """One training sequence: the voice, prompt ids, and generated tokens: codec tokens, a mark where each phoneme
    begins, and the end."""

    voice: str
    prompt: list[int]
    tokens: Tensor


def insert_marks(codes: Int[Tensor, "code"], positions: Int[Tensor, "phoneme"], end: int) -> Int[Tensor, "token"]:
    """`codes` with a mark, the token `end + 1`, inserted at each of `positions`, and the token `end` after them."""
    order = torch.cat([2 * positions, 2 * torch.arange(len(codes)) + 1]).argsort(stable=True)
    return torch.cat([torch.cat([torch.full_like(positions, end + 1), codes])[order], torch.tensor([end])])


def batches(
    sequences: list[SpeechSequence],
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
    their like, about `tokens` positions a batch. In half of the rows a share of the input codes, uniform in [0, noise],
    is replaced by other codes. A voice with n sequences is drawn in proportion to n^balance: 1 draws all sequences
    alike, 0 all voices.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    buckets: list[list[SpeechSequence]] = [[] for _ in widths]
    for sequence in sequences:
        bucket = next(
            (i for i, width in enumerate(widths) if len(sequence.prompt) + len(sequence.tokens) <= width), None
        )
        if bucket is not None:
            buckets[bucket].append(sequence)
    counts = Counter(sequence.voice for sequence in sequences)
    weights = [[counts[sequence.voice] ** (balance - 1) for sequence in bucket] for bucket in buckets]
    shares = [sum(bucket) * width for bucket, width in zip(weights, widths)]
    all_codes = torch.cat([sequence.tokens[:-1] for sequence in sequences]).long()
    all_codes = all_codes[all_codes < end]
    while True:
        bucket = rng.choices(range(len(widths)), shares)[0]
        rows = rng.choices(buckets[bucket], weights[bucket], k=max(1, tokens // widths[bucket]))
        ids = torch.zeros(len(rows), widths[bucket], dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, sequence in enumerate(rows):
            prompt, generated = torch.tensor(sequence.prompt), sequence.tokens.long()
            begin, last = len(prompt), len(prompt) + len(generated)
            labels[row, begin:last] = generated
            if noise and rng.random() < 0.5:
                wrong = (torch.rand(len(generated), generator=generator) < rng.random() * noise) & (generated < end)
                others = all_codes[torch.randint(len(all_codes), generated.shape, generator=generator)]
                generated = torch.where(wrong, others, generated)
            spoken = substitute_phonemes(prompt[phonemes[prompt]], generated, generated + offset, end + 1)
            ids[row, :last] = torch.cat([prompt, spoken])
        yield ids, labels


def phoneme_mask(tokenizer: PreTrainedTokenizerBase) -> Bool[Tensor, "id"]:
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
        """Cross entropy of the next token, plus weight * sum_k decay^k times that of head k = 1, 2, ... for the token k
        positions later; in nats a token."""
        ids, labels = (part.to(self.language.device) for part in batch)
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        table = self.language.lm_head.weight[self.offset :]

        def error(hidden: Tensor, ahead: int) -> Tensor:
            targets = labels[:, ahead:]
            learnt = targets != -100
            return F.cross_entropy(F.linear(hidden[:, :-ahead][learnt], table).float(), targets[learnt])

        own = error(hidden, 1)
        aside = [error(head(hidden), k + 2) for k, head in enumerate(self.heads)]
        total = own + weight * sum(
            (decay ** (k + 1) * term for k, term in enumerate(aside)), start=torch.zeros_like(own)
        )
        return {"loss": total, "own": own.detach()} | (
            {"head": aside[0].detach(), "last": aside[-1].detach()} if aside else {}
        )


def train_target(
    sequences: list[SpeechSequence],
    tokenizer: PreTrainedTokenizerFast,
    codes: int,
    config: dict,
    budget: Budget,
    checkpoint: Path,
    seed: int = 0,
    device: str | None = None,
) -> JointModel:
    """Train the decoder over `len(tokenizer) + codes + 2` tokens, and its heads; resumes from `checkpoint`."""
    torch.manual_seed(seed)
    special = dict(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=len(tokenizer) + codes
    )
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + codes + 2, **special, **config["model"]))
    model = JointModel(language, len(tokenizer), config["heads"])
    phonemes = phoneme_mask(tokenizer)
    optimizer = optimizers(model, config["lr"], config.get("weight_decay", 0.01), config.get("muon_lr"))
    body = torch.compile(language.model, dynamic=False) if config.get("compile") else language.model

    def make_batches(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        noise, balance = config.get("noise", 0.0), config.get("balance", 1.0)
        return batches(
            sequences,
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

    return fit("target", model, make_batches, loss, optimizer, budget, checkpoint, device=device)


@torch.inference_mode()
def held_out_loss(
    model: JointModel, tokenizer: PreTrainedTokenizerFast, codes: int, sequences: list[SpeechSequence]
) -> float:
    """Cross entropy of the next token on sequences that were not trained on, nats a token."""
    total = count = 0.0
    for sequence in sequences:
        batch = batches(
            [sequence],
            len(tokenizer),
            codes,
            phoneme_mask(tokenizer),
            [len(sequence.prompt) + len(sequence.tokens)],
            1,
            0.0,
            1.0,
            0,
        )
        ids, labels = (part.to(model.language.device) for part in next(batch))
        total += float(model.terms(model.language.model, (ids, labels), 0.0, 1.0)["own"]) * len(sequence.tokens)
        count += len(sequence.tokens)
    return total / count
