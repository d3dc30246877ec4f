"""CrowdHuman's format: what is read, what is ignored, what is refused, and how training sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odgt_files import line, mask, person, write_image, write_odgt

from detbench.data import coco, odgt
from detbench.data.annotations import Annotations, SplitFiles
from detbench.data.check import check
from detbench.data.dataset import open_data
from detbench.data.drawn import draw, write
from detbench.data.fingerprint import fingerprint
from detbench.data.sources import read_splits
from detbench.errors import DataError
from detbench.parts.data import Coco, CrowdHuman, Data, Drawn, FixedResize, source_in


def read(root: Path, split: str = "train", boxes: odgt.BoxKind = "full") -> Annotations:
    return odgt.read_annotations(odgt.find_layout(root)[split], boxes=boxes, cache=None)


def problems(tmp_path: Path, *lines: Any) -> list[tuple[str, str]]:
    layout = odgt.find_layout(write_odgt(tmp_path / "set", list(lines), []))
    found = odgt.inspect_annotations(layout.train, boxes="full")[1]
    return [(problem.record, problem.what) for problem in found]


# ------------------------------------------------------------------ what is read


def test_lines_become_columns_with_whole_bodies_as_they_are_beyond_the_image_too(tmp_path):
    root = write_odgt(
        tmp_path,
        [
            line("283554,b", person([-9, 5, 30, 80], [0, 5, 21, 43]), mask([1, 2, 3, 4])),
            line("283554,a", person([10.5, 2, 4, 4])),
            line("x"),
        ],
        [],
    )
    a = read(root)
    assert a.image_ids.tolist() == ["283554,a", "283554,b", "x"]
    assert [a.file_name(i) for i in range(3)] == ["283554,a.jpg", "283554,b.jpg", "x.jpg"]
    assert (a.widths.tolist(), a.heights.tolist()) == ([64] * 3, [48] * 3)
    assert a.offsets.tolist() == [0, 1, 3, 3]
    assert a.boxes.tolist() == [[10.5, 2, 4, 4], [-9, 5, 30, 80], [1, 2, 3, 4]]
    assert a.areas.tolist() == [16, 2400, 12]
    assert a.iscrowd.tolist() == [False, False, True]
    assert a.annotation_ids.tolist() == [3, 1, 2]
    assert (a.labels.tolist(), a.category_names) == ([0, 0, 0], ("person",))


def test_visible_boxes_are_read_where_they_are_asked_for(tmp_path):
    root = write_odgt(tmp_path, [line("a", person([-9, 5, 30, 80], [0, 5, 21, 43]))], [])
    assert read(root, boxes="visible").boxes.tolist() == [[0, 5, 21, 43]]


@pytest.mark.parametrize(
    "found, ignored",
    [
        (person([1, 1, 5, 5]), False),
        (person([1, 1, 5, 5], extra={"ignore": 0}), False),
        (person([1, 1, 5, 5], extra={"ignore": 1}), True),
        ({"tag": "person", "fbox": [1, 1, 5, 5]}, False),
        ({"tag": "mask", "fbox": [1, 1, 5, 5]}, True),
        (person([1, 1, 5, 5], head_attr={"ignore": 1}), False),
    ],
)
def test_masks_and_what_extra_says_to_ignore_are_ignored_but_not_for_the_head(found, ignored, tmp_path):
    assert read(write_odgt(tmp_path, [line("a", found)], [])).iscrowd.tolist() == [ignored]


def test_a_size_in_the_line_spares_opening_the_image(tmp_path):
    root = write_odgt(tmp_path, [line("a", width=640, height=480)], [])
    (root / "Images/a.jpg").write_bytes(b"no image")
    assert read(root).size(0) == (480, 640)


@pytest.mark.parametrize("images, suffix", [("Images", ".jpg"), ("images", ".jpg"), ("images", ".png")])
def test_images_lie_in_either_folder_as_jpeg_or_png(images, suffix, tmp_path):
    root = write_odgt(tmp_path, [line("a")], [], images=images, suffix=suffix)
    assert read(root).file_name(0) == f"a{suffix}"
    assert odgt.find_layout(root).train.images == root / images


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_not_matter(tmp_path):
    root = write_odgt(tmp_path, [line("a", person([1, 1, 5, 5]))], [])
    path = root / "annotation_train.odgt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert read(root).boxes.tolist() == [[1, 1, 5, 5]]


def test_the_second_reading_comes_from_the_cache_until_file_or_images_change(tmp_path, monkeypatch):
    root, cache = write_odgt(tmp_path / "set", [line("a", person([1, 1, 5, 5], [2, 2, 3, 3]))], []), tmp_path
    files = odgt.find_layout(root).train

    def cached(boxes: odgt.BoxKind) -> list[Any]:
        return odgt.read_annotations(files, boxes=boxes, cache=cache).boxes.tolist()

    assert (cached("full"), cached("visible")) == ([[1, 1, 5, 5]], [[2, 2, 3, 3]])
    with monkeypatch.context() as patch:
        patch.setattr(odgt, "inspect_annotations", lambda *a, **k: pytest.fail("parsed again"))
        assert (cached("full"), cached("visible")) == ([[1, 1, 5, 5]], [[2, 2, 3, 3]])
    (root / "Images/a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image a\.jpg"):
        cached("full")


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "record, where, what",
    [
        ('{"ID": "a", "gtboxes": [', "line 2", "not valid JSON at column 25: Expecting value"),
        ("[1, 2]", "line 2", "found [1, 2], expected an object with ID and the list gtboxes"),
        ({"gtboxes": []}, "line 2", 'found {"gtboxes": []}, expected an object with ID and the list gtboxes'),
        (line("ok"), "line 2", 'ID "ok" is that of line 1 too'),
        (line(7), "line 2", "ID is 7, expected an image's name without suffix"),
        (line("a", width=3), "line 2", "height is null, expected a whole number of pixels"),
        (line("a", width=3.5, height=4), "line 2", "width is 3.5, expected a whole number of pixels"),
        (line("a", 5), 'line 2 (ID "a"), gtboxes[0]', "found 5, expected an object with tag and fbox"),
        (
            line("a", person([1, 1, 5, 5]), person([1, 1, 5])),
            'line 2 (ID "a"), gtboxes[1]',
            "fbox is [1, 1, 5], expected four finite numbers",
        ),
        (
            line("a", person([1, 1, 5, 5], tag="dog")),
            'line 2 (ID "a"), gtboxes[0]',
            'tag is "dog", expected "person" or "mask"',
        ),
        (
            line("a", person([1, 1, 5, 5], extra={"ignore": 2})),
            'line 2 (ID "a"), gtboxes[0]',
            "extra.ignore is 2, expected 0 or 1",
        ),
        (
            line("a", person([1, 1, 5, 5], extra=3)),
            'line 2 (ID "a"), gtboxes[0]',
            "extra is 3, expected an object",
        ),
    ],
)
def test_what_cannot_be_used_is_named_by_line_and_box(record, where, what, tmp_path):
    assert problems(tmp_path, line("ok"), record) == [(where, what)]


def test_an_image_that_is_missing_or_damaged_makes_its_line_unusable(tmp_path):
    root = write_odgt(tmp_path, [line("a"), line("b"), line("c")], [])
    (root / "Images/a.jpg").unlink()
    (root / "Images/b.jpg").write_bytes(b"not a picture")
    annotations, found = odgt.inspect_annotations(odgt.find_layout(root).train, boxes="full")
    assert annotations.image_ids.tolist() == ["c"]
    assert [problem.record for problem in found] == ["line 1", "line 2"]
    assert found[0].what == "no image a.jpg in Images/"
    assert "can't be read as an image" in found[1].what


def test_reading_stops_at_the_first_fault_and_counts_the_others(tmp_path):
    root = write_odgt(tmp_path, [line("a", person([1, 2, 3]), person([1]), 3)], [])
    with pytest.raises(
        DataError, match=r"annotation_train\.odgt: line 1 \(ID \"a\"\), gtboxes\[0\]: fbox is .* 2 more"
    ):
        read(root)


def test_lines_that_are_no_utf8_are_named(tmp_path):
    root = write_odgt(tmp_path, [line("a")], [])
    with (root / "annotation_train.odgt").open("ab") as file:
        file.write(b'{"ID": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: byte 8 is no UTF-8"):
        read(root)


def test_a_folder_that_lacks_something_says_what(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        odgt.find_layout(tmp_path / "none")
    (tmp_path / "annotation_train.odgt").touch()
    with pytest.raises(DataError, match=r"lacks annotation_val\.odgt and Images/"):
        odgt.find_layout(tmp_path)
    with pytest.raises(DataError, match="Expected images"):
        odgt.inspect_annotations(
            SplitFiles(tmp_path / "annotation_train.odgt", tmp_path / "no"), boxes="full"
        )


# ------------------------------------------------------------------ as a source


def test_a_folder_is_taken_for_what_it_holds(tmp_path):
    assert source_in(str(tmp_path)) == Coco(root=str(tmp_path))
    (tmp_path / "annotation_train.odgt").touch()
    assert source_in(str(tmp_path)) == CrowdHuman(root=str(tmp_path))


def test_training_leaves_ignored_boxes_out_and_clips_the_others_to_the_image(tmp_path):
    root = write_odgt(
        tmp_path / "set",
        [line("a", person([-16, 8, 32, 400]), mask([1, 1, 20, 20])), line("b", mask([0, 0, 9, 9]))],
        [line("v")],
    )
    data = open_data(Data(source=CrowdHuman(root=str(root))), tmp_path)
    assert (len(data.train), len(data.val), data.class_names) == (1, 1, ("person",))
    sample = data.train.sample(0, epoch=0, seed=0, transform=FixedResize(short=96, long=128, flip=0.0))
    assert sample.boxes.tolist() == [[0, 16, 32, 96]]


def test_the_fingerprint_tells_full_boxes_from_visible_ones_and_files_from_other_files(tmp_path):
    root = write_odgt(tmp_path / "set", [line("a", person([1, 1, 5, 5]))], [line("v")])
    full = fingerprint(CrowdHuman(root=str(root)), tmp_path)
    assert full.startswith("crowdhuman-full-")
    assert fingerprint(CrowdHuman(root=str(root), boxes="visible"), tmp_path) != full
    write_image(root / "Images/v.jpg", width=65)
    assert fingerprint(CrowdHuman(root=str(root)), tmp_path) != full


def test_a_drawn_crowd_is_the_same_in_both_forms(tmp_path):
    source = Drawn(preset="crowd", size=64, num_train=3, num_val=2)
    write(source, tmp_path / "set")
    for split in ("train", "val"):
        files = odgt.find_layout(tmp_path / "set")[split]
        ours = odgt.read_annotations(files, boxes="full", cache=None)
        theirs = coco.read_annotations(coco.find_layout(tmp_path / "set")[split].annotations, cache=None)
        for name in ("file_names", "widths", "heights", "offsets", "boxes", "labels", "iscrowd"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert np.allclose(ours.areas, theirs.areas, atol=0.01)
        assert np.array_equal(
            ours.boxes, np.concatenate([draw(source, split, i)[1] for i in range(ours.num_images)])
        )


def test_what_shows_of_a_drawn_figure_lies_within_all_of_it_and_is_less_for_many(tmp_path):
    write(Drawn(preset="crowd", size=128, num_train=4, num_val=1), tmp_path / "set")
    files = odgt.find_layout(tmp_path / "set").train
    full, visible = (
        odgt.read_annotations(files, boxes=boxes, cache=None).boxes for boxes in ("full", "visible")
    )
    pixel = 1.0  # figures are drawn on a canvas of two points a pixel, and boxes are not rounded to it
    assert (visible[:, :2] >= full[:, :2] - pixel).all()
    assert (visible[:, :2] + visible[:, 2:] <= full[:, :2] + full[:, 2:] + pixel).all()
    smaller = visible[:, 2] * visible[:, 3] < 0.8 * full[:, 2] * full[:, 3]
    assert 0.1 < smaller.mean() < 0.9


def test_drawn_crowds_are_read_from_their_odgt_files_and_shapes_from_coco_ones(tmp_path):
    crowd = read_splits(Drawn(preset="crowd", size=32, num_train=1, num_val=1), tmp_path)
    shapes = read_splits(Drawn(size=32, num_train=1, num_val=1), tmp_path)
    assert [s.train.path.name for s in (crowd, shapes)] == ["annotation_train.odgt", "instances_train.json"]


# ------------------------------------------------------------------ checking


def test_a_check_takes_both_forms_and_says_what_nms_would_cost(tmp_path):
    boxes = [person([0, 0, 20, 20]), person([2, 0, 20, 20]), person([40, 0, 20, 20]), person([44, 0, 20, 20])]
    root = write_odgt(tmp_path / "set", [line("a", *boxes, mask([0, 0, 20, 20]))], [line("v", boxes[0])])
    report = check(root)
    assert not [finding for finding in report.findings if finding.severity == "error"]
    # IoU of the pairs: 18/22 and 16/24 = 0.667, so at both thresholds the later of each pair goes.
    assert report.summaries["train"].under_nms == (50, 50)
    assert report.summaries["val"].under_nms == (100, 100)
    assert "recall of the boxes themselves under NMS is 50.0 at IoU 0.5" in report.summary_lines()[0]
    assert report.summaries["train"].crowds == 1


def test_a_check_notes_bodies_beyond_the_image_once_and_lists_unusable_lines(tmp_path):
    root = write_odgt(
        tmp_path / "set",
        [line("a", person([-20, 1, 40, 400]), person([30, 1, 40, 400])), "nonsense"],
        [line("v", person([1, 1, 9, 9]))],
    )
    findings = check(root).findings
    assert [f.where for f in findings if f.severity == "error"] == [
        f"{root / 'annotation_train.odgt'}: line 2"
    ]
    assert ["2 boxes go on beyond their image" in f.what for f in findings].count(True) == 1
