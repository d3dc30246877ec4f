import pytest
from coco_files import annotation, category, image, several, tree, write_json, write_plain
from PIL import Image

from detbench.data.check import check


@pytest.fixture
def root(tmp_path):
    return write_plain(tmp_path / "set", several("a", 4), several("b", 2))


def found(root):
    return [(f.severity, f.where.removeprefix(f"{root}/"), f.what) for f in check(root).findings]


def test_nothing_is_found_in_good_data(root):
    report = check(root)
    assert report.findings == ()
    assert set(report.summaries) == {"train", "val"}


def test_a_folder_of_another_layout_is_an_error(tmp_path):
    (finding,) = check(tmp_path).findings
    assert finding.severity == "error"
    assert finding.what.startswith("not a COCO data set")
    assert check(tmp_path).summaries == {}


def test_all_faulty_records_and_files_are_listed_errors_first(root):
    content = several("a", 4)
    del content["images"][0]["width"]
    content["annotations"][5]["bbox"] = [1, 2, 3]
    content["annotations"][6]["category_id"] = 77
    write_json(root / "annotations/instances_train.json", content)
    (root / "images/a3.png").unlink()
    Image.new("RGB", (5, 5)).save(root / "images/a4.png")
    (root / "images/b2.png").write_bytes((root / "images/b2.png").read_bytes()[:100])
    lines = found(root)
    assert {severity for severity, _, _ in lines} == {"error"}
    where = [place for _, place, _ in lines]
    train = "annotations/instances_train.json: "
    assert where == [
        f"{train}images[0] (id 1)",
        *[f"{train}annotations[{i}] (id {100 + i})" for i in range(3)],
        f"{train}annotations[5] (id 202)",
        f"{train}annotations[6] (id 300)",
        "images/a3.png",
        "images/a4.png",
        "images/b2.png",
    ]
    assert lines[6][2] == "no such image file, but the annotations name it"
    assert lines[7][2].startswith("the image is 5 x 5 pixels, annotated as")


def test_a_file_that_cant_be_parsed_does_not_hide_the_other_split(root):
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text()[:-20])
    (root / "images/b1.png").unlink()
    lines = found(root)
    assert [place for _, place, _ in lines] == ["annotations/instances_train.json", "images/b1.png"]
    assert set(check(root).summaries) == {"val"}


def test_odd_boxes_are_warnings(root):
    content = several("b", 2)
    odd = [
        [0, 0, 0, 5],
        [9, 9, 5, -1],
        [9, 9, 0.5, 5],
        [100, 5, 5, 5],
        [60, 5, 50, 5],
        [-0.5, 5, 5, 5],
        [7, 7, 9, 9],
        [7, 7, 9, 9],
    ]
    content["annotations"] += [annotation(i, 1, 1, bbox=box) for i, box in enumerate(odd)]
    write_json(root / "annotations/instances_val.json", content)
    path = "annotations/instances_val.json: annotation "
    assert found(root) == [
        ("warning", f"{path}0", "bbox [0, 0, 0, 5] has no area"),
        ("warning", f"{path}1", "bbox [9, 9, 5, -1] has no area"),
        ("warning", f"{path}2", "bbox [9, 9, 0.5, 5] is less than a pixel wide or high"),
        ("warning", f"{path}3", "bbox [100, 5, 5, 5] lies wholly outside its image"),
        ("warning", f"{path}4", "bbox [60, 5, 50, 5] reaches out of its image"),
        ("warning", f"{path}7", "bbox [7, 7, 9, 9] repeats another box of its image and class"),
        ("warning", f"{path}0", "pycocotools takes a match with id 0 for a miss"),
    ]


def boxes(*rows):
    """A validation file with these boxes in its two images of 64 x 48 pixels."""
    content = several("b", 2)
    content["annotations"] = [annotation(i, 1, 1, bbox=row) for i, row in enumerate(rows, 1)]
    return content


def test_boxes_in_fractions_of_the_image_are_one_error(root):
    fractions = boxes([0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.25, 0.5])
    write_json(root / "annotations/instances_val.json", fractions)
    (severity, where, what), *notes = found(root)
    assert {kind for kind, _, _ in notes} == {"note"}
    assert (severity, where) == ("error", "annotations/instances_val.json")
    assert "fractions" in what


def test_boxes_given_by_their_corners_are_one_warning(root):
    corners = boxes([5, 5, 20, 20], [40, 30, 60, 45], [30, 10, 64, 48])
    write_json(root / "annotations/instances_val.json", corners)
    (severity, where, what), *notes = found(root)
    assert {kind for kind, _, _ in notes} == {"note"}
    assert (severity, where) == ("warning", "annotations/instances_val.json")
    assert what.startswith("2 of 3 boxes") and what.endswith("corners")


def test_boxes_that_reach_out_but_are_no_corners_are_told_one_by_one(root):
    write_json(root / "annotations/instances_val.json", boxes([60, 30, 30, 10], [30, 10, 64, 48]))
    assert [severity for severity, _, _ in found(root)].count("warning") == 2


