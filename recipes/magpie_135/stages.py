"""The stages of a vision-language recipe: scenes, vision tower, target, drafters."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, SiglipVisionConfig

from mmspec.pipelines import quantized as blocks
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.placement import device_of, has_fast_bf16
from mmspec.train.loop import fit, optimizers
from mmspec.train.recipe import check_drafters, train_drafters
from mmspec.train.run import Run
from recipes.emoji_64.data import build
from recipes.magpie_135 import smollm
from recipes.magpie_135.dialogue import IMAGE, Encoded, encode, make_processor
from recipes.magpie_135.learner import Batch, Learner, pack
from recipes.magpie_135.questions import Studio
from recipes.magpie_135.scenes import SIZE
from recipes.magpie_135.text import text_chats
from recipes.magpie_135.vision import align, pixels, train_tower


def studio(run: Run) -> Studio:
    """Scenes and questions with the pictures that the recipe names."""
    return Studio(*build(run.work / "data", 64, **run.recipe["data"]["pictures"]))


def data(run: Run) -> None:
    """Fetch the art and the language model; write held-out scenes with questions and answers."""
    smollm.fetch(run.work / "data")
    scenes, rng = studio(run), random.Random(1)
    (run.out / "samples").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(run.recipe["data"]["held_out"]):
        scene = scenes.scene(rng, True)
        image = f"samples/{number:02}.png"
        scenes.draw(scene, rng).save(run.out / image)
        question = scenes.question(scene, rng)
        *before, (prompt, answer) = question.turns
        line = {"prompt": prompt, "answer": answer, "before": before, "kind": question.kind, "image": image}
        lines.append(json.dumps(line | {"held_out": True}) + "\n")
    (run.out / "prompts.jsonl").write_text("".join(lines))


def vision(run: Run) -> None:
    """Train the tower on what covers every patch, then the projector to say so in the language model's vectors."""
    stage, scenes = run.recipe["vision"], studio(run)
    tower = train_tower(scenes, stage, run.budget(stage), part_file(run, "vision"), device=run.device)
    torch.save(tower.state_dict(), part_file(run, "tower"))
    model, processor = untrained_model(run)
    table = model.model.language_model.embed_tokens.weight.detach().float()

    def vector_of(text: str) -> Tensor:
        return table[processor.tokenizer(f" {text}", add_special_tokens=False).input_ids].mean(0)

    budget, checkpoint = run.budget(stage["align"]), part_file(run, "align")
    projector = align(
        scenes, tower, model.model.multi_modal_projector, vector_of, stage, budget, checkpoint, device=run.device
    )
    torch.save(projector.state_dict(), part_file(run, "projector"))


def part_file(run: Run, name: str) -> Path:
    """The file of a part that the vision stage trains."""
    return run.file(name, run.recipe["data"], run.recipe["vision"]["model"])


def untrained_model(run: Run) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """SmolLM2, in bfloat16 where `fit` computes so, the tower, and the projector, which is random before it is trained;
    and the processor.
    """
    shape = run.recipe["vision"]["model"]
    processor = make_processor(smollm.tokenizer(run.work / "data"), shape["patch_size"], run.out / "processor")
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(image_size=SIZE, vision_use_head=False, **shape),
        text_config=smollm.config(),
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIZE // shape["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(smollm.weights(run.work / "data"))
    model.model.vision_tower.load_state_dict(torch.load(part_file(run, "tower"), weights_only=True))
    if part_file(run, "projector").exists():
        model.model.multi_modal_projector.load_state_dict(torch.load(part_file(run, "projector"), weights_only=True))
    if has_fast_bf16(device_of(run.device)):
        model.model.language_model.bfloat16()
    model.generation_config = smollm.generation()
    return model, processor


