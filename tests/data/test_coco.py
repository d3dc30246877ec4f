import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_files import annotation, category, image, several, tree, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detbench.data import coco
from detbench.data.coco import find_layout, inspect_annotations, read_annotations
from detbench.errors import DataError


def read(tmp_path: Path, content: object) -> coco.Annotations:
    return read_annotations(write_json(tmp_path / "instances.json", content), cache=None)


def refusal(tmp_path: Path, content: object) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'instances.json'}: ")
    assert "\n" not in message
    return message


def same(a: coco.Annotations, b: coco.Annotations) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in coco.Annotations.__dataclass_fields__
    )


def test_the_plain_layout_is_found(tmp_path):
    for name in ("train", "val"):
        write_json(tmp_path / f"annotations/instances_{name}.json", tree())
    (tmp_path / "images").mkdir()
    layout = find_layout(tmp_path)
    assert layout["val"].annotations == tmp_path / "annotations/instances_val.json"
    assert layout.train.images == layout.val.images == tmp_path / "images"


def test_cocos_own_layout_is_found(tmp_path):
    for name in ("train", "val"):
        write_json(tmp_path / f"annotations/instances_{name}2017.json", tree())
        (tmp_path / f"{name}2017").mkdir()
    layout = find_layout(tmp_path)
    assert layout["train"].images == tmp_path / "train2017"
    assert layout["val"].annotations == tmp_path / "annotations/instances_val2017.json"


def test_a_folder_of_neither_layout_is_told_what_it_lacks(tmp_path):
    write_json(tmp_path / "annotations/instances_train.json", tree())
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"plain one annotations/instances_val\.json\.$"):
        find_layout(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_layout(tmp_path / "nowhere")


def test_columns_hold_what_the_file_says(tmp_path):
    content = tree(
        images=[image(9, "b.png", 30, 40), image(2, "a.png", 10, 20)],
        categories=[category(7, "dog"), category(3, "cat")],
        annotations=[
            annotation(50, 9, 7, bbox=[1, 2, 3, 4], area=11.5, iscrowd=1),
            annotation(40, 2, 3, bbox=[0.5, 0, 2, 2], area=4),
            annotation(30, 9, 3, bbox=[5, 6, 7, 8], area=50),
        ],
    )
    a = read(tmp_path, content)
    assert a.image_ids.tolist() == [2, 9]
    assert [a.file_name(0), a.file_name(1)] == ["a.png", "b.png"]
    assert (a.widths.tolist(), a.heights.tolist()) == ([10, 30], [20, 40])
    assert a.size(1) == (40, 30)
    assert a.offsets.tolist() == [0, 1, 3]
    assert a.of_image(1) == slice(1, 3)
    assert a.image_idx.tolist() == [0, 1, 1]
    assert a.annotation_ids.tolist() == [40, 50, 30]
    assert a.boxes.tolist() == [[0.5, 0, 2, 2], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert a.labels.tolist() == [0, 1, 0]
    assert a.areas.tolist() == [4, 11.5, 50]
    assert a.iscrowd.tolist() == [False, True, False]
    assert (a.category_ids.tolist(), a.category_names) == ([3, 7], ("cat", "dog"))


boxes = st.tuples(
    st.integers(0, 40),
    st.sampled_from([3, 11, 12, 90]),
    st.tuples(*[st.floats(-5, 60) | st.integers(-5, 60)] * 2, *[st.floats(0, 50)] * 2),
    st.floats(0, 4000),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    image_ids=st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True),
    records=st.lists(boxes, max_size=20),
    data=st.data(),
)
def test_what_is_read_is_what_pycocotools_reads(tmp_path_factory, image_ids, records, data):
    path = tmp_path_factory.mktemp("fuzz") / "instances.json"
    keys = data.draw(st.permutations(range(1, len(records) + 1)))
    content = tree(
        images=[image(key, f"{key}.png") for key in image_ids],
        categories=[category(key, f"c{key}") for key in (90, 3, 12, 11)],
        annotations=[
            annotation(key, image_ids[i % len(image_ids)], c, bbox=list(b), area=area, iscrowd=int(crowd))
            for key, (i, c, b, area, crowd) in zip(keys, records, strict=True)
        ],
    )
    write_json(path, content)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(path))
    ours = read_annotations(path, cache=None)
    assert ours.image_ids.tolist() == sorted(theirs.getImgIds())
    assert ours.category_ids.tolist() == sorted(theirs.getCatIds())
    for i, key in enumerate(ours.image_ids.tolist()):
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=[key]))
        owned = ours.of_image(i)
        assert ours.annotation_ids[owned].tolist() == [a["id"] for a in expected]
        assert ours.boxes[owned].tolist() == [a["bbox"] for a in expected]
        assert ours.category_ids[ours.labels[owned]].tolist() == [a["category_id"] for a in expected]
        assert ours.areas[owned].tolist() == [a["area"] for a in expected]
        assert ours.iscrowd[owned].tolist() == [a["iscrowd"] for a in expected]


