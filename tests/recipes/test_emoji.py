"""Recipes: a tiny one is run from pictures to drafters, stops, resumes, and what it makes is loaded and used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_art import NAMES, write_art

from mmspec.drafters import load
from mmspec.engine.loop import Stop, generate
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.train.recipe import train
from mmspec.train.run import Run
from recipes.emoji_64 import stages
from recipes.emoji_64.data import BACKGROUNDS, build, caption
from recipes.emoji_64.target import CodeSet, sequences, train_text_tokenizer
from recipes.emoji_64.tokenizer import learn_codebook, nearest, patches, to_tensor

pytestmark = pytest.mark.slow

BUDGET = {"steps": 3, "minutes": 5}


def recipe() -> dict:
    """The shape of models/emoji-64/recipe.yaml, as small as it goes."""
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
    }
    vq = {"latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 32, "norm_num_groups": 4, "sample_size": 16}
    llama = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    }
    drafter = {"batch": 2, "lr": 1e-3, "steps": 2, "evaluations": 1, "answers": "data"}
    return {
        "module": "recipes.emoji_64.stages",
        "data": {"size": 16, "words": 1, "categories": ["Animals & Nature"]},
        "tokenizer": {
            "patch": 2,
            "batch": 2,
            "lr": 1e-3,
            "budget": BUDGET,
            "model": vq | blocks | {"mid_block_add_attention": False},
        },
        "target": {
            "text_vocabulary": 300,
            "batch": 2,
            "lr": 1e-3,
            "muon_lr": 1e-3,
            "noise": 0.3,
            "budget": BUDGET,
            "model": llama,
        },
        "capture": {"sampled": 20, "taken": 4, "batch": 20, "held_out": 2, "temperature": 1.0},
        "drafters": {
            "hawk": drafter | {"kind": "hawk", "model": {"neighbours": [[0, 2], [0, 3], [1, 0]]}},
            "hawk-path": drafter
            | {
                "kind": "hawk-path",
                "model": {"width": 16, "inner": 16, "depth": 3, "neighbours": [[1, 0]]},
                "loss": {"anchors": 4},
            },
        },
        "pipeline": {
            "grid_height": 8,
            "grid_width": 8,
            "end_of_row": False,
            "drafter": "jacobi",
            "guidance_scale": 2.0,
            "max_prompt_tokens": 48,
        },
    }


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recipe.yaml`, the work folder and the model that it made."""
    folder = tmp_path_factory.mktemp("recipe")
    write_art(folder / "work" / "data")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    train(folder / "recipe.yaml", folder / "work", folder / "out", device="cpu")
    return folder


