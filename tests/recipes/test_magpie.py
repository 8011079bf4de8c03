"""A vision-language recipe, as small as it goes, from scenes to MSD; weights in blocks; scenes and the truth of their
answers.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_art import write_art
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel

from mmspec.drafters import load
from mmspec.drafters.msd import ChatBatch
from mmspec.engine.loop import Stop, generate
from mmspec.errors import MmspecError
from mmspec.pipelines import quantized as blocks
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.train.calibrate import fit_calibration
from mmspec.train.calibrate import observe as observations
from mmspec.train.capture import read_features
from mmspec.train.loop import Budget
from mmspec.train.recipe import train
from mmspec.train.run import Run
from recipes.emoji_64.data import BACKGROUNDS, Picture
from recipes.magpie_135 import smollm
from recipes.magpie_135.data import KINDS, SIZE, WHERE, Scene, Studio, Thing
from recipes.magpie_135.dialogue import TEMPLATE, encode, processor
from recipes.magpie_135.vision import STYLES, align, covers, pixels, scenes

pytest.importorskip("peft")
pytest.importorskip("inflect")

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


def words() -> PreTrainedTokenizerFast:
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


def packed(kind: str, rows: int, width: int, chance: torch.Generator) -> torch.Tensor:
    """Random blocks whose scales are small numbers."""
    count = rows * width // 32
    scales = (torch.rand(count, 2 if kind == "Q4_1" else 1, generator=chance) * 0.02).half().view(torch.uint8)
    rest = torch.randint(0, 256, (count, blocks.BYTES[kind] - scales.shape[1]), dtype=torch.uint8, generator=chance)
    return torch.cat([scales, rest], 1).view(rows, -1)


def tensors(folder: Path) -> tuple[dict, dict]:
    """What `smollm.tensors` gives, random and tiny."""
    chance, found, kinds = torch.Generator().manual_seed(0), {}, {}
    shapes = {"embed_tokens.weight": (smollm.CONFIG["vocab_size"], 64)}
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
        }.items():  # fmt: skip
            shapes[f"layers.{layer}.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"layers.{layer}.{name}.weight"] = torch.ones(64)
    found["norm.weight"] = torch.ones(64)
    for name, shape in shapes.items():
        kinds[name] = "Q8_0" if "embed" in name else "Q4_1"
        found[name] = packed(kinds[name], *shape, chance)
    return found, kinds


def recipe() -> dict:
    """The shape of models/magpie-135/recipe.yaml."""
    eye = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 32,
    }
    learning = {"lr": 1e-3, "budget": BUDGET}
    msd = learning | {"batch": 2, "steps": 2, "noise": 0.05, "vocabulary": 60}
    return {
        "task": "image-text-to-text",
        "data": {"pictures": {"words": 2, "categories": ["Animals & Nature", "Smileys & Emotion"]}, "held_out": 5},
        "vision": learning | {"batch": 2, "model": eye, "align": {"budget": BUDGET}},
        "target": learning
        | {"batch": 2, "rank": 2, "text": 6, "text_share": 0.2, "turns": 3, "tower": 0.2, "width": 32},
        "capture": {"pictured": 40, "text": 8, "batch": 4},
        "drafters": {
            "msd": msd | {"model": {"depth": 3}},
            "eagle-2": msd | {"stages": 1, "model": {"depth": 3, "decoupled": False}},
            "msd-data": msd | {"own_answers": False, "model": {"depth": 3}},
        },
        "pipeline": {"drafter": "msd", "temperature": 0.0, "max_new_tokens": 12},
    }


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recipe.yaml`, the work folder and the model that it made; only what would be fetched is replaced."""
    folder = tmp_path_factory.mktemp("vision")
    write_art(folder / "work" / "data", 64)
    known = [
        ["What is a cat?", "An animal.", True],
        ["And a dog?", "An animal that", False],
    ]  # a random model would not come to an end
    Run(recipe(), folder / "work", folder, "cpu").file("text", 6).with_suffix(".json").write_text(json.dumps(known))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    text = words()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm, "CONFIG", smollm.CONFIG | SHAPE | {"vocab_size": len(text)})
        patch.setattr(smollm, "fetch", lambda folder: folder)
        patch.setattr(smollm, "tokenizer", lambda folder: text)
        patch.setattr(smollm, "tensors", tensors)
        train(folder / "recipe.yaml", folder / "work", folder / "out", device="cpu")
    return folder


