"""The stages of a vision-language recipe: scenes, vision tower, target, drafters."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, quants
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel, SiglipVisionConfig

from mmspec.drafters.examples import Example
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.files import write_atomically
from mmspec.pipelines import quantized as blocks
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.targets.vision_language import VisualPrompts
from mmspec.train.capture import capture
from mmspec.train.drafter import train_drafters
from mmspec.train.loop import fit, optimizers
from mmspec.train.run import Run
from recipes.emoji_64.data import build
from recipes.magpie_135 import smollm
from recipes.magpie_135.data import SIZE, Studio
from recipes.magpie_135.dialogue import IMAGE, Encoded, encode, processor
from recipes.magpie_135.vision import align, pixels, train_tower

console = Console(stderr=True)

# Questions and answers in turn, the picture, and whether the last answer came to its end.
Chat = tuple[tuple[tuple[str, str], ...], Tensor | None, bool]

# Most tokens of an answer that is captured.
LONGEST_ANSWER = 160

# What a model is asked without a picture, so that it keeps what it knew: about words of the picture set, places, and
# the world at large.
WORDS = (
    *(
        "What is a {}?",
        "Write a short sentence about a {}.",
        "Tell me three facts about the {}.",
        "Explain what a {} is to a child.",
    ),
    *(
        "Write two lines of a poem about a {}.",
        "Where can you find a {}?",
        "Name five things that go with a {}.",
        "What does a {} look like?",
    ),
    *(
        "Write a short story about a {}.",
        "Is a {} bigger than a cat?",
        "How do you say {} in French?",
        "Give me a riddle about a {}.",
    ),
)
PLACES = (
    "France Japan Brazil Egypt Canada India Kenya Norway Mexico Australia Italy Turkey Peru Greece China Spain".split()
)
ABOUT_PLACES = (
    "What is the capital of {}?",
    "Name three cities in {}.",
    "What do people eat in {}?",
    "When is a good time to travel to {}?",
)
AT_LARGE = (
    "Hello! Who are you?", "How are you today?", "What can you help me with?", "Write a short thank-you note.", "What is 12 plus 30?", "Count from one to ten.",
    "Why is the sky blue?", "How do I boil an egg?", "What is photosynthesis?", "Who wrote Hamlet?", "Give me three tips for sleeping well.", "What is a computer?",
    "List the days of the week.", "What are the primary colours?", "How many minutes are in two hours?", "Write a haiku about rain.", "What is the opposite of hot?",
    "Tell me a joke.", "How does a bicycle work?", "What is the largest planet?", "Translate good morning to Spanish.", "Why do we dream?", "What is gravity?",
    "Suggest a name for a dog.", "How do I say no politely?", "What is a verb?", "Summarize the story of Cinderella.", "What causes thunder?", "Write a slogan for a bakery.",
    "How can I learn faster?", "What is the speed of light?", "Name four seasons.", "What do bees do?", "Give me a recipe for pancakes.", "What is democracy?",
)  # fmt: skip


def studio(run: Run) -> Studio:
    return Studio(*build(run.work / "data", 64, **run.recipe["data"]["pictures"]))


def data(run: Run) -> None:
    """Fetch the art and the language model; write held-out scenes with questions and answers, for checks and
    benchmarks.
    """
    smollm.fetch(run.work / "data")
    place, chance = studio(run), random.Random(1)
    (run.out / "samples").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(run.recipe["data"]["held_out"]):
        scene = place.scene(chance, True)
        name = f"samples/{number:02}.png"
        place.draw(scene, chance).save(run.out / name)
        asked = place.question(scene, chance)
        *before, (question, answer) = asked.turns
        rows.append(
            {
                "prompt": question,
                "answer": answer,
                "before": before,
                "kind": asked.kind,
                "image": name,
                "held_out": True,
            }
        )
    (run.out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def vision(run: Run) -> None:
    """Train the tower on what covers every patch, then the projector to say so in the language model's vectors."""
    stage, place = run.recipe["vision"], studio(run)
    tower = train_tower(place, stage, run.budget(stage), part_file(run, "vision"), device=run.device)
    torch.save(tower.state_dict(), part_file(run, "tower"))
    model, known = bare(run)
    table = model.model.language_model.embed_tokens.weight.detach().float()

    def words(text: str) -> Tensor:
        return table[known.tokenizer(f" {text}", add_special_tokens=False).input_ids].mean(0)

    budget, checkpoint = run.budget(stage["align"]), part_file(run, "align")
    projector = align(
        place, tower, model.model.multi_modal_projector, words, stage, budget, checkpoint, device=run.device
    )
    torch.save(projector.state_dict(), part_file(run, "projector"))


