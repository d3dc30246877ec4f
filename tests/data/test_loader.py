from collections import Counter
from itertools import islice

import pytest
import torch
from coco_files import several, write_plain

from detbench.data.dataset import open_data
from detbench.data.loader import test_batches, train_batches
from detbench.errors import DataError
from detbench.parts.data import Coco, Data, DetrResize, FixedResize

NUM_TRAIN, NUM_VAL = 10, 7


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_plain(tmp_path_factory.mktemp("set"), several("a", NUM_TRAIN), several("b", NUM_VAL))


@pytest.fixture(scope="module")
def data(root):
    detr = DetrResize(shorts=(32, 40), long=80, crop_shorts=(40, 48), crop_long=80, crop_min=24, crop_max=40)
    return Data(source=Coco(root=str(root)), train=detr, test=FixedResize(short=32, long=64, flip=0.0))


@pytest.fixture(scope="module")
def opened(data, tmp_path_factory):
    return open_data(data, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def batches(opened, data):
    def first(count, **settings):
        options = {"seed": 0, "batch": 4, "steps_from": 0, "workers": 0, **settings}
        return list(islice(train_batches(opened.train, data, **options), count))

    return first


def assert_same(a, b):
    assert (a.names, a.image_index, a.sizes, a.original_sizes) == (
        b.names,
        b.image_index,
        b.sizes,
        b.original_sizes,
    )
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.targets.boxes, b.targets.boxes)
    assert torch.equal(a.targets.labels, b.targets.labels)
    assert a.targets.counts == b.targets.counts


def test_every_epoch_has_every_image_once_in_an_order_of_its_own(batches):
    row = [index for batch in batches(10) for index in batch.image_index]
    epochs = [row[i : i + NUM_TRAIN] for i in range(0, 40, NUM_TRAIN)]
    assert all(sorted(epoch) == list(range(NUM_TRAIN)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_may_hold_the_end_of_one_epoch_and_the_start_of_the_next(batches):
    assert [len(batch.names) for batch in batches(5)] == [4] * 5
    (large,) = batches(1, batch=25)
    assert sorted(Counter(large.image_index).values()) == [2] * 5 + [3] * 5


def test_batches_from_any_step_are_those_of_a_run_from_the_start(batches):
    for whole, resumed in zip(batches(9)[4:], batches(5, steps_from=4), strict=True):
        assert_same(whole, resumed)


def test_workers_change_nothing(batches):
    for alone, helped in zip(batches(7, steps_from=1), batches(7, steps_from=1, workers=2), strict=True):
        assert_same(alone, helped)
        assert helped.images.is_contiguous(memory_format=torch.channels_last)


def test_seeds_change_order_and_augmentation(batches):
    (a,), (b,) = batches(1, batch=NUM_TRAIN), batches(1, batch=NUM_TRAIN, seed=1)
    assert a.image_index != b.image_index
    sizes = [dict(zip(x.image_index, x.sizes, strict=True)) for x in (a, b)]
    assert sizes[0] != sizes[1]


def test_processes_share_each_batch(batches):
    for step, whole in enumerate(batches(4)):
        shares = [batches(1, steps_from=step, rank=rank, world=2)[0] for rank in range(2)]
        assert shares[0].names + shares[1].names == whole.names
        boxes = torch.cat([share.targets.boxes for share in shares])
        assert torch.equal(boxes, whole.targets.boxes)


def test_a_batch_that_cant_be_shared_evenly_is_refused(batches):
    with pytest.raises(DataError, match="4 images can't be shared evenly by 3"):
        batches(1, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_random_state_is_touched(batches, opened, data, workers):
    state = torch.get_rng_state()
    batches(2, workers=workers)
    list(test_batches(opened.val, data, batch=3, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_testing_sees_every_image_once_in_order(opened, data, workers):
    found = list(test_batches(opened.val, data, batch=3, workers=workers))
    assert [batch.image_index for batch in found] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert all(min(size) == 32 for batch in found for size in batch.sizes)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, workers):
    root = write_plain(tmp_path / "set", several("a", 3), several("b", 3))
    data = Data(source=Coco(root=str(root)), test=FixedResize(short=32, long=64, flip=0.0))
    opened = open_data(data, tmp_path / "cache")
    path = root / "images/b2.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        list(test_batches(opened.val, data, batch=1, workers=workers))
    assert str(caught.value).startswith(f"{path}: can't be read as an image: ")
    assert "\n" not in str(caught.value)
