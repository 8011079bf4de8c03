"""Confidence intervals over prompts, by the percentile bootstrap (Efron 1979)."""

from collections.abc import Sequence

import numpy

RESAMPLES = 2000
LEVEL = 0.95


def interval(numerators: Sequence[Sequence[float]], denominators: Sequence[Sequence[float]]) -> list[float] | None:
    """The 95 % interval of a product of sums over a product of sums, such as tokens over rounds.

    Each sequence has a number for each prompt. All are resampled together, with a fixed seed, so that what belongs to
    one prompt stays together. None for fewer than two prompts, which say nothing of others.
    """
    count = len(numerators[0])
    if count < 2:
        return None
    chosen = numpy.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    ratios = numpy.ones(RESAMPLES)
    for values in numerators:
        ratios *= numpy.asarray(values, float)[chosen].sum(1)
    for values in denominators:
        ratios /= numpy.asarray(values, float)[chosen].sum(1)
    tail = (1 - LEVEL) / 2
    return numpy.quantile(ratios, [tail, 1 - tail]).tolist()
