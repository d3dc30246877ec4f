"""Labelled and unlabelled images: the rule of the draw, the folds of a data set, what is written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, image, tree, write_json, write_plain
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from detbench.cli import app
from detbench.data.labelled import draw, draw_folds, num_labelled, write
from detbench.errors import DataError

COCO_TRAIN = 118_287


def of_images(keys: list[Any]) -> dict[str, Any]:
    """Images in the order of their ids given, without a box on the last."""
    images = [image(key, f"{key}.png") for key in keys]
    return tree(images, [annotation(i, key) for i, key in enumerate(keys[:-1])])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty training images whose ids descend through the file."""
    root = tmp_path / "data"
    for split, keys in (("train", list(range(400, 0, -10))), ("val", [1])):
        write_json(root / f"annotations/instances_{split}.json", of_images(keys))
    (root / "images").mkdir()
    return root


@pytest.mark.parametrize(("percent", "count"), [(1, 1182), (5, 5914), (10, 11828)])
def test_coco_has_as_many_labelled_images_as_the_papers_say(percent: int, count: int) -> None:
    places = draw(COCO_TRAIN, percent=percent, seed=1)
    assert num_labelled(COCO_TRAIN, percent) == len(places) == len(np.unique(places)) == count
    assert places.min() >= 0
    assert places.max() < COCO_TRAIN


@pytest.mark.parametrize("seed", [1, 5, 12])
def test_the_draw_is_that_of_numpys_global_generator(seed: int) -> None:
    # As preparation scripts write it: seed the module, choose from all positions.
    before = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        expected = np.random.choice(range(COCO_TRAIN), size=int(10 / 100 * COCO_TRAIN), replace=False)  # noqa: NPY002
    finally:
        np.random.set_state(before)  # noqa: NPY002
    assert draw(COCO_TRAIN, percent=10, seed=seed).tolist() == sorted(expected.tolist())


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    draw(100, percent=10, seed=1)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@given(num_images=st.integers(1, 10**6), percent=st.integers(1, 99))
def test_whole_percents_are_rounded_down_exactly(num_images: int, percent: int) -> None:
    assert num_labelled(num_images, percent) == percent * num_images // 100


def test_folds_are_drawn_with_their_number_plus_the_offset(folder: Path) -> None:
    at_0 = draw_folds(folder, percent=25, folds=5).labelled
    at_2 = draw_folds(folder, percent=25, folds=3, offset=2).labelled
    assert at_0[2:] == at_2
    assert len(set(at_0)) == 5
    assert draw_folds(folder, percent=25, folds=5).labelled == at_0


def test_places_are_those_of_the_file_not_of_ascending_ids(folder: Path) -> None:
    (labelled,) = draw_folds(folder, percent=25, folds=1).labelled
    assert labelled == tuple(400 - 10 * place for place in draw(40, percent=25, seed=1).tolist())


def test_ids_may_be_text(tmp_path: Path) -> None:
    names = [f"image {i}" for i in range(8)]
    root = write_plain(tmp_path / "data", of_images(names), of_images(["val"]))
    (labelled,) = draw_folds(root, percent=50, folds=1).labelled
    assert labelled == tuple(names[place] for place in draw(8, percent=50, seed=1))


def test_labelled_images_without_boxes_stay_in_the_draw(folder: Path) -> None:
    folds = draw_folds(folder, percent=99, folds=4)
    assert all(len(ids) == 39 for ids in folds.labelled)
    assert any(10 in ids for ids in folds.labelled)  # the image without a box


def test_what_is_written_says_its_rule_and_follows_it(folder: Path, tmp_path: Path) -> None:
    path = write(draw_folds(folder, percent=25, folds=2, offset=7), tmp_path / "new" / "folds")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "labelled-25.json"
    assert content["num_images"] == 40
    assert content["num_labelled"] == 10
    assert "RandomState(f + offset)" in content["rule"]
    for fold in content["folds"]:
        assert fold["seed"] == fold["fold"] + 7
        generator = np.random.RandomState(fold["seed"])
        places = generator.choice(content["num_images"], content["num_labelled"], replace=False)
        assert fold["labelled"] == [400 - 10 * place for place in sorted(places.tolist())]


def test_the_same_folds_are_written_byte_for_byte_and_never_over_others(folder: Path, tmp_path: Path) -> None:
    folds = draw_folds(folder, percent=2.5, folds=2)
    first, second = write(folds, tmp_path / "a"), write(folds, tmp_path / "b")
    assert first.name == "labelled-2.5.json"
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(DataError, match=r"labelled-2\.5\.json: exists already"):
        write(folds, tmp_path / "a")


@pytest.mark.parametrize("percent", [0, -1, 100, 250, float("nan")])
def test_some_images_must_be_labelled_and_others_not(folder: Path, percent: float) -> None:
    with pytest.raises(DataError, match="expected more than 0 and less than 100"):
        draw_folds(folder, percent=percent, folds=1)


def test_a_share_of_less_than_one_image_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="1 percent of its 40 images is not even one"):
        draw_folds(folder, percent=1, folds=5)


def test_a_file_where_the_folder_should_be_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: exists already"):
        write(draw_folds(folder, percent=10, folds=1), tmp_path / "file")


def test_a_damaged_annotation_file_is_named(folder: Path) -> None:
    write_json(folder / "annotations/instances_train.json", of_images([1, 1, 2]))
    with pytest.raises(DataError, match=r"instances_train\.json: images\[1\].*same id"):
        draw_folds(folder, percent=50, folds=1)


# ------------------------------------------------------------------ the command


def test_the_command_prints_the_folds_and_leaves_the_data_alone(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    outcome = CliRunner().invoke(app, ["data", "split", str(folder), "--labelled", "10", "--folds", "3"])
    assert outcome.exit_code == 0
    assert json.loads(outcome.stdout) == draw_folds(folder, percent=10, folds=3).tree()
    assert sorted(folder.rglob("*")) == before


def test_the_command_writes_a_file_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "folds"
    command = ["data", "split", str(folder), "--labelled", "10", "--offset", "3", "--out", str(out)]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0
    assert outcome.stdout == ""
    written = json.loads((out / "labelled-10.json").read_text(encoding="utf-8"))
    assert written == draw_folds(folder, percent=10, folds=5, offset=3).tree()
    assert isinstance(CliRunner().invoke(app, command).exception, DataError)
