"""The recipe of magpie-135, as small as it goes, from scenes to MSD, and what training reads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_smollm import SHAPE, random_blocks, recipe, tensors, tokenizer
from transformers import DynamicCache

pytest.importorskip("peft")
pytest.importorskip("inflect")

from mmspec.drafters import load
from mmspec.drafters.msd import ChatBatch
from mmspec.engine.loop import Stop, generate
from mmspec.errors import MmspecError
from mmspec.pipelines import quantized as blocks
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.train.calibrate import fit_calibration
from mmspec.train.calibrate import observe as observations
from mmspec.train.capture import Reading, read_features
from mmspec.train.run import Run
from recipes.magpie_135 import smollm, stages
from recipes.magpie_135.dialogue import TEMPLATE, encode, make_processor
from recipes.magpie_135.scenes import SIZE
from recipes.magpie_135.vision import pixels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipe(magpie: Path) -> ImageTextToTextPipeline:
    return ImageTextToTextPipeline.from_pretrained(magpie / "out", torch_dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_recipe_makes_a_model(magpie: Path, pipe: ImageTextToTextPipeline, temperature: float) -> None:
    """Everything is in the folder, and all drafters give the answers of plain decoding."""
    rows = [json.loads(line) for line in (magpie / "out" / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all((magpie / "out" / row["image"]).is_file() and row["held_out"] for row in rows)
    for row in rows[:2]:
        asked = (magpie / "out" / row["image"], row["prompt"])
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
    several turns."""
    processor = pipe.processor
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    for picture in (True, False):
        turns = (("How many cats?", "There are two."), ("Sure?", ""))
        messages = []
        for question, answer in turns:
            content = [{"type": "image", "image": image}] if picture and not messages else []
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
            if answer:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        encoded, prompts = encode(processor, turns, picture), pipe.encode([messages])
        assert prompts.conditional == [encoded.ids]
        if picture:
            torch.testing.assert_close(prompts.images[0]["pixel_values"].float(), pixels([image]), atol=1e-5, rtol=0)
        answers = [token for token, answer in zip(encoded.ids, encoded.answer) if answer]
        assert processor.tokenizer.decode(answers) == "There are two.<|im_end|>"


def test_prompts_of_drafters(magpie: Path, pipe: ImageTextToTextPipeline) -> None:
    """Greedy and sampled in turn, some without a picture; question and answer are the ids that the target was trained
    on.
    """
    rows = stages.prompts(Run(recipe(), magpie / "work", magpie / "out", "cpu"), pipe)
    assert [row["temperature"] for row in rows] == [0.0, 1.0] * 9 and sum("image" in row for row in rows) == 16
    assert any(row.get("before") for row in rows)
    for row in rows:
        (prompt,) = pipe.encode_examples([row])[0].conditional
        answer = row.get("tokens") or pipe.encode_answer(row["answer"])
        ended = "answer" in row
        turns = [*row.get("before", []), (row["prompt"], row.get("answer") or pipe.processor.tokenizer.decode(answer))]
        ids = encode(pipe.processor, turns, "image" in row, ended).ids
        assert prompt + answer == (ids[:-1] if ended else ids)  # a newline follows an end


def test_the_base_model_is_kept(magpie: Path, pipe: ImageTextToTextPipeline) -> None:
    """Stored blocks are the source's own; loaded weights are those and the low-rank update, whose wide half is in
    blocks, too."""
    smol, kinds = _tiny_source(pipe)
    stored = load_file(magpie / "out" / "transformer" / "language.safetensors")
    learnt = load_file(magpie / "out" / "transformer" / "learnt.safetensors")
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(stored[f"model.language_model.{name}"], smol[name])
    narrow, wide = (learnt[f"model.language_model.{name}.lora_{factor}"] for factor in "BA")
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

    raw = random_blocks(kind, 6, 96, torch.Generator().manual_seed(1))
    expected = quants.dequantize(raw.numpy(), getattr(GGMLQuantizationType, kind))
    np.testing.assert_allclose(blocks.dequantise(kind, raw).numpy(), expected, rtol=1e-6)


def test_damaged_blocks(magpie: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(magpie / "out", tmp_path / "model"))
    (folder / "transformer" / "embedding.safetensors").unlink()
    with pytest.raises(MmspecError, match="lacks model.language_model.embed_tokens.weight, which blocks.json names"):
        ImageTextToTextPipeline.from_pretrained(folder)
    (folder / "transformer" / "blocks.json").write_text("{")
    with pytest.raises(MmspecError, match="blocks.json cannot be read"):
        ImageTextToTextPipeline.from_pretrained(folder)


def test_half_an_update(magpie: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(magpie / "out", tmp_path / "model"))
    path = folder / "transformer" / "learnt.safetensors"
    stored = load_file(path)
    name = "model.language_model.layers.1.mlp.up_proj.weight.lora_B"
    save_file({key: value for key, value in stored.items() if key != name}, path)
    with pytest.raises(MmspecError, match=f"lacks {name}, one half of a low-rank update"):
        ImageTextToTextPipeline.from_pretrained(folder)


def test_saved_over_itself(magpie: Path, tmp_path: Path) -> None:
    """A model in blocks becomes one of plain weights, which loads and gives the same answer."""
    folder = Path(shutil.copytree(magpie / "out", tmp_path / "model"))
    pipe = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    tokens = pipe(text="hello", seed=1, max_new_tokens=8).tokens
    pipe.save_pretrained(folder)
    again = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert again(text="hello", seed=1, max_new_tokens=8).tokens == tokens
    assert not (folder / "transformer" / "blocks.json").exists()


def test_names_of_gguf() -> None:
    assert smollm.translated("blk.3.attn_q.weight") == "layers.3.self_attn.q_proj.weight"
    assert (
        smollm.translated("token_embd.weight") == "embed_tokens.weight"
        and smollm.translated("output_norm.weight") == "norm.weight"
    )


def test_template_is_smollms(tmp_path: Path) -> None:
    """Without a picture the template says what SmolLM2's own says."""
    processor = make_processor(tokenizer(), 32, tmp_path)
    messages = [{"role": "user", "content": "Hello"}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == 3 and processor.chat_template == TEMPLATE


def test_training_reads_as_drafting_does(magpie: Path, pipe: ImageTextToTextPipeline) -> None:
    """What the drafter predicts while it drafts is what it predicts of the captured chat in training: no position is
    shifted.
    """
    target, drafter = pipe.target, load("msd", pipe.folder, pipe.target)
    row = json.loads((magpie / "out" / "prompts.jsonl").read_text().splitlines()[0])
    prompts = pipe.encode_examples([row])[0]
    predicted, observe = {}, drafter.observe

    def watch(state, tree, committed, gumbel_scores) -> None:
        observe(state, tree, committed, gumbel_scores)
        predicted[len(state.history(0))] = drafter._last[0].clone()

    drafter.observe = watch
    result = generate(target, prompts, 1, Stop(120), drafter, seeds=7)
    del drafter.observe
    tokens = torch.tensor(result.tokens[0])
    [example] = read_features(target, prompts, [tokens], [7], reading=Reading(prompts=True))
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
