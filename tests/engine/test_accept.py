"""Acceptance rules by name: what they promise, their options, and every error text."""

import re

import pytest
import torch
from tiny import children, forest

from mmspec.engine.accept import RULES, Accepted, acceptance, add_gumbel
from mmspec.engine.noise import Noise
from mmspec.errors import MmspecError, unknown

NAMES = [
    ("exact", True, False),
    ("rejection", True, True),
    ("tolerance:1", True, False),
    ("tolerance:3", False, False),
    ("tolerance", False, False),
]
NAMES += [("typical", False, False), ("typical:0.2,0.05", False, False), ("lexical:0.5", False, False)]


@pytest.mark.parametrize(("name", "lossless", "needs_draft_probs"), NAMES)
def test_promises(name: str, lossless: bool, needs_draft_probs: bool) -> None:
    """Each rule says whether it is lossless and whether it wants sampled drafts, and so does its docstring."""
    rule = acceptance(name)
    assert (rule.lossless, rule.needs_draft_probs) == (lossless, needs_draft_probs)
    assert acceptance(rule) is rule
    word = "LOSSLESS" if name in ("exact", "rejection") else "LOSSY"
    assert RULES[name.partition(":")[0]].__doc__.startswith(word)


def test_names_carry_their_options() -> None:
    """The name that results and metadata carry reproduces the rule."""
    assert acceptance("tolerance").name == "tolerance:2"
    assert acceptance("tolerance:3").name == "tolerance:3" and acceptance("tolerance:3").tau == 3
    rule = acceptance("typical:0.2,0.05")
    assert (rule.epsilon, rule.delta, rule.name) == (0.2, 0.05, "typical:0.2,0.05") and acceptance(rule.name) == rule


ERRORS = {
    "exakt": (
        "unknown acceptance 'exakt': did you mean 'exact'? known are exact, lexical, rejection, tolerance, typical"
    ),
    "": "unknown acceptance '': known are exact, lexical, rejection, tolerance, typical",
    "tolerance:two": (
        "acceptance 'tolerance:two': what follows the colon must be numbers, as in 'tolerance:3' or 'typical:0.3,0.09'"
    ),
    "exact:1": "acceptance 'exact' takes no options: give 'exact' alone",
    "rejection:0.5": "acceptance 'rejection' takes no options: give 'rejection' alone",
    "tolerance:0": "acceptance 'tolerance:0': tolerance takes one whole number from 1 to 64, as in 'tolerance:3'",
    "tolerance:2.5": "acceptance 'tolerance:2.5': tolerance takes one whole number from 1 to 64, as in 'tolerance:3'",
    "tolerance:2,3": "acceptance 'tolerance:2,3': tolerance takes one whole number from 1 to 64, as in 'tolerance:3'",
    "tolerance:inf": "acceptance 'tolerance:inf': tolerance takes one whole number from 1 to 64, as in 'tolerance:3'",
    "tolerance:nan": "acceptance 'tolerance:nan': tolerance takes one whole number from 1 to 64, as in 'tolerance:3'",
    "typical:0.3": "acceptance 'typical:0.3': typical takes epsilon and delta in (0, 1], as in 'typical:0.3,0.09'",
    "typical:0,0.5": "acceptance 'typical:0,0.5': typical takes epsilon and delta in (0, 1], as in 'typical:0.3,0.09'",
    "lexical:0": "acceptance 'lexical:0': lexical takes one number in (0, 1], as in 'lexical:0.9'",
    "lexical:1.5": "acceptance 'lexical:1.5': lexical takes one number in (0, 1], as in 'lexical:0.9'",
    "typical:2,0.5": "acceptance 'typical:2,0.5': typical takes epsilon and delta in (0, 1], as in 'typical:0.3,0.09'",
}


@pytest.mark.parametrize(("name", "text"), ERRORS.items())
def test_errors(name: str, text: str) -> None:
    """A wrong name or option is refused with what was given, what was expected and what to do."""
    with pytest.raises(MmspecError, match=f"^{re.escape(text)}$"):
        acceptance(name)


def test_unknown_names_near_matches_first() -> None:
    """Several near matches are all named; none leaves the list."""
    assert str(unknown("drafter", "hawk-pat", ["hawk", "hawk-path", "none"])) == (
        "unknown drafter 'hawk-pat': did you mean 'hawk-path' or 'hawk'? known are hawk, hawk-path, none"
    )
    assert str(unknown("model", "zzz", [])) == "unknown model 'zzz': known are none"


