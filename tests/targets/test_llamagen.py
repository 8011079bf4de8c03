"""LlamaGen draws the codes that its published description gives, drafted or not, alone or in a batch."""

from pathlib import Path

import pytest
import torch
from tiny import OracleDrafter, drafter, llama
from tiny_llamagen import (
    CAPTION,
    CLASSES,
    CODES,
    LENGTH,
    SIDE,
    caption_prompt,
    class_prompt,
    logits,
    save_llamagen,
)

from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.pipelines.llamagen_files import config_of, load_model
from mmspec.targets.base import Prompts
from mmspec.targets.llamagen import CaptionPrompts, LlamaGenTarget, RasterRotary

COUNT, NUMBERS, LENGTHS = SIDE**2, [207, 0, 999], [5, LENGTH, 1]


def captions() -> list[torch.Tensor]:
    """Vectors of captions of different length."""
    rng = torch.Generator().manual_seed(3)
    return [torch.randn(length, CAPTION, generator=rng, dtype=torch.float64) for length in LENGTHS]


@pytest.fixture(scope="module", params=["c2i", "t2i"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def target(kind: str, tmp_path_factory: pytest.TempPathFactory) -> LlamaGenTarget:
    folder = save_llamagen(tmp_path_factory.mktemp("models") / kind, kind)
    return LlamaGenTarget(load_model(folder, None, 4, torch.float64))


def prompts_of(kind: str, rows: list[int], guidance: float) -> Prompts:
    """Rows 0 to 2."""
    if kind == "c2i":
        ids = [[NUMBERS[row]] for row in rows]
        return Prompts(ids, ids if guidance != 1 else None, guidance)
    ids, vectors = [[7] * LENGTHS[row] for row in rows], [captions()[row] for row in rows]
    return CaptionPrompts(ids, ids if guidance != 1 else None, guidance, captions=vectors)


def drawn(target, kind: str, guidance: float, temperature: float, rows=(0, 1, 2), seed=5, drafted=None) -> list:
    prompts, sampling = prompts_of(kind, list(rows), guidance), SamplingOptions(temperature)
    return generate(target, prompts, len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seed).tokens


def all_drafters(target: LlamaGenTarget, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(3)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


def stepwise(kind: str, row: int, guidance: float, seed: int | None) -> list[int]:
    """The description's logits over the whole sequence, again for every code, with the noise of `seed` or none."""
    if kind == "c2i":
        branches = [class_prompt(NUMBERS[row]), class_prompt(None)]
    else:
        branches = [caption_prompt(captions()[row]), caption_prompt(captions()[row], unconditional=True)]
    codes: list[int] = []
    noise = Noise([seed or 0], CODES, greedy=seed is None)
    for place in range(COUNT):
        conditional, unconditional = (logits(kind, prompt, codes, seen) for prompt, seen in branches)
        scores = unconditional + guidance * (conditional - unconditional)
        codes.append(int((scores + noise.gumbel([place], 1)[0, 0]).argmax()))
    return codes


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_tokens_are_those_of_the_description(target: LlamaGenTarget, kind: str, guidance: float) -> None:
    """equality: greedy, and at T = 1 with the same noise (fp64)."""
    for row in range(3):
        greedy = stepwise(kind, row, guidance, None)
        assert len(set(greedy)) > 2 and drawn(target, kind, guidance, 0.0, [row]) == [greedy]
        assert drawn(target, kind, guidance, 1.0, [row], 5 + row) == [stepwise(kind, row, guidance, 5 + row)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_drafts_and_batches_equal_plain_decoding(target, kind: str, guidance: float, temperature: float) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not (fp64)."""
    plain = [drawn(target, kind, guidance, temperature, [row], 5 + row)[0] for row in range(3)]
    assert len({str(row) for row in plain}) == 3
    for drafted in all_drafters(target, plain):
        assert drawn(target, kind, guidance, temperature, drafted=drafted) == plain
    for drafted in all_drafters(target, plain[:1]):
        assert drawn(target, kind, guidance, temperature, [0], drafted=drafted) == plain[:1]


def test_logits_are_close(target: LlamaGenTarget, kind: str) -> None:
    """cache consistency: the first code's logits differ from the description's by rounding alone."""
    state = target.prefill(prompts_of(kind, [0], 1.0), 64)
    prompt, seen = class_prompt(207) if kind == "c2i" else caption_prompt(captions()[0])
    expected = logits(kind, prompt, [], seen)
    assert (state.prefill_output.logits[0, 0] - expected).abs().max() < 1e-5


def test_rows_and_columns_matter(target, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: positions that are turned on their side give other codes."""
    right = drawn(target, kind, 1.0, 1.0)
    table = RasterRotary._table
    monkeypatch.setattr(RasterRotary, "_table", lambda self: table(self).roll(2, dims=-1))
    monkeypatch.setattr(target.model.model.rotary_emb, "_tables", {})
    assert drawn(target, kind, 1.0, 1.0) != right


def test_what_does_not_fit_is_refused(target: LlamaGenTarget, kind: str) -> None:
    """Other models, classes that there are not, and captions without vectors."""
    with pytest.raises(MmspecError, match="LlamaForCausalLM is no LlamaGen"):
        LlamaGenTarget(llama())
    wrong, text = ([[CLASSES]], "give one class, from 0 to 999") if kind == "c2i" else ([[1, 2]], "give CaptionPrompts")
    with pytest.raises(MmspecError, match=text):
        target.prefill(Prompts(wrong), 64)


def test_files(tmp_path: Path) -> None:
    """Safetensors hold the same model as pickles, whatever the pickle's key; foreign tensors are refused by name."""
    one = load_model(save_llamagen(tmp_path / "pickle", "c2i", "module"), None, 4, torch.float64)
    two = load_model(save_llamagen(tmp_path / "tensors", "c2i", ""), None, 4, torch.float64)
    assert all(torch.equal(first, second) for first, second in zip(one.parameters(), two.parameters(), strict=True))


def test_released_sizes() -> None:
    """Shapes tell the released models, but for heads, which width and layers tell."""
    shapes = {"tok_embeddings.weight": (16384, 1280), "cls_embedding.uncond_embedding": (120, 2048)}
    for layer in range(36):
        shapes[f"layers.{layer}.attention.wqkv.weight"] = 3 * 1280, 1280
        shapes[f"layers.{layer}.feed_forward.w1.weight"] = 3584, 1280
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = config_of(tensors, 32, 16, None)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (36, 20, 20)
    assert (config.intermediate_size, config.head_dim, config.caption_length, config.classes) == (3584, 64, 120, 0)
    del tensors["layers.35.attention.wqkv.weight"], tensors["layers.35.feed_forward.w1.weight"]
    with pytest.raises(MmspecError, match="35 layers of width 1280 is none of those released"):
        config_of(tensors, 32, 16, None)
