"""POTO: one-to-one assignment by the quality of the predictions (DeFCN; spec 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.hungarian import solve
from detbench.core.assign.inside import is_inside
from detbench.core.boxes import box_iou
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Targets
    from detbench.parts.assigners import Poto


@torch.no_grad()
def assign_poto(rule: Poto, predictions: DensePredictions, targets: Targets) -> Matches:
    """The pairs of greatest total quality in each image."""
    quality = poto_quality(
        predictions.pred_logits,
        predictions.pred_boxes,
        predictions.anchors.centers,
        predictions.anchors.strides,
        targets.labels,
        targets.boxes,
        targets.image_idx,
        quality_alpha=rule.quality_alpha,
        center_radius=rule.center_radius,
        outside_quality=rule.outside_quality,
    )
    return solve(quality, targets.counts, maximise=True)


def poto_quality(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    centers: Tensor,
    strides: Tensor,
    labels: Tensor,
    boxes: Tensor,
    image_idx: Tensor,
    *,
    quality_alpha: float,
    center_radius: float,
    outside_quality: float,
) -> Tensor:
    """How well a prediction would answer for an object: probability^(1 - alpha) * IoU^alpha inside the prior.

    Args:
        pred_logits: (B, Q, C) class scores before the sigmoid.
        pred_boxes: (B, Q, 4) xyxy pixels.
        centers: (Q, 2) xy pixels of the locations.
        strides: (Q,) of their levels.
        labels: (M,) the objects' classes.
        boxes: (M, 4) xyxy pixels.
        image_idx: (M,) the image of each object.

    Returns:
        (M, Q) qualities of the predictions of each object's own image.
    """
    prob_MQ = pred_logits[image_idx, :, labels].sigmoid()
    iou_MQ = box_iou(pred_boxes[image_idx], boxes[:, None], eps=1e-6)
    quality_MQ = prob_MQ ** (1 - quality_alpha) * iou_MQ**quality_alpha
    inside_MQ = is_inside(centers, strides, boxes, radius=center_radius)
    return quality_MQ.masked_fill(~inside_MQ, outside_quality)
