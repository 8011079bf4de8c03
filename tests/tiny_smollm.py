"""SmolLM2 made tiny and random, and the recipe of magpie-135 as small as it goes."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmspec.pipelines import quantized as blocks
from recipes.magpie_135 import smollm

SHAPE = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
)
BUDGET = {"steps": 3, "minutes": 5}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<filename>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with SmolLM2's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["There are two cats."], trainers.BpeTrainer(vocab_size=280, special_tokens=MARKS, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )


def random_blocks(kind: str, rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Random blocks whose scales are small numbers."""
    count = rows * width // 32
    scales = (torch.rand(count, 2 if kind == "Q4_1" else 1, generator=generator) * 0.02).half().view(torch.uint8)
    rest = torch.randint(0, 256, (count, blocks.BYTES[kind] - scales.shape[1]), dtype=torch.uint8, generator=generator)
    return torch.cat([scales, rest], 1).view(rows, -1)


def tensors(folder: Path) -> tuple[dict, dict]:
    """What `smollm.tensors` gives, random and tiny."""
    generator, values, kinds = torch.Generator().manual_seed(0), {}, {}
    shapes = {"embed_tokens.weight": (smollm.CONFIG["vocab_size"], 64)}
    for layer in range(2):
        for name, shape in {
            **{"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64)},
            **{"self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64)},
            **{"mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)},
        }.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            values[f"layers.{layer}.{name}.weight"] = torch.ones(64)
    values["norm.weight"] = torch.ones(64)
    for name, shape in shapes.items():
        kinds[name] = "Q8_0" if "embed" in name else "Q4_1"
        values[name] = random_blocks(kinds[name], *shape, generator)
    return values, kinds


def recipe() -> dict:
    """The shape of models/magpie-135/recipe.yaml."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 32,
    }
    learning = {"lr": 1e-3, "budget": BUDGET}
    msd = {"kind": "msd", "lr": 1e-3, "batch": 2, "steps": 2, "evaluations": 1, "vocabulary": 60}
    msd |= {"stages": 2, "loss": {"steps": 2, "noise": 0.05}}
    return {
        "module": "recipes.magpie_135.stages",
        "data": {"pictures": {"words": 2, "categories": ["Animals & Nature", "Smileys & Emotion"]}, "held_out": 5},
        "vision": learning | {"batch": 2, "model": vision, "align": {"budget": BUDGET}},
        "target": learning
        | {"batch": 2, "rank": 2, "text": 6, "text_share": 0.2, "turns": 3, "tower": 0.2, "width": 32},
        "capture": {"pictured": 16, "text": 2, "batch": 4, "length": 12, "held_out": 2},
        "drafters": {
            "msd": msd | {"model": {"depth": 3}},
            "eagle-2": msd | {"stages": 1, "model": {"depth": 3, "decoupled": False}},
            "msd-data": msd | {"answers": "data", "model": {"depth": 3}},
        },
        "pipeline": {"drafter": "msd", "temperature": 0.0, "max_new_tokens": 12},
    }


def replace_downloads(patch: pytest.MonkeyPatch) -> None:
    """What `smollm` would fetch is this module's."""
    text = tokenizer()
    patch.setattr(smollm, "CONFIG", smollm.CONFIG | SHAPE | {"vocab_size": len(text)})
    patch.setattr(smollm, "fetch", lambda folder: folder)
    patch.setattr(smollm, "tokenizer", lambda folder: text)
    patch.setattr(smollm, "tensors", tensors)
