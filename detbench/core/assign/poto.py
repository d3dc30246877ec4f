"""POTO: one-to-one assignment by the quality of the predictions (DeFCN; spec 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from detbench.core.assign.hungarian import solve
from detbench.core.assign.inside import is_inside
from detbench.core.boxes import box_giou, box_iou, by_coordinate
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
        overlap=rule.overlap,
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
    overlap: Literal["iou", "giou"] = "iou",
) -> Tensor:
    """`pair_quality` inside the spatial prior, `outside_quality` beyond it (spec 3.1).

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
    quality_MQ = pair_quality(
        pred_logits, pred_boxes, labels, boxes, image_idx, quality_alpha=quality_alpha, overlap=overlap
    )
    inside_MQ = is_inside(centers, strides, boxes, radius=center_radius)
    return quality_MQ.masked_fill(~inside_MQ, outside_quality)


def pair_quality(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    labels: Tensor,
    boxes: Tensor,
    image_idx: Tensor,
    *,
    quality_alpha: float,
    overlap: Literal["iou", "giou"] = "iou",
) -> Tensor:
    """How well each prediction would answer for an object: probability^(1 - alpha) * IoU^alpha.

    Arguments and result are those of `poto_quality`.
    """
    prob_MQ = pred_logits[image_idx, :, labels].sigmoid()
    own_boxes = by_coordinate(pred_boxes[image_idx])
    if overlap == "iou":
        overlap_MQ = box_iou(own_boxes, boxes[:, None], eps=1e-6)
    else:
        overlap_MQ = box_giou(own_boxes, boxes[:, None], eps=1e-6).clamp(min=0)
    return prob_MQ ** (1 - quality_alpha) * overlap_MQ**quality_alpha