def target(run: Run) -> None:
    """Train tower, projector and low-rank updates on questions about scenes; save them beside SmolLM2's own blocks."""
    stage, scenes = run.recipe["target"], studio(run)
    model, processor = untrained_model(run)
    text = text_chats(run, processor, scenes.names)
    learner = Learner(model, stage["rank"], stage.get("compile", False))

    def chat(rng: random.Random) -> tuple[Encoded, Tensor | None]:
        if rng.random() < stage["text_share"]:
            question, answer, ended = rng.choice(text)
            return encode(processor, [(question, answer)], False, ended), None
        scene = scenes.scene(rng, False)
        encoded = encode(processor, scenes.talk(scene, rng, stage["turns"]), True)
        return encoded, pixels([scenes.draw(scene, rng, 0.3)])[0]

    def batches(step: int) -> Iterator[Batch]:
        rng, size = random.Random(7919 * step), stage["batch"]
        while True:
            pool = sorted((chat(rng) for _ in range(16 * size)), key=lambda row: len(row[0].ids))
            parts = [pool[start : start + size] for start in range(0, len(pool), size)]
            rng.shuffle(parts)
            for part in parts:
                yield pack(part, stage["width"])

    tower = learner.model.model.vision_tower
    optimizer = optimizers(tower, stage["lr"] * stage["tower"], 0.01)
    tower.requires_grad_(False)
    optimizer += optimizers(learner, stage["lr"], 0.01)
    tower.requires_grad_(True)
    checkpoint = run.file("target", run.recipe["data"], run.recipe["vision"]["model"], stage["rank"])
    budget = run.budget(stage)
    fit("target", learner, batches, Learner.terms, optimizer, budget, checkpoint, device=run.device)
    save(run, learner)


def q8(value: Tensor) -> Tensor:
    """Rows as Q8_0 blocks."""
    return torch.from_numpy(quants.quantize(value.float().numpy(), GGMLQuantizationType.Q8_0))


def save(run: Run, learner: Learner) -> None:
    """Write config, blocks (the language model's own, and Q8_0 of the matrices that were learnt) and index."""
    raw, kinds = smollm.tensors(run.work / "data")
    prefix = "model.language_model."
    learnt: dict[str, Tensor] = {prefix + name: value for name, value in raw.items() if name not in kinds}
    for name, value in learner.model.state_dict().items():
        if "lora_" in name:
            module, _, factor = name.partition(".lora_")
            learnt[f"{module}.weight.lora_{factor[0]}"] = value
        elif "language_model" not in name and not name.startswith("lm_head"):
            learnt[name] = value
    small = {name for name, value in learnt.items() if value.ndim == 2 and value.shape[1] % 32 == 0}
    embedding = {name: value for name, value in raw.items() if name.startswith("embed_tokens")}
    layers = {name: value for name, value in raw.items() if name in kinds and name not in embedding}
    files = {
        "language": {prefix + name: value for name, value in layers.items()},
        "embedding": {prefix + name: value for name, value in embedding.items()},
        "learnt": {name: q8(value) if name in small else value.bfloat16() for name, value in learnt.items()},
    }
    stored = {prefix + name: kind for name, kind in kinds.items()} | dict.fromkeys(sorted(small), "Q8_0")
    folder = run.out / "transformer"
    blocks.save(folder, stored, files, 2.0)
    learner.model.config.architectures = ["LlavaForConditionalGeneration"]
    learner.model.config.save_pretrained(folder)
    learner.model.generation_config.save_pretrained(folder)
    index = {"_class_name": "ImageTextToTextPipeline", "transformer": ["transformers", "LlavaForConditionalGeneration"]}
    (run.out / "model_index.json").write_text(json.dumps(index | run.recipe["pipeline"], indent=2) + "\n")


def prompts(run: Run, pipe: ImageTextToTextPipeline) -> list[dict]:
    """Chats with pictures and without, and their answers; they are answered greedily and at T = 1 in turn."""
    stage, scenes, rng = run.recipe["capture"], studio(run), random.Random(3)
    text = text_chats(run, pipe.processor, scenes.names)
    rng.shuffle(text)
    rows: list[dict] = []
    for question, answer, ended in text[: stage["text"]]:
        ids = pipe.processor.tokenizer.encode(answer, add_special_tokens=False)
        rows.append({"prompt": question} | ({"answer": answer} if ended else {"tokens": ids}))
    folder = run.file("scenes", run.recipe["data"], stage).with_suffix("").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(stage["pictured"]):
        scene, image = scenes.scene(rng, False), folder / f"{number:05}.png"
        *before, (question, answer) = scenes.talk(scene, rng, 2)
        scenes.draw(scene, rng).save(image)
        rows.append({"prompt": question, "before": before, "image": str(image), "answer": answer})
    rng.shuffle(rows)
    return [row | {"temperature": float(number % 2)} for number, row in enumerate(rows)]


def drafters(run: Run, only: str | None = None) -> None:
    """Train MSD and its ablations."""
    train_drafters(run, prompts, only)


check = check_drafters
STAGES = {"data": data, "vision": vision, "target": target, "drafters": drafters}
NEEDED = ("data", "vision", "target", "capture", "drafters", "pipeline")
