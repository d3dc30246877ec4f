"""The report of one run: its numbers, its pictures, its page, and what it says when it can't be made."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGEST, finished_run
from typer.testing import CliRunner

from detbench import cli
from detbench.data.sources import read_splits
from detbench.data.truth import ground_truth
from detbench.errors import DataError, DetbenchError, StoreError
from detbench.metrics import coco
from detbench.metrics.errors import KINDS
from detbench.parts.data import Coco, Drawn
from detbench.parts.test import CocoMetrics
from detbench.report.alignment import of_run
from detbench.report.run_page import confusion_matrix, page, picture
from detbench.report.run_report import RunReport, as_tree, examine, render
from detbench.results import DETECTIONS, REQUEST, RESULT, read_detections
from detbench.store import Store, write_json

DRAWN = Drawn(size=64, num_train=2, num_val=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folder(store: Store) -> Path:
    return finished_run(store, DRAWN)


@pytest.fixture(scope="module")
def report(folder: Path) -> RunReport:
    return examine(folder)


@pytest.fixture(scope="module")
def text(report: RunReport) -> str:
    return page(report)


def test_the_numbers_are_those_of_coco_s_evaluation(report: RunReport, folder: Path, store: Store):
    truth = ground_truth(read_splits(DRAWN, store.cache).val, CocoMetrics())
    expected = coco.evaluate(truth, read_detections(folder / DETECTIONS))
    tree = as_tree(report)
    assert tree["metrics"]["AP50"] == pytest.approx(100 * expected.summary["AP50"])
    assert report.costs.average_precision == pytest.approx(expected.summary["AP50"])
    for k, one in enumerate(tree["classes"]):
        found = expected.per_class["AP75"][k]
        assert one["AP75"] == (None if found < 0 else pytest.approx(100 * found))
    assert 0 < 100 * np.mean(tree["precision75"]) == pytest.approx(tree["metrics"]["AP75"])


def test_errors_by_class_sum_up_to_errors_by_kind(report: RunReport):
    tree = as_tree(report)
    for kind in KINDS:
        assert tree["errors"][kind]["count"] == sum(one["errors"][kind] for one in tree["classes"])
    assert tree["errors"]["duplicate"]["count"] > 0
    assert tree["errors"]["missed"]["count"] > 0
    assert json.loads(render(report, "json")) == tree


def test_the_worst_images_are_those_with_the_lowest_f1(report: RunReport):
    worst = report.worst(100)
    assert report.image_f1[worst].tolist() == sorted(report.image_f1[worst].tolist())
    assert report.worst(3) == worst[:3]
    perfect = set(range(12)) - set(worst)
    assert all(report.image_f1[i] == 1 for i in perfect)


def test_a_picture_has_every_object_and_every_detection_that_scores_enough(report: RunReport):
    for index in report.worst(12):
        shown = picture(report, index)
        kinds = [mark.kind for mark in shown.marks]
        objects = [kind for kind in kinds if kind in ("found", "lost", "ignored")]
        assert len(objects) == np.sum(report.annotations.image_idx == index)
        enough = (report.table.image == index) & (report.table.scores >= report.score)
        assert len(kinds) - len(objects) == enough.sum()
        assert kinds.count("right") == kinds.count("found")


def test_text_names_the_run_its_kinds_and_its_classes(report: RunReport):
    text = render(report, "terminal")
    assert text.startswith(f"run {DIGEST}/0  date/table5:")
    for word in (*KINDS, *report.annotations.category_names, "all false negatives", "val_0000"):
        assert word in text
    with pytest.raises(
        DetbenchError, match="--format csv: the report of a run is printed as terminal or json"
    ):
        render(report, "csv")


class _Reader(HTMLParser):
    """Checks that tags nest, and collects what tests ask about."""

    alone = frozenset({"meta", "input", "image", "rect", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attrs: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.attrs.append((tag, dict(attrs)))
        if tag not in self.alone:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attrs.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_other_file(text: str):
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    ids = [attrs["id"] for _, attrs in reader.attrs if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs[name] for _, attrs in reader.attrs for name in ("href", "src") if name in attrs]
    assert links
    assert all(re.match(r"data:image/jpeg;base64,|#", link) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_the_page_shows_what_the_report_says_and_escapes_it(text: str, report: RunReport):
    assert "a &lt;CPU&gt;" in text
    assert "some &amp; more" in text
    assert "<CPU>" not in text
    for name in report.annotations.category_names:
        assert f'<th scope="row">{name}</th>' in text
    assert text.count("<figcaption>") == len(report.worst(12))
    assert text.count('class="spark"') == sum(report.found.objects() > 0)


def test_the_report_says_how_far_the_most_confident_boxes_are_from_the_best(
    folder: Path, text: str, report: RunReport
):
    told = as_tree(report)["alignment"]
    assert told["gap"] == pytest.approx(told["best_iou"] - told["confident_iou"])
    assert 0 < told["overlapped"] < told["objects"]
    assert f"gap {told['gap']:.3f}" in render(report, "terminal")
    assert "Scores and boxes" in text
    alone = of_run(folder)
    assert alone.best.tolist() == report.alignment.best.tolist()
    assert alone.confident.tolist() == report.alignment.confident.tolist()


def test_a_run_without_a_single_detection_has_a_page(store: Store):
    folder = finished_run(store, DRAWN, "00000000000000aa")
    empty = np.zeros(0)
    np.savez_compressed(
        folder / DETECTIONS,
        image=empty.astype(int), label=empty.astype(int), boxes_xywh=np.zeros((0, 4)), scores=empty,
    )  # fmt: skip
    report = examine(folder)
    assert as_tree(report)["metrics"]["AP50"] == 0
    assert as_tree(report)["alignment"]["gap"] is None
    assert "Scores and boxes" not in page(report)
    assert "0 of" in page(report)
    assert render(report, "terminal")


def test_a_perfect_run_has_a_page_without_pictures(store: Store):
    folder = finished_run(store, DRAWN, "00000000000000bb")
    val = read_splits(DRAWN, store.cache).val
    np.savez_compressed(
        folder / DETECTIONS,
        image=val.image_idx, label=val.labels, boxes_xywh=val.boxes, scores=np.ones(len(val.labels)),
    )  # fmt: skip
    report = examine(folder)
    assert report.worst(12) == []
    assert "No image has an error" in page(report)


def test_of_many_classes_the_matrix_keeps_those_most_often_confused():
    counts = np.diag(np.arange(1, 31))
    counts[25, 3] = 7
    counts = np.pad(counts, (0, 1))
    counts[4, -1] = 2  # not found
    shown = confusion_matrix(counts, [f"class {k}" for k in range(30)])
    assert shown.folded == 10
    assert shown.names[-1] == "10 others"
    assert {"class 25", "class 3"} <= set(shown.names)
    assert np.sum(shown.counts) == counts.sum()
    row, column = shown.names.index("class 25"), shown.names.index("class 3")
    assert shown.counts[row][column] == 7
    assert shown.counts[shown.names.index("class 4")][-1] == 2


def test_data_that_is_gone_or_changed_is_one_clear_message(store: Store, tmp_path: Path):
    from detbench.data.drawn import write as write_drawn

    root = tmp_path / "data"
    write_drawn(DRAWN, root)
    folder = finished_run(store, Coco(root=str(root)), "00000000000000cc")
    worst = examine(folder)
    image = worst.images / worst.annotations.file_name(worst.worst(1)[0])
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError, match=r"this is not the data of run .*00000000000000cc"):
        examine(folder)
    image.unlink()
    with pytest.raises(DataError, match="no such image file"):
        examine(folder)
    shutil.rmtree(root)
    with pytest.raises(DataError, match=re.escape(str(root))):
        examine(folder)


def test_an_unfinished_run_is_refused(store: Store):
    folder = finished_run(store, DRAWN, "00000000000000dd")
    (folder / RESULT).unlink()
    with pytest.raises(StoreError, match="the run is not finished"):
        examine(folder)


def test_a_run_is_called_by_its_folder_or_the_start_of_its_digest(tmp_path: Path):
    store = Store(tmp_path)
    for name in ("aaaa000000000000/0", "aaaa000000000000/1", "bbbb000000000000/0"):
        write_json(tmp_path / name / REQUEST, {})
    assert store.find("bbbb") == tmp_path / "bbbb000000000000" / "0"
    assert store.find("aaaa/1") == tmp_path / "aaaa000000000000" / "1"
    assert store.find(str(tmp_path / "bbbb000000000000" / "0")) == tmp_path / "bbbb000000000000" / "0"
    assert store.find("date/table5") is None
    with pytest.raises(StoreError, match="aaaa may be aaaa000000000000/0, aaaa000000000000/1; name one"):
        store.find("aaaa")
    with pytest.raises(StoreError, match="no run is called cccc"):
        store.find("cccc")


def test_the_command_prints_a_run_or_writes_its_page(folder: Path, store: Store, tmp_path: Path):
    def call(*arguments: str) -> str:
        outcome = CliRunner().invoke(cli.app, ["report", *arguments, "--runs", str(store.root)])
        assert outcome.exit_code == 0, outcome.exception
        return outcome.stdout

    assert call(DIGEST[:8]).startswith(f"run {DIGEST}/0")
    assert json.loads(call(str(folder), "--json"))["run"] == f"{DIGEST}/0"
    call(f"{DIGEST}/0", "-o", str(tmp_path / "page"))
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["errors.json", "index.html"]


def test_the_page_of_a_run_is_made_without_torch():
    code = "import sys, detbench.report.run_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