def test_ids_as_text_of_digits_equal_the_numbers(tmp_path):
    content = tree(
        images=[image("2299"), image(7, "b.png")],
        annotations=[annotation(1, 2299), annotation("2", "2299", "1"), annotation(3, "7", 1.0)],
    )
    a = read(tmp_path, content)
    assert a.image_ids.tolist() == [7, 2299]
    assert a.annotation_ids.tolist() == [3, 1, 2]
    assert a.offsets.tolist() == [0, 1, 3]


def test_ids_that_are_words_stay_words(tmp_path):
    content = tree(images=[image("b,1"), image(5, "b.png")], annotations=[annotation("x", "b,1")])
    a = read(tmp_path, content)
    assert a.image_ids.tolist() == ["5", "b,1"]
    assert a.image_idx.tolist() == [1]
    assert a.annotation_ids.tolist() == ["x"]


def test_missing_iscrowd_is_false_and_missing_area_the_boxs(tmp_path):
    bare = annotation(bbox=[0, 0, 3, 5])
    del bare["area"], bare["iscrowd"]
    a = read(tmp_path, tree(annotations=[bare, annotation(2, area=9)]))
    assert a.areas.tolist() == [15, 9]
    assert not a.iscrowd.any()


def test_outlines_of_either_form_are_dropped(tmp_path):
    outlines = [
        [[0, 0, 5, 0, 5, 5]],
        {"counts": [3, 4, 5], "size": [48, 64]},
        {"counts": "a1b", "size": [48, 64]},
    ]
    content = tree(annotations=[annotation(i + 1, segmentation=s) for i, s in enumerate(outlines)])
    assert len(read(tmp_path, content).labels) == 3


def test_dropping_outlines_leaves_look_alikes_alone(tmp_path):
    name = 'a "segmentation": [1, 2] b.png'
    content = tree(
        images=[image(1, name)],
        annotations=[
            {"segmentation": [], **annotation(1, note='"segmentation":[')},
            {**annotation(2, bbox=[1, 2, 3, 4]), "segmentation": [[1.5, -2e3], [3]]},
            {"bbox": [5, 6, 7, 8], "segmentation": [[1, [2, 3]]], **without(annotation(3), "bbox")},
        ],
    )
    for indent in (None, 2):
        a = read(tmp_path, json.dumps(content, indent=indent))
        assert a.file_name(0) == name
        assert a.boxes.tolist() == [[4, 6, 20, 10], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_odd_boxes_are_kept_as_they_are(tmp_path):
    odd = [[0, 0, 0, 5], [-10, -10, 500, 500], [100, 100, 5, 5], [3, 3, -2, 4]]
    content = tree(annotations=[annotation(i + 1, bbox=box) for i, box in enumerate(odd)])
    assert read(tmp_path, content).boxes.tolist() == odd


def test_names_may_be_in_any_script(tmp_path):
    content = tree(images=[image(1, "фото/Käse 🧀.png")], categories=[category(1, "猫")])
    path = write_json(tmp_path / "日本.json", content)
    for _ in range(2):
        a = read_annotations(path, cache=tmp_path / "cache")
        assert (a.file_name(0), a.category_names) == ("фото/Käse 🧀.png", ("猫",))


def test_files_without_annotations_or_images_are_read(tmp_path):
    assert read(tmp_path, tree(annotations=[])).offsets.tolist() == [0, 0]
    empty = read(tmp_path, tree(images=[], annotations=[]))
    assert (empty.num_images, empty.boxes.shape, empty.offsets.tolist()) == (0, (0, 4), [0])


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(tree()), encoding="utf-8-sig")
    assert read_annotations(path, cache=None).num_images == 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_off_anywhere_is_refused_with_the_place(tmp_path, share):
    text = json.dumps(several("a", 20))
    message = refusal(tmp_path, text[: int(len(text) * share)])
    assert "not valid JSON at line 1, column " in message
    assert "cut off" in message


