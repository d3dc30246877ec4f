"""What a detector's errors are and what each kind costs: TIDE's six kinds (Bolya et al., arXiv 2008.08115).

A false positive is looked at beside the objects of its image (section 2.2 of the paper, t_f = 0.5, t_b = 0.1):

    localisation     an object of its class overlaps it by t_b at least, none by t_f
    classification   an object of another class overlaps it by t_f at least
    duplicate        an object of its class overlaps it by t_f, but a better scored detection has found that object
    background       no object overlaps it by t_b
    both             one of another class does, but none by t_f
    missed           an object, not a detection: not found, and no error of the first two kinds is about it

Where several fit, the first of this list counts, as in the authors' tool. An error is about the object that
overlaps most. What a kind costs is the AP at t_f that an oracle wins by mending this kind alone (section 2.3):
detections of the first two kinds become right, but for each object only the best scored one of both kinds, and
none for an object that is found; all other false positives of the kind disappear, and missed objects need not be
found.

Detections and objects that COCO's evaluation ignores are neither errors nor what errors are about. AP is the mean
over the classes that have objects; one that an oracle leaves neither objects nor detections drops out of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detbench.metrics.coco import CocoMatches, interpolate, match
from detbench.metrics.matching import Bools, Floats, Ints, close_pairs, greedy_choices, run_starts
from detbench.metrics.tables import DetectionTable, GroundTruth, overlaps

FOREGROUND, BACKGROUND = 0.5, 0.1

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
RIGHT, IGNORED = -1, -2
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)


@dataclass(frozen=True, eq=False)
class Costs:
    """What errors cost: AP at IoU 0.5 and what it would gain. Fractions, not percent.

    Attributes:
        average_precision: as COCO's AP50; -1 without any object.
        kinds: gain if each of KINDS alone were mended; 0 where that leaves no class.
        false_positives: gain if there were none.
        false_negatives: gain if only the objects found had to be found.
    """

    average_precision: float
    kinds: dict[str, float]
    false_positives: float
    false_negatives: float


@dataclass(frozen=True, eq=False)
class Errors:
    """What became of every detection and object. Axes as in coco.py.

    Attributes:
        matches: the detections, in the order of all rows here, and the objects.
        kind: (D,) index into KINDS of a false positive; RIGHT; IGNORED.
        about: (D,) the object that a detection found or that its error is about; -1 for none.
        counted: (G,) objects that are to be found.
        found_by: (G,) the row that found an object; -1 for none.
        missed: (G,) objects that are errors of the last kind.
    """

    matches: CocoMatches
    kind: Ints
    about: Ints
    counted: Bools
    found_by: Ints
    missed: Bools

    def counts(self) -> Ints:
        """Errors of each kind and class, (6, K); missed objects count for their own class."""
        wrong = self.kind >= 0
        counts = np.zeros((len(KINDS), self.matches.num_classes), np.int64)
        np.add.at(counts, (self.kind[wrong], self.matches.label[wrong]), 1)
        counts[_MISSED] = self._of_class(self.missed)
        return counts

    def objects(self) -> Ints:
        """Objects of each class that are to be found, (K,)."""
        return self._of_class(self.counted)

    def found(self, score: float = -np.inf) -> Bools:
        """Objects found by detections of at least this score, (G,)."""
        scores = np.append(self.matches.scores, -np.inf)[self.found_by]
        found: Bools = (self.found_by >= 0) & (scores >= score)
        return found

    def costs(self) -> Costs:
        """What each kind costs in AP."""
        label, objects = self.matches.label, self.objects()
        right, counts = self.kind == RIGHT, self.kind != IGNORED
        true_label = np.append(self.matches.object_label, -1)[self.about]
        best = self._best_about_unfound()
        plain = self._average_precision(label, right, counts, objects)

        def gain(label: Ints, right: Bools, kept: Bools, objects: Ints) -> float:
            mended = self._average_precision(label, right, kept, objects)
            return 0.0 if mended is None or plain is None else mended - plain

        kinds = {}
        for kind, name in enumerate(KINDS[:_MISSED]):
            of_kind = self.kind == kind
            mended = of_kind & best
            kinds[name] = gain(
                np.where(mended, true_label, label), right | mended, counts & (mended | ~of_kind), objects
            )
        kinds[KINDS[_MISSED]] = gain(label, right, counts, objects - self._of_class(self.missed))
        return Costs(
            average_precision=-1.0 if plain is None else plain,
            kinds=kinds,
            false_positives=gain(label, right, right, objects),
            false_negatives=gain(label, right, counts, self._of_class(self.found())),
        )

    def best_score(self) -> float:
        """The score from which on detections have the best F1 at IoU 0.5, all classes together; 0 without any."""
        counts = np.flatnonzero(self.kind != IGNORED)
        if not len(counts):
            return 0.0
        order = counts[np.argsort(-self.matches.scores[counts], kind="stable")]
        scores = self.matches.scores[order]
        hits = np.cumsum(self.kind[order] == RIGHT)
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + self.counted.sum())
        last_of_equals = np.append(scores[1:] != scores[:-1], True)
        return float(scores[np.argmax(np.where(last_of_equals, f1, -1.0))])

    def image_f1(self, score: float) -> Floats:
        """F1 of each image at IoU 0.5, (num_images,), from detections of at least this score.

        1 for an image without any object or detection.
        """
        shown = (self.kind != IGNORED) & (self.matches.scores >= score)
        images = self.matches.num_images
        objects = _count(self.matches.object_image[self.counted], images)
        detections = _count(self.matches.image[shown], images)
        hits = _count(self.matches.image[shown & (self.kind == RIGHT)], images)
        total = objects + detections
        return np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)

    def _best_about_unfound(self) -> Bools:
        """Rows that an oracle makes right, (D,): for each object not found the best scored wrong one about it."""
        wrong = np.isin(self.kind, (_CLASSIFICATION, _LOCALISATION))
        rows = np.flatnonzero(wrong & (np.append(self.found_by, -1)[self.about] < 0))
        rows = rows[np.lexsort((self.matches.detection[rows], -self.matches.scores[rows], self.about[rows]))]
        best = np.zeros(len(self.kind), bool)
        best[rows[run_starts(self.about[rows])]] = True
        return best

    def _average_precision(self, label: Ints, right: Bools, kept: Bools, objects: Ints) -> float | None:
        """AP at IoU 0.5 of the rows kept, given the class of each and how many objects of a class are to be found.

        None where no class is left.
        """
        rows = np.flatnonzero(kept)
        rows = rows[np.lexsort((-self.matches.scores[rows], label[rows]))]
        bounds = np.searchsorted(label[rows], np.arange(self.matches.num_classes + 1))
        present = np.flatnonzero((self.objects() > 0) & ((objects > 0) | (np.diff(bounds) > 0)))
        precisions = np.zeros(len(present))
        for place, k in enumerate(present):
            hits = np.cumsum(right[rows[bounds[k] : bounds[k + 1]]])
            if objects[k]:
                precision = hits / np.arange(1, len(hits) + 1)
                precisions[place] = interpolate(precision[None], hits[None] / objects[k]).mean()
        return float(precisions.mean()) if len(present) else None

    def _of_class(self, objects: Bools) -> Ints:
        return _count(self.matches.object_label[objects], self.matches.num_classes)


def analyse(truth: GroundTruth, detections: DetectionTable) -> Errors:
    """Finds every error, looking at no more than 100 detections of an image and class."""
    matches = match(truth, detections)
    counted = ~matches.object_ignored[0]
    about = matches.found_objects()[0]
    kind = np.where(matches.ignored_detections()[0], IGNORED, RIGHT)
    about[kind == IGNORED] = -1
    wrong = np.flatnonzero((kind == RIGHT) & (about < 0))
    found_by = np.full(len(counted), -1)
    found_by[about[about >= 0]] = np.flatnonzero(about >= 0)

    kind[wrong], about[wrong] = _kinds(
        truth, counted, detections.boxes_xywh[matches.detection], matches, wrong
    )
    blamed = np.isin(kind, (_CLASSIFICATION, _LOCALISATION))
    missed = counted & (found_by < 0)
    missed[about[blamed]] = False
    return Errors(matches, kind, about, counted, found_by, missed)


def confusion(errors: Errors, truth: GroundTruth, detections: DetectionTable, score: float) -> Ints:
    """Which classes are taken for which, (K + 1, K + 1), at IoU 0.5 by detections of at least this score.

    Rows are classes of objects, the last one for no object; columns those of detections, the last one for none.
    On the diagonal stands what counts as right in AP. Detections and objects left over from that are then
    matched whatever their class, by falling score, each detection with the free object it overlaps most.
    """
    matches = errors.matches
    classes = matches.num_classes
    table = np.zeros((classes + 1, classes + 1), np.int64)
    found = errors.found(score)
    np.add.at(table, (matches.object_label[found], matches.object_label[found]), 1)

    wrong = np.flatnonzero((errors.kind >= 0) & (matches.scores >= score))
    wrong = wrong[np.lexsort((matches.detection[wrong], -matches.scores[wrong], matches.image[wrong]))]
    left = _by_image(truth, errors.counted & ~found)
    boxes = detections.boxes_xywh[matches.detection[wrong]]
    chooser, item, overlap = _image_pairs(matches.image[wrong], boxes, truth, left, least=FOREGROUND)
    order = np.lexsort((overlap, chooser))
    chooser, item = chooser[order], item[order]
    chosen_by, pair = greedy_choices(
        chooser=chooser,
        item=item,
        group=matches.image[wrong][chooser],
        eligible=np.ones((len(chooser), 1), bool),
        preferred=np.zeros((len(chooser), 1), bool),
        reusable=np.zeros(len(left), bool),
    )
    matched = pair[:, 0] >= 0
    row, column = left[item[pair[matched, 0]]], wrong[chosen_by[matched]]
    np.add.at(table, (matches.object_label[row], matches.label[column]), 1)
    table[:-1, -1] = _count(matches.object_label[np.setdiff1d(left, row)], classes)
    table[-1, :-1] = _count(matches.label[np.setdiff1d(wrong, column)], classes)
    return table


def _kinds(
    truth: GroundTruth, counted: Bools, boxes: Floats, matches: CocoMatches, wrong: Ints
) -> tuple[Ints, Ints]:
    """Kind of each false positive and the object it is about, -1 for none. `boxes` are those of all rows."""
    rows = wrong[np.argsort(matches.image[wrong], kind="stable")]
    objects = _by_image(truth, counted)
    position, item, overlap = _image_pairs(matches.image[rows], boxes[rows], truth, objects, least=BACKGROUND)
    row, item = rows[position], objects[item]
    is_own = truth.label[item] == matches.label[row]

    # What overlaps a detection most, of other classes in column 0, of its own in column 1.
    order = np.lexsort((overlap, is_own, position))
    last = order[::-1][run_starts((2 * position + is_own)[order[::-1]])]
    most, which = np.zeros((len(boxes), 2)), np.full((len(boxes), 2), -1)
    most[row[last], is_own[last].astype(np.int64)] = overlap[last]
    which[row[last], is_own[last].astype(np.int64)] = item[last]

    other, own = most[wrong].T
    localisation = (own >= BACKGROUND) & (own < FOREGROUND)
    classification, duplicate, both = other >= FOREGROUND, own >= FOREGROUND, other >= BACKGROUND
    kind = np.select(
        [localisation, classification, duplicate, both],
        [_LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BOTH],
        default=_BACKGROUND,
    )
    is_about_own = np.isin(kind, (_LOCALISATION, _DUPLICATE))
    about = np.where(is_about_own, which[wrong, 1], which[wrong, 0])
    return kind, about


def _count(indices: Ints, length: int) -> Ints:
    """How often each index below `length` occurs, (length,)."""
    return np.bincount(indices, minlength=length)


def _by_image(truth: GroundTruth, chosen: Bools) -> Ints:
    """Indices of the objects chosen, by ascending image."""
    objects = np.flatnonzero(chosen)
    return objects[np.argsort(truth.image[objects], kind="stable")]


def _image_pairs(
    image: Ints, boxes: Floats, truth: GroundTruth, objects: Ints, *, least: float
) -> tuple[Ints, Ints, Floats]:
    """Pairs of detections and objects of one image that overlap by `least`: both positions and the IoU.

    Args:
        image: (N,) of the detections, ascending.
        boxes: (N, 4) of the detections, xywh.
        truth: all objects.
        objects: (M,) indices of those to pair, by ascending image.
        least: IoU.
    """
    no_crowd = np.zeros(1, bool)
    object_boxes = truth.boxes_xywh[objects]
    return close_pairs(
        image,
        truth.image[objects],
        overlap=lambda row, item: overlaps(boxes[row], object_boxes[item], no_crowd),
        is_close=lambda overlap: overlap >= least,
    )
