"""DATE's Table 4: its settings, its data in CrowdHuman's format, and runs measured with CrowdHuman's metrics."""

from pathlib import Path

import numpy as np
import pytest
from smoke_runs import cell_of, do

from detbench import ablation, recipes, runs
from detbench.data.dataset import open_data
from detbench.data.drawn import write
from detbench.engine.evaluate import measure, percent
from detbench.errors import DataError
from detbench.metrics import crowd
from detbench.metrics.tables import DetectionTable
from detbench.parts.data import CrowdHuman, Drawn
from detbench.parts.experiment import Experiment
from detbench.recipe_text import Scale
from detbench.recipes import Context
from detbench.results import DETECTIONS, Result, read_detections
from detbench.store import Store

TABLE = "date/table4"


def resolved(label: str, scale: Scale, *overrides: str, data: str | None = None) -> Experiment:
    recipe = recipes.load(TABLE)
    return recipes.resolve(recipe, recipe.rows[label], Context(scale, data, overrides))


def run(pattern: str, folder: Path, *overrides: str, data: str | None = None) -> tuple[runs.Cell, Result]:
    store = Store(folder)
    cell = cell_of(pattern, store, *overrides, data=data)
    result = do(cell, store.cache)
    assert result is not None
    return cell, result


# ------------------------------------------------------------------ settings


def test_at_paper_scale_all_rows_train_and_test_as_the_released_code_does_on_crowdhuman():
    for row in recipes.load(TABLE).runnable():
        experiment = resolved(row.label, "paper")
        data, schedule = experiment.data, experiment.schedule
        assert data.source == CrowdHuman()
        assert (data.train.shorts, data.train.long, data.train.crop_long) == (
            tuple(range(640, 897, 32)),
            1400,
            1400,
        )
        assert data.train.crop_shorts == (400, 500, 600)
        assert (data.test.short, data.test.long) == (800, 1400)
        assert (schedule.length, schedule.unit, schedule.times) == (30_000, "steps", 1)
        assert [round(at * schedule.length) for at in schedule.decay.at] == [20_000, 25_000]
        assert experiment.test.metrics.kind == "crowd"
        if "o2o" in experiment.branches:
            assert experiment.branches["o2o"].assigner.kind == "hungarian"
            assert (experiment.test.postprocess.keep, experiment.test.postprocess.per_level) == (500, 1000)
        else:
            assert (experiment.test.postprocess.keep, experiment.test.postprocess.iou_threshold) == (100, 0.5)


def test_defcns_setting_of_the_baselines_is_another_test_of_the_same_training():
    changed = ("test.postprocess.keep=500", "test.postprocess.iou_threshold=0.6")
    ours, theirs = resolved("FCOS", "paper"), resolved("FCOS", "paper", *changed)
    assert ours.digest("") != theirs.digest("")
    assert ours.training_digest("") == theirs.training_digest("")


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_the_other_scales_draw_crowds_and_measure_them_alike(scale):
    for row in recipes.load(TABLE).runnable():
        experiment = resolved(row.label, scale)
        assert experiment.data.source.preset == "crowd"
        assert experiment.data.train.kind == "fixed"
        assert experiment.test.metrics.kind == "crowd"


def test_an_ablation_of_the_table_keeps_what_the_table_says_of_scales(tmp_path):
    path = ablation.make(
        ["optim.lr"], values=["0.001,0.002"], recipe=TABLE, row="OneNet", folder=tmp_path
    ).path
    recipe = recipes.load(str(path))
    for row in recipe.runnable():
        experiment = recipes.resolve(recipe, row, Context("cpu"))
        assert (experiment.data.source.preset, experiment.test.metrics.kind) == ("crowd", "crowd")


def test_users_data_is_taken_for_crowdhumans_where_it_looks_so(tmp_path):
    assert resolved("FCOS", "smoke", data=str(tmp_path)).data.source.kind == "coco"
    (tmp_path / "annotation_train.odgt").touch()
    source = resolved("FCOS", "smoke", "data.source.boxes=visible", data=str(tmp_path)).data.source
    assert source == CrowdHuman(root=str(tmp_path), boxes="visible")


# ------------------------------------------------------------------ runs


def test_a_run_writes_down_crowdhumans_numbers_of_the_detections_it_writes_down(tmp_path):
    settings = ("schedule.length=20", "test.postprocess.score_threshold=0.0", "data.source.num_val=3")
    cell, result = run(f"{TABLE}/onenet", tmp_path, *settings)
    assert tuple(result.metrics) == crowd.METRIC_NAMES
    assert result.per_class == {}
    data = open_data(cell.experiment.data, tmp_path / "cache")
    table = read_detections(cell.folder / DETECTIONS)
    again = percent(measure(table, data.val.annotations, cell.experiment.test.metrics))
    assert result.metrics == pytest.approx(again)
    assert runs.progress(cell.folder).score == ("AP50", result.metrics["AP50"])


def test_a_run_reads_a_folder_in_crowdhumans_format(tmp_path):
    write(Drawn(preset="crowd", size=64, num_train=4, num_val=2), tmp_path / "mine")
    cell, result = run(f"{TABLE}/fcos", tmp_path / "runs", data=str(tmp_path / "mine"))
    assert cell.fingerprint.startswith("crowdhuman-full-")
    assert (result.data["num_train"], result.data["num_val"], result.data["name"]) == (4, 2, "mine")


def test_metrics_of_one_class_are_refused_for_several_before_training(tmp_path):
    with pytest.raises(DataError, match=r"CrowdHuman's metrics are defined for one class, this data has 8"):
        run(f"{TABLE}/fcos", tmp_path, "data.source.preset=shapes")
    assert not list(tmp_path.rglob("checkpoint*"))


def test_exact_detections_score_less_by_the_trapezoid_before_the_first_and_nothing_else(tmp_path):
    experiment = resolved("FCOS", "smoke")
    a = open_data(experiment.data, tmp_path).val.annotations
    table = DetectionTable(a.image_idx, a.labels, a.boxes, np.ones(len(a.labels)))
    numbers = percent(measure(table, a, experiment.test.metrics))
    missed = 100 / len(a.labels)
    assert numbers == pytest.approx({"AP50": 100 - missed, "mMR": 0, "recall": 100, "JI": 100}, abs=1e-4)
