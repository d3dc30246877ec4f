"""A run that is measured with CrowdHuman's metrics: its report says those numbers, and it can be verified."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import finished_run
from smoke_runs import cell_of, do
from typer.testing import CliRunner

from detbench import cli
from detbench.data.sources import read_splits
from detbench.data.truth import ground_truth
from detbench.engine.verify import verify
from detbench.metrics import coco, crowd
from detbench.parts.data import Drawn
from detbench.parts.test import CocoMetrics, CrowdMetrics
from detbench.report.run_page import miss_rate, page
from detbench.report.run_report import RunReport, as_tree, examine, render
from detbench.results import DETECTIONS, read_detections
from detbench.store import Store

CROWDS = Drawn(preset="crowd", size=96, num_train=2, num_val=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folder(store: Store) -> Path:
    return finished_run(store, CROWDS, recipe_name="date/table4")


@pytest.fixture(scope="module")
def report(folder: Path) -> RunReport:
    return examine(folder)


def test_the_numbers_are_crowdhumans_and_errors_are_counted_by_coco_s(
    report: RunReport, folder: Path, store: Store
):
    val, table = read_splits(CROWDS, store.cache).val, read_detections(folder / DETECTIONS)
    sizes = np.stack([val.widths, val.heights], axis=1)
    own = crowd.evaluate(ground_truth(val, CrowdMetrics()), table, sizes).summary
    theirs = coco.evaluate(ground_truth(val, CocoMetrics()), table).summary
    tree = as_tree(report)
    assert tree["metrics"] == pytest.approx({name: 100 * value for name, value in own.items()})
    assert tree["coco"] == pytest.approx({name: 100 * theirs[name] for name in ("AP", "AP50", "AP75")})
    assert report.costs.average_precision == pytest.approx(theirs["AP50"])
    assert tree["metrics"]["AP50"] != pytest.approx(tree["coco"]["AP50"], abs=1e-3)
    assert json.loads(render(report, "json")) == tree


def test_text_and_page_say_both_and_which_is_which(report: RunReport):
    own, theirs = report.metrics, report.coco
    text, shown = render(report, "terminal"), page(report)
    assert ", ".join(f"{name} {value:.1f}" for name, value in own.items()) in text
    assert "measured with CrowdHuman's metrics. Errors" in " ".join(text.split())
    assert f"AP50 {theirs['AP50']:.1f} there" in " ".join(text.split())
    for value in own.values():
        assert f'<td class="number">{value:.1f}</td>' in shown
    assert "What follows is counted otherwise." in shown
    assert f"AP50 is {theirs['AP50']:.1f} there" in shown


def test_the_miss_rate_is_drawn_through_the_points_whose_mean_mmr_is(report: RunReport):
    (line,) = miss_rate(report.crowd).figure.axes[0].lines
    assert (np.diff(line.get_ydata()) <= 0).all()
    drawn = np.interp(crowd.FPPI_POINTS, line.get_xdata(), line.get_ydata())
    mean = np.exp(np.log(np.maximum(drawn, 1e-12)).mean())
    assert 100 * mean == pytest.approx(report.metrics["mMR"], abs=1.5)


def test_a_run_with_coco_s_metrics_says_nothing_of_crowds(store: Store):
    plain = examine(finished_run(store, CROWDS, "00000000000000ee"))
    assert plain.crowd is None
    assert as_tree(plain)["metrics"] == as_tree(plain)["coco"]
    assert "CrowdHuman" not in page(plain) + render(plain, "terminal")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crowd run that did run, with a detection for every prediction."""
    store = Store(tmp_path_factory.mktemp("trained"))
    settings = ("test.postprocess.score_threshold=0.0", "data.source.num_val=3")
    cell = cell_of("date/table4/onenet", store, *settings)
    do(cell, store.cache)
    return cell.folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The same to be damaged."""
    shutil.copytree(trained, tmp_path / trained.parent.name / "0")
    return tmp_path / trained.parent.name / "0"


def test_an_untouched_crowd_run_is_verified_number_by_number(trained: Path):
    found = verify(trained)
    assert (found.problems, found.numbers) == ((), len(crowd.METRIC_NAMES))


@pytest.mark.parametrize("name", ["detections.npz", "model.safetensors", "curve.jsonl", "result.json"])
def test_a_changed_byte_of_a_crowd_run_fails(copy: Path, name: str):
    content = bytearray((copy / name).read_bytes())
    place = content.index(b"mMR") if name == "result.json" else len(content) // 2
    content[place] ^= 1
    (copy / name).write_bytes(content)
    done = CliRunner().invoke(cli.app, ["verify", str(copy)])
    assert done.exit_code != 0
    assert any(problem.startswith(f"{name}: changed") for problem in verify(copy).problems)


def test_a_crowd_number_that_the_detections_do_not_give_is_named(copy: Path):
    tree = json.loads((copy / "result.json").read_text(encoding="utf-8"))
    tree["metrics"]["mMR"] -= 0.5
    (copy / "result.json").write_text(json.dumps(tree), encoding="utf-8")
    assert any(problem.startswith("metrics: mMR: recorded") for problem in verify(copy).problems)
