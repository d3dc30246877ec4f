"""Pictures of annotated images: boxes lie where the annotations say, crowds are grey."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detbench.cli import app
from detbench.data.pictures import Box, sheet, view, with_boxes
from detbench.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two black images of 100 x 50 pixels, the first with an object and a crowd."""
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 50)).save(tmp_path / "images" / name)
    tree = {
        "images": [
            {"id": i, "file_name": name, "width": 100, "height": 50}
            for i, name in ((1, "a.png"), (2, "b.png"))
        ],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [20, 20, 30, 20], "area": 600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [60, 20, 30, 20], "area": 600, "iscrowd": 1},
        ],
    }
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return tmp_path


def test_a_box_is_drawn_on_its_edges():
    pixels = np.asarray(with_boxes(np.zeros((50, 100, 3), dtype=np.uint8), [Box((20, 10, 30, 20), 0)]))
    colored = pixels.any(axis=2)
    rows, columns = np.flatnonzero(colored.any(axis=1)), np.flatnonzero(colored.any(axis=0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 30, 20, 50)
    assert not colored[12:29, 22:49].any(), "only the edges"


def test_a_sheet_scales_boxes_with_their_images_and_shows_crowds_in_grey(folder, tmp_path):
    target = tmp_path / "out" / "sheet.png"
    assert view(folder, target, split="val", count=9, seed=0, side=200) == 2
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (200, 404, 3)
    first = pixels[:100, :200]
    object_edge, crowd_edge = first[79:81, 90], first[79:81, 150]  # lower edges, twice as far down
    assert object_edge.max() > 200 and object_edge.min() < 100, "a bright colour"
    assert (crowd_edge.max(axis=0) == crowd_edge.max()).all() and crowd_edge.max() > 100, "grey"
    assert not pixels[:100, 204:404].any(), "the second image has no object"


def test_the_same_seed_shows_the_same_images(folder, tmp_path):
    for name in ("x.png", "y.png"):
        view(folder, tmp_path / name, split="train", count=1, seed=3, side=64)
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_pictures_of_a_sheet_do_not_overlap():
    pictures = [Image.new("RGB", (32, 16), (value, value, value)) for value in (10, 20, 30, 40, 50)]
    pixels = np.asarray(sheet(pictures, 32))
    assert [int((pixels[:, :, 0] == value).sum()) for value in (10, 20, 30, 40, 50)] == [32 * 16] * 5


def test_the_command_line_writes_a_sheet_and_names_a_format_it_does_not_know(folder, tmp_path):
    outcome = CliRunner().invoke(app, ["data", "view", str(folder), "-o", str(tmp_path / "sheet.jpg")])
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "sheet.jpg").is_file()
    with pytest.raises(DataError, match="no image format has this ending"):
        view(folder, tmp_path / "sheet.xyz", split="val", count=1, seed=0, side=64)