@pytest.fixture(scope="module")
def pipe(rebuilt: Path) -> ImageTextToTextPipeline:
    return ImageTextToTextPipeline.from_pretrained(rebuilt / "out", torch_dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_recipe_makes_a_model(rebuilt: Path, pipe: ImageTextToTextPipeline, temperature: float) -> None:
    """Everything is in the folder, and all drafters give the answers of plain decoding."""
    rows = [json.loads(line) for line in (rebuilt / "out" / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all((rebuilt / "out" / row["image"]).is_file() and row["held_out"] for row in rows)
    for row in rows[:2]:
        asked = (rebuilt / "out" / row["image"], row["prompt"])
        plain = pipe(*asked, seed=1, temperature=temperature, drafter="none")
        for name in ("msd", "eagle-2", "msd-data"):
            drafter = load(name, pipe.folder, pipe.target)
            assert (
                drafter.target_hash == pipe.target.weights_hash
                and drafter.decoupled == (name != "eagle-2")
                and len(drafter.beta) == 3
            )
            assert pipe(*asked, seed=1, temperature=temperature, drafter=drafter).tokens == plain.tokens


def test_training_and_the_processor_read_alike(pipe: ImageTextToTextPipeline) -> None:
    """Ids and pixels of training are those of the shipped processor and template, with a picture and without, in
    several turns.
    """
    from PIL import Image

    known, image = (
        pipe.processor,
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)),
    )
    for picture in (True, False):
        turns = (("How many cats?", "There are two."), ("Sure?", ""))
        chat = []
        for question, answer in turns:
            shown = [{"type": "image", "image": image}] if picture and not chat else []
            chat.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
            if answer:
                chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        found = encode(known, turns, picture)
        read = pipe.encode([chat])
        assert read.conditional == [found.ids]
        if picture:
            torch.testing.assert_close(read.images[0]["pixel_values"].float(), pixels([image]), atol=1e-5, rtol=0)
        said = known.tokenizer.decode([token for token, answer in zip(found.ids, found.answer) if answer])
        assert said == "There are two.<|im_end|>"


def test_the_base_model_is_kept(rebuilt: Path, pipe: ImageTextToTextPipeline) -> None:
    """Stored blocks are the source's own; loaded weights are those and the low-rank update, whose wide half is in
    blocks, too.
    """
    from safetensors.torch import load_file

    smol, kinds = _tiny_source(pipe)
    stored = load_file(rebuilt / "out" / "transformer" / "language.safetensors")
    learnt = load_file(rebuilt / "out" / "transformer" / "learnt.safetensors")
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(stored[f"model.language_model.{name}"], smol[name])
    narrow, wide = (learnt[f"model.language_model.{name}.lora_{which}"] for which in "BA")
    assert wide.dtype == torch.uint8
    update = narrow.double() @ blocks.dequantise("Q8_0", wide).double()
    weight = pipe.transformer.model.language_model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(
        weight, blocks.dequantise(kinds[name], smol[name]).double() + 2 * update, rtol=1e-5, atol=1e-5
    )
    assert pipe.transformer.lm_head.weight.data_ptr() == pipe.transformer.get_input_embeddings().weight.data_ptr()


def _tiny_source(pipe: ImageTextToTextPipeline) -> tuple[dict, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm, "CONFIG", smollm.CONFIG | SHAPE | {"vocab_size": len(pipe.processor.tokenizer)})
        return tensors(Path())


@pytest.mark.parametrize("kind", blocks.BYTES)
def test_blocks(kind: str) -> None:
    """They are undone as the gguf package undoes them."""
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    raw = packed(kind, 6, 96, torch.Generator().manual_seed(1))
    wanted = quants.dequantize(raw.numpy(), getattr(GGMLQuantizationType, kind))
    np.testing.assert_allclose(blocks.dequantise(kind, raw).numpy(), wanted, rtol=1e-6)


def test_damaged_blocks(rebuilt: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(rebuilt / "out", tmp_path / "model"))
    (folder / "transformer" / "embedding.safetensors").unlink()
    with pytest.raises(MmspecError, match="lacks model.language_model.embed_tokens.weight, which blocks.json names"):
        ImageTextToTextPipeline.from_pretrained(folder)
    (folder / "transformer" / "blocks.json").write_text("{")
    with pytest.raises(MmspecError, match="blocks.json cannot be read"):
        ImageTextToTextPipeline.from_pretrained(folder)


def test_half_an_update(rebuilt: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(rebuilt / "out", tmp_path / "model"))
    path = folder / "transformer" / "learnt.safetensors"
    stored = load_file(path)
    name = "model.language_model.layers.1.mlp.up_proj.weight.lora_B"
    save_file({key: value for key, value in stored.items() if key != name}, path)
    with pytest.raises(MmspecError, match=f"lacks {name}, one half of a low-rank update"):
        ImageTextToTextPipeline.from_pretrained(folder)


def test_saved_over_itself(rebuilt: Path, tmp_path: Path) -> None:
    """A model in blocks becomes one of plain weights, which loads and says the same."""
    import shutil

    folder = Path(shutil.copytree(rebuilt / "out", tmp_path / "model"))
    pipe = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    said = pipe(text="hello", seed=1, max_new_tokens=8).tokens
    pipe.save_pretrained(folder)
    again = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert again(text="hello", seed=1, max_new_tokens=8).tokens == said
    assert not (folder / "transformer" / "blocks.json").exists()


def test_names_of_gguf() -> None:
    assert smollm.translated("blk.3.attn_q.weight") == "layers.3.self_attn.q_proj.weight"
    assert (
        smollm.translated("token_embd.weight") == "embed_tokens.weight"
        and smollm.translated("output_norm.weight") == "norm.weight"
    )


@pytest.fixture(scope="module")
def studio() -> Studio:
    chance = np.random.default_rng(0)
    names = ("cat", "dog", "apple", "fish", "sun")
    pictures = [
        Picture(name, style, False, "Animals & Nature") for name in names for style in ("3d", "flat", "cartoon")
    ]
    return Studio(chance.integers(0, 256, (len(pictures), 16, 16, 4), dtype=np.uint8), pictures)


def test_scenes(studio: Studio) -> None:
    """Things are in reading order at different places; held-out compositions are a twelfth, and none is in training."""
    chance = random.Random(0)
    scenes = [studio.scene(chance, False) for _ in range(300)]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4, 5, 6}
    for scene in scenes:
        places = [thing.place for thing in scene.things]
        assert places == sorted(set(places)) and not studio.held_out(scene)
    assert all(studio.held_out(studio.scene(chance, True)) for _ in range(20))


