import numpy as np
import pytest
import torch
from PIL import Image

from detbench.data.transforms import resized_size, transformed
from detbench.parts.data import DetrResize, FixedResize

NO_BOXES = torch.zeros(0, 4)


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # 640 * 800/480 = 1066.67
        ((400, 1000), (800, 1333), (533, 1333)),  # the long side decides: 400 * 1333/1000 = 533.2
        ((1000, 400), (800, 1333), (1333, 533)),
        ((128, 128), (128, 256), (128, 128)),
        ((1, 500), (10, 20), (1, 20)),  # 1 * 20/500 rounds to 0, but an image has a row
        ((640, 426), (800, 1333), (1202, 800)),  # 1201.9: rounded, not cut
    ],
)
def test_the_short_side_is_met_unless_the_long_one_would_pass_its_limit(size, limits, expected):
    assert resized_size(*size, *limits) == expected


def test_a_flip_mirrors_pixels_and_boxes():
    image, boxes = noise(10, 20), torch.tensor([[2.0, 3, 7, 8], [0, 0, 20, 10]])
    out = transformed(FixedResize(short=10, long=20, flip=1.0), image, boxes, rng())
    assert torch.equal(out.image, image.flip(2))
    assert out.boxes.tolist() == [[13, 3, 18, 8], [0, 0, 20, 10]]


def test_a_resize_scales_each_side_of_a_box_as_its_images():
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    out = transformed(FixedResize(short=50, long=1000, flip=0.0), noise(40, 61), boxes, rng())
    assert out.image.shape == (3, 50, 76)  # 61 * 50/40 = 76.25
    expected = [10 * 76 / 61, 20 * 50 / 40, 30 * 76 / 61, 40 * 50 / 40]
    assert out.boxes[0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [(33, 47), (64, 48), (120, 161)])
def test_a_resize_is_pils_bilinear_one(size):
    image = noise(*size)
    out = transformed(FixedResize(short=40, long=100, flip=0.0), image, NO_BOXES, rng())
    assert out.image.dtype == torch.uint8
    height, width = out.image.shape[1:]
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BILINEAR)
    difference = out.image.permute(1, 2, 0).numpy().astype(int) - np.asarray(pil).astype(int)
    assert np.abs(difference).max() <= 1


def test_boxes_are_clipped_and_those_without_area_dropped():
    boxes = torch.tensor(
        [[-5.0, -5, 10, 10], [15, 5, 40, 50], [30, 5, 40, 9], [4, 4, 4, 9], [7, 9, 6, 10], [1, 1, 2, 2]]
    )
    out = transformed(FixedResize(short=10, long=20, flip=0.0), noise(10, 20), boxes, rng())
    assert out.kept.tolist() == [True, True, False, False, False, True]
    assert out.boxes.tolist() == [[0, 0, 10, 10], [15, 5, 20, 10], [1, 1, 2, 2]]


DETR = DetrResize(
    shorts=(40, 56, 72), long=110, crop_shorts=(60, 80), crop_long=120, crop_min=30, crop_max=50
)


@pytest.mark.parametrize("how", [DETR, FixedResize(short=60, long=90)], ids=["detr", "fixed"])
def test_boxes_stay_on_what_is_painted(how):
    """A white rectangle is found again, to a pixel, where its box says."""
    left = 0
    for seed in range(120):
        chance = rng(1000 + seed)
        height, width = chance.integers(40, 120, 2).tolist()
        x0, y0 = int(chance.integers(0, width - 20)), int(chance.integers(0, height - 20))
        x1, y1 = x0 + int(chance.integers(8, 20)), y0 + int(chance.integers(8, 20))
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[:, y0:y1, x0:x1] = 255
        out = transformed(how, image, torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32), rng(seed))
        white = (out.image[0] > 127).nonzero()
        if not len(out.boxes):
            assert not len(white)
            continue
        if not len(white):
            # A sliver at the edge may fade out; then its box is as thin.
            assert (out.boxes[0, 2:] - out.boxes[0, :2]).min() <= 1.5
            continue
        left += 1
        low, high = white.min(0).values.flip(0), white.max(0).values.flip(0) + 1
        assert torch.cat([low, high]).tolist() == pytest.approx(out.boxes[0].tolist(), abs=1.6)
    assert left > 60


def test_the_last_short_side_is_one_of_those_given_whichever_way_is_taken():
    for seed in range(60):
        size = transformed(DETR, noise(50, 60, seed), NO_BOXES, rng(seed)).image.shape[1:]
        assert min(size) in DETR.shorts or max(size) == DETR.long


def test_half_of_the_images_are_cropped_and_a_crop_may_have_no_box():
    """A box in one corner is lost or cut only by a crop: sides of 30 to 50 from images of 60 or 80."""
    boxes = torch.tensor([[0.0, 0, 60, 60]])
    how = DetrResize(
        shorts=(60,), long=100, crop_shorts=(60,), crop_long=100, crop_min=30, crop_max=31, flip=0.0
    )
    image = torch.arange(60, dtype=torch.uint8).expand(3, 60, 60).contiguous()
    spans = [int(out.max()) - int(out.min()) for out in (
        transformed(how, image, boxes, rng(seed)).image for seed in range(400)
    )]  # fmt: skip
    assert set(spans) == {59, 30, 29}
    assert 160 < sum(span < 59 for span in spans) < 240
    corner = torch.tensor([[0.0, 0, 5, 5]])
    kept = [len(transformed(how, image, corner, rng(seed)).boxes) for seed in range(100)]
    assert set(kept) == {0, 1}


def test_a_crop_takes_the_whole_of_an_image_that_is_smaller():
    how = DetrResize(
        shorts=(20,), crop_shorts=(20,), crop_min=384, crop_max=600, crop_probability=1.0, flip=0.0
    )
    image = noise(20, 25)
    assert torch.equal(transformed(how, image, NO_BOXES, rng()).image, image)


def test_chance_comes_from_the_generator_alone():
    image, boxes = noise(50, 70), torch.tensor([[5.0, 5, 40, 40]])
    for seed in range(10):
        first = transformed(DETR, image, boxes, rng(seed))
        torch.rand(3)
        np.random.random(3)  # noqa: NPY002
        again = transformed(DETR, image, boxes, rng(seed))
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.boxes, again.boxes)


def test_what_is_given_is_left_alone():
    image, boxes = noise(20, 30), torch.tensor([[-3.0, 2, 40, 9]])
    before = image.clone(), boxes.clone()
    transformed(FixedResize(short=20, long=30, flip=1.0), image, boxes, rng())
    assert torch.equal(image, before[0])
    assert torch.equal(boxes, before[1])
