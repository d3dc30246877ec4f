"""Several queries for each object, the best by class and box together (TOOD, arXiv:2108.07755; spec 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.boxes import box_iou, cxcywh_to_xyxy
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import QueryPredictions, Targets
    from detbench.parts.assigners import TaskAligned


@torch.no_grad()
def assign_task_aligned(rule: TaskAligned, predictions: QueryPredictions, targets: Targets) -> Matches:
    """At most one object for each query of each layer, at most `per_object` queries for each object, weighed."""
    iou_MQ, quality_MQ = pair_alignment(
        predictions, targets, score_power=rule.score_power, iou_power=rule.iou_power
    )
    best, pred_MK = quality_MQ.topk(min(rule.per_object, quality_MQ.shape[1]), 1)
    claimed_MQ = torch.zeros_like(quality_MQ, dtype=torch.bool).scatter_(1, pred_MK, best > 0)
    owned_MQ = by_greatest_overlap(claimed_MQ, iou_MQ, targets)
    target_idx, pred_idx = owned_MQ.nonzero(as_tuple=True)
    best_quality = quality_MQ.where(owned_MQ, 0).amax(1)[target_idx]
    best_iou = iou_MQ.where(owned_MQ, 0).amax(1)[target_idx]
    quality = quality_MQ[target_idx, pred_idx]
    return Matches(
        image_idx=targets.image_idx[target_idx],
        pred_idx=pred_idx,
        target_idx=target_idx,
        weights=quality / (best_quality + 1e-7) * best_iou,
    )


def pair_alignment(
    predictions: QueryPredictions, targets: Targets, *, score_power: float, iou_power: float
) -> tuple[Tensor, Tensor]:
    """(M, Q) IoU in pixels, and (M, Q) probability of the object's class and IoU, each to its power, multiplied.

    Args:
        predictions: of B images times layers.
        targets: their objects, repeated for the layers.
        score_power: TOOD's alpha.
        iou_power: TOOD's beta.
    """
    pixels = cxcywh_to_xyxy(predictions.pred_boxes) * targets.whwh[:, None]
    iou = box_iou(pixels[targets.image_idx], targets.boxes[:, None], eps=1e-6)
    prob = predictions.pred_logits.transpose(1, 2)[targets.image_idx, targets.labels].sigmoid()
    return iou, prob**score_power * iou**iou_power


def by_greatest_overlap(claimed: Tensor, iou: Tensor, targets: Targets) -> Tensor:
    """(M, Q) which claims stand once every query belongs to the claimant that it overlaps most.

    Args:
        claimed: (M, Q) bool.
        iou: (M, Q).
        targets: the claimants; queries of different images have nothing to do with each other.
    """
    num_objects, num_queries = iou.shape
    image_MQ = targets.image_idx[:, None].expand_as(iou)
    greatest_BQ = iou.new_zeros(len(targets.counts), num_queries)
    greatest_BQ.scatter_reduce_(0, image_MQ, iou.where(claimed, 0), "amax")
    stands = claimed & (iou == greatest_BQ[targets.image_idx])
    # Of equal overlaps the first object's.
    order = torch.arange(num_objects, device=iou.device)[:, None]
    first_BQ = order.new_full(greatest_BQ.shape, num_objects)
    first_BQ.scatter_reduce_(0, image_MQ, order.where(stands, num_objects), "amin")
    return stands & (order == first_BQ[targets.image_idx])
