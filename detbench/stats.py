"""Means, intervals and differences: arrays in, numbers out. Knows no run, recipe or table.

NumPy and SciPy are imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


ROUNDING = 1e-9
"""Percentage points within which numbers are the same: they differ by the order of additions."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how well it is known.

    Attributes:
        mean: sample mean; with one seed its value.
        sd: sample standard deviation over seeds (divided by count - 1), or the standard error over images; None
            where neither is known.
        count: seeds it is made of.
        low: lower end of the interval; None where none is known.
        high: upper end.
        over: what the interval is about: other seeds (Student), or other images with the same trained models
            (bootstrap), which says nothing about training again.
    """

    mean: float
    sd: float | None
    count: int
    low: float | None
    high: float | None
    over: Literal["seeds", "images"] = "seeds"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of independent values, such as the seeds of a row, with Student's t interval.

    The interval is mean +- t(1 - (1 - confidence) / 2, n - 1) * sd / sqrt(n) (Student, Biometrika 6, 1908). Values
    that are all alike have none: they say nothing of how far another one may lie.
    """
    import numpy as np
    from scipy.stats import t

    assert len(values) > 0
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Estimate(mean, None, 1, None, None)
    if np.ptp(values) < ROUNDING:
        return Estimate(mean, 0.0, count, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * sd / math.sqrt(count)
    return Estimate(mean, sd, count, mean - half, mean + half)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Estimate:
    """Mean of values - baseline over seeds that both have, in the same order, with its interval.

    Pairing takes out what a seed does to both rows alike, such as the order of the data.
    """
    return mean_interval([a - b for a, b in zip(values, baseline, strict=True)], confidence)


def smallest_detectable_difference(
    sd: float, count: int, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The true difference that so many seeds would find significant with the given probability.

    Args:
        sd: standard deviation of the paired differences.
        count: seeds, at least 2.
        confidence: of the two-sided t test, 1 - alpha.
        power: probability that the test sees the difference.

    Returns:
        The difference in the unit of sd: the one whose noncentral t distribution lies with probability
        `power` beyond the test's critical value (Cohen, Statistical Power Analysis, 1988, chapter 2). The
        far tail's part, below 1e-4 at usual settings, is left out.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    assert count >= 2
    freedom = count - 1
    critical = float(t.ppf((1 + confidence) / 2, freedom))

    def lacking(noncentrality: float) -> float:
        return power - float(nct.sf(critical, freedom, noncentrality))

    return float(brentq(lacking, 0.0, 10 * critical)) * sd / math.sqrt(count)


def least_significant_difference(groups: Sequence[Sequence[float]], confidence: float = 0.95) -> float | None:
    """How far apart the means of two groups must be for more than chance between seeds (Fisher, 1935).

    t(1 - (1 - confidence) / 2, freedom) * s * sqrt(1 / n + 1 / n), with the standard deviation s pooled over all
    groups and n the size of the smallest one. One pair is held to its level; the many pairs that one might choose
    from are not.

    Args:
        groups: values of each group, such as the seeds of a row.
        confidence: of the two-sided test, 1 - alpha.

    Returns:
        The difference, in the values' unit; None where no group has two values.
    """
    import numpy as np
    from scipy.stats import t

    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None
    pooled = sum(float(np.var(group)) * len(group) for group in groups) / freedom
    smallest = min(len(group) for group in groups)
    return float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(2 * pooled / smallest)


def one_sided_p(difference: Estimate, margin: float = 0.0) -> float:
    """Probability of so large a mean difference or a larger one, were the true difference the margin.

    Student's t test of the mean of at least two paired differences against the margin. Differences that are all
    alike, as of a few test images or of a run with itself, have no spread to test with: 0.5, which decides nothing.
    """
    from scipy.stats import t

    assert difference.sd is not None
    if difference.sd == 0:
        return 0.5
    statistic = (difference.mean - margin) / (difference.sd / math.sqrt(difference.count))
    return float(t.sf(statistic, difference.count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: calling all below alpha significant errs in any of them with probability alpha at most.

    The k-th smallest of m is multiplied by m - k + 1, and is at least the one before it (Holm, Scandinavian
    Journal of Statistics 6, 1979).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seeds_to_decide(
    excess: float, sd: float, *, alpha: float = 0.05, power: float = 0.8, most: int = 1000
) -> int | None:
    """Fewest seeds with which a one-sided t test would find a difference with the given probability.

    Args:
        excess: true difference beyond the margin tested, positive.
        sd: standard deviation of the paired differences, above 0.
        alpha: level of the test.
        power: probability of finding it.
        most: seeds beyond which nobody would go.

    Returns:
        The number, at least 2, by the noncentral t distribution; None where `most` seeds would not do.
    """
    from scipy.stats import nct, t

    assert excess > 0
    assert sd > 0

    def finds(count: int) -> bool:
        critical = float(t.isf(alpha, count - 1))
        return float(nct.sf(critical, count - 1, excess / sd * math.sqrt(count))) >= power

    if not finds(most):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def image_weights(num_images: int, *, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each image stands in each resampled data set, (resamples, num_images).

    Images are drawn with replacement, as many as there are, and one drawn k times counts k times: counting it
    once would make intervals too narrow by about a quarter.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, num_images, num_images) for _ in range(resamples))
    return np.array([np.bincount(draw, minlength=num_images) for draw in draws])


def bootstrap_interval(estimate: float, samples: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    """Percentile interval over images of a score, or of a difference of two runs' scores.

    For a difference both runs' samples come from the same draws, so that images hard for both cancel (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Args:
        estimate: on the images as they are.
        samples: (resamples,) on the resampled data sets.
        confidence: of the interval.
    """
    import numpy as np

    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Estimate(estimate, float(samples.std(ddof=1)), 1, float(low), float(high), over="images")
