"""The image model: a text prefix and then VQ codes in raster order, one Llama over both."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmspec.train.loop import Budget, fit, optimizers
from recipes.emoji_64.data import BACKGROUNDS, Picture, caption, compose
from recipes.emoji_64.tokenizer import encode

SPECIAL = ["<pad>", "<bos>", "<image>"]


def train_text_tokenizer(prompts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE tokenizer whose output is `<bos> words <image>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(prompts, trainer)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <image>", special_tokens=[("<bos>", 1), ("<image>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        extra_special_tokens={"image_token": "<image>"},
    )


@dataclass(frozen=True, slots=True)
class CodeSet:
    """Training pictures as codes: `codes[picture, variant]` is on `backgrounds[picture][variant]`, variant 0
    on white.
    """

    pictures: list[Picture]
    codes: Tensor
    backgrounds: list[list[str]]


@torch.no_grad()
def encode_pictures(
    codebook: Tensor, size: int, rgba: np.ndarray, pictures: list[Picture], variants: int, seed: int = 0
) -> CodeSet:
    """Encode each picture on white and on `variants - 1` random colours; codes are int `picture variant position`."""
    rng = random.Random(seed)
    colours = [colour for colour in BACKGROUNDS if colour != "white"]
    backgrounds = [["white", *rng.sample(colours, variants - 1)] for _ in pictures]
    rows = []
    for start in track(range(0, len(pictures), 16), "encoding pictures"):
        part = range(start, min(start + 16, len(pictures)))
        images = np.stack([compose(rgba[i], colour) for i in part for colour in backgrounds[i]])
        rows.append(encode(images, codebook, size).view(len(part), variants, -1).short())
    return CodeSet(pictures, torch.cat(rows), backgrounds)


def sequences(
    data: CodeSet,
    tokenizer: PreTrainedTokenizerFast,
    batch: int,
    seed: int,
    drop: float = 0.1,
    width: int = 0,
    noise: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (input ids, labels), right-padded, labels -100 on text and padding.

    Rows are padded to `width` (one shape for a compiled model), or to the longest of the batch.
    A prompt is dropped with probability `drop`, so that the model also learns the unconditional distribution that
    classifier-free guidance needs; its style is left out once in eight times. In half of the rows a share of the input
    codes, uniform in [0, noise], is replaced by codes drawn from the whole set; labels stay true. It teaches
    the model to keep to its prompt after a slip, as it must when it samples.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    all_codes = data.codes.flatten()
    offset = len(tokenizer)
    while True:
        rows = []
        for _ in range(batch):
            i = rng.randrange(len(data.pictures))
            variant = 0 if rng.random() < 0.65 else rng.randrange(1, data.codes.shape[1])
            style = None if rng.random() < 0.125 else data.pictures[i].style
            prompt = "" if rng.random() < drop else caption(data.pictures[i].name, style, data.backgrounds[i][variant])
            rows.append((tokenizer(prompt).input_ids, data.codes[i, variant].long() + offset))
        length = width or max(len(text) + len(codes) for text, codes in rows)
        ids = torch.full((batch, length), tokenizer.pad_token_id)
        labels = torch.full((batch, length), -100)
        for row, (text, codes) in enumerate(rows):
            end = len(text) + len(codes)
            labels[row, len(text) : end] = codes
            if noise and rng.random() < 0.5:
                wrong = torch.rand(len(codes), generator=generator) < rng.random() * noise
                others = all_codes[torch.randint(len(all_codes), codes.shape, generator=generator)].long() + offset
                codes = torch.where(wrong, others, codes)
            ids[row, :end] = torch.cat([torch.tensor(text), codes])
        yield ids, labels


def next_code_loss(model: LlamaForCausalLM, body: Callable, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Cross entropy over the codes, nats per token; `body` is the model's decoder, compiled or not."""
    ids, labels = batch
    ids, labels = ids.to(model.device), labels.to(model.device)[:, 1:]
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learnt = labels != -100
    logits = model.lm_head(hidden[learnt])
    return {"loss": F.cross_entropy(logits.float(), labels[learnt])}


def train_target(
    data: CodeSet,
    tokenizer: PreTrainedTokenizerFast,
    codes: int,
    config: dict,
    budget: Budget,
    checkpoint: Path,
    seed: int = 0,
    device: str | None = None,
) -> LlamaForCausalLM:
    """Train the decoder over `len(tokenizer) + codes` tokens; `checkpoint` is written and resumed."""
    torch.manual_seed(seed)
    special = dict(bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=None)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + codes, **special, **config["model"]))
    optimizer = optimizers(model, config["lr"], config.get("weight_decay", 0.01), config.get("muon_lr"))
    body = torch.compile(model.model) if config.get("compile") else model.model
    width = (
        max(len(tokenizer(caption(p.name, p.style, "yellow")).input_ids) for p in data.pictures) + data.codes.shape[2]
    )

    def batches(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return sequences(
            data,
            tokenizer,
            config["batch"],
            seed + 7919 * step,
            config.get("drop", 0.1),
            width,
            config.get("noise", 0.0),
        )

    def loss(model: LlamaForCausalLM, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return next_code_loss(model, body, batch)

    return fit("target", model, batches, loss, optimizer, budget, checkpoint, device=device)
