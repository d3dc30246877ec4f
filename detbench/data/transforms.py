"""What happens to an image and its boxes before they are put into a batch. Pixels stay uint8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from detbench.parts.data import FixedResize, Transform


@dataclass(frozen=True, slots=True)
class Transformed:
    """An image on its way into a batch.

    Attributes:
        image: (3, H, W) uint8.
        boxes: (N, 4) float32 xyxy pixels of the image, all with positive sides.
        kept: (n,) bool, for the boxes given: True for the N that are left.
        matrix: (3, 3) float64, takes (x, y, 1) pixels of the image given to those of this one.
    """

    image: Tensor
    boxes: Tensor
    kept: Tensor
    matrix: Tensor


def transformed(how: Transform, image: Tensor, boxes: Tensor, rng: np.random.Generator) -> Transformed:
    """Flips, crops and resizes an image with its boxes (spec 4.4).

    Boxes are clipped to what is left of the image; those left without area are dropped, and an image may be
    left without boxes. Every random choice is drawn from `rng` and nowhere else.

    Args:
        how: what to do.
        image: (3, H, W) uint8.
        boxes: (n, 4) float xyxy pixels of the image; may reach beyond it.
        rng: the source of chance.
    """
    picture = tv_tensors.Image(image)
    frame = tv_tensors.BoundingBoxes(
        boxes.to(torch.float32).reshape(-1, 4), format="XYXY", canvas_size=tuple(image.shape[-2:])
    )
    matrix = scaling(1, 1)
    if rng.random() < how.flip:
        matrix = translation(picture.shape[-1], 0) @ scaling(-1, 1)
        picture, frame = F.horizontal_flip(picture), F.horizontal_flip(frame)
    if isinstance(how, FixedResize):
        picture, frame, scale = _resized(picture, frame, how.short, how.long)
    else:
        if rng.random() < how.crop_probability:
            picture, frame, scale = _resized(picture, frame, int(rng.choice(how.crop_shorts)), how.crop_long)
            window = _crop_window(picture.shape[-2:], how.crop_min, how.crop_max, rng)
            picture, frame = F.crop(picture, *window), F.crop(frame, *window)
            matrix = translation(-window[1], -window[0]) @ scale @ matrix
        picture, frame, scale = _resized(picture, frame, int(rng.choice(how.shorts)), how.long)
    matrix = scale @ matrix
    frame = F.clamp_bounding_boxes(frame)
    kept = (frame[:, 2] > frame[:, 0]) & (frame[:, 3] > frame[:, 1])
    kept = kept.as_subclass(Tensor)
    return Transformed(picture.as_subclass(Tensor), frame.as_subclass(Tensor)[kept], kept, matrix)


def translation(x: float, y: float) -> Tensor:
    """(3, 3) float64 that moves points."""
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def scaling(x: float, y: float) -> Tensor:
    """(3, 3) float64 that scales points about the origin."""
    return torch.diag(torch.tensor([x, y, 1], dtype=torch.float64))


def resized_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Height and width after scaling to the short side, or less where the long side would pass its limit."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _resized(
    image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes, short: int, long: int
) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes, Tensor]:
    """Image and boxes at their new size, and the matrix that takes points there."""
    height, width = image.shape[-2:]
    size = resized_size(height, width, short, long)
    return (
        F.resize(image, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
        F.resize(boxes, list(size)),
        scaling(size[1] / width, size[0] / height),
    )


def _crop_window(
    size: tuple[int, int], least: int, greatest: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width; sides from `least` to `greatest`, or the image's own where less."""
    sides = [int(rng.integers(min(side, least), min(side, greatest) + 1)) for side in size]
    top, left = (int(rng.integers(0, side - cut + 1)) for side, cut in zip(size, sides, strict=True))
    return top, left, sides[0], sides[1]
