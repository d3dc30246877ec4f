"""Samples joined to batches, and batches made ready for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detbench.core.types import Targets
from detbench.parts.data import Pixels


@dataclass(frozen=True, slots=True)
class Sample:
    """One transformed image with its objects.

    Attributes:
        image: (3, H, W) uint8 RGB.
        boxes: (N, 4) float32 xyxy pixels of `image`.
        labels: (N,) int64 class indices.
        original_size: height and width of the file's image.
        image_index: its place in the split's annotations.
        name: its file name.
        matrix: (3, 3) float64, takes pixels of the file's image to those of `image`.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    original_size: tuple[int, int]
    image_index: int
    name: str
    matrix: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B images padded at bottom and right to one size, with their objects.

    Attributes:
        images: (B, 3, H, W) uint8 RGB, channels last in memory, zero in the padding.
        targets: the objects, boxes in pixels of the resized images.
        sizes: height and width of each image before padding.
        original_sizes: height and width of each file's image.
        image_index: place of each image in the split's annotations.
        names: file name of each image.
        matrices: (B, 3, 3) float64, take pixels of the files' images to those of these.
    """

    images: Tensor
    targets: Targets
    sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    image_index: tuple[int, ...]
    names: tuple[str, ...]
    matrices: Tensor

    def mask(self) -> Tensor:
        """(B, H, W) bool, True in the padding."""
        mask = torch.ones(len(self.sizes), *self.images.shape[-2:], dtype=torch.bool)
        for inside, (height, width) in zip(mask, self.sizes, strict=True):
            inside[:height, :width] = False
        return mask


@dataclass(frozen=True, slots=True)
class TeachingBatch:
    """The images of one step where a teacher labels some of them.

    Attributes:
        labelled: with their objects.
        weak: the others as the teacher sees them.
        strong: the same images in the same order as the student sees them.
    """

    labelled: Batch
    weak: Batch
    strong: Batch

    @property
    def names(self) -> tuple[str, ...]:
        """File name of each image, the labelled ones' first."""
        return self.labelled.names + self.strong.names

    @property
    def weak_to_strong(self) -> Tensor:
        """(B, 3, 3) float32, take pixels of the weak views to those of the strong ones."""
        back: Tensor = torch.linalg.inv(self.weak.matrices)
        return (self.strong.matrices @ back).float()


def collate(samples: Sequence[Sample], pad_multiple: int) -> Batch:
    """Joins samples; the batch's sides are the least multiples of `pad_multiple` that hold every image."""
    sizes = tuple((int(s.image.shape[-2]), int(s.image.shape[-1])) for s in samples)
    height, width = (-(-max(side) // pad_multiple) * pad_multiple for side in zip(*sizes, strict=True))
    images = torch.empty(
        (len(samples), 3, height, width), dtype=torch.uint8, memory_format=torch.channels_last
    ).zero_()
    for padded, sample, (h, w) in zip(images, samples, sizes, strict=True):
        padded[:, :h, :w] = sample.image
    return Batch(
        images=images,
        targets=Targets.of([s.labels for s in samples], [s.boxes for s in samples], sizes),
        sizes=sizes,
        original_sizes=tuple(s.original_size for s in samples),
        image_index=tuple(s.image_index for s in samples),
        names=tuple(s.name for s in samples),
        matrices=torch.stack([s.matrix for s in samples]),
    )


def to_network(batch: Batch, pixels: Pixels, device: torch.device | str) -> Tensor:
    """(B, 3, H, W) float32, channels last: normalised values, exact zeros in the padding."""
    images = batch.images.to(device, non_blocking=True)
    if pixels.order == "bgr":
        images = images.flip(1)
    values = images.to(dtype=torch.float32, memory_format=torch.channels_last)
    values -= torch.tensor(pixels.mean, device=values.device).view(3, 1, 1)
    values /= torch.tensor(pixels.std, device=values.device).view(3, 1, 1)
    for image, (height, width) in zip(values, batch.sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return values
