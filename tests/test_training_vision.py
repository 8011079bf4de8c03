"""A vision-language recipe, as small as it goes, from scenes to MSD; weights in blocks; scenes and the truth of their answers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_training import write_art
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache, PreTrainedTokenizerFast

from mmspec import blocks
from mmspec.drafters import load
from mmspec.drafters.msd import MsdDrafter
from mmspec.errors import MmspecError
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.training import smollm
from mmspec.training.dialogue import TEMPLATE, encode, processor
from mmspec.training.emoji import Picture
from mmspec.training.msd import Batch, Recorded, loss, vocabulary
from mmspec.training.recipe import train
from mmspec.training.scenes import KINDS, WHERE, Scene, Studio, Thing
from mmspec.training.vision import covers

pytest.importorskip("peft")
pytest.importorskip("inflect")

SHAPE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>")


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
    eye = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 32}
    learning = {"lr": 1e-3, "budget": BUDGET}
    msd = learning | {"batch": 2, "steps": 2, "noise": 0.2, "vocabulary": 60}
    return {
        "task": "image-text-to-text",
        "data": {"pictures": {"words": 2, "categories": ["Animals & Nature", "Smileys & Emotion"]}, "held_out": 5},
        "vision": learning | {"batch": 2, "model": eye},
        "target": learning | {"batch": 2, "rank": 2, "text": 6, "text_share": 0.2, "width": 32},
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
    (folder / "work" / "text.json").write_text('[["What is a cat?", "An animal."]]')  # a random model would not come to an end
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
            assert drafter.target_hash == pipe.target.hash and drafter.decoupled == (name != "eagle-2") and len(drafter.beta) == 3
            assert pipe(*asked, seed=1, temperature=temperature, drafter=drafter).tokens == plain.tokens


def test_training_and_the_processor_read_alike(pipe: ImageTextToTextPipeline) -> None:
    """Ids of training are those of the shipped processor and template, with a picture and without, in several turns."""
    from PIL import Image

    known = pipe.processor
    for picture in (True, False):
        turns = (("How many cats?", "There are two."), ("Sure?", ""))
        chat = []
        for question, answer in turns:
            shown = [{"type": "image", "image": Image.new("RGB", (128, 128))}] if picture and not chat else []
            chat.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
            if answer:
                chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        found = encode(known, turns, picture)
        assert pipe.encode([chat]).conditional == [found.ids]
        said = known.tokenizer.decode([token for token, answer in zip(found.ids, found.answer) if answer])
        assert said == "There are two.<|im_end|>"


def test_the_base_model_is_kept(rebuilt: Path, pipe: ImageTextToTextPipeline) -> None:
    """Stored blocks are the source's own; loaded weights are those and the low-rank update."""
    from safetensors.torch import load_file

    smol, kinds = _tiny_source(pipe)
    stored = load_file(rebuilt / "out" / "transformer" / "language.safetensors")
    learnt = load_file(rebuilt / "out" / "transformer" / "learnt.safetensors")
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(stored[f"model.language_model.{name}"], smol[name])
    update = learnt[f"model.language_model.{name}.lora_B"].double() @ learnt[f"model.language_model.{name}.lora_A"].double()
    weight = pipe.transformer.model.language_model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(weight, blocks.dequantise(kinds[name], smol[name]).double() + 2 * update, rtol=1e-5, atol=1e-5)
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


def test_names_of_gguf() -> None:
    assert smollm.translated("blk.3.attn_q.weight") == "layers.3.self_attn.q_proj.weight"
    assert smollm.translated("token_embd.weight") == "embed_tokens.weight" and smollm.translated("output_norm.weight") == "norm.weight"


