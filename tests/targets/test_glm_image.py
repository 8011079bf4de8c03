"""GLM-Image draws the codes of its own `generate`, drafted or not, alone or in a batch."""

import pytest
import torch
from tiny import OracleDrafter, drafter, llama
from tiny_glm_image import GRIDS, PROMPTS, glm_image

from mmspec import reference
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.glm_image import GlmImageTarget

COUNT = sum(height * width for height, width in GRIDS)


@pytest.fixture(scope="module")
def target() -> GlmImageTarget:
    return GlmImageTarget(glm_image(), GRIDS)


def drawn(target: GlmImageTarget, temperature: float, rows=PROMPTS, seed=5, drafted=None) -> list:
    sampling = SamplingOptions(temperature)
    return generate(target, Prompts(rows), len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seed).tokens


def all_drafters(target: GlmImageTarget, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(3)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


def grids_of(rows: int) -> dict[str, torch.Tensor]:
    """What the model's forward is told of the pictures, as its processor says it."""
    grids = torch.tensor([[1, *grid] for grid in GRIDS]).repeat(rows, 1)
    return {"image_grid_thw": grids, "images_per_sample": torch.tensor([len(GRIDS)] * rows)}


def positions_by_hand(prompt: int) -> torch.Tensor:
    """The prompt counts on; the preview's grid begins where it ends, and the picture's after the preview's longer side.

    (The figure of a grid's rows and columns is that of its model card: temporal, row, column.)
    """
    columns, first = [[place] * 3 for place in range(prompt)], prompt
    for height, width in reversed(GRIDS):
        columns += [[first, first + row, first + column] for row in range(height) for column in range(width)]
        first += max(height, width)
    return torch.tensor(columns).T[:, None]


@torch.inference_mode()
def stepwise(target: GlmImageTarget, prompt: list[int], seed: int) -> list[int]:
    """The layers over the whole sequence without a cache, again for every code, with the noise of `seed`."""
    ids, codes, positions = list(prompt), [], positions_by_hand(len(prompt))
    noise = Noise([seed], target.vocabulary_size)
    for place in range(COUNT):
        options = dict(position_ids=positions[..., : len(ids)], use_cache=False)
        hidden = glm_image().model.language_model(torch.tensor([ids]), **options).last_hidden_state[0, -1]
        scores = glm_image().lm_head(hidden)[: target.vocabulary_size]
        codes.append(int((scores + noise.gumbel([place], 1)[0, 0]).argmax()))
        ids.append(codes[-1])
    return codes


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_equals_generate(target: GlmImageTarget, prompt: list[int]) -> None:
    """equality: greedy codes are those of the model's own `generate`, kept to codes, with any drafter (fp64)."""
    ids = torch.tensor([prompt])
    options = dict(do_sample=False, max_new_tokens=COUNT, suppress_tokens=[60, 61, 62, 63], **grids_of(1))
    expected = glm_image().generate(ids, attention_mask=torch.ones_like(ids), **options)[:, len(prompt) :].tolist()
    assert len(set(expected[0])) > 6
    for drafted in all_drafters(target, expected):
        assert drawn(target, 0.0, [prompt], drafted=drafted) == expected
    assert reference.greedy_ids(target, Prompts([prompt]), Stop(COUNT), SamplingOptions(0.0)) == expected[0]


def test_sampled_tokens_are_those_of_the_own_layers(target: GlmImageTarget) -> None:
    """equality: at T = 1 with the same noise, at positions that are counted by hand (fp64)."""
    for row, prompt in enumerate(PROMPTS):
        assert drawn(target, 1.0, [prompt], 5 + row) == [stepwise(target, prompt, 5 + row)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_and_batches_equal_plain_decoding(target: GlmImageTarget, temperature: float) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not (fp64)."""
    plain = [drawn(target, temperature, [row], 5 + i)[0] for i, row in enumerate(PROMPTS)]
    assert len({str(row) for row in plain}) == 3
    for drafted in all_drafters(target, plain):
        assert drawn(target, temperature, drafted=drafted) == plain
    for drafted in all_drafters(target, plain[:1]):
        assert drawn(target, temperature, PROMPTS[:1], drafted=drafted) == plain[:1]


def test_rows_that_join_and_leave(target: GlmImageTarget) -> None:
    """equality: a row that joins while others are drawn, and goes on when they leave, has its own positions."""
    plain = [drawn(target, 1.0, [row], 5 + i)[0] for i, row in enumerate(PROMPTS)]
    batch = Batch(target, drafter("jacobi", target), SamplingOptions(1.0))
    tokens: list[list[int]] = [[], [], []]

    def add(rows: list[int], new: list[list[int]]) -> None:
        for row, more in zip(rows, new, strict=True):
            tokens[row] += more

    add([0, 1], batch.join(Prompts(PROMPTS[:2]), [5, 6], Stop(COUNT)).tokens)
    add([0, 1], batch.round().tokens)
    add([0, 1, 2], batch.join(Prompts(PROMPTS[2:]), [7], Stop(COUNT)).tokens)
    add([0, 1, 2], batch.round().tokens)
    batch.keep([2, 0])
    while any(batch.running):
        add([2, 0], batch.round().tokens)
    assert tokens[0] == plain[0] and tokens[2] == plain[2] and tokens[1] == plain[1][: len(tokens[1])]


def test_positions_matter(target: GlmImageTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: counted on in one dimension, other codes; another prompt or picture, too."""
    right = drawn(target, 1.0)
    assert right[0] != drawn(target, 1.0, PROMPTS[1:2])[0]
    assert right[0] != drawn(GlmImageTarget(glm_image(), [(6, 4), (3, 2)]), 1.0)[0]
    monkeypatch.setattr(GlmImageTarget, "position_ids", CausalTarget.position_ids)
    assert drawn(target, 1.0) != right


def test_what_does_not_fit_is_refused() -> None:
    """Other models, and GLM-Image as a language model."""
    with pytest.raises(MmspecError, match="LlamaForCausalLM is no GLM-Image"):
        GlmImageTarget(llama(), GRIDS)
    with pytest.raises(MmspecError, match="is no causal language model of transformers"):
        CausalTarget(glm_image())