def test_answers_are_true(studio: Studio) -> None:
    """What an answer says can be counted and found in the scene; yes and no are balanced; what a scene does not allow
    is not asked.
    """
    cat, dog, apple = 0, 3, 7
    scene = Scene((Thing(cat, 0, 40), Thing(dog, 2, 40), Thing(dog + 1, 4, 40), Thing(apple, 7, 40)), "blue")
    chance = random.Random(0)
    found = {kind: [studio.ask(scene, chance, kind) for _ in range(120)] for kind in KINDS}
    said = {
        kind: {turn for question in questions if question for turn in question.turns}
        for kind, questions in found.items()
    }
    assert ("Where is the cat?", "The cat is at the top left.") in said["where"]
    assert ("Where are the dogs?", "The dogs are at the top right and in the middle.") in said["where"]
    assert ("How many dogs?", "There are two dogs.") in said["count"] and (
        "Count the cats.",
        "There is one cat.",
    ) in said["count"]
    assert any(answer.startswith("There are no ") for _, answer in said["count"])
    assert {answer for _, answer in said["background"]} == {"The background is blue."} and not said["colour"]
    assert ("What is at the bottom?", "There is an apple at the bottom.") in said["place"]
    assert any(answer.startswith("There is nothing ") for _, answer in said["place"])
    assert ("Is the cat left of the apple?", "Yes, the cat is left of the apple.") in said["relation"]
    assert ("Is the cat below the apple?", "No, the cat is not below the apple.") in said["relation"]
    assert {("In which style is the cat drawn?", "It is drawn in the 3d style.")} <= said["style"]
    assert not any("dogs" in question for question, _ in said["style"])  # they are drawn in two
    assert ("Is there an apple in the picture?", "Yes, there is an apple.") in said["presence"]
    assert any(answer == "No, there is no fish." for _, answer in said["presence"])
    assert all(
        "four things on a blue background: one cat, two dogs and one apple." in answer for _, answer in said["describe"]
    )
    follow = {question.turns for question in found["follow-up"] if question}
    assert (("Is there a cat?", "Yes, there is a cat."), ("Where is it?", "It is at the top left.")) in follow
    assert all(len(turns) == 2 for turns in follow) and any(
        turns[1][0] == "How many things is that?" for turns in follow
    )
    yes = [studio.ask(scene, chance, "presence").turns[0][1].startswith("Yes") for _ in range(600)]
    assert 0.44 < np.mean(yes) < 0.56
    right = [studio.ask(scene, chance, "relation").turns[0][1].startswith("Yes") for _ in range(600)]
    assert 0.44 < np.mean(right) < 0.56
    assert (
        1
        <= min(len(studio.talk(scene, chance, 4)) for _ in range(50))
        < max(len(studio.talk(scene, chance, 4)) for _ in range(50))
    )


