import numpy as np
import pytest
import torch
from coco_files import annotation, category, image, several, tree, write_json, write_plain
from PIL import Image

from detbench.data import dataset
from detbench.data.dataset import open_data
from detbench.data.fingerprint import fingerprint
from detbench.errors import DataError
from detbench.parts.data import Coco, Data, Drawn, FixedResize

AS_IT_IS = FixedResize(short=48, long=1000, flip=0.0)


def data_of(root, **more) -> Data:
    return Data(source=Coco(root=str(root)), train=AS_IT_IS, test=AS_IT_IS, **more)


def write_odd(root):
    """Images: usable, empty, crowd only, thin box only, outside only, small side, usable and others."""
    images = [image(i, f"{i}.png", 64, 20 if i == 6 else 48) for i in range(1, 8)]
    annotations = [
        annotation(1, 1),
        annotation(3, 3, iscrowd=1),
        annotation(4, 4, bbox=[5, 5, 0.5, 30]),
        annotation(5, 5, bbox=[64, 5, 10, 10]),
        annotation(6, 6),
        annotation(7, 7, 2, bbox=[-10, -10, 30, 30]),
        annotation(8, 7, bbox=[1, 1, 0, 5]),
        annotation(9, 7, iscrowd=1),
    ]
    content = tree(images, annotations, [category(1, "cat"), category(2, "dog")])
    return write_plain(root, content, content)


def test_training_sees_images_with_objects_and_testing_all(tmp_path):
    opened = open_data(data_of(write_odd(tmp_path / "set")), tmp_path / "cache")
    assert opened.train.indices.tolist() == [0, 6]
    assert opened.val.indices.tolist() == list(range(7))
    assert (len(opened.train), len(opened.val)) == (2, 7)
    assert opened.class_names == ("cat", "dog")
    assert opened.num_classes == 2
    assert opened.root == tmp_path / "set"


def test_what_is_left_out_in_training_is_a_setting(tmp_path):
    root, cache = write_odd(tmp_path / "set"), tmp_path / "cache"

    def used(**more):
        return open_data(data_of(root, **more), cache).train.indices.tolist()

    assert used(drop_empty=False) == [0, 1, 2, 3, 4, 6]
    assert used(min_image_side=20) == [0, 5, 6]
    assert used(min_box_side=0.25) == [0, 3, 6]
    assert used(min_box_side=15) == [6]


def test_a_sample_has_clipped_boxes_without_crowds(tmp_path):
    opened = open_data(data_of(write_odd(tmp_path / "set")), tmp_path / "cache")
    sample = opened.train.sample(6, epoch=0, seed=0, transform=AS_IT_IS)
    assert sample.boxes.tolist() == [[0, 0, 20, 20]]
    assert sample.boxes.dtype == torch.float32
    assert sample.labels.tolist() == [1]
    assert (sample.original_size, sample.image_index, sample.name) == ((48, 64), 6, "7.png")
    with Image.open(tmp_path / "set/images/7.png") as expected:
        assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_evaluation_keeps_what_training_leaves_out(tmp_path):
    opened = open_data(data_of(write_odd(tmp_path / "set")), tmp_path / "cache")
    assert len(opened.val.annotations.boxes) == 8
    assert opened.val.annotations.iscrowd.sum() == 2


def test_augmentation_depends_on_seed_epoch_and_index(tmp_path):
    content = several("a", 3, width=40, height=40)
    opened = open_data(data_of(write_plain(tmp_path / "set", content, content)), tmp_path / "cache")
    how = FixedResize(short=32, long=64)

    def flips(seed, epochs):
        samples = [opened.train.sample(1, epoch=e, seed=seed, transform=how).image for e in epochs]
        return [not torch.equal(sample, samples[0]) for sample in samples]

    assert flips(0, range(20)) == flips(0, range(20))
    assert 0 < sum(flips(0, range(20))) < 20
    assert flips(0, range(20)) != flips(1, range(20))


def test_pixels_are_decoded_once_where_they_fit(tmp_path, monkeypatch):
    content = several("a", 3)
    root, calls = write_plain(tmp_path / "set", content, content), []
    read = dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda *a: calls.append(a) or read(*a))

    def decoded():
        calls.clear()
        train = open_data(data_of(root), tmp_path / "cache").train
        samples = [train.sample(i, epoch=0, seed=0, transform=AS_IT_IS).image for i in (0, 1, 0, 1)]
        assert torch.equal(samples[0], samples[2])
        return len(calls)

    assert decoded() == 2
    monkeypatch.setattr(dataset, "_KEEP_BYTES", 3 * 3 * 48 * 64)
    assert decoded() == 4


def test_splits_with_other_classes_are_refused(tmp_path):
    train, val = several("a", 2), several("b", 2)
    val["categories"][1]["name"] = "wolf"
    root = write_plain(tmp_path, train, val)
    with pytest.raises(DataError, match=r"instances_val\.json: .*only one of them has 2 \(dog\), 2 \(wolf\)"):
        open_data(data_of(root), tmp_path / "cache")


def test_a_training_split_without_objects_is_refused(tmp_path):
    content = tree(annotations=[])
    root = write_plain(tmp_path, content, content)
    with pytest.raises(DataError, match="none of its 1 images has an object to train on"):
        open_data(data_of(root), tmp_path / "cache")


def test_a_validation_split_without_images_is_refused(tmp_path):
    root = write_plain(tmp_path, several("a", 2), several("b", 0))
    with pytest.raises(DataError, match=r"instances_val\.json: lists no images"):
        open_data(data_of(root), tmp_path / "cache")


def test_drawn_data_is_written_and_opened(tmp_path):
    told = []
    source = Drawn(size=48, num_train=3, num_val=2)
    opened = open_data(Data(source=source), tmp_path, progress=lambda *x: told.append(x))
    assert told[-1] == (5, 5)
    assert (len(opened.train), len(opened.val), opened.num_classes) == (3, 2, 8)
    assert opened.fingerprint == fingerprint(source, tmp_path)
    assert opened.fingerprint.startswith("drawn-")


def test_a_fingerprint_is_of_the_content_not_of_the_place(tmp_path):
    prints = set()
    for name in ("one", "two"):
        root = write_plain(tmp_path / name, several("a", 3), several("b", 2))
        prints.add(fingerprint(Coco(root=str(root)), tmp_path / "cache"))
    assert len(prints) == 1
    assert prints.pop().startswith("coco-")


def test_a_fingerprint_changes_with_annotations_and_images(tmp_path):
    root = write_plain(tmp_path / "set", several("a", 3), several("b", 2))

    def current():
        return fingerprint(Coco(root=str(root)), tmp_path / "cache")

    seen = [current()]
    changed = several("b", 2)
    changed["annotations"][0]["bbox"][0] += 0.125
    write_json(root / "annotations/instances_val.json", changed)
    seen.append(current())
    path = root / "images/a1.png"
    path.write_bytes(path.read_bytes() + b"\0")
    seen.append(current())
    (root / "images/unnamed.png").write_bytes(b"no part of the data")
    assert len(set(seen)) == 3
    assert current() == seen[-1]
    path.unlink()
    with pytest.raises(DataError, match=r"a1\.png: no such image file"):
        current()
