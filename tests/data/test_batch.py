import pytest
import torch

from detbench.data.batch import Sample, collate, to_network
from detbench.parts.data import Pixels


def sample(height, width, boxes, index):
    image = torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(index)
    )
    return Sample(
        image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)),
        (2 * height, 2 * width), index, f"{index}.png", torch.eye(3, dtype=torch.float64),
    )  # fmt: skip


@pytest.fixture
def samples():
    return [
        sample(20, 33, [[1, 2, 3, 4], [5, 6, 7, 8]], 4),
        sample(32, 10, [], 9),
        sample(7, 8, [[0, 0, 8, 7]], 2),
    ]


def test_images_are_padded_at_bottom_and_right_to_the_next_multiple(samples):
    batch = collate(samples, 32)
    assert batch.images.shape == (3, 3, 32, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes == batch.targets.sizes == ((20, 33), (32, 10), (7, 8))
    for image, s, (height, width) in zip(batch.images, samples, batch.sizes, strict=True):
        assert torch.equal(image[:, :height, :width], s.image)
        assert image.sum() == s.image.sum(), "padding is zero"


def test_objects_are_laid_end_to_end(samples):
    targets = collate(samples, 1).targets
    assert targets.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 8, 7]]
    assert targets.labels.tolist() == [0, 1, 0]
    assert targets.image_idx.tolist() == [0, 0, 2]
    assert targets.counts == (2, 0, 1)


def test_a_batch_knows_where_its_images_come_from(samples):
    batch = collate(samples, 8)
    assert batch.images.shape[-2:] == (32, 40)
    assert batch.original_sizes == ((40, 66), (64, 20), (14, 16))
    assert batch.image_index == (4, 9, 2)
    assert batch.names == ("4.png", "9.png", "2.png")


def test_the_mask_is_true_in_the_padding(samples):
    mask = collate(samples, 32).mask()
    assert mask.shape == (3, 32, 64)
    assert [(~m).sum().item() for m in mask] == [20 * 33, 32 * 10, 7 * 8]
    assert not mask[0, 19, 32]
    assert mask[0, 20, 0] and mask[0, 0, 33]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_are_normalised_and_padding_is_exactly_zero(samples, order):
    pixels = Pixels(order=order, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    batch = collate(samples, pixels.pad_multiple)
    values = to_network(batch, pixels, "cpu")
    assert values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert (values.movedim(1, -1)[batch.mask()] == 0).all()
    for i, s in enumerate(samples):
        for channel in range(3):
            source = s.image[channel if order == "rgb" else 2 - channel]
            expected = (source.double() - pixels.mean[channel]) / pixels.std[channel]
            found = values[i, channel, : source.shape[0], : source.shape[1]]
            assert torch.allclose(found.double(), expected, atol=1e-6)


def test_a_batch_of_images_without_objects_has_empty_targets():
    targets = collate([sample(8, 8, [], 1)], 8).targets
    assert targets.boxes.shape == (0, 4)
    assert targets.labels.dtype == torch.int64
