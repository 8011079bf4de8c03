"""Distribution: what a rule emits follows the target's law; a biased use of the same rule is caught by the
same test.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import drafter, forest, image_target, llama, prompts
from tiny_vlm import built

from mmspec.engine.accept import acceptance, add_gumbel
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.targets.causal import CausalTarget

V, SAMPLES = 5, 4000
FIRST = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
SECOND = np.random.default_rng(0).dirichlet(np.full(V, 2.0), V)
JOINT = FIRST[:, None] * SECOND
DRAFTS = np.array([[0.55, 0.25, 0.1, 0.06, 0.04], [0.1, 0.1, 0.5, 0.05, 0.25], [0.2, 0.2, 0.2, 0.2, 0.2]])


def pick(rng: np.random.Generator, law: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(law), rng.random() * law.sum(), side="right"))


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


def sample(rule: str, scheme) -> np.ndarray:
    """How often the first two emitted tokens are each pair, one seed a row; each child of the root has children of its
    own.
    """
    rng = np.random.default_rng(1)
    tokens, parents, laws = [], [], []
    for _ in range(SAMPLES):
        first, law, replacement = scheme(rng)
        row, above, drawn_from = [0, *first], [-1] + [0] * len(first), [np.zeros(V), *(law or [])]
        for parent in range(1, len(first) + 1):
            below, law, _ = scheme(rng)
            row += below
            above += [parent] * len(below)
            drawn_from += law or []
        tokens.append(row)
        parents.append(above)
        laws.append(drawn_from)
    tree = forest(parents, tokens)
    if law:
        padded = np.zeros((SAMPLES, tree.size, V))
        for row, drawn_from in enumerate(laws):
            padded[row, : len(drawn_from)] = drawn_from
        tree = replace(tree, probs=torch.tensor(padded), with_replacement=replacement)
    after = np.where((tree.depths.numpy() == 0)[..., None], FIRST, SECOND[tree.tokens.numpy()])
    scores, noise = torch.tensor(np.log(after)), Noise(list(range(SAMPLES)), V)
    positions = [3] * SAMPLES
    counts = np.zeros((V, V))
    accepted = acceptance(rule)(tree, scores, add_gumbel(tree, scores, noise, positions), noise, positions, frozenset())
    for emitted in accepted.read().tokens:
        counts[emitted[0], emitted[1] if len(emitted) > 1 else pick(rng, SECOND[emitted[0]])] += 1
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


@pytest.mark.slow
@pytest.mark.parametrize("scheme", LAWFUL, ids=lambda scheme: scheme.__name__)
def test_rejection_keeps_the_law(scheme) -> None:
    """`rejection` emits the target's joint law of two tokens, however the siblings were drawn."""
    assert pvalue(sample("rejection", scheme)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("scheme", BIASED, ids=lambda scheme: scheme.__name__)
def test_biased_drafts_are_caught(scheme) -> None:
    """Negative control: drafts that lie about how they were drawn bend the law, and this test sees it."""
    assert pvalue(sample("rejection", scheme)) < 1e-6


@pytest.mark.parametrize("rule", ["exact", "tolerance:1"])
@pytest.mark.parametrize("scheme", [point_masses, three_laws], ids=lambda scheme: scheme.__name__)
def test_exact_keeps_the_law(rule: str, scheme) -> None:
    """Over seeds, `exact` (and `tolerance:1`, which is the same) samples the target's law."""
    assert pvalue(sample(rule, scheme)) > 1e-4


@pytest.mark.parametrize("rule", ["tolerance:3", "typical", "lexical:0.1"])
def test_lossy_rules_are_caught(rule: str) -> None:
    """Negative control: the rules that say they are lossy are."""
    assert not acceptance(rule).lossless
    assert pvalue(sample(rule, any_point_masses)) < 1e-6


def joint_law(target: CausalTarget, sampling: SamplingOptions) -> np.ndarray:
    """The target's exact law of the second and third token after the prompt, from the bare model."""
    codes = range(target.vocabulary_size)

    def laws(prefixes: list[list[int]]) -> np.ndarray:
        with torch.inference_mode():
            logits = target.model(torch.tensor(prefixes)).logits[:, -1:, target.vocabulary]
        return sampling.scores(logits)[:, 0].softmax(1).numpy()

    def after(*tokens: int) -> list[int]:
        return [1, 2, *(int(target.vocabulary[token]) for token in tokens)]

    first = laws([after()])[0]
    second = laws([after(one) for one in codes])
    third = laws([after(one, two) for one in codes for two in codes]).reshape(len(codes), len(codes), -1)
    return np.einsum("a,ab,abc->bc", first, second, third)


def loop_pvalue(
    name: str, rule: str, sampling: SamplingOptions, careless: bool = False, chains_only: bool = False, paths: int = 0
) -> float:
    """Chi-square of tokens two and three of the whole loop, over 400 seeds in one batch, against the model's
    own law.
    """
    target, rows = CausalTarget(llama(9), range(3, 9)), 400
    target.deterministic = chains_only
    guesser = built() if name == "msd" else drafter(name, target)
    if careless:
        guesser.nodes, guesser.coupled = 3, False
    if paths:
        guesser.paths = paths
    options = dict(sampling=sampling, seeds=list(range(rows)), rule=rule)
    result = generate(target, prompts([[1, 2]] * rows), rows, Stop(6), guesser, **options)
    expected = joint_law(target, sampling)
    counts = np.zeros_like(expected)
    for row in result.tokens:
        counts[row[1], row[2]] += 1
    if counts[expected == 0].any():
        return 0.0
    frequent = expected * rows >= 5
    observed = np.append(counts[frequent], counts[~frequent].sum())
    law = np.append(expected[frequent], max(expected[~frequent].sum(), 1e-12)) * rows
    possible = law > 1e-6
    scale = observed[possible].sum() / law[possible].sum()
    return float(stats.chisquare(observed[possible], law[possible] * scale).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "lookup", "jacobi", "medusa", "vadusa", "hawk", "hawk-path", "msd"])