def test_coloured_things() -> None:
    """A red heart is a heart, and red; things that no number goes with are not in scenes."""
    names = ("red heart", "light blue heart", "cat", "butter")
    studio = Studio(np.zeros((4, 8, 8, 4), np.uint8), [Picture(name, "flat", False, "") for name in names])
    assert studio.names == ["cat", "light blue heart", "red heart"]
    chance, one = random.Random(0), Scene((Thing(0, 0, 40), Thing(2, 1, 40)), "white")
    two = Scene((Thing(0, 0, 40), Thing(1, 1, 40)), "white")
    assert studio.ask(one, chance, "colour").turns == (("What colour is the heart?", "The heart is red."),)
    assert studio.ask(two, chance, "colour") is None
    assert any("There are two hearts." in dict(studio.ask(two, chance, "count").turns).values() for _ in range(60))


def test_worn_pictures(studio: Studio) -> None:
    """A share of pictures is blurred or compressed; without chance a scene is drawn the same."""
    chance, scene = random.Random(0), Scene((Thing(0, 4, 128),), "blue")
    plain = np.asarray(studio.draw(scene), int)
    worn = [np.abs(np.asarray(studio.draw(scene, chance, 0.5), int) - plain).mean() > 1 for _ in range(40)]
    assert 8 < sum(worn) < 32 and (np.asarray(studio.draw(scene), int) == plain).all() and plain.shape == (128, 128, 3)


def test_patches_are_labelled(studio: Studio) -> None:
    """The frame of a thing covers its patches and no others."""
    found = covers(Scene((Thing(0, 0, 40), Thing(1, 8, 40)), "white"), 16)
    assert found[0] == found[9] == 0 and found[63] == found[54] == 1 and found[27] == -1 and len(found) == 64
    assert len(WHERE) == 9


