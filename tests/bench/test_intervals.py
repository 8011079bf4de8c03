"""Intervals over prompts: those of scipy, none for one prompt, and the same every time."""

import numpy
import pytest
from scipy.stats import bootstrap

from mmspec.bench.intervals import interval


@pytest.fixture
def runs() -> tuple[list[float], ...]:
    """Tokens, seconds and rounds of 40 prompts; what takes long has many tokens."""
    rng = numpy.random.default_rng(3)
    tokens = rng.integers(20, 200, 40)
    return tokens.tolist(), (tokens / rng.normal(90, 12, 40)).tolist(), (tokens / rng.normal(2, 0.3, 40)).tolist()


def test_as_scipy_has_them(runs: tuple[list[float], ...]) -> None:
    """Ratios of sums, of two runs too: paired, by percentiles; scipy's resamples are others, so nearly the same."""
    tokens, seconds, rounds = runs

    def expected(statistic, *samples: list[float]) -> tuple[float, float]:
        options = dict(paired=True, vectorized=False, method="percentile", n_resamples=4000, rng=1)
        return tuple(bootstrap(samples, statistic, **options).confidence_interval)

    assert interval([tokens], [rounds]) == pytest.approx(
        expected(lambda tokens, rounds: sum(tokens) / sum(rounds), tokens, rounds), rel=0.01
    )
    two = [tokens, seconds[::-1]], [seconds, tokens[::-1]]
    assert interval(*two) == pytest.approx(
        expected(
            lambda a, b, c, d: sum(a) * sum(b) / (sum(c) * sum(d)),
            *(numpy.array(sample) for sample in (*two[0], *two[1])),
        ),
        rel=0.03,
    )
    assert interval(*two) == interval(*two)


def test_what_belongs_together_stays_together(runs: tuple[list[float], ...]) -> None:
    """A drafter that is twice as fast on every prompt has no uncertainty; without pairing it would."""
    tokens, seconds, _ = runs
    half = [second / 2 for second in seconds]
    assert interval([tokens, seconds], [half, tokens]) == pytest.approx([2, 2])
    low, high = interval([tokens, seconds[::-1]], [half, tokens])
    assert high - low > 0.1


def test_one_prompt_says_nothing_of_others() -> None:
    assert interval([[3]], [[2]]) is None
    assert interval([[3, 3]], [[2, 2]]) == [1.5, 1.5]
