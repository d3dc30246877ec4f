"""Faster R-CNN's rule: the overlap decides what is positive, chance what takes part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.max_iou import is_on_image, max_iou_owner
from detbench.core.assign.sampling import random_sample
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Targets
    from detbench.parts.assigners import SampledIou


@torch.no_grad()
def assign_sampled_iou(rule: SampledIou, predictions: DensePredictions, targets: Targets) -> Matches:
    """At most one object for each anchor; those not sampled, or outside their image, are ignored (spec 7)."""
    valid = is_on_image(predictions.anchors, targets.whwh[:, :2], pad_multiple=1)
    owner, sampled = sampled_owner(rule, predictions.anchors.boxes, valid, targets)
    return Matches.of_owner(owner, ~sampled)


def sampled_owner(rule: SampledIou, boxes: Tensor, valid: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Which candidates take part, and for which object.

    Args:
        rule: thresholds and numbers.
        boxes: (Q, 4) xyxy pixels of the candidates of every image, or (B, Q, 4) of each.
        valid: (B, Q) bool; no other candidate takes part.
        targets: the batch's objects.

    Returns:
        (B, Q) index of the object, -1 for none; (B, Q) bool, True for those sampled.
    """
    owner, ignored = max_iou_owner(
        boxes,
        valid,
        targets.boxes,
        targets.image_idx,
        positive=rule.positive,
        negative=rule.negative,
        low_quality=rule.low_quality,
    )
    positive = owner >= 0
    sampled = random_sample(
        positive,
        valid & ~positive & ~ignored,
        size=rule.sample,
        most_positive=int(rule.most_positive * rule.sample),
    )
    return owner.masked_fill(~sampled, -1), sampled
