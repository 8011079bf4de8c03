"""Chameleon and Lumina-mGPT draw what their output head says of codes, drafted or not, alone or in a batch."""

from dataclasses import dataclass

import pytest
import torch
from tiny import OracleDrafter, drafter
from tiny_chameleon import BOI, BOS, BREAK, CODES, PROMPTS, ROW_END, SIDE, SIZES, TURN, chameleon, lumina

from mmspec import reference
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.chameleon import ChameleonTarget, LuminaTarget
from mmspec.targets.image import ImageTarget

# Six rows of two codes: a picture of 12×4 pixels, 3 by 1 in the units of its size tokens.
BEGIN = [BREAK, SIZES[2], SIZES[0]]


@dataclass
class Case:
    """A target, prompts of different length, what guides away from them, and the ids that each place may have."""

    target: ChameleonTarget
    prompts: list[list[int]]
    empty: list[int]
    allowed: list[list[int]]


@pytest.fixture(scope="module", params=["chameleon", "lumina"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "chameleon":
        return Case(ChameleonTarget(chameleon()), PROMPTS, [BOS, BOI], [CODES] * SIDE**2)
    prompts = [[*row[:-2], TURN, *BEGIN] for row in PROMPTS]
    return Case(LuminaTarget(lumina(), 6, 2), prompts, BEGIN, [CODES, CODES, [ROW_END]] * 6)


def guided(case: Case, guidance: float, rows: slice = slice(None)) -> Prompts:
    prompts = case.prompts[rows]
    return Prompts(prompts, [case.empty] * len(prompts) if guidance != 1 else None, guidance)


def drawn(case: Case, guidance: float, temperature: float, rows=slice(None), seed=5, drafted=None) -> list:
    sampling, prompts, stop = SamplingOptions(temperature), guided(case, guidance, rows), Stop(len(case.allowed))
    count = len(prompts.conditional)
    return generate(case.target, prompts, count, stop, drafted, sampling=sampling, seeds=seed).tokens


def all_drafters(target: ChameleonTarget, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(3)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


@torch.inference_mode()
def stepwise(case: Case, prompt: list[int], guidance: float, seed: int | None) -> list[int]:
    """The ids that the model's layers and its head give over the whole sequence, with the noise of `seed` or none."""
    model, ids = case.target.model, case.target.vocabulary.tolist()
    rows, found = [list(prompt), list(case.empty)], []
    noise = Noise([seed or 0], len(ids), greedy=seed is None)
    for place, allowed in enumerate(case.allowed):
        hidden = [model.model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        conditional, unconditional = (model.lm_head(vector)[ids] for vector in hidden)
        scores = (unconditional + guidance * (conditional - unconditional) + noise.gumbel([place], 1)[0, 0]).tolist()
        found.append(max(allowed, key=lambda model_id: scores[ids.index(model_id)]))
        for row in rows:
            row.append(found[-1])
    return found


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ids_are_those_of_the_own_layers(case: Case, guidance: float) -> None:
    """equality: greedy, and at T = 1 with the same noise (fp64)."""
    for row, prompt in enumerate(case.prompts):
        for temperature, seed in ((0.0, None), (1.0, 5 + row)):
            (tokens,) = drawn(case, guidance, temperature, slice(row, row + 1), seed or 0)
            assert case.target.vocabulary[tokens].tolist() == stepwise(case, prompt, guidance, seed)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ids_are_those_of_generate_that_may_say_codes(case: Case, guidance: float) -> None:
    """equality: greedy plain decoding and the model's own `generate`, which forbids codes again afterwards (fp64)."""
    forbidden = case.target.model.model.vocabulary_mapping.image_tokens
    for row in range(3):
        (tokens,) = drawn(case, guidance, 0.0, slice(row, row + 1))
        prompts, stop = guided(case, guidance, slice(row, row + 1)), Stop(len(case.allowed))
        ids = reference.greedy_ids(case.target, prompts, stop, SamplingOptions(0.0))
        assert ids == case.target.vocabulary[tokens].tolist()
    assert case.target.model.model.vocabulary_mapping.image_tokens == forbidden == sorted(CODES)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drafts_and_batches_equal_plain_decoding(case: Case, guidance: float, temperature: float) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not (fp64)."""
    plain = [drawn(case, guidance, temperature, slice(i, i + 1), 5 + i)[0] for i in range(3)]
    assert len({str(row) for row in plain}) == 3
    for drafted in all_drafters(case.target, plain):
        assert drawn(case, guidance, temperature, drafted=drafted) == plain
    for drafted in all_drafters(case.target, plain[:1]):
        assert drawn(case, guidance, temperature, slice(0, 1), drafted=drafted) == plain[:1]


def test_the_forward_of_transformers_is_refused() -> None:
    """negative control: read as any model of codes, it does not give its own logits."""
    with pytest.raises(MmspecError, match="does not give its own logits"):
        ImageTarget(chameleon(), CODES, Grid(SIDE, SIDE))
