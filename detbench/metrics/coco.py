"""COCO's box metrics: the twelve numbers of pycocotools' COCOeval, and the matches they are counted from.

Few pairs of a detection and an object overlap enough to match at all. We find those pairs for all images and
classes with one join, match them together (see matching.py), and count along each class's ranking. Results
equal pycocotools' to rounding, ties included.

Axes: D ranked detections, C candidates among them (those that overlap some object by at least the lowest
threshold), G objects, K classes; A area ranges, T overlap thresholds, R recall points, M detection limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detbench.metrics.matching import (
    Bools,
    Floats,
    Ints,
    greedy_choices,
    pairs_of_groups,
    position_in_run,
    spread,
)

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
PER_CLASS_NAMES = METRIC_NAMES[:6]

# COCOeval.Params.setDetParams. linspace, not decimal fractions: a few differ in the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
AREA_NAMES = ("all", "small", "medium", "large")
AREA_LIMITS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])


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
        assert _all_below(self.image, self.num_images)
        assert _all_below(self.label, self.num_classes)

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


@dataclass(frozen=True, eq=False)
class CocoMatches:
    """Which detection found which object, at every area range and overlap threshold.

    Detections stand in the order in which their class's ranking is read: by class, falling score, image, and
    rank within the image. At most 100 of one image and class are here.

    Attributes:
        num_images: images of the data set.
        num_classes: classes of the data set.
        detection: (D,) index into the DetectionTable.
        image: (D,) image of each detection.
        label: (D,) class.
        scores: (D,) score.
        rank: (D,) position by score among the detections of the same image and class, from 0.
        outside: (A, D) True where the detection's own area lies outside the range: it then counts only if
            it matches.
        candidate: (C,) ascending indices into D: the detections that can match at the lowest threshold.
        candidate_object: (A, T, C) index into GroundTruth of the object found, -1 for none.
        candidate_ignored: (A, T, C) True where the candidate is neither right nor wrong.
        object_image: (G,) image of each object.
        object_label: (G,) class.
        object_ignored: (A, G) True for crowds and where the object's area lies outside the range.
    """

    num_images: int
    num_classes: int
    detection: Ints
    image: Ints
    label: Ints
    scores: Floats
    rank: Ints
    outside: Bools
    candidate: Ints
    candidate_object: Ints
    candidate_ignored: Bools
    object_image: Ints
    object_label: Ints
    object_ignored: Bools

    def found_objects(self, area: str = "all") -> Ints:
        """The object that each detection found, (T, D) indices into GroundTruth, -1 for none."""
        found = np.full((len(IOU_THRESHOLDS), len(self.image)), -1)
        found[:, self.candidate] = self.candidate_object[AREA_NAMES.index(area)]
        return found

    def ignored_detections(self, area: str = "all") -> Bools:
        """Where a detection is neither right nor wrong, (T, D)."""
        index = AREA_NAMES.index(area)
        ignored = np.repeat(self.outside[None, index], len(IOU_THRESHOLDS), axis=0)
        ignored[:, self.candidate] = self.candidate_ignored[index]
        return ignored

    def average_precision(self, image_weights: Ints | None = None) -> float:
        """AP alone, without the rest of `accumulate`: what a bootstrap asks for many times."""
        return _mean_of_present(_precision(self, _rank(self, image_weights), AREA_NAMES.index("all")))


@dataclass(frozen=True, eq=False)
class CocoResult:
    """What COCO's evaluation says. Fractions, not percent; -1 where there is nothing to measure on.

    Attributes:
        summary: the twelve numbers by the names of METRIC_NAMES.
        per_class: AP, AP50, AP75, APs, APm, APl, each (K,).
        precision: (T, R, K, A) at the recall points, with at most 100 detections of an image and class.
        recall: (T, K, A, M) reached with at most 1, 10 and 100 detections of an image and class.
    """

    summary: dict[str, float]
    per_class: dict[str, Floats]
    precision: Floats
    recall: Floats


def evaluate(truth: GroundTruth, detections: DetectionTable) -> CocoResult:
    """COCO's evaluation of boxes."""
    return accumulate(match(truth, detections))