@pytest.fixture(scope="module")
def studio() -> Studio:
    chance = np.random.default_rng(0)
    names = ("cat", "dog", "apple", "fish", "sun")
    pictures = [Picture(name, style, False, "Animals & Nature") for name in names for style in ("3d", "flat", "cartoon")]
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
    """What an answer says can be counted and found in the scene; yes and no are balanced."""
    cat, dog, apple = 0, 3, 7
    scene = Scene((Thing(cat, 0, 40), Thing(dog, 2, 40), Thing(dog + 1, 4, 40), Thing(apple, 7, 40)), "blue")
    chance, found = random.Random(0), {}
    for kind in KINDS:
        for _ in range(60):
            question = studio.ask(scene, chance, kind)
            found.setdefault(kind, set()).update(question.turns)
    assert ("Where is the cat?", "The cat is at the top left.") in found["where"]
    assert ("Where are the dogs?", "The dogs are at the top right and in the middle.") in found["where"]
    assert ("How many dogs are there?", "There are two dogs.") in found["count"]
    assert any(answer.startswith("There are no ") for _, answer in found["count"])
    assert {answer for _, answer in found["colour"]} == {"The background is blue."}
    assert ("Is there an apple in the picture?", "Yes, there is an apple.") in found["presence"]
    assert any(answer == "No, there is no fish." for _, answer in found["presence"])
    assert all("four things on a blue background: one cat, two dogs and one apple." in answer for _, answer in found["describe"])
    assert len({len(studio.ask(scene, chance, "follow-up").turns) for _ in range(5)}) == 1
    yes = [studio.ask(scene, chance, "presence").turns[0][1].startswith("Yes") for _ in range(600)]
    assert 0.44 < np.mean(yes) < 0.56


def test_patches_are_labelled(studio: Studio) -> None:
    """The frame of a thing covers its patches and no others."""
    found = covers(Scene((Thing(0, 0, 40), Thing(1, 8, 40)), "white"), 16)
    assert found[0] == found[9] == 0 and found[63] == found[54] == 1 and found[27] == -1 and len(found) == 64
    assert len(WHERE) == 9


def test_steps_of_the_loss_are_paths() -> None:
    """Step k's prediction at a place is what drafting gives after k places of its own predictions on true features before them."""
    torch.manual_seed(0)
    drafter = MsdDrafter(hidden_size=16, intermediate_size=24, heads=2, kv_heads=2).double()
    rows, length = 2, 7
    vectors, before, after = (torch.randn(rows, length, 16, dtype=torch.float64) for _ in range(3))
    text = torch.rand(rows, length) > 0.3
    batch = Batch(vectors, before, after, text, torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.long))
    seen = []
    layer = drafter.layer
    drafter.layer = lambda *given: seen.append(layer(*given)) or seen[-1]
    loss(drafter, torch.randn(9, 16, dtype=torch.float64), batch, 3, 0.0)
    for place in range(2, length):
        cache, features = DynamicCache(), before[:, : place - 1]
        for step in range(3):
            start = 0 if step == 0 else place - 2 + step
            end = place - 1 + step
            inputs = drafter.enter(vectors[:, start:end], features, text[:, start:end])
            where = torch.arange(start, end).expand(rows, -1)
            mask = (torch.arange(end) <= torch.arange(start, end)[:, None]).expand(rows, 1, -1, -1)
            out = layer(inputs, mask, where, cache)
            torch.testing.assert_close(seen[step][:, end - 1], out[:, -1])
            features = out[:, -1:]


def test_vocabulary() -> None:
    """The commonest tokens of answers, prompts not counted, in order."""
    data = Recorded([torch.tensor([9, 9, 9, 3, 5, 3, 1])], [torch.arange(7) >= 3], [], [], [])
    assert vocabulary(data, 2) in ([1, 3], [3, 5]) and vocabulary(data, 9) == [1, 3, 5]


def test_template_is_smollms(tmp_path: Path) -> None:
    """Without a picture the template says what SmolLM2's own says."""
    known = processor(words(), 32, tmp_path)
    chat = [{"role": "user", "content": "Hello"}]
    wanted = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert known.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == wanted
    assert known.tokenizer.convert_tokens_to_ids("<image>") == 3 and TEMPLATE in (known.chat_template,)
