"""Equality: the same seed gives the same tokens with any drafter, any tree, any batch, or none."""

from functools import cache
from itertools import product

import pytest
import torch
from tiny import DRAFTERS, GRID, TEXTS, OracleDrafter, drafter, image_target, plain, prompts, text_target
from transformers.generation import logits_process as hf

from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions

PROCESSORS = {
    "plain": {},
    "top_k": {"top_k": 6},
    "top_p": {"top_p": 0.7},
    "mixed": {"top_k": 12, "top_p": 0.9, "min_p": 0.02},
    "repetition": {"logits_processor": [hf.RepetitionPenaltyLogitsProcessor(1.6), hf.NoRepeatNGramLogitsProcessor(3)]},
}


# All that is combined; what is not quick is left to `-m slow`.
SETTINGS = [(0, 1.0, "plain"), (0, 3.0, "plain")]
SETTINGS += product((0.7, 1), (1.0, 3.0), ("plain", "top_k", "top_p", "mixed"))
QUICK = [(0, 3.0, "plain"), (0.7, 1.0, "top_p"), (1, 3.0, "mixed")]


@cache
def case(kind: str, temperature: float, guidance: float, processors: str):
    """A target, its sampling, and what plain decoding of single prompts says."""
    target = image_target() if kind == "image" else text_target()
    sampling = SamplingOptions(temperature, **PROCESSORS[processors])
    length = GRID.tokens if kind == "image" else 24
    return target, sampling, length, plain(target, length, sampling, guidance=guidance)


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize(
    ("temperature", "guidance", "processors"),
    [setting if setting in QUICK else pytest.param(*setting, marks=pytest.mark.slow) for setting in SETTINGS],
)
def test_image_tokens_equal_plain_decoding(name: str, temperature: float, guidance: float, processors: str) -> None:
    """A ragged batch of three under any drafter says what three single plain generations say (fp64)."""
    target, sampling, length, wanted = case("image", temperature, guidance, processors)
    found = generate(
        target, prompts(guidance=guidance), 3, Stop(length), drafter(name, target), sampling=sampling, seeds=5
    )
    assert found.tokens == wanted
    assert found.stats.lossless


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("temperature", [pytest.param(0, marks=pytest.mark.slow), 0.7])
def test_single_prompt_equals_plain_decoding(name: str, temperature: float) -> None:
    """A batch of one, guided: every row of the ragged batch alone gives the same tokens (batch equals singles)."""
    target, sampling, length, wanted = case("image", temperature, 3.0, "plain")
    for row, text in enumerate(TEXTS):
        found = generate(
            target, prompts([text], 3.0), 1, Stop(length), drafter(name, target), sampling=sampling, seeds=[5 + row]
        )
        assert found.tokens == [wanted[row]]