def match(truth: GroundTruth, detections: DetectionTable) -> CocoMatches:
    """Matches detections to objects as COCOeval.evaluateImg does.

    By falling score, a detection takes the free object of its image and class that it overlaps most, by the
    threshold at least. Objects that count come before ignored ones; of equal overlaps the later object
    wins; a crowd takes any number of detections, and its overlap is the part of the detection inside it.
    """
    assert _all_below(detections.image, truth.num_images)
    assert _all_below(detections.label, truth.num_classes)
    group = detections.label * truth.num_images + detections.image
    kept = np.lexsort((-detections.scores, group))
    rank = position_in_run(group[kept])
    kept, rank = kept[rank < MAX_DETECTIONS[-1]], rank[rank < MAX_DETECTIONS[-1]]
    boxes = detections.boxes_xywh[kept]

    object_ignored = truth.iscrowd | _outside_limits(truth.scaled_areas(truth.area, truth.image))
    outside = _outside_limits(truth.scaled_areas(boxes[:, 2] * boxes[:, 3], detections.image[kept]))

    pair_row, pair_object, overlap = _overlapping_pairs(truth, group[kept], boxes)
    candidate, chosen = greedy_choices(
        chooser=pair_row,
        item=pair_object,
        group=group[kept][pair_row],
        eligible=overlap[:, None, None] >= IOU_THRESHOLDS,
        preferred=~object_ignored.T[pair_object][:, :, None],
        reusable=truth.iscrowd,
    )
    found = np.where(chosen >= 0, np.append(pair_object, -1)[chosen], -1).transpose(1, 2, 0)

    # From groups of one image and class to the ranking of each class over all images; the sort is stable,
    # so that equal scores keep the order of image and rank, as pycocotools' merge sort does.
    ranking = np.lexsort((-detections.scores[kept], detections.label[kept]))
    row_in_ranking = np.empty_like(ranking)
    row_in_ranking[ranking] = np.arange(len(ranking))
    by_ranking = np.argsort(row_in_ranking[candidate])
    candidate, found = row_in_ranking[candidate][by_ranking], np.ascontiguousarray(found[:, :, by_ranking])
    kept, outside = kept[ranking], outside[:, ranking]

    found_ignored = np.take_along_axis(
        np.pad(object_ignored, ((0, 0), (0, 1)))[:, None, :], found, axis=2
    )  # an unmatched -1 reads the padding
    return CocoMatches(
        num_images=truth.num_images,
        num_classes=truth.num_classes,
        detection=kept,
        image=detections.image[kept],
        label=detections.label[kept],
        scores=detections.scores[kept],
        rank=rank[ranking],
        outside=outside,
        candidate=candidate,
        candidate_object=found,
        candidate_ignored=np.where(found >= 0, found_ignored, outside[:, None, candidate]),
        object_image=truth.image,
        object_label=truth.label,
        object_ignored=object_ignored,
    )


def accumulate(matches: CocoMatches, image_weights: Ints | None = None) -> CocoResult:
    """The numbers that matches amount to.

    Args:
        matches: from `match`.
        image_weights: (num_images,) how often each image stands in the data set, 0 for not at all: the result
            is that of a data set in which the copies of an image follow each other. Default: once each.
    """
    ranking = _rank(matches, image_weights)
    areas = range(len(AREA_NAMES))
    precision = np.stack([_precision(matches, ranking, area) for area in areas], axis=-1)
    recall = np.stack([_recall(matches, ranking, area) for area in areas], axis=-2)
    return summarize(precision, recall)


