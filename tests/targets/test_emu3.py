"""Emu3 draws the ids of its own `generate`, drafted or not, alone or in a batch, rows and pictures closed in place."""

import pytest
import torch
from tiny import OracleDrafter, drafter, llama
from tiny_emu3 import BOI, CODES, EMPTY, EOF, EOI, EOS, HEIGHT, PROMPTS, ROW_END, WIDTH, WRAPPER, emu3

from mmspec import reference
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.emu3 import Emu3Target
from mmspec.targets.image import ImageTarget

ENDS = (EOF, EOI, EOS)
COUNT = HEIGHT * (WIDTH + 1) + len(ENDS)


@pytest.fixture(scope="module")
def target() -> Emu3Target:
    return Emu3Target(emu3(), HEIGHT, WIDTH, ends=ENDS)


def allowed(batch: int, ids: torch.Tensor) -> list[int]:
    """What may come after ids, as the documentation of transformers says it."""
    offset = len(ids) - int(torch.nonzero(ids == WRAPPER)[0, 0])
    for place, model_id in zip((1, 2, 3), ENDS):
        if offset == (WIDTH + 1) * HEIGHT + place:
            return [model_id]
    return [ROW_END] if offset % (WIDTH + 1) == 0 else CODES


def guided(rows: list[list[int]], guidance: float) -> Prompts:
    return Prompts(rows, [EMPTY] * len(rows) if guidance != 1 else None, guidance)


def drawn(target: Emu3Target, guidance: float, temperature: float, rows=PROMPTS, seed=5, drafted=None) -> list:
    sampling, prompts = SamplingOptions(temperature), guided(rows, guidance)
    return generate(target, prompts, len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seed).tokens


def all_drafters(target: Emu3Target, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(3)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


@torch.inference_mode()
def stepwise(target: Emu3Target, prompt: list[int], guidance: float, seed: int) -> list[int]:
    """Argmax of the model's own forward over the whole sequence and the noise of `seed`, ids allowed by place."""
    rows, ids = [list(prompt), list(EMPTY)], []
    noise = Noise([seed], target.vocabulary_size)
    for place in range(COUNT):
        conditional, unconditional = (emu3()(torch.tensor([row])).logits[0, -1] for row in rows)
        scores = unconditional + guidance * (conditional - unconditional)
        sampled = (scores[target.vocabulary] + noise.gumbel([place], 1)[0, 0]).tolist()
        possible = set(allowed(0, torch.tensor(rows[0])))
        ids.append(max((s, i) for s, i in zip(sampled, target.vocabulary.tolist()) if i in possible)[1])
        for row in rows:
            row.append(ids[-1])
    return ids


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_equals_generate(target: Emu3Target, prompt: list[int], guidance: float) -> None:
    """equality: greedy ids, row ends and ends included, are those of the model's own `generate` (fp64)."""
    ids = torch.tensor([prompt])
    options = {} if guidance == 1 else dict(guidance_scale=guidance, negative_prompt_ids=torch.tensor([EMPTY]))
    options |= dict(prefix_allowed_tokens_fn=allowed, eos_token_id=None, pad_token_id=0, max_new_tokens=COUNT)
    wanted = emu3().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)[0, len(prompt) :]
    assert len(wanted) == COUNT and wanted[-3:].tolist() == [*ENDS] and len(set(wanted.tolist())) > 8
    tokens = drawn(target, guidance, 0.0, [prompt])
    assert target.ids(torch.tensor(tokens[0])).tolist() == wanted.tolist()
    for drafted in all_drafters(target, tokens):
        assert drawn(target, guidance, 0.0, [prompt], drafted=drafted) == tokens


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampled_tokens_are_those_of_the_own_forward(target: Emu3Target, guidance: float) -> None:
    """equality: at T = 1, the same noise and the same law by place (fp64)."""
    for row, prompt in enumerate(PROMPTS):
        (tokens,) = drawn(target, guidance, 1.0, [prompt], 5 + row)
        assert target.ids(torch.tensor(tokens)).tolist() == stepwise(target, prompt, guidance, 5 + row)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drafts_and_batches_equal_plain_decoding(target: Emu3Target, guidance: float, temperature: float) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not (fp64)."""
    plain = [drawn(target, guidance, temperature, [row], 5 + i)[0] for i, row in enumerate(PROMPTS)]
    assert len({str(row) for row in plain}) == 3
    for drafted in all_drafters(target, plain):
        assert drawn(target, guidance, temperature, drafted=drafted) == plain
    for drafted in all_drafters(target, plain[:1]):
        assert drawn(target, guidance, temperature, PROMPTS[:1], drafted=drafted) == plain[:1]


def test_reference_without_guidance(target: Emu3Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """equality: `mmspec verify` compares what is not guided with what is not, whatever generation_config.json says."""
    monkeypatch.setattr(emu3().generation_config, "guidance_scale", 3.0)
    for guidance in (1.0, 2.0):
        prompts, sampling = guided(PROMPTS[:1], guidance), SamplingOptions(0.0)
        ids = reference.greedy_ids(target, prompts, Stop(COUNT), sampling)
        assert ids == target.ids(torch.tensor(drawn(target, guidance, 0.0, PROMPTS[:1])[0])).tolist()


def test_processor_by_place(target: Emu3Target) -> None:
    """equality: `generate_processor` allows what the documentation's function allows, at every place."""
    processor = target.generate_processor(len(PROMPTS[1]))
    ids = [*PROMPTS[1]]
    for _ in range(COUNT):
        scores = processor(torch.tensor([ids]), torch.zeros(1, 140))
        assert set(torch.nonzero(scores[0] == 0).flatten().tolist()) == set(allowed(0, torch.tensor(ids)))
        ids.append(int(scores[0].argmax()))


def test_what_does_not_fit_is_refused() -> None:
    """Other models, and Emu3 as a model of text or of another raster."""
    with pytest.raises(MmspecError, match="LlamaForCausalLM is no Emu3"):
        Emu3Target(llama(), HEIGHT, WIDTH)
    with pytest.raises(MmspecError, match="is no causal language model of transformers"):
        CausalTarget(emu3())
    with pytest.raises(MmspecError, match="is no causal language model of transformers"):
        ImageTarget(emu3(), CODES, Grid(HEIGHT, WIDTH, True), ROW_END)


def test_the_prompt_matters(target: Emu3Target) -> None:
    """negative control: another prompt, or codes in the order of their ids, another picture."""
    plain = drawn(target, 3.0, 0.0, PROMPTS[:1])
    assert plain != drawn(target, 3.0, 0.0, [[PROMPTS[0][0], 50, BOI, WRAPPER]])
    assert target.vocabulary.tolist() == [*CODES, ROW_END, *ENDS] and sorted(CODES) != CODES
