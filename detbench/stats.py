"""Means, intervals and differences: arrays in, numbers out. Knows no run, recipe or table.

NumPy and SciPy are imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and how well it is known.

    Attributes:
        mean: sample mean.
        sd: sample standard deviation (divided by count - 1); None for a single value.
        count: values it is made of.
        low: lower end of the Student interval of the mean; None for a single value.
        high: upper end; None for a single value.
    """

    mean: float
    sd: float | None
    count: int
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, eq=False)
class BootstrapInterval:
    """A score on one set of images and how it would vary over other images of the kind.

    Attributes:
        estimate: the score on the images as they are.
        low: lower end of the percentile interval.
        high: upper end.
        sd: standard deviation over the resamples: the standard error.
        samples: (resamples,) the scores of the resampled data sets.
    """

    estimate: float
    low: float
    high: float
    sd: float
    samples: NDArray[np.float64]


class ImageScore(Protocol):
    """A score of a set of images that can be had again with images repeated; CocoMatches is one."""

    @property
    def num_images(self) -> int:
        """Images of the data set."""

    def average_precision(self, image_weights: NDArray[np.int64] | None = None) -> float:
        """The score with each image as often as its weight says, (num_images,); None for once each."""


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of independent values, such as the seeds of a row, with Student's t interval.

    The interval is mean +- t(1 - (1 - confidence) / 2, n - 1) * sd / sqrt(n) (Student, Biometrika 6, 1908).
    """
    import numpy as np
    from scipy.stats import t

    assert len(values) > 0
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Estimate(mean, None, 1, None, None)
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


def bootstrap_over_images(
    score: ImageScore,
    baseline: ImageScore | None = None,
    *,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> BootstrapInterval:
    """Percentile interval of a score, or of its difference to a baseline on the same images.

    Images are drawn with replacement, as many as there are, and one drawn k times counts k times: counting
    it once would make the interval too narrow by about a quarter. With a baseline both scores see the same
    draw, so that images hard for both cancel (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13). It holds the trained models fixed: it says nothing about other seeds.
    """
    import numpy as np

    def value(weights: NDArray[np.int64] | None) -> float:
        own = score.average_precision(weights)
        return own if baseline is None else own - baseline.average_precision(weights)

    images = score.num_images
    assert baseline is None or baseline.num_images == images
    rng = np.random.default_rng(seed)
    samples = np.array(
        [value(np.bincount(rng.integers(0, images, images), minlength=images)) for _ in range(resamples)]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return BootstrapInterval(
        estimate=value(None),
        low=float(low),
        high=float(high),
        sd=float(samples.std(ddof=1)),
        samples=samples,
    )