def summarize(precision: Floats, recall: Floats) -> CocoResult:
    """Means of precision (T, R, K, A) and recall (T, K, A, M) over what is present (COCOeval.summarize)."""
    small, medium, large = 1, 2, 3
    precisions = {
        "AP": precision[..., 0],
        "AP50": precision[:1, ..., 0],
        "AP75": precision[5:6, ..., 0],
        "APs": precision[..., small],
        "APm": precision[..., medium],
        "APl": precision[..., large],
    }
    recalls = {
        "AR1": recall[:, :, 0, 0],
        "AR10": recall[:, :, 0, 1],
        "AR100": recall[:, :, 0, 2],
        "ARs": recall[:, :, small, 2],
        "ARm": recall[:, :, medium, 2],
        "ARl": recall[:, :, large, 2],
    }
    return CocoResult(
        summary={name: _mean_of_present(values) for name, values in (precisions | recalls).items()},
        per_class={name: values.mean(axis=(0, 1)) for name, values in precisions.items()},
        precision=precision,
        recall=recall,
    )


def _all_below(indices: Ints, limit: int) -> bool:
    return bool(((indices >= 0) & (indices < limit)).all())


def _mean_of_present(values: Floats) -> float:
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0


def _outside_limits(areas: Floats) -> Bools:
    return (areas < AREA_LIMITS[:, :1]) | (areas > AREA_LIMITS[:, 1:])


def _overlapping_pairs(truth: GroundTruth, group: Ints, boxes: Floats) -> tuple[Ints, Ints, Floats]:
    """Pairs that may match: row of the detection, object, overlap; sorted by row, then by what it likes."""
    object_group = truth.label * truth.num_images + truth.image
    by_group = np.argsort(object_group, kind="stable")
    blocks = []
    for row, position in pairs_of_groups(group, object_group[by_group]):
        item = by_group[position]
        overlap = _overlaps(boxes[row], truth.boxes_xywh[item], truth.iscrowd[item])
        enough = overlap >= IOU_THRESHOLDS[0]
        blocks.append((row[enough], item[enough], overlap[enough]))
    if not blocks:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    row, item, overlap = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    order = np.lexsort((item, overlap, row))
    return row[order], item[order], overlap[order]


