import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from detbench.data import views
from detbench.data.transforms import transformed
from detbench.data.views import LABELLED, PLAIN, WEAK, coloured, geometry, strong_view
from detbench.parts.data import DetrResize, FixedResize
from detbench.parts.teaching import StrongView

NO_BOXES = torch.zeros(0, 4)
AS_IT_IS = FixedResize(short=100, long=1000, flip=0.0)
DETR = DetrResize(shorts=(80, 110), long=200, crop_shorts=(90, 120), crop_long=220, crop_min=60, crop_max=100)


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height, width, seed=0):
    pixels = rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def extent(matrix, box):
    """(4,) xyxy around the moved corners of a box."""
    x0, y0, x1, y1 = box
    corners = torch.tensor([[x0, x1, x1, x0], [y0, y0, y1, y1], [1, 1, 1, 1]], dtype=torch.float64)
    moved = (matrix @ corners)[:2]
    return [*moved.min(1).values.tolist(), *moved.max(1).values.tolist()]


@pytest.mark.parametrize("how", [FixedResize(short=90, long=200), DETR], ids=["fixed", "detr"])
def test_the_matrix_of_resize_crop_and_flip_takes_boxes_along(how):
    for seed in range(60):
        height, width = rng(seed).integers(70, 160, 2).tolist()
        boxes = torch.tensor([[5.0, 9, 40, 33], [20, 30, 60, 70]])
        out = transformed(how, noise(height, width), boxes, rng(seed))
        height, width = out.image.shape[1:]
        moved = torch.tensor([extent(out.matrix, box) for box in boxes.tolist()])
        moved = moved.clamp(min=0).minimum(torch.tensor([width, height] * 2))[out.kept]
        torch.testing.assert_close(out.boxes, moved, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("only", "how"),
    [
        ("a shift", StrongView(rotate=0.0, shear=0.0, erase_side=0.0, fill=0)),
        ("a turn", StrongView(translate=0.0, shear=0.0, erase_side=0.0, fill=0)),
        ("a shear", StrongView(translate=0.0, rotate=0.0, erase_side=0.0, fill=0)),
    ],
)
def test_a_painted_box_lands_where_the_matrix_says_after(monkeypatch, only, how):
    monkeypatch.setattr(views, "coloured", lambda image, rng: image)
    compared = moved = 0
    for seed in range(80):
        image = torch.zeros(3, 100, 130, dtype=torch.uint8)
        image[:, 35:65, 40:90] = 255
        out = strong_view(how)(transformed(AS_IT_IS, image, NO_BOXES, rng(seed)), rng(seed))
        assert out.image.shape == (3, 100, 130)
        moved += not torch.equal(out.matrix, torch.eye(3, dtype=torch.float64))
        expected = extent(out.matrix, (40, 35, 90, 65))
        if min(expected) < 0 or expected[2] > 130 or expected[3] > 100:
            continue  # cut at the edge of the image: the corners' extent is more than what is left
        compared += 1
        white = (out.image[0] > 127).nonzero()
        low, high = white.min(0).values.flip(0), white.max(0).values.flip(0) + 1
        # The corner of a turned box is thin: its last pixels are less than half white.
        assert torch.cat([low, high]).tolist() == pytest.approx(expected, abs=1.6)
    assert compared > 40
    assert moved > 10


def test_a_view_is_painted_where_its_matrix_says_from_the_files_image_on(monkeypatch):
    """Flip, crop, resize and geometry together."""
    monkeypatch.setattr(views, "coloured", lambda image, rng: image)
    compared = 0
    for seed in range(80):
        image = torch.zeros(3, 140, 120, dtype=torch.uint8)
        image[:, 50:90, 40:70] = 255
        chance = rng(seed)
        out = strong_view(StrongView(erase_side=0.0, fill=0))(
            transformed(DETR, image, NO_BOXES, chance), chance
        )
        white = (out.image[0] > 200).nonzero().flip(1) + 0.5
        back = torch.linalg.inv(out.matrix) @ torch.cat([white.double(), torch.ones(len(white), 1)], 1).T
        if not len(white):
            continue
        compared += 1
        assert back[0].min() >= 40 - 1
        assert back[0].max() <= 70 + 1
        assert back[1].min() >= 50 - 1
        assert back[1].max() <= 90 + 1
    assert compared > 60


