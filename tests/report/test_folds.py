"""Rows that are means over folds: planned fold by fold, reported as one run for each seed."""

from dataclasses import replace

import numpy as np
import pytest

from detbench import runs, workers
from detbench.recipes import Context, load, select
from detbench.report.collect import collect
from detbench.report.folds import mean_curve, mean_result, mean_scores
from detbench.report.table import build
from detbench.results import Curve, read_result
from detbench.store import Store

RECIPE = """
[recipe]
paper = "mine"
table = "few"
kind = "ablation"
title = "Few labels"
metrics = ["AP", "params_m"]
base = "dense"
baseline = "all labels"
folds = { smoke = 2 }

[[row]]
label = "all labels"
use = "onenet"

[[row]]
label = "half of the labels"
use = "onenet"
set.data.labelled = { percent = 50.0 }
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "few.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory, recipe) -> Store:
    """A store with all folds of seed 0, and the first fold of seed 1."""
    store = Store(tmp_path_factory.mktemp("folds") / "runs")
    cells = runs.plan(select([recipe]), Context("smoke"), seeds=[0, 1], store=store)
    second = [cell for cell in cells if cell.experiment.data.labelled is not None and cell.seed == 1]
    cells.remove(second[1])
    assert all(outcome.state == "finished" for outcome in workers.execute(cells, store=store, threads=1))
    return store


def test_a_row_is_planned_once_for_each_fold(recipe, store):
    cells = runs.plan(select([recipe]), Context("smoke"), seeds=[0], store=store)
    folds = [c.experiment.data.labelled and c.experiment.data.labelled.fold for c in cells]
    assert folds == [None, 1, 2]
    assert len({cell.digest for cell in cells}) == 3
    assert [cell.label for cell in cells][1:] == ["half of the labels", "half of the labels, fold 2"]


def test_a_fold_named_on_the_command_line_is_the_only_one(recipe, store):
    context = Context("smoke", None, ("data.labelled.fold=2",))
    row = load(recipe).rows["half of the labels"]
    cells = runs.plan([(load(recipe), [row])], context, seeds=[0], store=store)
    assert [cell.experiment.data.labelled.fold for cell in cells] == [2]


def test_a_seed_is_reported_as_the_mean_of_its_folds(recipe, store):
    (collected,) = collect(store, select([recipe]))
    entry = collected.entry("half of the labels")
    found = [read_result(store.folder(digest, 0)) for digest in entry.digests]
    assert len(found) == 2
    assert entry.values("AP") == {0: pytest.approx(np.mean([run.metrics["AP"] for run in found]))}
    assert entry.values("params_m") == {0: found[0].cost["params_infer_m"]}
    assert entry.partial == {1: 1}
    table = build(collected)
    row = next(row for row in table.rows if row.label == "half of the labels")
    assert row.seeds == (0,)
    assert "seed 1: 1 of 2 folds finished" in row.remark
    assert "each the mean over 2 folds of labelled images" in table.caption
    assert next(row for row in table.rows if row.label == "all labels").seeds == (0, 1)


def test_a_part_of_a_table_knows_the_whole(recipe, store):
    (part,) = collect(store, select([f"{recipe}/half-of-the-labels"]))
    assert [entry.row.label for entry in part.entries] == ["half of the labels"]
    assert part.whole is not None
    assert [entry.row.label for entry in part.whole.entries] == ["all labels", "half of the labels"]
    assert collect(store, select([recipe]))[0].whole is None


def test_means_are_worked_out_by_hand(store, recipe):
    (collected,) = collect(store, select([recipe]))
    run = read_result(store.folder(collected.entry("half of the labels").digests[0], 0))
    first = replace(
        run, metrics={"AP": 10.0, "APs": None}, per_class={"x": {"AP": 1.0}}, seconds={"train": 1.0}
    )
    second = replace(
        run, metrics={"AP": 13.0, "APs": 4.0}, per_class={"x": {"AP": 2.0}}, seconds={"train": 3.0}
    )
    mean = mean_result([first, second])
    assert mean.metrics == {"AP": 11.5, "APs": None}
    assert mean.per_class == {"x": {"AP": 1.5}}
    assert mean.seconds == {"train": 4.0}

    def point(step, loss):
        return {"step": step, "epoch": step / 2, "seconds": loss, "lr": 0.1, "losses": {"total": loss}}

    curve = mean_curve([Curve(steps=[point(1, 4.0), point(2, 2.0)]), Curve(steps=[point(1, 6.0)])])
    assert curve.steps == [point(1, 5.0)]
    assert curve.evaluations == []

    scores = mean_scores([{"AP": np.array([1.0, 2.0]), "APs": np.zeros(2)}, {"AP": np.array([3.0, 6.0])}])
    assert list(scores) == ["AP"]
    np.testing.assert_array_equal(scores["AP"], [2.0, 4.0])
