"""Intervals: against SciPy and tables, and by how often they hold the truth on simulated data."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats as scipy_stats

from detbench import stats
from detbench.metrics import coco, tables
from detbench.metrics.resampling import resampled_precisions


def mean_of_images(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A score whose bootstrap is known in closed form: the mean of one value per image."""
    return weights @ values / weights.sum(axis=1)


def average_precision(matches: coco.CocoMatches, weights: np.ndarray) -> np.ndarray:
    return resampled_precisions(matches, weights)["AP"]


def score_of(matches: coco.CocoMatches) -> float:
    return float(average_precision(matches, np.ones((1, matches.num_images), np.int64))[0])


def each_image_once(weights: np.ndarray) -> np.ndarray:
    """The mistake: an image drawn twice counts only once."""
    return weights.clip(max=1)


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
    truth = tables.GroundTruth(
        image, label, boxes, boxes[:, 2] * boxes[:, 3], np.zeros(len(image), bool), images, 2
    )
    return coco.match(
        truth, tables.DetectionTable(np.tile(image, 2), np.tile(label, 2), seen, rng.random(2 * len(image)))
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


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_smallest_detectable_difference_is_detected_as_often_as_asked(count):
    difference = stats.smallest_detectable_difference(0.01, count, power=0.8)
    draws = np.random.default_rng(2).normal(difference, 0.01, (20_000, count))
    detected = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert detected.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("margin", [0.0, 0.01, -0.03])
def test_the_one_sided_p_value_is_scipys(margin):
    differences = np.random.default_rng(3).normal(0.01, 0.02, 4)
    p = stats.one_sided_p(stats.mean_interval(differences), margin)
    expected = scipy_stats.ttest_1samp(differences, margin, alternative="greater").pvalue
    assert p == pytest.approx(expected)


def test_differences_that_are_all_alike_decide_nothing():
    for values in ([0.5, 0.5], [0.0, 0.0], [0.1, 0.1, 0.1], [10.1 - 5.1, 20.2 - 15.2, 0.3 + 4.7]):
        alike = stats.mean_interval(values)
        assert (alike.sd, alike.low, alike.high) == (0.0, None, None)
        assert stats.one_sided_p(alike) == stats.one_sided_p(alike, 1.0) == 0.5


def test_two_seeds_that_agree_to_the_digit_on_a_few_images_are_often_wrong_about_a_third():
    # Scores of eight images, each right or wrong: the seeds of two equal methods often differ by the same amount.
    rng = np.random.default_rng(0)
    scores = rng.binomial(8, 0.5, (2, 2, 20_000)) / 8 * 100  # (method, seed, table)
    differences = (scores[0] - scores[1]).T
    alike = (differences[:, 0] == differences[:, 1]) & (differences[:, 0] != 0)
    assert alike.mean() > 0.05, "a test that is sure of these errs too often already"
    sure = [stats.one_sided_p(stats.mean_interval(found)) < 0.05 for found in differences[alike][:100]]
    assert not any(sure)


def test_the_least_significant_difference_is_that_of_a_t_test_with_pooled_spread():
    from scipy.stats import ttest_ind

    first, second = [30.0, 31.5, 30.7], [28.0, 29.9, 29.0]
    least = stats.least_significant_difference([first, second])
    shift = (np.mean(first) - np.mean(second)) - least
    assert ttest_ind(first, np.add(second, shift)).pvalue == pytest.approx(0.05)
    assert stats.least_significant_difference([[1.0], [2.0]]) is None


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; the last may not fall below 0.06.
    assert stats.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1, 1]
    assert stats.holm([0.03]) == [0.03]
    assert stats.holm([]) == []


def test_holm_errs_in_any_of_several_tests_as_seldom_as_one_test_does():
    p_values = np.random.default_rng(4).random((4000, 6))
    wrong = np.mean([min(stats.holm(list(row))) < 0.05 for row in p_values])
    assert wrong == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("excess", "alpha"), [(0.02, 0.05), (0.005, 0.05), (0.01, 0.0125), (0.1, 0.05)])
def test_so_many_seeds_decide_as_often_as_asked_and_one_less_does_not(excess, alpha):
    count = stats.seeds_to_decide(excess, 0.01, alpha=alpha, power=0.8)
    rng = np.random.default_rng(5)

    def found(seeds: int) -> float:
        draws = rng.normal(excess, 0.01, (20_000, seeds))
        return np.mean(scipy_stats.ttest_1samp(draws, 0, axis=1, alternative="greater").pvalue < alpha)

    assert found(count) > 0.79
    assert count == 2 or found(count - 1) < 0.81


def test_seeds_to_decide_are_those_of_a_table():
    # One-sided paired t test at 5 %, power 0.8, effect size 0.5: 27 pairs, 1.0: 8 pairs (G*Power).
    assert stats.seeds_to_decide(0.5, 1.0) == 27
    assert stats.seeds_to_decide(1.0, 1.0) == 8


