"""Whether scores pick the best boxes: each object's most confident detection beside its best one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detbench.metrics.matching import Floats, pairs_of_groups, run_starts
from detbench.metrics.tables import DetectionTable, GroundTruth, overlaps


@dataclass(frozen=True, eq=False)
class Alignment:
    """IoU of two detections of each object that has any of its class upon it.

    Attributes:
        confident: (N,) of the one with the highest score for the object's class among those that overlap it.
        best: (N,) of the one that overlaps it most, whatever its class.
        objects: how many there are, those without such detections included; crowds are none.
    """

    confident: Floats
    best: Floats
    objects: int

    @property
    def gap(self) -> float:
        """How much IoU is lost on average by going for the score."""
        return float(np.mean(self.best - self.confident))


def measure(truth: GroundTruth, detections: DetectionTable) -> Alignment:
    """Looks at all detections of a run that were kept (Align-DETR, Figure 1 left; spec 4.8)."""
    objects = np.flatnonzero(~truth.iscrowd)
    objects = objects[np.argsort(truth.image[objects], kind="stable")]
    ranked = np.lexsort((-detections.scores, detections.image))
    confident, best = [np.zeros(0)], [np.zeros(0)]
    for left, right in pairs_of_groups(truth.image[objects], detections.image[ranked]):
        j, i = objects[left], ranked[right]
        iou = overlaps(detections.boxes_xywh[i], truth.boxes_xywh[j], truth.iscrowd[j])
        # An object's pairs are neighbours, in descending order of score.
        starts = run_starts(left)
        upon = np.flatnonzero((iou > 0) & (truth.label[j] == detections.label[i]))
        first = upon[run_starts(left[upon])]
        confident.append(iou[first])
        best.append(np.maximum.reduceat(iou, starts)[np.searchsorted(left[starts], left[first])])
    return Alignment(np.concatenate(confident), np.concatenate(best), len(objects))
