"""Average precision of many resamples at once: against one evaluation for each."""

from dataclasses import replace

import numpy as np
import pytest
from test_coco_metrics import awkward_scene

from detbench.metrics import coco
from detbench.metrics.resampling import resampled_precisions


def matches_without_ties(seed: int) -> coco.CocoMatches:
    truth, table = awkward_scene(seed)
    scores = np.random.default_rng(seed).permutation(len(table.scores)) / max(1, len(table.scores))
    return coco.match(truth, replace(table, scores=scores))


@pytest.mark.parametrize("seed", range(60))
def test_every_resample_is_evaluated_as_it_would_be_alone(seed: int) -> None:
    matches = matches_without_ties(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (5, matches.num_images))
    resampled = resampled_precisions(matches, weights)
    for number, of_image in enumerate(weights):
        alone = coco.accumulate(matches, of_image).summary
        for name, values in resampled.items():
            expected = np.nan if alone[name] == -1 else alone[name]
            assert values[number] == pytest.approx(expected, abs=1e-12, nan_ok=True), name


def test_a_resample_without_objects_has_no_precision() -> None:
    matches = matches_without_ties(next(s for s in range(60) if matches_without_ties(s).num_images))
    resampled = resampled_precisions(matches, np.zeros((2, matches.num_images), np.int64))
    assert all(np.isnan(values).all() for values in resampled.values())


def test_resamples_are_told_apart_whatever_is_worked_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = matches_without_ties(3)
    weights = np.random.default_rng(0).integers(0, 4, (7, matches.num_images))
    at_once = resampled_precisions(matches, weights)
    monkeypatch.setattr("detbench.metrics.resampling._AT_A_TIME", 1)
    one_by_one = resampled_precisions(matches, weights)
    assert all(np.array_equal(at_once[name], one_by_one[name], equal_nan=True) for name in at_once)
