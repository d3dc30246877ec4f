"""Which images a teacher labels: the rest of a split or another source, and what training gets of them."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import annotation, image, several, tree, write_images, write_json, write_plain

from detbench.data.dataset import open_data
from detbench.data.fingerprint import fingerprint
from detbench.data.labelled import draw_folds
from detbench.data.loader import labelled_in_step, teaching_batches, train_batches
from detbench.errors import DataError
from detbench.parts.data import Coco, Data, Drawn, FixedResize, Labelled
from detbench.parts.teaching import Teacher

NUM_TRAIN = 20
TEACHER = Teacher(group=4, labelled_share=0.5)
SMALL = FixedResize(short=32, long=64)


def of_images(keys: list[Any], empty: int = 0) -> dict[str, Any]:
    """Images in the order of their ids given, the first ones without a box."""
    images = [image(key, f"{key}.png") for key in keys]
    return tree(images, [annotation(i, key) for i, key in enumerate(keys[empty:])])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twenty training images whose ids descend through the file; the first eight have no box."""
    folder = tmp_path_factory.mktemp("set")
    return write_plain(folder, of_images(list(range(NUM_TRAIN, 0, -1)), empty=8), of_images([101, 102]))


def partial(root: Any, **labelled: Any) -> Data:
    return Data(source=Coco(root=str(root)), train=SMALL, labelled=Labelled(**labelled))


def test_labelled_images_are_those_of_data_split(root: Any, tmp_path: Any) -> None:
    folds = draw_folds(root, percent=40, folds=3, offset=7)
    for fold, ids in enumerate(folds.labelled, start=1):
        opened = open_data(partial(root, percent=40, fold=fold, offset=7), tmp_path)
        annotations, unlabelled = opened.train.annotations, opened.unlabelled
        assert unlabelled is not None
        seen = annotations.image_ids[opened.train.indices].tolist()
        assert set(seen) == {i for i in ids if i <= 12}, "those without objects are left out"
        others = annotations.image_ids[unlabelled.indices].tolist()
        assert sorted([*others, *ids]) == list(range(1, NUM_TRAIN + 1)), "the others are all kept"


def test_annotations_of_unlabelled_images_reach_nobody(root: Any, tmp_path: Any) -> None:
    unlabelled = open_data(partial(root, percent=40), tmp_path).unlabelled
    assert unlabelled is not None
    for index in unlabelled.indices:
        assert not len(unlabelled.sample(int(index), epoch=0, seed=0, transform=SMALL).boxes)


def test_without_a_draw_all_images_are_labelled(root: Any, tmp_path: Any) -> None:
    opened = open_data(Data(source=Coco(root=str(root))), tmp_path)
    assert len(opened.train) == 12
    assert opened.unlabelled is None


def test_too_few_labelled_images_are_refused(root: Any, tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"4 percent of its 20 images is not even one. Label more of them"):
        open_data(partial(root, percent=4), tmp_path)


def test_labelled_images_without_any_object_are_refused(tmp_path: Any) -> None:
    root = write_plain(tmp_path / "set", of_images(list(range(20)), empty=19), of_images([101, 102]))
    with pytest.raises(DataError, match="none of its 2 labelled images has an object to train on"):
        open_data(partial(root, percent=10, fold=1), tmp_path / "cache")


def test_cocos_own_unlabelled_images_are_found(root: Any, tmp_path: Any) -> None:
    listed = {"images": [image(key, f"{key}.png") for key in (5, 3)], "info": {}}
    write_json(tmp_path / "coco/annotations/image_info_unlabeled2017.json", listed)
    write_images(tmp_path / "coco/unlabeled2017", listed)
    other = Coco(root=str(tmp_path / "coco"))
    data = Data(source=Coco(root=str(root)), unlabelled=other)
    for _ in range(2):  # read, then from the cache
        opened = open_data(data, tmp_path / "cache")
        assert len(opened.train) == 12
        assert opened.unlabelled is not None
        assert opened.unlabelled.annotations.image_ids.tolist() == [3, 5]
        sample = opened.unlabelled.sample(1, epoch=0, seed=0, transform=SMALL)
        assert sample.name == "5.png"
        assert not len(sample.boxes)


def test_any_other_sources_training_images_serve_without_their_annotations(root: Any, tmp_path: Any) -> None:
    other = write_plain(tmp_path / "other", several("c", 5), several("d", 3))
    data = Data(source=Coco(root=str(root)), unlabelled=Coco(root=str(other)))
    opened = open_data(data, tmp_path / "cache")
    assert opened.unlabelled is not None
    assert len(opened.unlabelled) == 5
    assert not len(opened.unlabelled.annotations.boxes)


def test_a_data_set_that_has_none_is_refused(root: Any, tmp_path: Any) -> None:
    source = Coco(root=str(root))
    with pytest.raises(DataError, match=f"{root}: it has no unlabelled images beside its labelled ones"):
        open_data(Data(source=source, unlabelled=source), tmp_path)


def test_a_list_of_unlabelled_images_that_is_none_is_refused(root: Any, tmp_path: Any) -> None:
    path = write_json(tmp_path / "coco/annotations/image_info_unlabeled2017.json", {"info": {}})
    with pytest.raises(DataError, match=f"{path}: .* an object with the list images, found info"):
        open_data(
            Data(source=Coco(root=str(root)), unlabelled=Coco(root=str(tmp_path / "coco"))),
            tmp_path / "cache",
        )


