"""CrowdHuman's metrics: AP50, the log-average miss rate mMR, recall and the Jaccard index JI (spec 5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detbench.metrics.matching import Bools, Floats, Ints, close_pairs, greedy_choices, pairs_of_groups
from detbench.metrics.tables import DetectionTable, GroundTruth

METRIC_NAMES = ("AP50", "mMR", "recall", "JI")

OVERLAP = 0.5
FPPI_POINTS = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])
JI_SCORES = np.arange(10) / 10
# Added to every area that is divided by, as in the official evaluation.
_AREA_EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class CrowdResult:
    """What CrowdHuman's evaluation says. Fractions, not percent; -1 where there is no object to find.

    Attributes:
        summary: the four numbers by the names of METRIC_NAMES. Lower mMR is better.
        precision: (n,) after each detection that counts, by falling score.
        recall: (n,) the same.
        false_positives_per_image: (n,) the same; with recall the curve whose mean mMR is.
    """

    summary: dict[str, float]
    precision: Floats
    recall: Floats
    false_positives_per_image: Floats


@dataclass(frozen=True, eq=False)
class _Scene:
    """All images, detections by image and falling score, objects by image.

    Attributes:
        num_images: images, with and without objects.
        image: (N,) image of each detection.
        scores: (N,) falling within an image.
        absorbed: (N,) True where an ignore region covers more than half of the detection.
        object_image: (G,) image of each object that counts.
        object_absorbed: (G,) True where an ignore region covers more than half of the object.
        pair_row: (P,) detection of each pair that overlaps enough, ascending.
        pair_object: (P,) object; within a detection the better pair comes later.
        overlap: (P,) IoU.
    """

    num_images: int
    image: Ints
    scores: Floats
    absorbed: Bools
    object_image: Ints
    object_absorbed: Bools
    pair_row: Ints
    pair_object: Ints
    overlap: Floats


def evaluate(truth: GroundTruth, detections: DetectionTable, image_sizes: Ints) -> CrowdResult:
    """CrowdHuman's evaluation.

    Args:
        truth: full-body boxes of one class; `iscrowd` marks boxes to ignore.
        detections: all that the detector gives; the metric itself keeps no top k.
        image_sizes: (num_images, 2) width and height in pixels; all boxes are clipped to them.
    """
    assert truth.num_classes == 1
    assert image_sizes.shape == (truth.num_images, 2)
    scene = _prepare(truth, detections, image_sizes)
    right, wrong = _match(scene)
    order = np.argsort(-scene.scores, kind="stable")
    order = order[(right | wrong)[order]]
    hits, misses = np.cumsum(right[order]), np.cumsum(wrong[order])
    precision, fppi = hits / (hits + misses), misses / max(truth.num_images, 1)
    objects = len(scene.object_image)
    if not objects:
        return CrowdResult(dict.fromkeys(METRIC_NAMES, -1.0), precision, np.full(len(order), -1.0), fppi)
    recall = hits / objects
    values = (
        _area_under(precision, recall),
        _log_average_miss_rate(fppi, recall),
        float(recall[-1]) if len(recall) else 0.0,
        float(_jaccard_indices(scene).max()),
    )
    return CrowdResult(dict(zip(METRIC_NAMES, values, strict=True)), precision, recall, fppi)


def survives_nms(boxes_xywh: Floats, group: Ints, sizes: Ints, *, iou_threshold: float) -> Bools:
    """Which boxes greedy NMS leaves over, (n,), were they all detected exactly, with equal scores.

    The share of them is the recall of "annotations under NMS" (DATE, Table 4): a detector can't find more with
    that NMS, as every box left over finds itself. An earlier box suppresses a later one.

    Args:
        boxes_xywh: (n, 4) pixels.
        group: (n,) boxes suppress each other within an image and class, that is, at equal numbers.
        sizes: (n, 2) width and height of each box's image, to which it is clipped as detections are.
        iou_threshold: a box overlapping a kept one by more is suppressed.
    """
    order = np.argsort(group, kind="stable")
    group, boxes = group[order], _clipped(boxes_xywh, sizes)[order]
    kept = np.ones(len(boxes), bool)
    for first, second in pairs_of_groups(group, group):
        close = (first < second) & (_iou(boxes[first], boxes[second]) > iou_threshold)
        for i, j in zip(first[close], second[close], strict=True):
            kept[j] &= ~kept[i]
    survives = np.empty_like(kept)
    survives[order] = kept
    return survives


def _prepare(truth: GroundTruth, detections: DetectionTable, image_sizes: Ints) -> _Scene:
    rows = np.lexsort((-detections.scores, detections.image))
    image = detections.image[rows]
    boxes = _clipped(detections.boxes_xywh[rows], image_sizes[image])
    objects, regions = (
        part[np.argsort(truth.image[part], kind="stable")]
        for part in (np.flatnonzero(~truth.iscrowd), np.flatnonzero(truth.iscrowd))
    )
    object_image, region_image = truth.image[objects], truth.image[regions]
    object_boxes = _clipped(truth.boxes_xywh[objects], image_sizes[object_image])
    region_boxes = _clipped(truth.boxes_xywh[regions], image_sizes[region_image])

    row, item, overlap = close_pairs(
        image,
        object_image,
        overlap=lambda row, item: _iou(boxes[row], object_boxes[item]),
        is_close=lambda overlap: overlap > OVERLAP,
    )
    order = np.lexsort((-item, overlap, row))  # of equal overlaps the first object wins: it comes last
    return _Scene(
        num_images=truth.num_images,
        image=image,
        scores=detections.scores[rows],
        absorbed=_absorbed(image, boxes, region_image, region_boxes),
        object_image=object_image,
        object_absorbed=_absorbed(object_image, object_boxes, region_image, region_boxes),
        pair_row=row[order],
        pair_object=item[order],
        overlap=overlap[order],
    )


def _match(scene: _Scene) -> tuple[Bools, Bools]:
    """Detections that are right and wrong, (N,) each; absorbed ones are neither."""
    lanes = (len(scene.pair_row), 1)
    finder, chosen = greedy_choices(
        chooser=scene.pair_row,
        item=scene.pair_object,
        group=scene.image[scene.pair_row],
        eligible=np.ones(lanes, bool),
        preferred=np.zeros(lanes, bool),
        reusable=np.zeros(len(scene.object_image), bool),
    )
    right = np.zeros(len(scene.image), bool)
    right[finder] = chosen[:, 0] >= 0
    return right, ~right & ~scene.absorbed


def _area_under(precision: Floats, recall: Floats) -> float:
    """Trapezoids between neighbouring points; nothing before the first, so a perfect result stays below 1."""
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))


def _log_average_miss_rate(fppi: Floats, recall: Floats) -> float:
    """Geometric mean of the miss rate at nine rates of false positives per image (Dollár et al., 2012)."""
    if not len(recall):
        return 1.0
    reached = np.searchsorted(fppi, FPPI_POINTS, side="left").clip(max=len(fppi) - 1)
    miss_rate = 1 - recall[reached]
    return float(np.exp(np.log(miss_rate).mean())) if (miss_rate > 0).all() else 0.0


def _jaccard_indices(scene: _Scene) -> Floats:
    """Mean Jaccard index over images, keeping the detections beyond each score of JI_SCORES, (10,).

    In an image k detections and objects pair up (assignment of greatest total IoU); of n detections and m
    objects, less those without partner that an ignore region covers, J = k / (n + m - k).
    """
    total, images = np.zeros(len(JI_SCORES)), np.zeros(len(JI_SCORES))
    for scores, absorbed, object_absorbed, overlap in _by_image(scene):
        for index, kept in enumerate((scores[:, None] > JI_SCORES).sum(axis=0)):
            row, column = _heaviest_pairs(overlap[:kept])
            pairs = len(row)
            found = kept - absorbed[:kept].sum() + absorbed[row].sum()
            wanted = len(object_absorbed) - object_absorbed.sum() + object_absorbed[column].sum()
            total[index] += pairs / (found + wanted - pairs + _AREA_EPSILON)
            images[index] += found > 0 or wanted > 0
    return total / np.maximum(images, 1)


def _by_image(scene: _Scene) -> Iterator[tuple[Floats, Bools, Bools, Floats]]:
    """Of each image scores (n,), absorbed (n,), absorbed objects (m,), overlaps (n, m): 0 up to OVERLAP."""
    images = np.arange(scene.num_images + 1)
    row_bounds = np.searchsorted(scene.image, images)
    object_bounds = np.searchsorted(scene.object_image, images)
    pair_bounds = np.searchsorted(scene.pair_row, row_bounds)
    for image in range(scene.num_images):
        rows = slice(row_bounds[image], row_bounds[image + 1])
        objects = slice(object_bounds[image], object_bounds[image + 1])
        pairs = slice(pair_bounds[image], pair_bounds[image + 1])
        overlap = np.zeros((rows.stop - rows.start, objects.stop - objects.start))
        row, column = scene.pair_row[pairs] - rows.start, scene.pair_object[pairs] - objects.start
        overlap[row, column] = scene.overlap[pairs]
        yield scene.scores[rows], scene.absorbed[rows], scene.object_absorbed[objects], overlap


def _heaviest_pairs(overlap: Floats) -> tuple[Ints, Ints]:
    from scipy.optimize import linear_sum_assignment

    row, column = linear_sum_assignment(overlap, maximize=True)
    paired = overlap[row, column] > 0
    return row[paired], column[paired]


def _clipped(boxes_xywh: Floats, sizes: Ints) -> Floats:
    """Corners xyxy within images of the given width and height, (n, 4): low ones end a pixel earlier."""
    low = np.minimum(np.maximum(boxes_xywh[:, :2], 0), sizes - 1)
    high = np.maximum(np.minimum(boxes_xywh[:, :2] + boxes_xywh[:, 2:], sizes), 0)
    return np.concatenate([low, high], axis=1)


def _absorbed(image: Ints, boxes: Floats, region_image: Ints, regions: Floats) -> Bools:
    """Where any single ignore region of the image covers more than OVERLAP of a box, (n,)."""
    absorbed = np.zeros(len(boxes), bool)
    for row, region in pairs_of_groups(image, region_image):
        covered = _intersection(boxes[row], regions[region]) / (_area(boxes[row]) + _AREA_EPSILON)
        absorbed[row[covered > OVERLAP]] = True
    return absorbed


def _iou(a: Floats, b: Floats) -> Floats:
    intersection = _intersection(a, b)
    return intersection / (_area(a) + _area(b) - intersection + _AREA_EPSILON)


def _intersection(a: Floats, b: Floats) -> Floats:
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    intersection: Floats = sides[:, 0] * sides[:, 1]
    return intersection


def _area(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