def test_next_to_no_difference_is_beyond_any_number_of_seeds():
    assert stats.seeds_to_decide(0.0001, 1.0) is None
    assert stats.seeds_to_decide(100.0, 0.001) == 2


def test_bootstrap_of_a_mean_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(3).exponential(size=400)
    samples = mean_of_images(values, stats.image_weights(400, resamples=2000, seed=0))
    interval = stats.bootstrap_interval(float(values.mean()), samples)
    error = values.std() / 20
    assert interval.sd == pytest.approx(error, rel=0.05)
    assert (interval.count, interval.over) == (1, "images")
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.25 * error
    )


def test_counting_a_repeated_image_once_makes_the_interval_too_narrow_by_a_quarter():
    # Distinct images of a resample of n: 0.632 n, drawn without replacement. The variance of their mean is
    # (1 / 0.632 - 1) = 0.582 of what it should be, the interval sqrt(0.582) = 0.763 as wide.
    values = np.random.default_rng(5).normal(size=300)
    weights = stats.image_weights(300, resamples=3000, seed=0)
    right, wrong = mean_of_images(values, weights), mean_of_images(values, each_image_once(weights))
    assert wrong.std() / right.std() == pytest.approx(0.763, abs=0.03)


def test_average_precision_with_repeated_images_counted_once_is_too_sure_of_itself():
    matches, weights = drawn_matches(0), stats.image_weights(150, resamples=1000, seed=0)
    right, wrong = average_precision(matches, weights), average_precision(matches, each_image_once(weights))
    assert 0.65 <= wrong.std() / right.std() <= 0.85


def test_bootstrap_of_average_precision_is_as_wide_as_new_images_would_make_it():
    fresh = [score_of(drawn_matches(seed)) for seed in range(1, 120)]
    weights = stats.image_weights(150, resamples=100, seed=0)
    widths = [average_precision(drawn_matches(s), weights).std() for s in (1, 2, 3, 4)]
    assert np.mean(widths) == pytest.approx(np.std(fresh, ddof=1), rel=0.25)


def test_a_better_run_on_the_same_images_is_seen_as_better_and_pairing_narrows_its_interval():
    better, worse = drawn_matches(0, noise=0.1), drawn_matches(0, noise=0.2)
    weights = stats.image_weights(150, resamples=200, seed=0)
    own, other = average_precision(better, weights), average_precision(worse, weights)
    interval = stats.bootstrap_interval(score_of(better) - score_of(worse), own - other)
    assert 0 < interval.low < interval.mean < interval.high
    assert interval.sd < np.hypot(own.std(), other.std())


def test_the_draws_of_images_are_a_function_of_the_seed():
    one, same, other = (stats.image_weights(50, resamples=10, seed=s) for s in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert (one.sum(axis=1) == 50).all()


# ------------------------------------------------------------------ coverage over 1,000 data sets


def covered(intervals: list[stats.Estimate], truth: float) -> float:
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_student_intervals_of_means_and_paired_differences_hold_the_truth_as_often_as_they_say(seeds):
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 0.05, (1000, seeds))
    baseline = 0.40 + shared + rng.normal(0, 0.01, (1000, seeds))
    own = 0.42 + shared + rng.normal(0, 0.02, (1000, seeds))
    assert 0.935 <= covered([stats.mean_interval(values) for values in own], 0.42) <= 0.965
    differences = [stats.paired_difference(a, b) for a, b in zip(own, baseline, strict=True)]
    assert 0.935 <= covered(differences, 0.02) <= 0.965


@pytest.mark.slow
def test_bootstrap_intervals_of_the_difference_of_two_scores_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    weights = stats.image_weights(200, resamples=1000, seed=0)
    intervals = []
    for _ in range(1000):
        hardness = rng.exponential(0.2, 200)
        own, baseline = (hardness + rng.normal(mean, 0.1, 200) for mean in (0.5, 0.4))
        difference = mean_of_images(own, weights) - mean_of_images(baseline, weights)
        intervals.append(stats.bootstrap_interval(own.mean() - baseline.mean(), difference))
    assert 0.935 <= covered(intervals, 0.1) <= 0.965


@pytest.mark.slow
def test_bootstrap_intervals_of_average_precision_and_its_differences_hold_the_truth_as_often_as_they_say():
    weights = stats.image_weights(100, resamples=400, seed=0)
    own, differences = [], []
    for seed in range(1000):
        better, worse = (drawn_matches(seed, images=100, noise=noise) for noise in (0.1, 0.2))
        ours, theirs = average_precision(better, weights), average_precision(worse, weights)
        score, other = score_of(better), score_of(worse)
        own.append(stats.bootstrap_interval(score, ours))
        differences.append(stats.bootstrap_interval(score - other, ours - theirs))
    for intervals in (own, differences):
        assert 0.935 <= covered(intervals, np.mean([interval.mean for interval in intervals])) <= 0.965