def part_file(run: Run, name: str) -> Path:
    return run.file(name, run.recipe["data"], run.recipe["vision"]["model"])


def bare(run: Run) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model before it has been asked about a picture: SmolLM2 in bfloat16, the tower, and the projector, random if
    it is not trained yet.
    """
    shape = run.recipe["vision"]["model"]
    known = processor(smollm.tokenizer(run.work / "data"), shape["patch_size"], run.out / "processor")
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(image_size=SIZE, vision_use_head=False, **shape),
        text_config=smollm.config(),
        image_token_index=known.tokenizer.convert_tokens_to_ids(IMAGE),
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
    model.model.language_model.bfloat16()
    model.generation_config = smollm.generation()
    return model, known


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right: ids, labels (-100 where nothing is learnt), and the pictures of those rows that have
    one.
    """

    ids: Tensor
    labels: Tensor
    pixels: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.labels.to(device), self.pixels.to(device))


class Learner(nn.Module):
    """Tower, projector and low-rank updates of the language model; all else is frozen."""

    def __init__(self, model: LlavaForConditionalGeneration, rank: int, compiled: bool = False):
        super().__init__()
        model.model.language_model.requires_grad_(False)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model.model.language_model
        )
        # Eager attention, and no casts beside those of autocast: a step of short rows on a CPU takes 3.6 s and not 4.6
        # s.
        model.model.language_model.set_attn_implementation("eager")
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False
        for name, weight in model.model.language_model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()
        self.model = model
        self.body = torch.compile(model.model.language_model, dynamic=False) if compiled else model.model.language_model

    def state_dict(self, *args, **kwargs):
        """What is learnt, and nothing of what is frozen."""
        learnt = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in learnt}

    def load_state_dict(self, state, strict: bool = True, assign: bool = False):
        return super().load_state_dict(state, strict=False, assign=assign)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the answers, nats a token."""
        core, batch = self.model.model, batch.to(self.model.device)
        vectors = core.language_model.embed_tokens(batch.ids)
        if len(batch.pixels):
            seen = torch.stack(list(core.get_image_features(batch.pixels, return_dict=True).pooler_output))
            holes = (batch.ids == self.model.config.image_token_id)[..., None]
            vectors = vectors.masked_scatter(holes, seen.to(vectors.dtype))
        hidden = self.body(inputs_embeds=vectors, use_cache=False).last_hidden_state[:, :-1]
        wanted = batch.labels[:, 1:]
        kept = wanted != -100
        logits = F.linear(hidden[kept], core.language_model.embed_tokens.weight)
        error = F.cross_entropy(logits.float(), wanted[kept])
        return {"loss": error, "right": (logits.argmax(-1) == wanted[kept]).float().mean()}


def pack(rows: list[tuple[Encoded, Tensor | None]], width: int) -> Batch:
    """Rows of one batch, padded to a multiple of `width`."""
    longest = -(-max(len(one.ids) for one, _ in rows) // width) * width
    ids, labels = torch.full((len(rows), longest), 2), torch.full((len(rows), longest), -100)
    for row, (one, _) in enumerate(rows):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        labels[row, : len(one.ids)] = torch.where(torch.tensor(one.answer), torch.tensor(one.ids), -100)
    seen = [picture for _, picture in rows if picture is not None]
    return Batch(ids, labels, torch.stack(seen) if seen else torch.zeros(0, 3, SIZE, SIZE))


def without_pictures(names: list[str]) -> list[str]:
    """Questions without a picture, always in the same order: a model is trained on the first of them."""
    every = [form.format(name) for form in WORDS for name in names] + [
        form.format(name) for form in ABOUT_PLACES for name in PLACES
    ]
    random.Random(0).shuffle(every)
    return [*AT_LARGE, *every]


def answered(model: PreTrainedModel, known: LlavaProcessor, asked: list[str]) -> list[tuple[str, str, bool]]:
    """Questions without a picture, answers of a language model, and whether they came to their end."""
    target, found = CausalTarget(model), []
    target.min_query_len = 1
    for start in track(range(0, len(asked), 32), "answering without pictures"):
        part = asked[start : start + 32]
        prompts = Prompts([encode(known, [(question, "")], False).ids for question in part])
        stop, law = Stop(96, frozenset({0, 2})), SamplingOptions(0.7)
        done = generate(target, prompts, len(part), stop, sampling=law, seeds=start)
        for question, tokens in zip(part, done.tokens):
            ended = tokens[-1] in (0, 2)
            found.append((question, known.tokenizer.decode(tokens[:-1] if ended else tokens).strip(), ended))
    return [one for one in found if one[1]]


def spoken(run: Run, known: LlavaProcessor) -> list[tuple[str, str, bool]]:
    """What the model learns from without a picture, so that it keeps what it knew; made once."""
    count = run.recipe["target"]["text"]
    path = run.file("text", count).with_suffix(".json")
    if not path.exists():
        found = answered(smollm.alone(run.work / "data"), known, without_pictures(studio(run).names)[:count])
        write_atomically(path, lambda file: file.write_text(json.dumps(found)))
    return [(question, answer, ended) for question, answer, ended in json.loads(path.read_text())]


def target(run: Run) -> None:
    """Train tower, projector and updates on questions about scenes; store SmolLM2's own blocks and what was learnt
    beside them.
    """
    stage, place = run.recipe["target"], studio(run)
    model, known = bare(run)
    text = spoken(run, known)
    learner = Learner(model, stage["rank"], stage.get("compile", False))

    def rows(chance: random.Random) -> tuple[Encoded, Tensor | None]:
        if chance.random() < stage["text_share"]:
            question, answer, ended = chance.choice(text)
            return encode(known, [(question, answer)], False, ended), None
        scene = place.scene(chance, False)
        return encode(known, place.talk(scene, chance, stage["turns"]), True), pixels([place.draw(scene, chance, 0.3)])[
            0
        ]

    def source(step: int) -> Iterator[Batch]:
        chance, size = random.Random(7919 * step), stage["batch"]
        while True:
            pool = sorted((rows(chance) for _ in range(16 * size)), key=lambda row: len(row[0].ids))
            parts = [pool[start : start + size] for start in range(0, len(pool), size)]
            chance.shuffle(parts)
            for part in parts:
                yield pack(part, stage["width"])

    tower = learner.model.model.vision_tower
    chosen = optimizers(tower, stage["lr"] * stage["tower"], 0.01)
    tower.requires_grad_(False)
    chosen += optimizers(learner, stage["lr"], 0.01)
    tower.requires_grad_(True)
    checkpoint = run.file("target", run.recipe["data"], run.recipe["vision"]["model"], stage["rank"])
    fit(
        "target",
        learner,
        source,
        lambda learner, batch: learner.terms(batch),
        chosen,
        run.budget(stage),
        checkpoint,
        device=run.device,
    )
    save(run, learner, known)


def eight_bits(value: Tensor) -> Tensor:
    """Rows as Q8_0 blocks."""
    return torch.from_numpy(quants.quantize(value.float().numpy(), GGMLQuantizationType.Q8_0))


def save(run: Run, learner: Learner, known: LlavaProcessor) -> None:
    """The model folder: config, blocks (the language model's own, and Q8_0 of the matrices that were learnt), processor
    and index.
    """
    raw, kinds = smollm.tensors(run.work / "data")
    front = "model.language_model."
    learnt: dict[str, Tensor] = {front + name: value for name, value in raw.items() if name not in kinds}
    for name, value in learner.model.state_dict().items():
        if "lora_" in name:
            place, _, which = name.partition(".lora_")
            learnt[f"{place}.weight.lora_{which[0]}"] = value
        elif "language_model" not in name and not name.startswith("lm_head"):
            learnt[name] = value
    small = {name for name, value in learnt.items() if value.ndim == 2 and value.shape[1] % 32 == 0}
    embedding = {name: value for name, value in raw.items() if name.startswith("embed_tokens")}
    layers = {name: value for name, value in raw.items() if name in kinds and name not in embedding}
    files = {
        "language": {front + name: value for name, value in layers.items()},
        "embedding": {front + name: value for name, value in embedding.items()},
        "learnt": {name: eight_bits(value) if name in small else value.bfloat16() for name, value in learnt.items()},
    }
    kept = {front + name: kind for name, kind in kinds.items()} | dict.fromkeys(sorted(small), "Q8_0")
    folder = run.out / "transformer"
    blocks.save(folder, kept, files, 2.0)
    learner.model.config.architectures = ["LlavaForConditionalGeneration"]
    learner.model.config.save_pretrained(folder)
    learner.model.generation_config.save_pretrained(folder)
    index = {"_class_name": "ImageTextToTextPipeline", "transformer": ["transformers", "LlavaForConditionalGeneration"]}
    (run.out / "model_index.json").write_text(json.dumps(index | run.recipe["pipeline"], indent=2) + "\n")


def pipeline(run: Run) -> ImageTextToTextPipeline:
    """The model as far as it is trained."""
    return ImageTextToTextPipeline.from_pretrained(run.out.absolute(), torch_dtype=torch.bfloat16).to(
        run.device or "cpu"
    )


def captured(run: Run, pipe: ImageTextToTextPipeline, own: bool) -> list[Example]:
    """Chats with the target's own answers, or with those of the data, and its features; made once for all drafters."""
    stage, scenes, rng = run.recipe["capture"], studio(run), random.Random(3)
    processor, text = pipe.processor, spoken(run, pipe.processor)
    rng.shuffle(text)
    chats: list[Chat] = []
    for number in range(stage["pictured"] + stage["text"]):
        if number < stage["text"]:
            question, answer, ended = text[number % len(text)]
            chats.append((((question, answer),), None, ended))
        else:
            scene = scenes.scene(rng, False)
            chats.append((tuple(scenes.talk(scene, rng, 2)), pixels([scenes.draw(scene, rng)])[0], True))
    rng.shuffle(chats)
    parts = [chats[start : start + stage["batch"]] for start in range(0, len(chats), stage["batch"])]
    pipe.target.min_query_len = 1
    prompts = [encode_questions(processor, part) for part in parts]
    return capture(
        pipe.target,
        [(batch, number % 2 == 1) for number, batch in enumerate(prompts)] if own else [],
        Stop(LONGEST_ANSWER, pipe.ends),
        [] if own else [(batch, encode_answers(processor, part, batch)) for batch, part in zip(prompts, parts)],
        run.file("captured", pipe.target.weights_hash, stage, own),
        with_prompts=True,
    )


def encode_questions(processor: LlavaProcessor, chats: Sequence[Chat]) -> VisualPrompts:
    """Chats up to their last answer."""
    images = [{} if picture is None else {"pixel_values": picture[None]} for _, picture, _ in chats]
    rows = [encode(processor, [*turns[:-1], (turns[-1][0], "")], picture is not None) for turns, picture, _ in chats]
    return VisualPrompts([row.ids for row in rows], images=images)


def encode_answers(processor: LlavaProcessor, chats: Sequence[Chat], questions: VisualPrompts) -> list[Tensor]:
    """The data's last answers; a newline that follows the end of an answer is left out."""
    answers = []
    for (turns, picture, ended), prompt in zip(chats, questions.conditional, strict=True):
        ids = encode(processor, turns, picture is not None, ended).ids
        answers.append(torch.tensor(ids[len(prompt) : -1 if ended else None]))
    return answers


def drafters(run: Run, only: str | None = None) -> None:
    """Train MSD and its ablations."""
    pipe = pipeline(run)
    train_drafters(run, pipe.target, cache(partial(captured, run, pipe)), only)


def check(settings: dict, path: Path) -> None:
    """All settings are supported. Drafters are of kind msd in recipes of before."""
    for stage in settings["drafters"].values():
        stage.setdefault("kind", "msd")


STAGES = {"data": data, "vision": vision, "target": target, "drafters": drafters}
NEEDED = ("data", "vision", "target", "capture", "drafters", "pipeline")
