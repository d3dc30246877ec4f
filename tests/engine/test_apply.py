"""A finished run's model on other data and on files: what it says there is what its own test said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from detbench import runs
from detbench.cli import app
from detbench.data.drawn import write
from detbench.engine import apply
from detbench.errors import DataError, StoreError
from detbench.parts.data import Drawn
from detbench.recipes import Context, select
from detbench.results import DETECTIONS, read_detections, read_result
from detbench.store import WEIGHTS, Store
from detbench.workers import execute

DRAWN = Drawn(size=64, num_train=6, num_val=4)  # the data of the smoke scale


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with FCOS and OneNet at smoke scale."""
    store = Store(tmp_path_factory.mktemp("apply") / "runs")
    cells = runs.plan(
        select(["quickstart/fcos", "quickstart/onenet"]), Context("smoke"), seeds=[0], store=store
    )
    assert all(outcome.state == "finished" for outcome in execute(cells, store=store, threads=1))
    return store


@pytest.fixture(scope="module")
def folders(store) -> list[Path]:
    return list(store.folders())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The run's own data, written once more."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    write(DRAWN, folder)
    return folder


def trained(folder: Path) -> apply.Trained:
    return apply.load(folder, device=torch.device("cpu"))


def test_on_its_own_data_a_run_gets_its_own_numbers(store, folders, drawn):
    for folder in folders:
        result = read_result(folder)
        found = apply.evaluate(trained(folder), drawn, cache=store.cache, workers=0)
        assert found.metrics == result.metrics
        assert found.per_class == result.per_class
        assert found.not_in_data == ()


def test_classes_go_by_their_names_and_not_by_their_numbers(store, folders, drawn, tmp_path):
    path = drawn / "annotations" / "instances_val.json"
    tree = json.loads(path.read_text())
    for entry in tree["categories"]:
        entry["id"] = 1000 - entry["id"]  # the other way round
    for entry in tree["annotations"]:
        entry["category_id"] = 1000 - entry["category_id"]
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "images").symlink_to(drawn / "images")
    for split in ("train", "val"):
        (other / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    found = apply.evaluate(trained(folders[0]), other, cache=store.cache, workers=0)
    assert found.metrics == pytest.approx(read_result(folders[0]).metrics)


def test_detections_of_classes_that_the_data_lacks_are_left_out_and_named(store, folders, drawn, tmp_path):
    tree = json.loads((drawn / "annotations" / "instances_val.json").read_text())
    gone = tree["categories"].pop()
    tree["annotations"] = [a for a in tree["annotations"] if a["category_id"] != gone["id"]]
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "images").symlink_to(drawn / "images")
    for split in ("train", "val"):
        (other / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    found = apply.evaluate(trained(folders[0]), other, cache=store.cache, workers=0)
    assert found.not_in_data == (gone["name"],)
    own = read_result(folders[0]).per_class
    assert found.per_class == {name: own[name] for name in found.per_class}


def test_a_class_that_the_model_does_not_know_is_refused(store, folders, drawn, tmp_path):
    tree = json.loads((drawn / "annotations" / "instances_val.json").read_text())
    tree["categories"][0]["name"] = "aeroplane"
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "images").symlink_to(drawn / "images")
    for split in ("train", "val"):
        (other / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"doesn.t know .aeroplane."):
        apply.evaluate(trained(folders[0]), other, cache=store.cache, workers=0)


def test_files_give_the_detections_of_the_runs_test(folders, drawn):
    for folder in folders:
        run = trained(folder)
        table = read_detections(folder / DETECTIONS)
        files = sorted((drawn / "images").glob("val_*.png"))
        found = apply.predict(run, files, score=0.0)
        assert [image["file"] for image in found] == [str(file) for file in files]
        for index, image in enumerate(found):
            mine = np.flatnonzero(table.image == index)
            assert len(image["detections"]) == len(mine)
            scores = [one["score"] for one in image["detections"]]
            assert scores == sorted(scores, reverse=True)
            np.testing.assert_allclose(scores, np.sort(table.scores[mine])[::-1], rtol=1e-5)
            boxes = np.array([one["box"] for one in image["detections"]]).reshape(-1, 4)
            np.testing.assert_allclose(
                np.sort(boxes, axis=0), np.sort(table.boxes_xywh[mine], axis=0), atol=1e-2
            )