def test_geometry_is_a_shift_either_way_a_turn_or_a_shear_within_its_limits():
    how, kinds = StrongView(), {"x": 0, "y": 0, "turn": 0, "shear": 0}
    for seed in range(800):
        m = geometry(how, 100, 200, rng(seed)).numpy()
        if m[0, 0] == m[1, 1] == 1 and m[0, 1] == m[1, 0] == 0:
            kinds["x" if m[0, 2] else "y"] += 1
            assert abs(m[0, 2]) <= 20
            assert abs(m[1, 2]) <= 10
        elif m[0, 1] == -m[1, 0]:
            kinds["turn"] += 1
            assert np.linalg.det(m) == pytest.approx(1)
            assert abs(math.degrees(math.asin(m[1, 0]))) <= 30
            assert m @ [100, 50, 1] == pytest.approx([100, 50, 1]), "about the centre"
        else:
            kinds["shear"] += 1
            limit = math.tanh(math.pi / 6)
            assert abs(m[0, 1]) <= limit
            assert abs(m[1, 0]) <= limit
            assert m[1, 1] == pytest.approx(1 + m[0, 1] * m[1, 0]), "along x first"
    assert all(150 < count < 250 for count in kinds.values()), kinds


def pil_operations(level):
    factor = 0.18 * level + 0.1
    return [
        lambda image: image,
        ImageOps.autocontrast,
        ImageOps.equalize,
        lambda image: ImageOps.solarize(image, min(25.6 * level, 255)),
        lambda image: ImageEnhance.Color(image).enhance(factor),
        lambda image: ImageEnhance.Contrast(image).enhance(factor),
        lambda image: ImageEnhance.Brightness(image).enhance(factor),
        lambda image: ImageEnhance.Sharpness(image).enhance(factor),
        lambda image: ImageOps.posterize(image, 4 - int(0.4 * level)),
    ]


@pytest.mark.parametrize("level", range(1, 10))
@pytest.mark.parametrize("operation", range(9))
def test_a_colour_operation_is_pils(operation, level):
    class Chosen:
        """A generator that gives what is asked of it in turn."""

        def __init__(self, *values):
            self.left = list(values)

        def integers(self, *limits):
            return self.left.pop(0)

    image = torch.from_numpy(
        np.array(Image.fromarray(noise(9, 12).permute(1, 2, 0).numpy()).resize((48, 36)))
    )
    out = coloured(image.permute(2, 0, 1), Chosen(operation, level))
    expected = np.asarray(pil_operations(level)[operation](Image.fromarray(image.numpy())))
    assert out.dtype == torch.uint8
    assert np.abs(out.permute(1, 2, 0).numpy().astype(int) - expected.astype(int)).max() <= 2


def test_colour_operations_are_drawn_at_levels_from_1_to_9():
    grey = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    generator = rng()
    seen = torch.tensor([coloured(grey, generator)[0, 0, 0].item() for _ in range(2000)])
    # Brightness gives grey a value of its own at each level; two bits leave 64 of it, too.
    for level in range(1, 10):
        assert ((seen - 100 * (0.18 * level + 0.1)).abs() <= 1).any(), level
    posterised, solarised = {0, 96}, {155}
    assert set(seen.tolist()) > posterised | solarised
    assert (seen.min(), seen.max()) == (0, 172)


def test_rectangles_of_the_images_own_shape_are_erased(monkeypatch):
    monkeypatch.setattr(views, "coloured", lambda image, rng: image)
    how = StrongView(translate=0.0, rotate=0.0, shear=0.0)
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    shares = []
    for seed in range(100):
        out = strong_view(how)(transformed(AS_IT_IS, image, NO_BOXES, rng(seed)), rng(seed))
        assert set(out.image.unique().tolist()) <= {0, 125}
        shares.append((out.image == 125).float().mean().item())
    assert max(shares) <= 4 * 0.2**2
    assert shares.count(0.0) < 8, "at least one, though it may be too narrow to be seen"
    assert 0.015 < np.mean(shares) < 0.035  # 2.5 rectangles of 0.2^2 / 3 each
    assert not image.any(), "the image given is left alone"


def test_what_geometry_leaves_empty_is_filled(monkeypatch):
    monkeypatch.setattr(views, "coloured", lambda image, rng: image)
    how = StrongView(rotate=0.0, shear=0.0, erase_side=0.0)
    image = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    outs = [strong_view(how)(transformed(AS_IT_IS, image, NO_BOXES, rng()), rng(seed)) for seed in range(8)]
    assert {125, 255} <= {value for out in outs for value in out.image.unique().tolist()}


def test_a_labelled_view_moves_nothing_and_a_weak_one_changes_no_colour():
    resized = transformed(AS_IT_IS, noise(100, 120), torch.tensor([[5.0, 5, 40, 40]]), rng())
    assert PLAIN(resized, rng()) is resized
    assert WEAK(resized, rng()) is resized
    seen = [LABELLED(resized, rng(seed)) for seed in range(10)]
    assert all(torch.equal(view.boxes, resized.boxes) for view in seen)
    assert any(not torch.equal(view.image, resized.image) for view in seen)