@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize("sampling", [SamplingOptions(1.0), SamplingOptions(1.0, top_k=2)], ids=["plain", "top_k"])
def test_whole_loop_keeps_the_law(name: str, rule: str, sampling: SamplingOptions) -> None:
    """With each drafter's real trees the loop samples the target's law."""
    assert loop_pvalue(name, rule, sampling) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medusa", "vadusa", "hawk-path", "msd"])
def test_drawn_trees_may_be_cut_to_chains(name: str) -> None:
    """The first child of each node is a draw from the distribution that the tree names: the law is kept."""
    assert loop_pvalue(name, "rejection", SamplingOptions(1.0), chains_only=True) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hawk-path", "redrafter", "msd"])
@pytest.mark.parametrize("sampling", [SamplingOptions(1.0), SamplingOptions(1.0, top_k=2)], ids=["plain", "top_k"])
def test_beams_that_are_drawn_keep_the_law(name: str, sampling: SamplingOptions) -> None:
    """Paths by stochastic beam search: siblings without replacement, as many as the beam has."""
    assert loop_pvalue(name, "rejection", sampling, paths=4) > 1e-4


@pytest.mark.parametrize("name", ["hawk-path", "redrafter"])
def test_beams_have_their_width(name: str) -> None:
    """Each level has as many nodes as there are paths, siblings of it in different numbers."""
    target, levels, families = image_target(), set(), set()
    guesser: Any = drafter(name, target)
    guesser.paths = 3

    def seen(state, tree, gumbel_scores, accepted) -> None:
        for row in range(len(tree.tokens)):
            depths, parents = tree.depths[row, 1:], tree.parents[row, 1:]
            levels.update(depths.bincount()[1:].tolist())
            families.update(parents[parents >= 0].bincount().tolist())

    generate(target, prompts(), 3, Stop(20), guesser, rule="rejection", on_accept=seen)
    assert 3 in levels and max(levels) == 3 and {1, 2} <= families  # a single node where a token is forced


@pytest.mark.parametrize("name", ["jacobi", "vadusa", "msd"])
def test_a_lossy_rule_in_the_loop_is_caught(name: str) -> None:
    """Negative control of the whole loop: where few tokens are drafted, tolerance bends the law, and this test
    sees it.
    """
    assert loop_pvalue(name, "tolerance:3", SamplingOptions(1.0), careless=True) < 1e-4


@pytest.mark.parametrize("name", ["medusa", "hawk", "hawk-path"])
def test_rejection_never_leaves_the_target_support(name: str) -> None:
    """With drawn drafts and a narrow top-k, every token committed is one that the target allows."""
    target, sampling = image_target(), SamplingOptions(1.0, top_k=2)
    seen: list[bool] = []

    def allowed(state, tree, gumbel_scores, accepted) -> None:
        for row, (path, tokens) in enumerate(zip(accepted.paths, accepted.tokens, strict=True)):
            seen.extend(
                bool(gumbel_scores[row, node, token].isfinite()) for node, token in zip(path, tokens, strict=True)
            )

    generate(
        target, prompts(), 3, Stop(30), drafter(name, target), sampling=sampling, rule="rejection", on_accept=allowed
    )
    assert all(seen)