def test_drawn_images_of_another_seed_serve_as_unlabelled(tmp_path: Any) -> None:
    source, other = Drawn(size=32, num_train=3, num_val=1), Drawn(size=32, num_train=4, num_val=1, seed=9)
    opened = open_data(Data(source=source, unlabelled=other), tmp_path)
    assert opened.unlabelled is not None
    assert (len(opened.train), len(opened.unlabelled)) == (3, 4)
    assert opened.fingerprint == fingerprint(source, tmp_path, unlabelled=other)
    assert opened.fingerprint != fingerprint(source, tmp_path)


def test_the_fingerprint_is_of_both_sources(root: Any, tmp_path: Any) -> None:
    other = write_plain(tmp_path / "other", several("c", 5), several("d", 3))
    source, unlabelled = Coco(root=str(root)), Coco(root=str(other))

    def now() -> str:
        return fingerprint(source, tmp_path / "cache", unlabelled=unlabelled)

    before = now()
    assert before.startswith(fingerprint(source, tmp_path / "cache") + "+")
    write_json(other / "annotations/instances_val.json", several("d", 2))
    assert now() == before, "its validation images are nobody's"
    write_json(other / "annotations/instances_train.json", several("c", 4))
    assert now() != before


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_a_steps_share_is_binomial_but_neither_none_nor_all(share: float) -> None:
    teacher = Teacher(group=5, labelled_share=share)
    counts = Counter(sum(labelled_in_step(teacher, seed=3, batch=5, step=step)) for step in range(4000))
    chance = [Binomial.at(k, 5, share) for k in range(6)]
    expected = {1: chance[0] + chance[1], 2: chance[2], 3: chance[3], 4: chance[4] + chance[5]}
    assert set(counts) <= set(expected)
    for k, p in expected.items():
        assert counts[k] / 4000 == pytest.approx(p, abs=0.03)


class Binomial:
    @staticmethod
    def at(k: int, n: int, p: float) -> float:
        return float(np.prod([(n - i) / (i + 1) for i in range(k)]) * p**k * (1 - p) ** (n - k))


def test_every_group_of_a_batch_has_both_kinds() -> None:
    teacher = Teacher(group=2, labelled_share=0.9)
    assert all(labelled_in_step(teacher, seed=0, batch=8, step=step) == [1] * 4 for step in range(50))


@pytest.fixture
def batches(root: Any, tmp_path: Any) -> Any:
    data = partial(root, percent=50)
    opened = open_data(data, tmp_path)
    assert opened.unlabelled is not None

    def first(count: int, **settings: Any) -> list[Any]:
        options = {"seed": 0, "batch": 8, "steps_from": 0, "workers": 0, **settings}
        return list(
            islice(teaching_batches(opened.train, opened.unlabelled, data, TEACHER, **options), count)
        )

    first.opened, first.data = opened, data  # type: ignore[attr-defined]
    return first


def assert_same(a: Any, b: Any) -> None:
    for kind in ("labelled", "weak", "strong"):
        one, other = getattr(a, kind), getattr(b, kind)
        assert one.image_index == other.image_index
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.matrices, other.matrices)
        assert torch.equal(one.targets.boxes, other.targets.boxes)


def test_a_batch_holds_labelled_images_and_two_views_of_others(batches: Any) -> None:
    for batch in batches(6):
        assert len(batch.names) == 8
        assert batch.weak.image_index == batch.strong.image_index
        assert set(batch.labelled.image_index) <= set(batches.opened.train.indices.tolist())
        assert set(batch.weak.image_index) <= set(batches.opened.unlabelled.indices.tolist())
        assert all(batch.labelled.targets.counts)
        assert not any(batch.weak.targets.counts + batch.strong.targets.counts)
        through_the_file = batch.weak_to_strong.double() @ batch.weak.matrices
        torch.testing.assert_close(through_the_file, batch.strong.matrices, atol=1e-4, rtol=1e-4)


def test_both_kinds_come_in_epochs_of_their_own(batches: Any) -> None:
    found = batches(20)
    for kind, split in (("labelled", batches.opened.train), ("weak", batches.opened.unlabelled)):
        row = [index for batch in found for index in getattr(batch, kind).image_index]
        n = len(split)
        epochs = [row[i : i + n] for i in range(0, len(row) - n + 1, n)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == split.indices.tolist() for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 3, "each in an order of its own"


def test_batches_from_any_step_are_those_of_a_run_from_the_start(batches: Any) -> None:
    for whole, resumed in zip(batches(9)[5:], batches(4, steps_from=5), strict=True):
        assert_same(whole, resumed)


def test_workers_change_nothing(batches: Any) -> None:
    for alone, helped in zip(batches(5, steps_from=2), batches(5, steps_from=2, workers=2), strict=True):
        assert_same(alone, helped)


def test_labelled_images_are_seen_in_the_order_of_a_supervised_run(batches: Any) -> None:
    taught = [index for batch in batches(8) for index in batch.labelled.image_index]
    plain = train_batches(
        batches.opened.train, batches.data, seed=0, batch=len(taught), steps_from=0, workers=0
    )
    assert list(next(plain).image_index) == taught


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_unlabelled_image_is_named(tmp_path: Any, workers: int) -> None:
    root = write_plain(tmp_path / "set", several("a", 4), several("b", 1))
    data = partial(root, percent=50)
    opened = open_data(data, tmp_path / "cache")
    unlabelled = opened.unlabelled
    assert unlabelled is not None
    for index in unlabelled.indices:
        (root / "images" / unlabelled.annotations.file_name(int(index))).write_bytes(b"")
    batches = teaching_batches(
        opened.train, unlabelled, data, TEACHER, seed=0, batch=4, steps_from=0, workers=workers
    )
    with pytest.raises(DataError, match="can't be read as an image"):
        next(batches)