def without(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


@pytest.mark.parametrize(
    ("content", "record", "what"),
    [
        (tree(images=[without(image(), "width")]), "images[0] (id 1)", "has no width"),
        (tree(images=[without(image(), "id")]), "images[0]", "has no id"),
        (tree(images=[image(), image(1, "b.png")]), "images[1] (id 1)", "another record has the same id"),
        (tree(images=[image(), image("1", "b")]), 'images[1] (id "1")', "another record has the same id"),
        (tree(images=[image(name=5)]), "images[0] (id 1)", "file_name is 5"),
        (tree(images=[image(name="a\0b")]), "images[0] (id 1)", "file_name is"),
        (tree(images=[image(name="a\ud800")]), "images[0] (id 1)", "file_name is"),
        (tree(images=[image(width=0)]), "images[0] (id 1)", "width is 0, expected a whole number"),
        (tree(images=[image(height="48")]), "images[0] (id 1)", 'height is "48"'),
        (tree(images=[[]]), "images[0]", "found [], expected an object"),
        (tree(categories=[without(category(), "name")]), "categories[0] (id 1)", "has no name"),
        (tree(categories=[category(), category()]), "categories[1] (id 1)", "same id"),
        (tree(categories=[category(1, None)]), "categories[0] (id 1)", "has no name"),
        (tree(categories=[category(True)]), "categories[0] (id true)", "id is true"),
        (tree(annotations=[without(annotation(), "bbox")]), "annotations[0] (id 1)", "has no bbox"),
        (tree(annotations=[without(annotation(), "image_id")]), "annotations[0] (id 1)", "has no image_id"),
        (tree(annotations=[annotation(), annotation(2, 7)]), "annotations[1] (id 2)", "image_id 7 is no"),
        (tree(annotations=[annotation(category_id="x")]), "annotations[0] (id 1)", 'category_id "x" is no'),
        (tree(annotations=[annotation(), annotation()]), "annotations[1] (id 1)", "another annotation"),
        (tree(annotations=[annotation(bbox=[1, 2, 3])]), "annotations[0] (id 1)", "bbox is [1, 2, 3]"),
        (tree(annotations=[annotation(bbox=None)]), "annotations[0] (id 1)", "bbox is null"),
        (tree(annotations=[annotation(bbox=[1, 2, 3, float("nan")])]), "annotations[0] (id 1)", "NaN"),
        (tree(annotations=[annotation(bbox=[1, 2, float("inf"), 4])]), "annotations[0] (id 1)", "Infinity"),
        (tree(annotations=[annotation(bbox=[1, 2, 10**400, 4])]), "annotations[0] (id 1)", "bbox is"),
        (tree(annotations=[annotation(bbox=["1", 2, 3, 4])]), "annotations[0] (id 1)", "bbox is"),
        (tree(annotations=[annotation(area="9")]), "annotations[0] (id 1)", 'area is "9"'),
        (tree(annotations=[annotation(iscrowd=2)]), "annotations[0] (id 1)", "iscrowd is 2, expected 0 or 1"),
        (tree(annotations=[annotation(2**70)]), f"annotations[0] (id {2**70})", "expected a number or text"),
        (tree(annotations=[7]), "annotations[0]", "found 7, expected an object"),
    ],
)  # fmt: skip
def test_a_record_that_cant_be_used_is_named(tmp_path, content, record, what):
    message = refusal(tmp_path, content)
    assert f": {record}: " in message
    assert what in message


@pytest.mark.parametrize("content", [[], {}, {"images": [], "annotations": []}, {**tree(), "images": {}}, 3])
def test_json_that_is_no_coco_file_is_refused(tmp_path, content):
    assert "no COCO annotation file" in refusal(tmp_path, content)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "instances.json"
    path.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="byte 12 is no UTF-8"):
        read_annotations(path, cache=None)
    with pytest.raises(DataError, match="No such file"):
        read_annotations(tmp_path / "missing.json", cache=tmp_path)


