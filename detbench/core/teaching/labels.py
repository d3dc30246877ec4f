"""Pseudo labels: which detections of a teacher may count as objects, and where they are in other views (spec 8.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.boxes import clip_boxes
from detbench.core.postprocess import detect_nms
from detbench.core.types import Detections, QueryPredictions, Targets
from detbench.parts.test import Nms

if TYPE_CHECKING:
    from detbench.parts.teaching import PseudoLabels


@dataclass(frozen=True, slots=True)
class Candidates:
    """Detections of a batch that may count as objects, laid end to end image after image, as `Targets` are.

    Attributes:
        labels: (M,) int64, class indices.
        boxes: (M, 4) xyxy pixels of the view.
        scores: (M,) class probabilities, descending in each image.
        image_idx: (M,) int64, ascending: the image of each.
        counts: number of each image's candidates.
        sizes: height and width of each image before padding.
    """

    labels: Tensor
    boxes: Tensor
    scores: Tensor
    image_idx: Tensor
    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def targets(self) -> Targets:
        """All of them as objects."""
        return Targets(self.labels, self.boxes, self.image_idx, self.counts, self.sizes, pseudo=True)

    def above(self, threshold: float) -> Targets:
        """Those of at least this score as objects."""
        return self.where(self.scores >= threshold).targets

    def where(self, chosen: Tensor) -> Candidates:
        """Those that (M,) bool `chosen` names."""
        image_idx = self.image_idx[chosen]
        counts = torch.bincount(image_idx, minlength=len(self.counts)).tolist()
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            image_idx=image_idx,
            counts=tuple(counts),
        )


@torch.no_grad()
def candidates_of(
    rule: PseudoLabels, predictions: QueryPredictions, sizes: Sequence[tuple[int, int]]
) -> Candidates:
    """The teacher's detections that stand out in their image (spec 8.3).

    What class-wise suppression leaves of the last layer stands out where its score reaches the mean plus the unbiased
    standard deviation of the image's scores, and its clipped box has an area. A single score has no such deviation:
    a lone detection does not stand out, as in the released code.

    Args:
        rule: of suppression.
        predictions: on the weak view.
        sizes: height and width of each unpadded image of that view.
    """
    suppression = Nms(
        score_threshold=rule.min_score, per_level=None, iou_threshold=rule.nms_iou, keep=rule.keep
    )
    kept = [_outstanding(found) for found in detect_nms(suppression, predictions, sizes)]
    counts = tuple(len(found.scores) for found in kept)
    device = predictions.pred_boxes.device
    return Candidates(
        torch.cat([found.labels for found in kept]),
        torch.cat([found.boxes for found in kept]),
        torch.cat([found.scores for found in kept]),
        torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device),
        counts,
        _whole(sizes),
    )


def moved(candidates: Candidates, to: Tensor, sizes: Sequence[tuple[int, int]]) -> Candidates:
    """The same candidates in another view, each in the box around its moved corners, clipped to the image.

    None is dropped: one that leaves the image keeps an empty box at its edge, as in the released code (spec 6.3).

    Args:
        candidates: of the one view.
        to: (B, 3, 3) affine matrix of each image: homogeneous xy pixels of the one view to those of the other.
        sizes: height and width of each unpadded image of the other view.
    """
    corners = candidates.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)
    matrix = to.to(corners)[candidates.image_idx]
    points = corners @ matrix[:, :2, :2].transpose(1, 2) + matrix[:, None, :2, 2]
    boxes = torch.cat([points.amin(1), points.amax(1)], -1)
    whwh = boxes.new_tensor([(w, h, w, h) for h, w in sizes])[candidates.image_idx]
    return dataclasses.replace(candidates, boxes=clip_boxes(boxes, whwh), sizes=_whole(sizes))


def _whole(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(height), int(width)) for height, width in sizes)


def _outstanding(found: Detections) -> Detections:
    """Those of an image's detections whose score and box make them candidates."""
    scores = found.scores
    if len(scores) > 1:
        reached = scores >= scores.mean() + scores.std()
    else:
        reached = torch.zeros_like(scores, dtype=torch.bool)
    chosen = reached & (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
    return Detections(found.boxes[chosen], scores[chosen], found.labels[chosen])