def _overlaps(detected: Floats, objects: Floats, iscrowd: Bools) -> Floats:
    """IoU of each pair of boxes xywh, (P,); for a crowd the share of the detection (maskApi.c, bbIou)."""
    low = np.maximum(detected[:, :2], objects[:, :2])
    sides = np.minimum(detected[:, :2] + detected[:, 2:], objects[:, :2] + objects[:, 2:]) - low
    intersection = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    detected_area = detected[:, 2] * detected[:, 3]
    union = np.where(iscrowd, detected_area, detected_area + objects[:, 2] * objects[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros(len(union)), where=intersection > 0)


@dataclass(frozen=True, eq=False)
class _Ranking:
    """The rankings of all classes, end to end, images repeated by their weights.

    Attributes:
        rows: indices into D, in order.
        events: positions in `rows` at which a candidate stands; precision can rise only there.
        candidates: which candidate that is.
        row_bounds: (K + 1,) where each class begins and ends in `rows`.
        event_bounds: (K + 1,) the same in `events`.
        positives: (A, K) objects to be found.
    """

    rows: Ints
    events: Ints
    candidates: Ints
    row_bounds: Ints
    event_bounds: Ints
    positives: Ints


def _rank(matches: CocoMatches, image_weights: Ints | None) -> _Ranking:
    weights = np.ones(matches.num_images, np.int64) if image_weights is None else image_weights
    assert weights.shape == (matches.num_images,)
    rows = np.arange(len(matches.image)) if image_weights is None else _repeat_rows(matches, weights)
    candidate_of_row = np.full(len(matches.image), -1)
    candidate_of_row[matches.candidate] = np.arange(len(matches.candidate))
    candidates = candidate_of_row[rows]
    events = np.flatnonzero(candidates >= 0)
    classes = np.arange(matches.num_classes + 1)
    labels = matches.label[rows]
    object_weights = weights[matches.object_image]
    positives = [
        np.bincount(
            matches.object_label[~ignored], weights=object_weights[~ignored], minlength=matches.num_classes
        )
        for ignored in matches.object_ignored
    ]
    return _Ranking(
        rows=rows,
        events=events,
        candidates=candidates[events],
        row_bounds=np.searchsorted(labels, classes),
        event_bounds=np.searchsorted(labels[events], classes),
        positives=np.array(positives, np.int64),
    )


def _repeat_rows(matches: CocoMatches, weights: Ints) -> Ints:
    """Rows of a ranking in which the copies of an image follow each other.

    Detections of one image with equal scores repeat as a block: first all of one copy, then all of the next.
    """
    same = np.zeros(len(matches.image), bool)
    same[1:] = (
        (matches.label[1:] == matches.label[:-1])
        & (matches.image[1:] == matches.image[:-1])
        & (matches.scores[1:] == matches.scores[:-1])
    )
    first = np.flatnonzero(~same)
    size = np.diff(first, append=len(same))
    lengths = size * weights[matches.image[first]]
    within_block: Ints = spread(np.zeros_like(lengths), lengths) % np.repeat(size, lengths)
    return np.repeat(first, lengths) + within_block


def _precision(matches: CocoMatches, ranking: _Ranking, area: int) -> Floats:
    """Interpolated precision (T, R, K) at the recall points, -1 for classes without objects."""
    outside = matches.outside[area, ranking.rows]
    right = _right_candidates(matches, area)[:, ranking.candidates]
    ignored = matches.candidate_ignored[area][:, ranking.candidates]
    # What counts up to each event: all detections inside the area range, put right for candidates, whose
    # match may make them count, or not, at some thresholds only.
    inside_before = np.concatenate([[0], np.cumsum(~outside)])
    inside_at_event = inside_before[ranking.events + 1]
    correction = outside[ranking.events].astype(np.int64) - ignored

    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), matches.num_classes), -1.0)
    for label in np.flatnonzero(ranking.positives[area]):
        events = slice(*ranking.event_bounds[label : label + 2])
        hits = np.cumsum(right[:, events], axis=1, dtype=np.float64)
        counted = inside_at_event[events] - inside_before[ranking.row_bounds[label]]
        counted = counted + np.cumsum(correction[:, events], axis=1)
        precision[:, :, label] = _interpolate(
            precision=hits / (counted + np.spacing(1)), recall=hits / ranking.positives[area, label]
        )
    return precision


def _right_candidates(matches: CocoMatches, area: int) -> Bools:
    """Candidates that found an object that counts, (T, C)."""
    right: Bools = (matches.candidate_object[area] >= 0) & ~matches.candidate_ignored[area]
    return right


def _interpolate(precision: Floats, recall: Floats) -> Floats:
    """Best precision at or beyond the first event that reaches each recall point, (T, R); 0 if none does."""
    best_ahead = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best_ahead = np.pad(best_ahead, ((0, 0), (0, 1)))
    reached = [np.searchsorted(curve, RECALL_POINTS, side="left") for curve in recall]
    return np.take_along_axis(best_ahead, np.array(reached), axis=1)


def _recall(matches: CocoMatches, ranking: _Ranking, area: int) -> Floats:
    """Recall (T, K, M) with at most so many detections of an image and class, -1 without objects."""
    right = _right_candidates(matches, area)[:, ranking.candidates]
    rank = matches.rank[ranking.rows[ranking.events]]
    positives = ranking.positives[area]
    present = positives > 0
    recall = np.full((len(IOU_THRESHOLDS), matches.num_classes, len(MAX_DETECTIONS)), -1.0)
    for index, limit in enumerate(MAX_DETECTIONS):
        hits = np.pad(np.cumsum(right & (rank < limit), axis=1), ((0, 0), (1, 0)))
        of_class = np.diff(hits[:, ranking.event_bounds], axis=1)
        recall[:, present, index] = of_class[:, present] / positives[present]
    return recall
