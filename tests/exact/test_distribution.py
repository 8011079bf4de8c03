"""Distribution: what a rule emits follows the target's law; a biased use of the same rule is caught by the same test."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import drafter, image_target, llama, prompts

from mmspec.accept import acceptance, perturb
from mmspec.decode import Stop, generate
from mmspec.sampling import Noise, Sampling
from mmspec.targets.causal import CausalTarget
from mmspec.tree import DraftTree

V, SAMPLES = 5, 6000
RNG = np.random.default_rng(0)
FIRST = RNG.dirichlet(np.full(V, 0.8))
SECOND = RNG.dirichlet(np.full(V, 0.8), V)
JOINT = FIRST[:, None] * SECOND
DRAFTS = RNG.dirichlet(np.full(V, 0.8), 3)


def pick(rng: np.random.Generator, law: np.ndarray) -> int:
    return int(rng.choice(V, p=law / law.sum()))


def distinct(rng: np.random.Generator, law: np.ndarray, count: int) -> list[int]:
    """Draws without replacement, in order."""
    drawn: list[int] = []
    for _ in range(count):
        rest = law.copy()
        rest[drawn] = 0
        drawn.append(pick(rng, rest))
    return drawn


# A scheme draws siblings: their tokens, the laws that the tree carries (or none), and whether there was replacement.
def point_masses(rng):
    return [int(token) for token in np.argsort(-DRAFTS[0])[:3]], None, True


def any_point_masses(rng):
    return distinct(rng, np.ones(V), 2), None, True


def one_draw(rng):
    return [pick(rng, DRAFTS[0])], [DRAFTS[0]], True


def three_draws(rng):
    return [pick(rng, DRAFTS[0]) for _ in range(3)], [DRAFTS[0]] * 3, True


def three_laws(rng):
    return [pick(rng, law) for law in DRAFTS], list(DRAFTS), True


def without_replacement(rng):
    return distinct(rng, DRAFTS[0], 3), [DRAFTS[0]] * 3, False


def truncated(rng):
    law = np.where(DRAFTS[1] >= np.sort(DRAFTS[1])[-2], DRAFTS[1], 0)
    law /= law.sum()
    return [pick(rng, law) for _ in range(2)], [law] * 2, True


def exhausted(rng):
    """Every token that the draft's law allows is a sibling, and a few that it does not allow follow."""
    law = np.where(DRAFTS[1] >= np.sort(DRAFTS[1])[-2], DRAFTS[1], 0)
    law /= law.sum()
    drawn = distinct(rng, law, 2)
    return [*drawn, next(token for token in range(V) if token not in drawn)], [law] * 3, False


def top_tokens_said_to_be_drawn(rng):
    """BIASED: the most probable tokens, tested with min(1, p / q) as if they had been drawn."""
    return [int(token) for token in np.argsort(-DRAFTS[0])[:2]], [DRAFTS[0]] * 2, True


def duplicates_dropped(rng):
    """BIASED: independent draws of which repeated ones are left out."""
    drawn = list(dict.fromkeys(pick(rng, DRAFTS[0]) for _ in range(3)))
    return drawn, [DRAFTS[0]] * len(drawn), True


def replacement_confused(rng):
    """BIASED: drawn without replacement, tested as independent draws."""
    return distinct(rng, DRAFTS[0], 3), [DRAFTS[0]] * 3, True


def better_of_two(rng):
    """BIASED: the draft law's favourite among two draws, tested as one draw."""
    return [max((pick(rng, DRAFTS[0]) for _ in range(2)), key=lambda token: DRAFTS[0][token])], [DRAFTS[0]], True


def sample(rule: str, scheme, samples: int = SAMPLES) -> np.ndarray:
    """How often the first two emitted tokens are each pair, over many seeds; each child of the root has children of its own."""
    rng = np.random.default_rng(1)
    counts = np.zeros((V, V))
    for seed in range(samples):
        tokens, parents, laws, first = [0], [-1], [np.zeros(V)], []
        drawn, law, replacement = scheme(rng)
        for parent in range(len(drawn) + 1):
            for i, token in enumerate(drawn):
                tokens.append(token)
                parents.append(parent)
                laws.append(law[i] if law else laws[0])
            if parent == 0:
                first = drawn
            drawn, law, replacement = scheme(rng)
            if law is not None and parent + 1 <= len(first):
                assert len(law) == len(drawn)
        nodes = torch.tensor([tokens])
        depths = torch.tensor([[0] + [1] * len(first) + [2] * (len(tokens) - 1 - len(first))])
        tree = DraftTree(nodes, torch.tensor([parents]), depths, torch.tensor(np.array([laws])) if law else None, replacement)
        after = np.stack([FIRST] + [SECOND[token] for token in tokens[1:]])
        scores = torch.tensor(np.log(after))[None]
        noise = Noise([seed], V)
        emitted = acceptance(rule)(tree, scores, perturb(tree, scores, noise, [3]), noise, [3]).tokens[0]
        second = emitted[1] if len(emitted) > 1 else pick(rng, SECOND[emitted[0]])
        counts[emitted[0], second] += 1
    return counts


