"""Conversion between COCO, Pascal VOC and .odgt: what survives a round trip, and what is said to be lost."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, category, image, tree, write_plain
from odgt_files import line, mask, person, write_image, write_odgt

from detbench.data import coco, odgt, voc
from detbench.data.convert import convert
from detbench.errors import DataError

SPLITS = ("train", "val")


def write_voc(root: Path, **splits: dict[str, str]) -> Path:
    """A VOC data set; every split maps an image's name to its annotation file's content."""
    (root / voc.SETS).mkdir(parents=True)
    (root / "Annotations").mkdir()
    for split in SPLITS:
        files = splits.get(split, {})
        (root / voc.SETS / f"{split}.txt").write_text(
            "".join(f"{name}\n" for name in files), encoding="utf-8"
        )
        for name, text in files.items():
            (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
            write_image(root / "JPEGImages" / f"{name}.jpg")
    return root


def voc_object(name: str, corners: tuple[Any, ...], more: str = "") -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(names, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def voc_file(*objects: str, more: str = "") -> str:
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder>{size}{''.join(objects)}{more}</annotation>"


def boxes_of(path: Path) -> list[tuple[Any, ...]]:
    """(image, class, box, iscrowd) of every annotation of a COCO file."""
    a = coco.read_annotations(path, cache=None)
    names = [a.category_names[label] for label in a.labels]
    images = [a.file_name(i) for i in a.image_idx]
    return list(zip(images, names, a.boxes.tolist(), a.iscrowd.tolist(), strict=True))


def people(prefix: str) -> dict[str, Any]:
    """One class, whole numbers, crowds, an empty image."""
    rng = np.random.default_rng(len(prefix))
    images = [image(i, f"{prefix}{i}.jpg") for i in (4, 7, 9)]
    boxes = [
        annotation(i, (4, 7)[i % 2], bbox=rng.integers(1, 30, 4).tolist(), iscrowd=int(i == 3), area=None)
        for i in range(1, 9)
    ]
    return tree(images, boxes, [category(1, "person")])


@pytest.fixture
def coco_set(tmp_path: Path) -> Path:
    return write_plain(tmp_path / "coco", people("a"), people("val"))


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("there", ["voc", "odgt"])
def test_boxes_classes_sizes_and_what_to_ignore_survive_a_trip_from_coco_and_back(there, coco_set, tmp_path):
    convert(coco_set, tmp_path / "there", to=there)
    convert(tmp_path / "there", tmp_path / "back", to="coco")
    for split in SPLITS:
        before, after = (
            root / f"annotations/instances_{split}.json" for root in (coco_set, tmp_path / "back")
        )
        assert boxes_of(after) == boxes_of(before)
        records = [json.loads(path.read_text())["images"] for path in (before, after)]
        sizes = [[(r["file_name"], r["width"], r["height"]) for r in some] for some in records]
        assert sizes[0] == sizes[1]


def test_images_are_copied_byte_for_byte(coco_set, tmp_path):
    convert(coco_set, tmp_path / "new", to="voc")
    for path in (coco_set / "images").iterdir():
        copy = tmp_path / "new/JPEGImages" / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert not copy.samefile(path)


def test_images_are_linked_where_asked(coco_set, tmp_path):
    convert(coco_set, tmp_path / "new", to="odgt", link=True)
    for path in (coco_set / "images").iterdir():
        assert (tmp_path / "new/Images" / path.name).samefile(path)
        assert not (tmp_path / "new/Images" / path.name).is_symlink()


def test_nothing_of_an_odgt_file_is_lost_by_way_of_coco(tmp_path):
    lines = [
        line("1,a", person([-3, 2, 30, 60], [0, 2, 27, 46]), mask([5, 5, 9, 9])),
        line("1,b", person([1, 1, 5, 5], extra={"box_id": 7, "occ": 1, "ignore": 1}), width=64, height=48),
        line("1,c"),
    ]
    write_odgt(tmp_path / "one", lines, [line("v", person([1.25, 2, 3, 4]))])
    assert convert(tmp_path / "one", tmp_path / "two", to="coco").notes == (
        "2 boxes that evaluation is to ignore get iscrowd = 1",
    )
    convert(tmp_path / "two", tmp_path / "three", to="odgt")
    for split in SPLITS:
        before, after = (
            [
                json.loads(text)
                for text in (tmp_path / name / f"annotation_{split}.odgt").read_text().splitlines()
            ]
            for name in ("one", "three")
        )
        for old, new in zip(before, after, strict=True):
            assert new | {"width": 64, "height": 48} == new
            for a, b in zip(old["gtboxes"], new["gtboxes"], strict=True):
                a["extra"] = {"ignore": 0, **a["extra"]}
                assert b == {key: value for key, value in a.items() if value != {}}


def test_fractions_survive_in_voc_to_a_ten_thousandth_of_a_pixel(tmp_path):
    content = tree(annotations=[annotation(bbox=[0.123456, 1.1, 20.25, 10.3333], area=None)])
    write_plain(tmp_path / "a", content, tree([image(2, "b.png")], []))
    notes = convert(tmp_path / "a", tmp_path / "b", to="voc").notes
    assert "coordinates of 1 boxes are rounded to 4 decimals" in notes
    assert "coordinates of 1 boxes are fractions, which VOC's own tools cut off" in notes
    (found,) = voc.read(tmp_path / "b", "train")
    assert found.objects[0].box == pytest.approx((0.123456, 1.1, 20.25, 10.3333), abs=1.01e-4)


# ------------------------------------------------------------------ VOC's pixels


def test_a_voc_box_runs_from_its_first_to_its_last_pixel_counted_from_1(tmp_path):
    """Checked on pixels: a rectangle is painted, and the corners are those of its first and last pixel."""
    painted = np.zeros((48, 64), bool)
    painted[10:15, 3:9] = True
    rows, columns = np.nonzero(painted)
    corners = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
    write_voc(tmp_path / "voc", train={"a": voc_file(voc_object("x", corners))}, val={"b": voc_file()})
    convert(tmp_path / "voc", tmp_path / "coco", to="coco")
    ((_, _, (x, y, width, height), _),) = boxes_of(tmp_path / "coco/annotations/instances_train.json")
    again = np.zeros_like(painted)
    again[int(y) : int(y + height), int(x) : int(x + width)] = True
    assert np.array_equal(again, painted)
    assert width * height == painted.sum()


def test_a_whole_image_in_coco_is_1_to_its_size_in_voc(tmp_path):
    write_plain(
        tmp_path / "a", tree(annotations=[annotation(bbox=[0, 0, 64, 48])]), tree([image(1, "b.png")], [])
    )
    convert(tmp_path / "a", tmp_path / "b", to="voc")
    box = ET.parse(tmp_path / "b/Annotations/a.xml").find("object/bndbox")
    assert box is not None
    assert [(child.tag, child.text) for child in box] == [
        ("xmin", "1"), ("ymin", "1"), ("xmax", "64"), ("ymax", "48"),
    ]  # fmt: skip


def test_flags_of_voc_survive_a_trip_by_way_of_coco(tmp_path):
    flags = "<pose>Left</pose><truncated>1</truncated><occluded>0</occluded><difficult>1</difficult>"
    write_voc(
        tmp_path / "a", train={"a": voc_file(voc_object("cat", (3, 4, 9, 9), flags))}, val={"b": voc_file()}
    )
    convert(tmp_path / "a", tmp_path / "b", to="coco")
    convert(tmp_path / "b", tmp_path / "c", to="voc")
    before, after = (voc.read(tmp_path / name, "train")[0] for name in "ac")
    assert after.objects == before.objects
    assert after.objects[0].difficult
    assert after.objects[0].flags == {"pose": "Left", "truncated": 1, "occluded": 0}


def test_lists_of_images_keep_their_order_and_trainval_has_both(coco_set, tmp_path):
    convert(coco_set, tmp_path / "b", to="voc")
    lists = [
        (tmp_path / "b" / voc.SETS / f"{n}.txt").read_text().split() for n in ("train", "val", "trainval")
    ]
    assert lists[0] == ["a4", "a7", "a9"]
    assert lists[2] == lists[0] + lists[1]


# ------------------------------------------------------------------ what is said to be lost


def test_everything_a_coco_file_says_beyond_voc_is_listed(tmp_path):
    outline = [[4.0, 6.0, 24.0, 6.0, 24.0, 16.0]]
    boxes = [
        annotation(1, segmentation=outline, score=0.5, area=100.0),
        annotation(2, iscrowd=1, segmentation={"counts": [3], "size": [48, 64]}, area=200.0),
    ]
    content = tree([image(license=3)], boxes, [category(), {**category(2, "dog"), "supercategory": "pet"}])
    write_plain(
        tmp_path / "a", content | {"info": {"year": 1}}, tree([image(1, "b.png")], [], content["categories"])
    )
    assert set(convert(tmp_path / "a", tmp_path / "b", to="voc").notes) == {
        "ids of images, annotations and categories are lost",
        "info of the whole data set or its categories is lost",
        "supercategory of the whole data set or its categories is lost",
        "1 classes without a box are lost: dog",
        "license of 1 images is lost",
        "area of 1 boxes is lost",
        "score of 1 boxes is lost",
        "segmentation of 2 boxes is lost",
        "1 boxes that evaluation is to ignore get difficult = 1",
    }


def test_everything_an_odgt_file_says_beyond_voc_is_listed(tmp_path):
    write_odgt(tmp_path / "a", [line("a", person([1, 1, 5, 5]), mask([1, 1, 9, 9]))], [line("v")])
    assert set(convert(tmp_path / "a", tmp_path / "b", to="voc").notes) == {
        "vbox of 2 boxes is lost",
        "hbox of 2 boxes is lost",
        "head_attr of 1 boxes is lost",
        "extra of 2 boxes is lost",
        "1 boxes that evaluation is to ignore get difficult = 1",
    }


def test_everything_a_voc_file_says_beyond_odgt_is_listed_and_its_class_renamed(tmp_path):
    parts = "<truncated>1</truncated><part><name>head</name></part><part><name>hand</name></part>"
    text = voc_file(voc_object("pedestrian", (0, 4, 9, 9), parts), more="<segmented>1</segmented>")
    root = write_voc(tmp_path / "a", train={"a": text}, val={"b": voc_file()})
    (root / voc.SETS / "test.txt").touch()
    notes = convert(root, tmp_path / "b", to="odgt").notes
    for note in (
        "part of 1 boxes is lost",
        "segmented of 1 images is lost",
        "truncated of 1 boxes is lost",
        "ImageSets/Main/test.txt is left behind: only train and val are converted",
        "the class pedestrian becomes person, the only one there is",
        "1 boxes have no visible part and no head (vbox, hbox): they can be read as full",
    ):
        assert note in notes
    assert any(note.startswith("1 boxes begin before pixel 1") for note in notes)
    assert odgt.read_annotations(odgt.find_layout(tmp_path / "b").train, boxes="full", cache=None).size(
        0
    ) == (48, 64)


def test_a_conversion_counts_what_it_wrote(coco_set, tmp_path):
    done = convert(coco_set, tmp_path / "b", to="voc")
    assert (done.found, done.images, done.boxes) == (
        "coco",
        {"train": 3, "val": 3},
        {"train": 8, "val": 8},
    )


# ------------------------------------------------------------------ what is refused


def test_a_format_is_not_converted_into_itself(coco_set, tmp_path):
    with pytest.raises(DataError, match="is in this format already"):
        convert(coco_set, tmp_path / "b", to="coco")


def test_several_classes_do_not_go_into_odgt_and_nothing_is_left_behind(tmp_path):
    boxes = [annotation(1), annotation(2, category_id=2)]
    content = tree(annotations=boxes, categories=[category(), category(2, "dog")])
    write_plain(tmp_path / "a", content, tree([image(1, "b.png")], [], content["categories"]))
    with pytest.raises(DataError, match=r"knows one class, person; this data set has 2: cat, dog"):
        convert(tmp_path / "a", tmp_path / "b", to="odgt")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_images_whose_names_would_meet_in_one_folder_are_refused(tmp_path):
    write_plain(tmp_path / "a", tree([image(1, "x/a.png")], []), tree([image(1, "y/a.png")], []))
    with pytest.raises(DataError, match=r"y/a\.png and .*x/a\.png would both be called a "):
        convert(tmp_path / "a", tmp_path / "b", to="voc")


def test_an_existing_folder_is_never_written_into(coco_set, tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="exists already"):
        convert(coco_set, tmp_path / "b", to="voc")


def test_a_missing_image_ends_the_conversion_and_leaves_nothing(coco_set, tmp_path):
    (coco_set / "images/a4.jpg").unlink()
    with pytest.raises(DataError, match=r"a4\.jpg: no such image file"):
        convert(coco_set, tmp_path / "b", to="voc")
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


def test_an_image_that_odgt_could_not_name_is_refused(tmp_path):
    write_plain(tmp_path / "a", tree([image(1, "a.bmp")], []), tree([image(1, "b.png")], []))
    with pytest.raises(DataError, match="leaves the suffix out"):
        convert(tmp_path / "a", tmp_path / "b", to="odgt")


@pytest.mark.parametrize(
    "text, message",
    [
        ("<annotation>", "not valid XML"),
        (voc_file(voc_object("", (1, 1, 2, 2))), "object 1: has no name"),
        (voc_file(voc_object("x", (1, 1, 2, 2)), voc_object("x", (1, "a", 2, 2))), "object 2: ymin is 'a'"),
        (voc_file(voc_object("x", (1, 1, "nan", 2))), "xmax is 'nan', expected a number"),
        (voc_file("<object><name>x</name></object>"), "xmin is None, expected a number"),
        (voc_file(voc_object("x", (5, 1, 3, 2))), r"its last pixel \(3, 2\) comes before its first \(5, 1\)"),
        (voc_file().replace("64", "6x"), "its size is '6x' x '48'"),
    ],
)
def test_a_voc_file_that_cannot_be_used_is_named_with_its_object(text, message, tmp_path):
    write_voc(tmp_path / "a", train={"img": text})
    with pytest.raises(DataError, match=rf"img\.xml: .*{message}"):
        voc.read(tmp_path / "a", "train")


def test_a_voc_set_that_lacks_a_list_an_annotation_or_an_image_says_which(tmp_path):
    root = write_voc(tmp_path / "a", train={"img": voc_file()})
    (root / "JPEGImages/img.jpg").unlink()
    with pytest.raises(DataError, match=r"its image img\.jpg isn't in .*JPEGImages"):
        voc.read(root, "train")
    (root / "Annotations/img.xml").unlink()
    with pytest.raises(DataError, match=r"img\.xml: can't be read .*Expected VOC annotations"):
        voc.read(root, "train")
    (root / voc.SETS / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt: can't be read"):
        voc.read(root, "train")


def test_a_voc_file_without_a_size_takes_that_of_its_image(tmp_path):
    text = voc_file().replace("<width>64</width>", "<width>0</width>")
    assert voc.read(write_voc(tmp_path, train={"a": text}), "train")[0].size == (48, 64)
