"""Several queries for each object, the best by class and box together (TOOD, arXiv:2108.07755; spec 8.2)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.claims import strongest_claims
from detbench.core.boxes import box_iou, cxcywh_to_xyxy

if TYPE_CHECKING:
    from detbench.core.types import Matches, QueryPredictions, Targets
    from detbench.parts.assigners import TaskAligned


@torch.no_grad()
def assign_task_aligned(rule: TaskAligned, predictions: QueryPredictions, targets: Targets) -> Matches:
    """At most one object for each query of each layer, at most `per_object` queries for each object, weighed."""
    iou_MQ, quality_MQ = pair_alignment(
        predictions, targets, score_power=rule.score_power, iou_power=rule.iou_power
    )
    best, pred_MK = quality_MQ.topk(min(rule.per_object, quality_MQ.shape[1]), 1)
    target_idx, place = (best > 0).nonzero(as_tuple=True)
    pred_idx = pred_MK[target_idx, place]
    matches = strongest_claims(
        iou_MQ[target_idx, pred_idx],
        image_idx=targets.image_idx[target_idx],
        pred_idx=pred_idx,
        target_idx=target_idx,
        shape=(len(targets.counts), quality_MQ.shape[1]),
    )
    pairs = (matches.target_idx, matches.pred_idx)
    quality, iou = quality_MQ[pairs], iou_MQ[pairs]
    best_quality, best_iou = (
        x.new_zeros(len(targets.labels)).scatter_reduce_(0, matches.target_idx, x, "amax")[matches.target_idx]
        for x in (quality, iou)
    )
    return dataclasses.replace(matches, weights=quality / (best_quality + 1e-7) * best_iou)


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
