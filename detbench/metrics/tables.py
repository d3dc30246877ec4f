"""What metrics are given, objects and detections as columns, and how much their boxes overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detbench.metrics.matching import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The objects of a data set, in any order; within an image the annotation file's order breaks ties.

    Attributes:
        image: (G,) index of each object's image; images in ascending order of their ids.
        label: (G,) class index.
        boxes_xywh: (G, 4) float64, pixels.
        area: (G,) float64, square pixels; COCO gives the area of the mask here, not of the box.
        iscrowd: (G,) bool.
        num_images: images, with and without objects.
        num_classes: classes, with and without objects.
        image_area_factor: (num_images,) what areas of objects and detections are multiplied by before they
            are compared with the size limits; None for 1.
    """

    image: Ints
    label: Ints
    boxes_xywh: Floats
    area: Floats
    iscrowd: Bools
    num_images: int
    num_classes: int
    image_area_factor: Floats | None = None

    def __post_init__(self) -> None:
        count = len(self.image)
        assert self.boxes_xywh.shape == (count, 4)
        assert len(self.label) == len(self.area) == len(self.iscrowd) == count
        assert self.image_area_factor is None or self.image_area_factor.shape == (self.num_images,)
        assert all_below(self.image, self.num_images)
        assert all_below(self.label, self.num_classes)

    def scaled_areas(self, areas: Floats, image: Ints) -> Floats:
        """Areas as they are compared with the size limits, given the image of each."""
        return areas if self.image_area_factor is None else areas * self.image_area_factor[image]


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """The detections of a data set, in any order; of equal scores within an image the first counts first.

    Attributes:
        image: (N,) index of each detection's image, as in GroundTruth.
        label: (N,) class index.
        boxes_xywh: (N, 4) float64, pixels.
        scores: (N,) float64, finite.
    """

    image: Ints
    label: Ints
    boxes_xywh: Floats
    scores: Floats

    def __post_init__(self) -> None:
        assert self.boxes_xywh.shape == (len(self.image), 4)
        assert len(self.label) == len(self.scores) == len(self.image)


def overlaps(detected: Floats, objects: Floats, iscrowd: Bools) -> Floats:
    """IoU of each pair of boxes xywh, (P,); for a crowd the share of the detection (maskApi.c, bbIou)."""
    low = np.maximum(detected[:, :2], objects[:, :2])
    sides = np.minimum(detected[:, :2] + detected[:, 2:], objects[:, :2] + objects[:, 2:]) - low
    intersection = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    detected_area = detected[:, 2] * detected[:, 3]
    union = np.where(iscrowd, detected_area, detected_area + objects[:, 2] * objects[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros(len(union)), where=intersection > 0)


def all_below(indices: Ints, limit: int) -> bool:
    """Whether all are indices into something of that length."""
    return bool(((indices >= 0) & (indices < limit)).all())


def percent(fraction: float) -> float | None:
    """A metric in percent; None for -1, by which metrics say that there is nothing to measure on."""
    return None if fraction < 0 else 100 * float(fraction)