def test_odd_images_and_classes_are_told(root):
    content = several("b", 2)
    content["images"] += [image(3, "b2.png", *(content["images"][1][k] for k in ("width", "height")))]
    content["annotations"] += [annotation(1000 + i, 1, 1, bbox=[i / 4, 5, 9, 9]) for i in range(110)]
    content["categories"] += [category(9, "unicorn")]
    write_json(root / "annotations/instances_val.json", content)
    path = "annotations/instances_val.json"
    assert found(root) == [
        ("error", path, "its categories differ from those of instances_train.json"),
        ("warning", f"{path}: b2.png", "2 image records name this file"),
        ("note", path, "classes without a box: 1 (unicorn)"),
        ("note", path, "images without annotations: 1, the first is b2.png"),
        ("note", path, "images of more than 100 boxes: 1, up to 113"),
    ]


def test_pictures_that_are_not_taken_over_as_they_stand_are_told(tmp_path):
    sideways = Image.Exif()
    sideways[274] = 6
    pictures = {
        "stored.jpg": (Image.new("RGB", (64, 48)), {"exif": sideways}),
        "turned.jpg": (Image.new("RGB", (48, 64)), {"exif": sideways}),
        "gray.png": (Image.new("L", (64, 48)), {}),
        "both.png": (Image.new("LA", (64, 48)), {}),
        "deep.png": (Image.new("I;16", (64, 48)), {}),
        "print.jpg": (Image.new("CMYK", (64, 48)), {}),
        "plain.png": (Image.new("RGB", (64, 48)), {}),
    }
    content = tree(
        images=[image(i, name) for i, name in enumerate(pictures, 1)], annotations=[annotation(1, 1)]
    )
    root = write_plain(tmp_path, content, content)
    for name, (picture, options) in pictures.items():
        picture.save(root / "images" / name, **options)
    lines = [line for line in found(root) if line[1] == "annotations/instances_train.json"]
    assert [(severity, what) for severity, _, what in lines if "without" not in what] == [
        ("warning", "images with an EXIF orientation that is not applied: 1, the first is stored.jpg"),
        ("note", "images turned by their EXIF orientation: 1, the first is turned.jpg"),
        ("note", "grayscale images: 2, the first is gray.png"),
        ("note", "images of 16 bits: 1, the first is deep.png"),
        ("note", "images in CMYK: 1, the first is print.jpg"),
        ("note", "images with transparency: 1, the first is both.png"),
    ]


def test_images_that_training_leaves_out_for_their_size_are_a_note(root):
    content = several("b", 2)
    content["images"] += [image(3, "b3.png", 31, 200)]
    write_json(root / "annotations/instances_val.json", content)
    Image.new("RGB", (31, 200)).save(root / "images/b3.png")
    path = "annotations/instances_val.json"
    assert ("note", path, "images with a side below 32 pixels: 1, the first is b3.png") in found(root)


def test_a_training_file_without_a_box_is_an_error(root):
    content = several("a", 4)
    for record in content["annotations"]:
        record["iscrowd"] = 1
    write_json(root / "annotations/instances_train.json", content)
    assert ("error", "annotations/instances_train.json", "no box to train on") in found(root)


def test_a_validation_file_without_a_box_is_a_warning_and_without_an_image_an_error(root):
    path = "annotations/instances_val.json"
    content = several("b", 2) | {"annotations": []}
    write_json(root / path, content)
    assert ("warning", path, "no box to be found") in found(root)
    write_json(root / path, content | {"images": []})
    assert ("error", path, "no images") in found(root)


def test_an_image_of_both_splits_is_a_warning(root):
    write_json(root / "annotations/instances_val.json", several("a", 4))
    assert [x for x in found(root) if "training image too" in x[2]] == [
        ("warning", f"annotations/instances_val.json: a{i}.png", "is a training image too")
        for i in range(1, 5)
    ]


def test_a_summary_counts_what_there_is(tmp_path):
    content = tree(
        images=[image(1), image(2, "b.png", 300, 200), image(3, "c.png")],
        annotations=[
            annotation(1, 1, area=1023),
            annotation(2, 1, area=1024),
            annotation(3, 2, 2, area=9215.9),
            annotation(4, 2, area=9216, bbox=[1, 1, 96, 96]),
            annotation(5, 2, area=5, iscrowd=1),
        ],
        categories=[category(1, "cat"), category(2, "dog"), category(3, "emu")],
    )
    content["annotations"][1]["bbox"] = [0, 0, 32, 32]
    report = check(write_plain(tmp_path, content, content), splits=("val",))
    (summary,) = report.summaries.values()
    assert (summary.images, summary.empty_images, summary.boxes, summary.crowds) == (3, 1, 4, 1)
    assert summary.sizes == (1, 2, 1)
    assert summary.classes == {"cat": 3, "dog": 1, "emu": 0}
    assert (summary.sides, summary.densest) == ((48, 300), 2)
    (line,) = report.summary_lines()
    assert line.startswith("val: 3 images of 48 to 300 pixels")
    assert "2 of 3 classes occur" in line