def bench(seed: int = 0, vocabulary: int = 8):
    """A two-row tree, its scores and its noise."""
    tree = forest([[-1, 0, 0, 1, 1, 2], [-1, 0, 1, 2]], [[0, 1, 2, 3, 4, 5], [0, 6, 7, 1]])
    scores = torch.randn(2, tree.size, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = Noise([seed, seed + 50], vocabulary)
    counts = [2, 5]
    return tree, scores, add_gumbel(tree, scores, noise, counts), noise, counts, frozenset()


@pytest.mark.parametrize("seed", range(40))
def test_tolerance_one_is_exact(seed: int) -> None:
    """Among one draw there is only the sample."""
    assert acceptance("tolerance:1")(*bench(seed)).read() == acceptance("exact")(*bench(seed)).read()


def test_tolerance_accepts_more() -> None:
    """The larger tau, the longer the paths; a tau of the whole vocabulary accepts to a leaf."""
    kept = [
        sum(len(path) for seed in range(60) for path in acceptance(f"tolerance:{tau}")(*bench(seed)).read().paths)
        for tau in (1, 2, 4, 8)
    ]
    assert kept == sorted(kept) and kept[0] < kept[1]
    tree = bench()[0]
    for row, path in enumerate(acceptance("tolerance:8")(*bench()).read().paths):
        assert not children(tree)[row][path[-1]]


def test_tolerance_refuses_forbidden_tokens() -> None:
    """A token of law zero is no draw, however large tau is."""
    tree, scores, _, noise, counts, _ = bench()
    scores[:, :, [1, 2, 6]] = -torch.inf
    gumbel_scores = add_gumbel(tree, scores, noise, counts)
    accepted = acceptance("tolerance:8")(tree, scores, gumbel_scores, noise, counts, frozenset())
    assert accepted.read().paths == [[0], [0]]


@pytest.mark.parametrize("name", ["tolerance:8", "typical:1,1", "lexical:0.05"])
def test_lossy_rules_keep_protected_tokens(name: str) -> None:
    """Where the target's own sample is a protected token, or a child is one, only the sample is accepted; elsewhere
    nothing changes.
    """
    protected, met, exchanged = frozenset({1, 7}), 0, 0
    for seed in range(60):
        tree, _, gumbel_scores, noise, counts, _ = case = bench(seed)
        samples = gumbel_scores.argmax(2)
        for row, path in enumerate(acceptance(name)(*case[:-1], protected).read().paths):
            for node, child in zip(path, path[1:]):
                pair = {int(samples[row, node]), int(tree.tokens[row, child])}
                assert len(pair) == 1 or not pair & protected
                met += bool(pair & protected)
                exchanged += len(pair) == 2
    assert met and exchanged


def test_typical_threshold() -> None:
    """A child is accepted when its probability exceeds min(epsilon, delta exp(-H)), the most probable child first."""
    tree, scores, _, noise, counts, _ = bench()
    scores[:] = 0.0
    rest = (add_gumbel(tree, scores, noise, counts), noise, counts, frozenset())
    assert acceptance("typical:0.3,0.5")(tree, scores, *rest).read().paths[1] == [0, 1, 2, 3]
    scores[0, 0, 2] = 1.0
    assert acceptance("typical")(tree, scores, *rest).read().paths[0][1] == 2
    scores[:, 0, 7] = 10.0
    assert acceptance("typical")(tree, scores, *rest).read().paths == [[0], [0]]


def test_lexical_threshold() -> None:
    """A child is accepted that has at least the probability alpha, the most probable first."""
    tree, scores, _, noise, counts, _ = bench()
    scores[:] = 0.0
    rest = (add_gumbel(tree, scores, noise, counts), noise, counts, frozenset())
    even = 1 / scores.shape[2]
    assert acceptance(f"lexical:{even * 0.99}")(tree, scores, *rest).read().paths[1] == [0, 1, 2, 3]
    sampled = acceptance("exact")(tree, scores, *rest).read().paths
    assert acceptance(f"lexical:{even * 1.01}")(tree, scores, *rest).read().paths == sampled
    scores[0, 0, 2] = 1.0
    assert acceptance(f"lexical:{even * 0.5}")(tree, scores, *rest).read().paths[0][1] == 2


def test_accepted_paths_are_paths() -> None:
    """Every rule gives, per row, a path from the root down and one token for each of its nodes; accepted ones are the
    children's.
    """
    for name in ("exact", "rejection", "tolerance:4", "typical", "lexical:0.1"):
        for seed in range(20):
            tree, *rest = bench(seed)
            accepted = acceptance(name)(tree, *rest).read()
            for row, (path, tokens) in enumerate(zip(accepted.paths, accepted.tokens, strict=True)):
                assert path[0] == 0 and len(path) == len(tokens)
                assert [int(tree.parents[row, node]) for node in path[1:]] == path[:-1]
                assert [int(tree.tokens[row, node]) for node in path[1:]] == tokens[:-1]


def test_own_rule() -> None:
    """A rule of one's own is used as it is."""

    class Never:
        """Lossless: accepts nothing."""

        needs_draft_probs, lossless, name, usage = False, True, "never", ""

        def __call__(self, tree, scores, gumbel_scores, noise, counts, protected) -> Accepted:
            samples = gumbel_scores.argmax(2)
            zeros = torch.zeros_like(samples[:, :1])
            return Accepted(zeros, samples[:, :1], zeros[:, 0] + 1, samples)

    rule = Never()
    assert acceptance(rule) is rule and rule(*bench()).read().paths == [[0], [0]]
