"""Differences of single-seed rows over resampled images: from run folders to the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_collect import finish

from detbench import recipes
from detbench.data.sources import read_splits
from detbench.data.truth import ground_truth
from detbench.metrics import coco, tables
from detbench.recipes import Context
from detbench.report import build, collect, sampling
from detbench.results import DETECTIONS
from detbench.stats import bootstrap_interval, image_weights
from detbench.store import Store

OVERRIDES = ("data.source.num_val=30",)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One made-up run of each row of the quickstart; detections are the objects, moved ever more."""
    store = Store(tmp_path_factory.mktemp("runs"))
    digests = finish(store, "quickstart", Context("smoke", overrides=OVERRIDES))
    for number, (digest, found) in enumerate(zip(digests, detections(store), strict=True)):
        assert number < 3
        np.savez(store.folder(digest, 0) / DETECTIONS, **found)
    return store


def truth_of(store: Store) -> tables.GroundTruth:
    recipe = recipes.load("quickstart")
    experiment = recipes.resolve(recipe, recipe.rows["FCOS"], Context("smoke", overrides=OVERRIDES))
    return ground_truth(read_splits(experiment.data.source, store.cache).val, experiment.test.metrics)


def detections(store: Store) -> list[dict[str, np.ndarray]]:
    truth, rng = truth_of(store), np.random.default_rng(0)
    return [
        {
            "image": truth.image,
            "label": truth.label,
            "boxes_xywh": truth.boxes_xywh * (1 + spread * rng.normal(size=truth.boxes_xywh.shape)),
            "scores": rng.random(len(truth.image)),
        }
        for spread in (0.02, 0.06, 0.1)
    ]


def test_a_single_seed_has_the_interval_of_a_bootstrap_by_hand(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "RESAMPLES", 200)
    collected = collect(store)[0]
    table = build(collected)
    own, baseline = (collected.entry(label).results[0] for label in ("FCOS", table.baseline))
    weights = image_weights(30, resamples=sampling.RESAMPLES, seed=0)
    scores = []
    for result in (own, baseline):
        with np.load(store.folder(result.digest, 0) / DETECTIONS) as arrays:
            matches = coco.match(truth_of(store), tables.DetectionTable(**arrays))
        scores.append([100 * coco.accumulate(matches, of_image).summary["AP"] for of_image in weights])
    expected = bootstrap_interval(0.0, np.subtract(*scores))
    row = next(row for row in table.rows if row.label == "FCOS")
    found = row.cells[0].difference
    assert found is not None
    assert (found.over, found.count) == ("images", 1)
    assert (found.low, found.high, found.sd) == pytest.approx((expected.low, expected.high, expected.sd))
    assert found.mean == pytest.approx(own.metrics["AP"] - baseline.metrics["AP"])


def test_such_an_interval_is_marked_as_over_images_alone(store: Store) -> None:
    table = build(collect(store)[0])
    marked = {row.label for row in table.rows if "interval over images only" in row.remark}
    assert marked == {row.label for row in table.rows} - {table.baseline}
    assert any("image sampling only, no training noise" in note for note in table.notes)
    assert {verdict.ruling for verdict in table.verdicts if verdict.claim.metric == "AP"} == {"undecided"}


def test_rows_on_other_images_are_not_paired_over_images(store: Store) -> None:
    collected = collect(store)[0]
    entry = collected.entry("FCOS")
    entry.results[:] = [replace(r, data=r.data | {"fingerprint": "another"}) for r in entry.results]
    found = next(row for row in build(collected).rows if row.label == "FCOS").cells[0].difference
    assert found is not None
    assert found.low is None


def test_resampled_scores_are_worked_out_once_and_anew_for_other_detections(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(store)
    capsys.readouterr()
    collect(store)
    assert "resampling" not in capsys.readouterr().err
    result = collect(store)[0].results[0]
    path = store.folder(result.digest, 0) / DETECTIONS
    before, scores = path.read_bytes(), sampling.resampled_scores(store, result)
    with np.load(path) as arrays:
        np.savez(path, **(dict(arrays) | {"scores": arrays["scores"][::-1]}))
    assert not np.array_equal(sampling.resampled_scores(store, result)["AP"], scores["AP"])
    path.write_bytes(before)
    assert np.array_equal(sampling.resampled_scores(store, result)["AP"], scores["AP"])


def test_rows_without_detections_keep_their_difference_and_have_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    finish(store, "quickstart", Context("smoke"))
    table = build(collect(store)[0])
    found = next(row for row in table.rows if row.label == "FCOS").cells[0].difference
    assert found is not None
    assert (found.low, found.over) == (None, "seeds")
    assert "no interval over images for 'FCOS'" in capsys.readouterr().err


def test_several_seeds_are_not_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    finish(store, "quickstart", Context("smoke"), seeds=2)
    assert all(not entry.resampled for entry in collect(store)[0].entries)
    assert capsys.readouterr().err == ""


def test_runs_tested_with_crowdhumans_metrics_are_not_resampled(store: Store) -> None:
    result = collect(store)[0].results[0]
    crowd = replace(result, experiment=result.experiment | {"test": {"metrics": {"kind": "crowd"}}})
    assert sampling.resampled_scores(store, crowd) == {}