def test_inspection_lists_every_fault_and_keeps_the_rest(tmp_path):
    content = tree(
        images=[image(1), image(2, width=-1)],
        annotations=[annotation(1), annotation(2, 2), annotation(3, bbox=[]), annotation(1), annotation(4)],
    )
    found, problems = inspect_annotations(write_json(tmp_path / "instances.json", content))
    assert [p.record for p in problems] == [
        "images[1] (id 2)", "annotations[1] (id 2)", "annotations[2] (id 3)", "annotations[3] (id 1)",
    ]  # fmt: skip
    assert found.annotation_ids.tolist() == [1, 4]
    assert "3 more of its records" in refusal(tmp_path, content)


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.just([1, 2])
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(["id", "image_id", "category_id", "bbox", "area", "iscrowd"]), value=values)
def test_checking_in_bulk_and_one_by_one_agree(tmp_path_factory, key, value):
    records = [annotation(i) for i in range(3)]
    records[1][key] = value
    path = write_json(tmp_path_factory.mktemp("fuzz") / "instances.json", tree(annotations=records))
    found, problems = inspect_annotations(path)
    assert len(found.labels) == 3 - len(problems)


def test_the_second_reading_comes_from_the_cache_and_is_equal(tmp_path, monkeypatch):
    path = write_json(tmp_path / "data/instances.json", several("a", 9))
    first = read_annotations(path, cache=tmp_path / "cache")
    assert sorted(p.name for p in path.parent.iterdir()) == ["instances.json"]
    monkeypatch.setattr(coco, "inspect_annotations", None)
    assert same(read_annotations(path, cache=tmp_path / "cache"), first)


def test_a_changed_file_is_read_anew(tmp_path):
    path = write_json(tmp_path / "instances.json", several("a", 3))
    read_annotations(path, cache=tmp_path / "cache")
    write_json(path, several("a", 4))
    assert read_annotations(path, cache=tmp_path / "cache").num_images == 4
    assert len(list((tmp_path / "cache").rglob("*"))) == 2, "one folder with one file, no leftovers"


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_a_damaged_cache_is_rebuilt(tmp_path_factory, share, flip):
    folder = tmp_path_factory.mktemp("damage")
    path = write_json(folder / "instances.json", tree())
    first = read_annotations(path, cache=folder)
    (kept,) = (folder / "annotations").glob("*.npz")
    content = bytearray(kept.read_bytes())
    at = int(share * len(content))
    if flip:
        content[at] ^= flip
    else:
        del content[at:]
    kept.write_bytes(content)
    assert same(read_annotations(path, cache=folder), first)


def test_the_torch_free_modules_import_no_torch():
    modules = ", ".join(f"detbench.data.{m}" for m in ("coco", "check", "drawn", "images", "fingerprint"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
