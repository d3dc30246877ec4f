"""What is done to an image after resize and flip where a teacher labels some images: colour, geometry, erasing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from detbench.data.transforms import Transformed, scaling, translation
from detbench.parts.teaching import StrongView


@dataclass(frozen=True, slots=True)
class View:
    """One way to see an image (spec 8.1).

    Attributes:
        stream: tells views of one image apart: each draws its own resize and flip.
        coloured: one colour operation.
        strong: one colour and one geometric operation and erased rectangles; None for none of them.
    """

    stream: tuple[int, ...] = ()
    coloured: bool = False
    strong: StrongView | None = None

    def __call__(self, resized: Transformed, rng: np.random.Generator) -> Transformed:
        """The view of a resized image, every random choice drawn from `rng`."""
        if self.coloured:
            return replace(resized, image=coloured(resized.image, rng))
        if self.strong is not None:
            return _strong(self.strong, resized, rng)
        return resized


PLAIN = View()
LABELLED = View(coloured=True)
WEAK = View(stream=(1,))


def strong_view(how: StrongView) -> View:
    """What the student sees of an unlabelled image."""
    return View(stream=(2,), strong=how)


# Each takes an image and a level from 1 to 9.
_COLOUR_OPERATIONS: tuple[Callable[[Tensor, int], Tensor], ...] = (
    lambda image, level: image,
    lambda image, level: F.autocontrast(image),
    lambda image, level: F.equalize(image),
    lambda image, level: F.solarize(image, min(25.6 * level, 255)),
    lambda image, level: F.adjust_saturation(image, _factor(level)),
    lambda image, level: F.adjust_contrast(image, _factor(level)),
    lambda image, level: F.adjust_brightness(image, _factor(level)),
    lambda image, level: F.adjust_sharpness(image, _factor(level)),
    lambda image, level: F.posterize(image, 4 - int(0.4 * level)),
)


def _factor(level: int) -> float:
    return 0.18 * level + 0.1


def coloured(image: Tensor, rng: np.random.Generator) -> Tensor:
    """One of nine colour operations on a (3, H, W) uint8 RGB image, at one of nine levels."""
    operation = _COLOUR_OPERATIONS[rng.integers(len(_COLOUR_OPERATIONS))]
    return operation(image, int(rng.integers(1, 10)))


def geometry(how: StrongView, height: int, width: int, rng: np.random.Generator) -> Tensor:
    """(3, 3) float64: a shift along x or along y, a turn about the image's centre, or a shear along x, then y."""
    match rng.integers(4):
        case 0:
            return translation(width * rng.uniform(-how.translate, how.translate), 0)
        case 1:
            return translation(0, height * rng.uniform(-how.translate, how.translate))
        case 2:
            angle = math.radians(rng.uniform(-how.rotate, how.rotate))
            turn = scaling(1, 1)
            turn[0, :2] = torch.tensor([math.cos(angle), -math.sin(angle)])
            turn[1, :2] = torch.tensor([math.sin(angle), math.cos(angle)])
            return translation(width / 2, height / 2) @ turn @ translation(-width / 2, -height / 2)
        case _:
            along_x, along_y = scaling(1, 1), scaling(1, 1)
            along_x[0, 1], along_y[1, 0] = np.tanh(np.radians(rng.uniform(-how.shear, how.shear, 2)))
            return along_y @ along_x


def _strong(how: StrongView, resized: Transformed, rng: np.random.Generator) -> Transformed:
    assert not len(resized.boxes), "strong views are of images whose objects nobody knows"
    image = resized.image
    height, width = image.shape[-2:]
    colour_first = rng.random() < 0.5
    if colour_first:
        image = coloured(image, rng)
    moved = geometry(how, height, width, rng)
    image = _warped(image, moved, fill=how.fill)
    if not colour_first:
        image = coloured(image, rng)
    return replace(resized, image=_erased(how, image, rng), matrix=moved @ resized.matrix)


def _warped(image: Tensor, matrix: Tensor, *, fill: int) -> Tensor:
    """The image with its points moved by an affine matrix; what they leave is filled."""
    # torchvision's coefficients take places in the new image to places in the old one.
    back = torch.linalg.inv(matrix).flatten()[:8].tolist()
    warped: Tensor = F.perspective(
        image,
        startpoints=None,
        endpoints=None,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=[float(fill)] * 3,
        coefficients=back,
    )
    return warped


def _erased(how: StrongView, image: Tensor, rng: np.random.Generator) -> Tensor:
    """The image without some rectangles, each the same share of its height and of its width."""
    fill = torch.full((3, 1, 1), how.fill, dtype=torch.uint8)
    for _ in range(rng.integers(1, how.erase + 1)):
        share = rng.uniform(0, how.erase_side)
        sides = [int(share * side) for side in image.shape[-2:]]
        top, left = (
            int(rng.integers(0, side - cut + 1)) for side, cut in zip(image.shape[-2:], sides, strict=True)
        )
        image = F.erase(image, top, left, *sides, v=fill)
    return image
