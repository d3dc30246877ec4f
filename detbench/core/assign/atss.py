"""ATSS: anchors near an object's centre, by the object's own IoU threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.claims import strongest_claims
from detbench.core.assign.max_iou import is_on_image
from detbench.core.boxes import box_iou, boxes_to_distances
from detbench.core.selection import best_of_levels
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Targets
    from detbench.parts.assigners import Atss

LEAST_DISTANCE = 0.01
"""Pixels by which a positive's centre is inside its object, more than (spec 7)."""


@torch.no_grad()
def assign_atss(rule: Atss, predictions: DensePredictions, targets: Targets) -> Matches:
    """At most one object for each anchor; those outside their image are ignored (spec 7)."""
    anchors, boxes = predictions.anchors, targets.boxes
    valid = is_on_image(anchors, targets.whwh[:, :2], pad_multiple=1)
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).unsqueeze(2).unbind(1)
    distance_MQ = torch.hypot(anchors.centers[:, 0] - x, anchors.centers[:, 1] - y)
    distance_MQ.masked_fill_(~valid[targets.image_idx], torch.inf)
    candidates_MK, _ = best_of_levels(distance_MQ, anchors.level_sizes, rule.per_level, largest=False)
    there_MK = distance_MQ.gather(1, candidates_MK).isfinite()
    iou_MK = box_iou(boxes[:, None], anchors.boxes[candidates_MK], eps=1e-6)
    sides_MK = boxes_to_distances(anchors.centers[candidates_MK], boxes[:, None]).amin(-1)
    positive_MK = there_MK & (iou_MK >= own_threshold(iou_MK, there_MK)) & (sides_MK > LEAST_DISTANCE)
    target_idx, candidate = positive_MK.nonzero(as_tuple=True)
    return strongest_claims(
        iou_MK[target_idx, candidate],
        image_idx=targets.image_idx[target_idx],
        pred_idx=candidates_MK[target_idx, candidate],
        target_idx=target_idx,
        shape=(valid.shape[0], valid.shape[1]),
        ignored=~valid,
    )


def own_threshold(iou: Tensor, there: Tensor) -> Tensor:
    """(M, 1) mean plus unbiased standard deviation of (M, K) overlaps, of those that are there."""
    num = there.sum(1, keepdim=True).clamp(min=1)
    mean = (iou * there).sum(1, keepdim=True) / num
    variance = ((iou - mean).square() * there).sum(1, keepdim=True) / (num - 1).clamp(min=1)
    return mean + variance.sqrt()
