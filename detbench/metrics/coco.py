"""COCO's box metrics: the twelve numbers of pycocotools' COCOeval, and the matches they are counted from.

Few pairs of a detection and an object overlap enough to match at all. We find those pairs for all images and
classes with one join, match them together (see matching.py), and count along each class's ranking. Results
equal pycocotools' to rounding, ties included.

Axes: D ranked detections, C candidates among them (those that overlap some object by at least the lowest
threshold), G objects, K classes; A area ranges, T overlap thresholds, R recall points, M detection limits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detbench.metrics.matching import (
    Bools,
    Floats,
    Ints,
    close_pairs,
    greedy_choices,
    position_in_run,
    spread,
)
from detbench.metrics.tables import DetectionTable, GroundTruth, all_below, overlaps

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
PER_CLASS_NAMES = METRIC_NAMES[:6]

# COCOeval.Params.setDetParams. linspace, not decimal fractions: a few differ in the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
AREA_NAMES = ("all", "small", "medium", "large")
AREA_LIMITS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])


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
    assert all_below(detections.image, truth.num_images)
    assert all_below(detections.label, truth.num_classes)
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
    # An unmatched -1 reads what is padded at the end.
    found = np.append(pair_object, -1)[chosen].transpose(1, 2, 0)
    found_ignored = np.pad(object_ignored, ((0, 0), (0, 1)))[np.arange(len(AREA_NAMES))[:, None, None], found]
    by_image = CocoMatches(
        num_images=truth.num_images,
        num_classes=truth.num_classes,
        detection=kept,
        image=detections.image[kept],
        label=detections.label[kept],
        scores=detections.scores[kept],
        rank=rank,
        outside=outside,
        candidate=candidate,
        candidate_object=found,
        candidate_ignored=np.where(found >= 0, found_ignored, outside[:, None, candidate]),
        object_image=truth.image,
        object_label=truth.label,
        object_ignored=object_ignored,
    )
    # The sort is stable: equal scores keep the order of image and rank, as in pycocotools' merge sort.
    return _take_rows(by_image, np.lexsort((-by_image.scores, by_image.label)))


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


def _take_rows(matches: CocoMatches, rows: Ints) -> CocoMatches:
    """The same matches with only these detections, in this order."""
    candidates = _candidate_of_row(matches)[rows]
    candidate = np.flatnonzero(candidates >= 0)
    candidates = candidates[candidate]
    return replace(
        matches,
        detection=matches.detection[rows],
        image=matches.image[rows],
        label=matches.label[rows],
        scores=matches.scores[rows],
        rank=matches.rank[rows],
        outside=matches.outside[:, rows],
        candidate=candidate,
        candidate_object=matches.candidate_object[:, :, candidates],
        candidate_ignored=matches.candidate_ignored[:, :, candidates],
    )


def _candidate_of_row(matches: CocoMatches) -> Ints:
    """Index of each detection among the candidates, (D,), -1 for the others."""
    candidate = np.full(len(matches.image), -1)
    candidate[matches.candidate] = np.arange(len(matches.candidate))
    return candidate


def _mean_of_present(values: Floats) -> float:
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0


def _outside_limits(areas: Floats) -> Bools:
    return (areas < AREA_LIMITS[:, :1]) | (areas > AREA_LIMITS[:, 1:])


def _overlapping_pairs(truth: GroundTruth, group: Ints, boxes: Floats) -> tuple[Ints, Ints, Floats]:
    """Pairs that may match: row of the detection, object, overlap; sorted by row, then by what it likes."""
    object_group = truth.label * truth.num_images + truth.image
    by_group = np.argsort(object_group, kind="stable")
    objects, iscrowd = truth.boxes_xywh[by_group], truth.iscrowd[by_group]
    row, position, overlap = close_pairs(
        group,
        object_group[by_group],
        overlap=lambda row, position: overlaps(boxes[row], objects[position], iscrowd[position]),
        is_close=lambda overlap: overlap >= IOU_THRESHOLDS[0],
    )
    item = by_group[position]
    order = np.lexsort((item, overlap, row))
    return row[order], item[order], overlap[order]


@dataclass(frozen=True, eq=False)
class _Ranking:
    """The rankings of all classes, end to end.

    Attributes:
        rows: indices into D, in order.
        weights: how often each row counts; whole numbers, float64 because sums of them are divided.
        events: positions in `rows` at which a candidate stands; precision can rise only there.
        candidates: which candidate that is.
        row_bounds: (K + 1,) where each class begins and ends in `rows`.
        event_bounds: (K + 1,) the same in `events`.
        positives: (A, K) objects to be found.
    """

    rows: Ints
    weights: Floats
    events: Ints
    candidates: Ints
    row_bounds: Ints
    event_bounds: Ints
    positives: Ints


def _rank(matches: CocoMatches, image_weights: Ints | None) -> _Ranking:
    weights = np.ones(matches.num_images, np.int64) if image_weights is None else image_weights
    assert weights.shape == (matches.num_images,)
    rows, row_weights = _weighted_rows(matches, weights)
    candidates = _candidate_of_row(matches)[rows]
    events = np.flatnonzero((candidates >= 0) & (row_weights > 0))
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
        weights=row_weights.astype(np.float64),
        events=events,
        candidates=candidates[events],
        row_bounds=np.searchsorted(labels, classes),
        event_bounds=np.searchsorted(labels[events], classes),
        positives=np.array(positives, np.int64),
    )


def _weighted_rows(matches: CocoMatches, weights: Ints) -> tuple[Ints, Ints]:
    """Rows of the ranking and how often each counts, the copies of an image following each other.

    A weight stands for copies that are neighbours. Those of equal scores within an image and class are not:
    first come all of one copy, then all of the next. Such blocks are laid out copy by copy.
    """
    image, label, scores = matches.image, matches.label, matches.scores
    begins = np.ones(len(image), bool)
    begins[1:] = (label[1:] != label[:-1]) | (image[1:] != image[:-1]) | (scores[1:] != scores[:-1])
    first = np.flatnonzero(begins)
    size = np.diff(first, append=len(image))
    alone, block, size = first[size == 1], first[size > 1], size[size > 1]
    lengths = size * weights[image[block]]
    block_of_copy = np.repeat(block, lengths)
    copies = block_of_copy + spread(np.zeros_like(block), lengths) % np.repeat(size, lengths)
    order = np.argsort(np.concatenate([alone, block_of_copy]), kind="stable")
    counts = np.concatenate([weights[image[alone]], np.ones_like(copies)])
    return np.concatenate([alone, copies])[order], counts[order]


def _precision(matches: CocoMatches, ranking: _Ranking, area: int) -> Floats:
    """Interpolated precision (T, R, K) at the recall points, -1 for classes without objects."""
    outside = matches.outside[area, ranking.rows]
    ignored = matches.candidate_ignored[area][:, ranking.candidates]
    right = _right_weights(matches, ranking, area)
    # What counts up to each event: all detections inside the area range, put right for candidates, whose
    # match may make them count, or not, at some thresholds only. Of a row that counts several times the curve
    # has only the last copy: precision of a right one is best there, and at a wrong one recall stands still.
    inside_before = np.concatenate([[0], np.cumsum(~outside * ranking.weights)])
    inside_at_event = inside_before[ranking.events + 1]
    correction = (outside[ranking.events].astype(np.int8) - ignored) * ranking.weights[ranking.events]

    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), matches.num_classes), -1.0)
    for label in np.flatnonzero(ranking.positives[area]):
        events = slice(*ranking.event_bounds[label : label + 2])
        hits = np.cumsum(right[:, events], axis=1)
        counted = inside_at_event[events] - inside_before[ranking.row_bounds[label]]
        counted = counted + np.cumsum(correction[:, events], axis=1)
        precision[:, :, label] = interpolate(
            precision=hits / (counted + np.spacing(1)), recall=hits / ranking.positives[area, label]
        )
    return precision


def _right_weights(matches: CocoMatches, ranking: _Ranking, area: int) -> Floats:
    """At each event how many detections are right, (T, E): its weight, or 0."""
    right = (matches.candidate_object[area] >= 0) & ~matches.candidate_ignored[area]
    weighted: Floats = right[:, ranking.candidates] * ranking.weights[ranking.events]
    return weighted


def interpolate(precision: Floats, recall: Floats) -> Floats:
    """Best precision at or beyond the first event that reaches each recall point, (T, R); 0 if none does."""
    best_ahead = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best_ahead = np.pad(best_ahead, ((0, 0), (0, 1)))
    reached = [np.searchsorted(curve, RECALL_POINTS, side="left") for curve in recall]
    return np.take_along_axis(best_ahead, np.array(reached), axis=1)


def _recall(matches: CocoMatches, ranking: _Ranking, area: int) -> Floats:
    """Recall (T, K, M) with at most so many detections of an image and class, -1 without objects."""
    right = _right_weights(matches, ranking, area)
    rank = matches.rank[ranking.rows[ranking.events]]
    positives = ranking.positives[area]
    present = positives > 0
    recall = np.full((len(IOU_THRESHOLDS), matches.num_classes, len(MAX_DETECTIONS)), -1.0)
    for index, limit in enumerate(MAX_DETECTIONS):
        hits = np.pad(np.cumsum(right * (rank < limit), axis=1), ((0, 0), (1, 0)))
        of_class = np.diff(hits[:, ranking.event_bounds], axis=1)
        recall[:, present, index] = of_class[:, present] / positives[present]
    return recall