@pytest.mark.parametrize("name", ["none", "lookup", "jacobi"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_processors_that_read_the_prefix(name: str, temperature: float) -> None:
    """Repetition penalty and banned n-grams see each node's own path (fp64, ragged batch)."""
    target, sampling, length, wanted = case("text", temperature, 1.0, "repetition")
    assert (
        generate(target, prompts(), 3, Stop(length), drafter(name, target), sampling=sampling, seeds=5).tokens == wanted
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [0, 0.7, 1])
def test_deep_accepts_in_random_trees(temperature: float, guidance: float, seed: int) -> None:
    """Random trees that know most answers: long paths through scattered nodes are compacted, and the tokens
    stay equal.
    """
    target, sampling, length, wanted = case("image", temperature, guidance, "plain")
    oracle = OracleDrafter(wanted, target.vocabulary_size, seed=seed)
    found = generate(target, prompts(guidance=guidance), 3, Stop(length), oracle, sampling=sampling, seeds=5)
    assert found.tokens == wanted
    assert found.stats.mean_acceptance_length > 2


@pytest.mark.parametrize("seed", range(3))
def test_deep_accepts_with_prefix_processors(seed: int) -> None:
    """The same, with processors that read each node's path."""
    target, sampling, length, wanted = case("text", 1, 1.0, "repetition")
    found = generate(
        target,
        prompts(),
        3,
        Stop(length),
        OracleDrafter(wanted, target.vocabulary_size, seed=seed),
        sampling=sampling,
        seeds=5,
    )
    assert found.tokens == wanted
    assert found.stats.mean_acceptance_length > 2


def test_useless_trees_change_nothing() -> None:
    """Trees that are always wrong commit one token a round, the right one."""
    target, sampling, length, wanted = case("image", 1, 1.0, "plain")
    wrong = [[(token + 1) % target.vocabulary_size for token in row] for row in wanted]
    chains = OracleDrafter(wrong, target.vocabulary_size, honesty=1.0)
    found = generate(target, prompts(), 3, Stop(length), chains, sampling=sampling, seeds=5)
    assert found.tokens == wanted
    assert found.stats.mean_acceptance_length < 1.2


def test_seeds_matter_and_batch_order_does_not() -> None:
    """Another seed gives other tokens; rows in another order give the same rows."""
    target, sampling, length, wanted = case("image", 1, 1.0, "plain")
    assert plain(target, length, sampling, seed=77) != wanted
    order = [2, 0, 1]
    found = generate(
        target,
        prompts([TEXTS[row] for row in order]),
        3,
        Stop(length),
        drafter("jacobi", target),
        sampling=sampling,
        seeds=[5 + row for row in order],
    )
    assert found.tokens == [wanted[row] for row in order]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-3), (torch.bfloat16, 1.0)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_lower_precision_parts_only_at_near_ties(
    dtype: torch.dtype, noise: float, guidance: float, record_property
) -> None:
    """fp32 and bf16: until the first mismatch the two runs see the same keys up to rounding, and there the margin is as
    small.
    """
    target, length, same = image_target(dtype), GRID.tokens, 0
    for seed in range(4):
        for text in TEXTS:
            runs = []
            for name in ("none", "jacobi"):
                seen: dict[int, torch.Tensor] = {}

                def record(state, tree, keys, verdict, seen=seen) -> None:
                    for depth, node in enumerate(verdict.paths[0]):
                        seen[state.counts[0] + depth] = keys[0, node].clone()

                found = generate(
                    target,
                    prompts([text], guidance),
                    1,
                    Stop(length),
                    drafter(name, target),
                    seeds=[seed],
                    on_accept=record,
                )
                runs.append((found.tokens[0], seen))
            (a, keys_a), (b, keys_b) = runs
            split = next((place for place, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), None)
            same += split is None
            for place in range(length if split is None else split + 1):
                finite = keys_a[place].isfinite()
                assert float((keys_a[place] - keys_b[place])[finite].abs().max()) < noise
            if split is not None:
                assert float(keys_a[split][a[split]] - keys_a[split][b[split]]) < noise
    record_property("equal generations", f"{same} of {4 * len(TEXTS)}")
    if dtype == torch.float32:
        assert same == 4 * len(TEXTS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("temperature", [0, 1])
def test_equality_on_cuda(name: str, temperature: float) -> None:
    """On a GPU every drafter says what plain decoding says there, and in fp64 what the CPU says."""
    target, sampling = image_target(device="cuda"), SamplingOptions(temperature)
    wanted = plain(target, GRID.tokens, sampling, guidance=3.0)
    found = generate(
        target, prompts(guidance=3.0), 3, Stop(GRID.tokens), drafter(name, target), sampling=sampling, seeds=5
    )
    assert found.tokens == wanted == case("image", temperature, 3.0, "plain")[3]


@pytest.mark.gpu
def test_random_trees_on_cuda() -> None:
    """Deep accepts and compaction on a GPU."""
    target = image_target(device="cuda")
    wanted = plain(target, GRID.tokens, guidance=3.0)
    found = generate(
        target, prompts(guidance=3.0), 3, Stop(GRID.tokens), OracleDrafter(wanted, target.vocabulary_size), seeds=5
    )
    assert found.tokens == wanted
    assert found.stats.mean_acceptance_length > 2