def pvalue(counts: np.ndarray) -> float:
    """Chi-square against the target's law of two tokens; rare pairs are pooled."""
    expected = JOINT.flatten() * counts.sum()
    rare = expected < 5
    found = counts.flatten()
    if rare.any():
        expected = np.append(expected[~rare], expected[rare].sum())
        found = np.append(found[~rare], found[rare].sum())
    return stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue


LAWFUL = [point_masses, any_point_masses, one_draw, three_draws, three_laws, without_replacement, truncated, exhausted]
BIASED = [top_tokens_said_to_be_drawn, duplicates_dropped, replacement_confused, better_of_two]


@pytest.mark.parametrize("scheme", LAWFUL, ids=lambda scheme: scheme.__name__)
def test_rejection_keeps_the_law(scheme) -> None:
    """`rejection` emits the target's joint law of two tokens, however the siblings were drawn."""
    assert pvalue(sample("rejection", scheme)) > 1e-4


@pytest.mark.parametrize("scheme", BIASED, ids=lambda scheme: scheme.__name__)
def test_biased_drafts_are_caught(scheme) -> None:
    """Negative control: drafts that lie about how they were drawn bend the law, and this test sees it."""
    assert pvalue(sample("rejection", scheme)) < 1e-6


@pytest.mark.parametrize("rule", ["exact", "tolerance:1"])
@pytest.mark.parametrize("scheme", [point_masses, three_laws], ids=lambda scheme: scheme.__name__)
def test_exact_keeps_the_law(rule: str, scheme) -> None:
    """Over seeds, `exact` (and `tolerance:1`, which is the same) samples the target's law."""
    assert pvalue(sample(rule, scheme)) > 1e-4


@pytest.mark.parametrize("rule", ["tolerance:3", "typical"])
def test_lossy_rules_are_caught(rule: str) -> None:
    """Negative control: the rules that say they are lossy are."""
    assert not acceptance(rule).lossless
    assert pvalue(sample(rule, any_point_masses)) < 1e-6


def joint_law(target: CausalTarget, sampling: Sampling) -> np.ndarray:
    """The target's exact law of two tokens after the prompt, from the bare model."""

    def law(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            logits = target.model(torch.tensor([ids])).logits[:, -1:, target.offset : target.offset + target.vocabulary]
        return sampling.scores(logits)[0, 0].softmax(0).numpy()

    first = law([1, 2])
    return first[:, None] * np.stack([law([1, 2, target.offset + token]) for token in range(target.vocabulary)])


@pytest.mark.parametrize("name", ["none", "lookup", "jacobi", "medusa", "hawk", "hawk-path"])
@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, top_k=2)], ids=["plain", "top_k"])
def test_whole_loop_keeps_the_law(name: str, rule: str, sampling: Sampling) -> None:
    """Tokens 2 and 3 of the loop, over 1 200 seeds in one batch, follow the model's own law given token 1; with each drafter's real drafts."""
    target = CausalTarget(llama(9), offset=3, vocabulary=6)
    rows = 1200
    guess = drafter(name, target)
    found = generate(target, prompts([[1, 2]] * rows), rows, Stop(3), guess, sampling=sampling, seeds=list(range(rows)), rule=rule)
    expected = joint_law(target, sampling)
    counts = np.zeros_like(expected)
    for row in found.tokens:
        counts[row[0], row[1]] += 1
    assert not counts[expected == 0].any()
    kept = expected * rows >= 5
    found_cells = np.append(counts[kept], counts[~kept].sum())
    law = np.append(expected[kept], max(expected[~kept].sum(), 1e-12)) * rows
    keep = law > 1e-6
    assert stats.chisquare(found_cells[keep], law[keep] * found_cells[keep].sum() / law[keep].sum()).pvalue > 1e-4


@pytest.mark.parametrize("name", ["medusa", "hawk", "hawk-path"])
def test_rejection_never_leaves_the_target_support(name: str) -> None:
    """With drawn drafts and a narrow top-k, every token committed is one that the target allows."""
    target, sampling = image_target(), Sampling(1.0, top_k=2)
    seen: list[bool] = []

    def allowed(state, tree, keys, verdict) -> None:
        for row, (path, tokens) in enumerate(zip(verdict.paths, verdict.tokens, strict=True)):
            seen.extend(bool(keys[row, node, token].isfinite()) for node, token in zip(path, tokens, strict=True))

    generate(target, prompts(), 3, Stop(30), drafter(name, target), sampling=sampling, rule="rejection", on_verdict=allowed)
    assert all(seen)