def test_a_recipe_makes_a_model(rebuilt: Path) -> None:
    """Everything is in the folder, and the drafters of the model give the tokens of plain decoding."""
    pipe = TextToImagePipeline.from_pretrained(rebuilt / "out", torch_dtype=torch.float64)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", seed=1).images[0].size == (16, 16)
    prompts = pipe.encode(["a dog, 3d style"], 2.0)
    wanted = generate(pipe.target, prompts, 1, Stop(64), seeds=3).tokens
    for name in ("hawk", "hawk-path"):
        drafter = load(name, pipe.folder, pipe.target)
        assert drafter.target_hash == pipe.target.weights_hash
        assert all(beta > 0 for beta in drafter.beta) and all(0 <= share <= 1 for share in drafter.coupling)
        assert generate(pipe.target, prompts, 1, Stop(64), drafter, seeds=3).tokens == wanted
        assert sorted(file.name for file in (rebuilt / "out" / "drafters" / name).iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
        ]
    rows = [json.loads(line) for line in (rebuilt / "out" / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and sum(row["held_out"] for row in rows) == 2
    assert (rebuilt / "out" / "recipe.yaml").read_text() == (rebuilt / "recipe.yaml").read_text()


def test_prompts_of_drafters(rebuilt: Path) -> None:
    """Each guidance in turn, and training pictures with all their codes; nothing that is held out."""
    pipe = TextToImagePipeline.from_pretrained(rebuilt / "out")
    rows = stages.prompts(Run(recipe(), rebuilt / "work", rebuilt / "out", "cpu"), pipe)
    assert [row["guidance"] for row in rows] == [1.0, 2.0, 3.0] * 6 + [1.0, 2.0] + [1.0] * 4
    assert all("tokens" not in row for row in rows[:20])
    assert all(len(row["tokens"]) == 64 and 0 <= min(row["tokens"]) <= max(row["tokens"]) < 32 for row in rows[20:])
    lines = [json.loads(line) for line in (rebuilt / "out" / "prompts.jsonl").read_text().splitlines()]
    held_out = {line["prompt"] for line in lines if line["held_out"]}
    assert len(held_out) == 2 and not held_out & {row["prompt"] for row in rows}


def test_stages_resume(rebuilt: Path) -> None:
    """A stage that is done is not done again: the weights come from its checkpoint, whatever stands there."""
    (checkpoint,) = (rebuilt / "work").glob("target-*.pt")
    saved = torch.load(checkpoint, weights_only=True)
    saved["model"]["lm_head.weight"].fill_(0.25)
    torch.save(saved, checkpoint)
    train(
        rebuilt / "recipe.yaml",
        rebuilt / "work",
        rebuilt / "again",
        device="cpu",
        stages=["data", "tokenizer", "target"],
    )
    pipe = TextToImagePipeline.from_pretrained(rebuilt / "again")
    assert (pipe.transformer.lm_head.weight == 0.25).all()


def test_other_settings_are_another_file(rebuilt: Path) -> None:
    """What was made from other data or for another model is not taken for this one's."""
    changed = recipe() | {"data": recipe()["data"] | {"categories": []}}
    (rebuilt / "other.yaml").write_text(yaml.safe_dump(changed))
    before = set((rebuilt / "work").glob("target-*.pt"))
    train(
        rebuilt / "other.yaml",
        rebuilt / "work",
        rebuilt / "other",
        device="cpu",
        stages=["data", "tokenizer", "target"],
    )
    assert len(set((rebuilt / "work").glob("target-*.pt")) - before) == 1


def test_end_of_row_tokens_are_refused(tmp_path: Path) -> None:
    """The tokenizer and target of this recipe know none."""
    settings = recipe()
    settings["pipeline"]["end_of_row"] = True
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(MmspecError, match="recipe.yaml: training makes no end-of-row tokens: set pipeline.end_of_row"):
        train(tmp_path / "recipe.yaml", tmp_path / "work", tmp_path / "out")


def test_build_chooses_names(tmp_path: Path) -> None:
    """Categories and words choose; hearts always stay."""
    write_art(tmp_path / "data")
    assert {p.name for p in build(tmp_path / "data", 16, words=1, categories=["Animals & Nature"])[1]} == set(NAMES)
    assert {p.name for p in build(tmp_path / "data", 16, categories=[])[1]} == {"red heart"}


def test_captions() -> None:
    assert caption("cat") == "a cat"
    assert caption("octopus", "flat", "yellow") == "an octopus on a yellow background, flat style"


def test_codes_of_flat_colours_are_their_own() -> None:
    """Every background keeps a code for itself, and patches of it get that code."""
    rng = np.random.default_rng(0)
    codebook = learn_codebook(rng.integers(0, 256, (6, 16, 16, 4), dtype=np.uint8), 40, 4, rounds=2)
    assert codebook.shape == (40, 48)
    for index, colour in enumerate(BACKGROUNDS.values()):
        image = to_tensor(np.full((1, 16, 16, 3), colour, np.uint8))
        assert (nearest(patches(image, 4), codebook) == index).all()


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_sequences(noise: float, tmp_path: Path) -> None:
    """Labels are the true codes and nothing else; inputs too, but for the noise, which stays within the codes."""
    write_art(tmp_path / "data")
    pictures = build(tmp_path / "data", 16)[1]
    codes = torch.arange(len(pictures) * 6 * 64).view(len(pictures), 6, 64) % 30
    text = train_text_tokenizer([caption(p.name, p.style) for p in pictures], 300)
    data = CodeSet(pictures, codes, [list(BACKGROUNDS)] * len(pictures))
    ids, labels = next(sequences(data, text, 64, 0, noise=noise))
    kept = labels != -100
    assert (kept.sum(1) == 64).all() and (ids[kept] >= len(text)).all()
    known = {tuple(row.tolist()) for row in codes.flatten(0, 1) + len(text)}
    assert all(tuple(row[row != -100].tolist()) in known for row in labels)
    share = (ids[kept] != labels[kept]).float().mean()
    assert share == 0 if noise == 0 else 0.02 < share < 0.3
    unconditional = text("").input_ids
    assert any(row[: len(unconditional)].tolist() == unconditional for row in ids)
