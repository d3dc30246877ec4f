"""Intervals: against SciPy and tables, and by how often they hold the truth on simulated data."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats as scipy_stats

from detbench import stats
from detbench.metrics import coco


class MeanOfImages:
    """A score whose bootstrap is known in closed form: the mean of one value per image."""

    def __init__(self, values: np.ndarray, drop_duplicates: bool = False) -> None:
        self.values = values
        self.num_images = len(values)
        self.drop_duplicates = drop_duplicates

    def average_precision(self, image_weights: np.ndarray | None = None) -> float:
        if image_weights is None:
            return float(self.values.mean())
        weights = image_weights.clip(max=1) if self.drop_duplicates else image_weights
        return float(np.average(self.values, weights=weights))


class DuplicatesDropped:
    """COCO matches that count an image drawn twice only once: the mistake."""

    def __init__(self, matches: coco.CocoMatches) -> None:
        self.matches = matches
        self.num_images = matches.num_images

    def average_precision(self, image_weights: np.ndarray | None = None) -> float:
        weights = None if image_weights is None else image_weights.clip(max=1)
        return self.matches.average_precision(weights)


def drawn_matches(seed: int, images: int = 150, noise: float = 0.15) -> coco.CocoMatches:
    """Three objects and six detections an image; how well an image is detected varies from image to image."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(0, 500, (images * 3, 2)), rng.uniform(20, 120, (images * 3, 2))], axis=1
    )
    image = np.repeat(np.arange(images), 3)
    label = rng.integers(0, 2, images * 3)
    spread = rng.gamma(2, noise / 2, images)[image][:, None]
    seen = np.concatenate([boxes * (1 + spread * rng.normal(size=boxes.shape)), rng.permutation(boxes)])
    truth = coco.GroundTruth(
        image, label, boxes, boxes[:, 2] * boxes[:, 3], np.zeros(len(image), bool), images, 2
    )
    return coco.match(
        truth, coco.DetectionTable(np.tile(image, 2), np.tile(label, 2), seen, rng.random(2 * len(image)))
    )


def test_importing_stats_imports_neither_numpy_nor_scipy():
    code = "import sys, detbench.stats; sys.exit('numpy' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_student_interval_by_hand():
    # 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    estimate = stats.mean_interval([1, 2, 3])
    assert (estimate.mean, estimate.sd, estimate.count) == (2, 1, 3)
    assert (estimate.low, estimate.high) == (pytest.approx(-0.484138, abs=1e-6), pytest.approx(4.484138))


def test_student_interval_is_scipys():
    values = np.random.default_rng(0).normal(0.4, 0.02, 5)
    estimate = stats.mean_interval(values, confidence=0.9)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_a_mean_and_no_interval():
    assert stats.mean_interval([0.4]) == stats.Estimate(0.4, None, 1, None, None)


def test_pairing_removes_what_seeds_have_in_common():
    # Differences 0.02, 0.03, 0.04: mean 0.03, sd 0.01, though each row varies by 0.1.
    difference = stats.paired_difference([0.32, 0.43, 0.54], [0.30, 0.40, 0.50])
    assert (difference.mean, difference.sd) == (pytest.approx(0.03), pytest.approx(0.01))
    assert difference.low == pytest.approx(0.03 - 4.302653 * 0.01 / 3**0.5)


def test_paired_differences_need_the_same_seeds():
    with pytest.raises(ValueError, match="longer"):
        stats.paired_difference([0.3], [0.2, 0.3])


def test_student_intervals_hold_the_truth_as_often_as_they_say():
    draws = np.random.default_rng(1).normal(0.4, 0.02, (1000, 4))
    intervals = [stats.mean_interval(values) for values in draws]
    covered = np.mean([interval.low <= 0.4 <= interval.high for interval in intervals])
    assert 0.935 <= covered <= 0.965


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_smallest_detectable_difference_is_detected_as_often_as_asked(count):
    difference = stats.smallest_detectable_difference(0.01, count, power=0.8)
    draws = np.random.default_rng(2).normal(difference, 0.01, (20_000, count))
    detected = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert detected.mean() == pytest.approx(0.8, abs=0.01)


def test_bootstrap_of_a_mean_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(3).exponential(size=400)
    interval = stats.bootstrap_over_images(MeanOfImages(values), resamples=2000, seed=0)
    error = values.std() / 20
    assert interval.sd == pytest.approx(error, rel=0.05)
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.25 * error
    )


def test_bootstrap_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(300):
        interval = stats.bootstrap_over_images(
            MeanOfImages(rng.normal(0.4, 0.2, 100)), resamples=200, seed=seed
        )
        covered += interval.low <= 0.4 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_counting_a_repeated_image_once_makes_the_interval_too_narrow_by_a_quarter():
    # Distinct images of a resample of n: 0.632 n, drawn without replacement. The variance of their mean is
    # (1 / 0.632 - 1) = 0.582 of what it should be, the interval sqrt(0.582) = 0.763 as wide.
    values = np.random.default_rng(5).normal(size=300)
    right = stats.bootstrap_over_images(MeanOfImages(values), resamples=3000, seed=0)
    wrong = stats.bootstrap_over_images(MeanOfImages(values, drop_duplicates=True), resamples=3000, seed=0)
    assert wrong.sd / right.sd == pytest.approx(0.763, abs=0.03)


def test_average_precision_with_repeated_images_counted_once_is_too_sure_of_itself():
    matches = drawn_matches(0)
    right = stats.bootstrap_over_images(matches, resamples=300, seed=0)
    wrong = stats.bootstrap_over_images(DuplicatesDropped(matches), resamples=300, seed=0)
    assert 0.65 <= wrong.sd / right.sd <= 0.88


def test_bootstrap_of_average_precision_is_as_wide_as_new_images_would_make_it():
    fresh = [drawn_matches(seed).average_precision() for seed in range(1, 120)]
    widths = [stats.bootstrap_over_images(drawn_matches(s), resamples=100, seed=0).sd for s in (1, 2, 3, 4)]
    assert np.mean(widths) == pytest.approx(np.std(fresh, ddof=1), rel=0.25)


def test_a_run_differs_from_itself_by_nothing():
    matches = drawn_matches(0)
    interval = stats.bootstrap_over_images(matches, matches, resamples=20, seed=0)
    assert (interval.estimate, interval.low, interval.high, interval.sd) == (0, 0, 0, 0)


def test_a_better_run_on_the_same_images_is_seen_as_better():
    better, worse = drawn_matches(0, noise=0.1), drawn_matches(0, noise=0.2)
    interval = stats.bootstrap_over_images(better, worse, resamples=100, seed=0)
    assert interval.estimate == better.average_precision() - worse.average_precision()
    assert 0 < interval.low < interval.estimate < interval.high


def test_the_bootstrap_is_a_function_of_its_seed():
    matches = drawn_matches(0)
    one, same, other = (stats.bootstrap_over_images(matches, resamples=10, seed=s).samples for s in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