def test_boxes_count_in_pixels_of_the_file(folders, drawn, tmp_path):
    """The test transform brings both files to the same pixels, up to rounding by the resize."""
    file = min((drawn / "images").glob("val_*.png"))
    with Image.open(file) as image:
        double = image.resize((128, 128), Image.Resampling.NEAREST)
    double.save(tmp_path / "double.png")
    run = trained(max(folders, key=lambda folder: len(read_detections(folder / DETECTIONS).scores)))
    small, large = (apply.predict(run, [path], score=0.0)[0] for path in (file, tmp_path / "double.png"))
    assert (large["width"], large["height"]) == (128, 128)
    means = [np.mean([one["box"][:2] for one in image["detections"]], axis=0) for image in (small, large)]
    np.testing.assert_allclose(means[1], 2 * means[0], rtol=0.1)


def test_the_command_line_predicts_and_draws(store, folders, drawn, tmp_path):
    run = f"{folders[0].parent.name}/{folders[0].name}"
    out = tmp_path / "seen"
    arguments = ["predict", run, str(drawn / "images"), "--score", "0", "--runs", str(store.root)]
    outcome = CliRunner().invoke(app, [*arguments, "-o", str(out), "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert len(json.loads(outcome.stdout)) == DRAWN.num_train + DRAWN.num_val
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (drawn / "images").iterdir()}
    plain = CliRunner().invoke(app, arguments)
    assert "detections of score 0 or more" in plain.stdout


def test_the_command_line_tests_on_other_data(store, folders, drawn):
    run = f"{folders[0].parent.name}/{folders[0].name}"
    arguments = ["eval", run, "--data", str(drawn), "--runs", str(store.root)]
    outcome = CliRunner().invoke(app, [*arguments, "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["metrics"] == read_result(folders[0]).metrics
    assert "AP50" in CliRunner().invoke(app, arguments).stdout


def test_bad_input_is_named(store, folders, tmp_path):
    run = trained(folders[0])
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        apply.predict(run, [tmp_path / "nowhere.png"], score=0.3)
    with pytest.raises(DataError, match="no image in this folder"):
        apply.predict(run, [tmp_path], score=0.3)
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(DataError, match="can't be read as an image"):
        apply.predict(run, [text], score=0.3)
    with pytest.raises(StoreError, match="no such run"):
        store.get("date/table5")
    twin = tmp_path / "deeper" / "text.png"
    twin.parent.mkdir()
    found = [{"file": str(path), "width": 1, "height": 1, "detections": []} for path in (text, twin)]
    with pytest.raises(DataError, match="more than one image has this name"):
        apply.draw(found, run.class_names, tmp_path / "out")


def test_images_are_not_drawn_over(folders, drawn, tmp_path):
    image = tmp_path / "own" / "image.png"
    image.parent.mkdir()
    image.write_bytes(next((drawn / "images").iterdir()).read_bytes())
    before = image.read_bytes()
    found = [{"file": str(image), "width": 64, "height": 64, "detections": []}]
    (tmp_path / "same").symlink_to(image.parent)
    for folder in (image.parent, tmp_path / "same"):
        with pytest.raises(
            DataError, match=r"holds the images themselves \(image\.png\); name another folder"
        ):
            apply.draw(found, trained(folders[0]).class_names, folder)
    assert image.read_bytes() == before


def test_damaged_weights_are_named(folders, tmp_path):
    folder = tmp_path / "runs" / folders[0].parent.name / "0"
    folder.mkdir(parents=True)
    for file in folders[0].iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(StoreError, match=r"can't be used as the run's weights .* run it again with --force"):
        trained(folder)