def test_alignment(studio: Studio, tmp_path: Path) -> None:
    """The projector learns to say what patches show in the vectors of its words; the tower stays as it is."""
    chance = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(16, generator=chance) for name in (*studio.names, *STYLES, *BACKGROUNDS)}
    tower = SiglipVisionModel(SiglipVisionConfig(image_size=128, vision_use_head=False, **recipe()["vision"]["model"]))
    before, projector = {name: value.clone() for name, value in tower.state_dict().items()}, torch.nn.Linear(32, 16)
    config = {"lr": 1e-2, "batch": 4, "model": {"patch_size": 32}}

    def distance() -> float:
        images, things, styles, grounds = next(scenes(studio, 16, 32, 9))
        empty = things == 0
        assert bool((styles[empty] == -100).all()) and bool((styles[~empty] >= 0).all())
        said = projector(tower(images, output_hidden_states=True).hidden_states[-1])[empty]
        colours = torch.stack([vectors[name] for name in BACKGROUNDS])
        return float((said.detach() - 0.5 * colours[grounds][:, None].expand(-1, 16, -1)[empty]).square().mean())

    first = distance()
    align(studio, tower, projector, vectors.__getitem__, config, Budget(60), tmp_path / "align.pt", device="cpu")
    assert distance() < 0.6 * first
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_template_is_smollms(tmp_path: Path) -> None:
    """Without a picture the template says what SmolLM2's own says."""
    known = processor(words(), 32, tmp_path)
    chat = [{"role": "user", "content": "Hello"}]
    wanted = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert known.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == wanted
    assert known.tokenizer.convert_tokens_to_ids("<image>") == 3 and TEMPLATE in (known.chat_template,)


def test_training_reads_as_drafting_does(rebuilt: Path, pipe: ImageTextToTextPipeline) -> None:
    """What the drafter predicts while it drafts is what it predicts of the captured chat in training: no position is
    shifted.
    """
    target, drafter = pipe.target, load("msd", pipe.folder, pipe.target)
    row = json.loads((rebuilt / "out" / "prompts.jsonl").read_text().splitlines()[0])
    prompts = pipe.encode_examples([row])[0]
    predicted, observe = {}, drafter.observe

    def watch(state, tree, committed, gumbel_scores) -> None:
        observe(state, tree, committed, gumbel_scores)
        predicted[len(state.history(0))] = drafter._last[0].clone()

    drafter.observe = watch
    result = generate(target, prompts, 1, Stop(120), drafter, seeds=7)
    del drafter.observe
    tokens = torch.tensor(result.tokens[0])
    [example] = read_features(target, prompts, [tokens], [7], with_prompts=True)
    batch = ChatBatch.pack(target, [example])
    length = batch.is_text.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        inputs = drafter.fuse(batch.vectors.double(), batch.before.double(), batch.is_text)
        output = drafter.layer(inputs, mask, torch.arange(length)[None], DynamicCache())[0]
    inside = {count: features for count, features in predicted.items() if count - 2 < length}
    assert len(inside) > 2
    for count, features in inside.items():
        torch.testing.assert_close(output[count - 2], features, rtol=1e-4, atol=1e-4)
    assert batch.is_answer.sum() == len(tokens)

    def perfect(inputs, mask, positions, cache) -> torch.Tensor:
        return batch.after.double()

    drafter.tokens, drafter.layer = None, perfect
    # The target's own distribution: its noise is worth much; that of another seed, nothing.
    fit_calibration(drafter, observations(drafter, target, [example]))
    assert min(drafter.coupling) > 0.6
    fit_calibration(drafter, observations(drafter, target, [replace(example, seed=8)]))
    assert max(drafter.coupling) < 0.4
