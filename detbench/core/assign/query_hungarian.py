"""Matching of query predictions: all layers and images in one cost, one transfer, one solver call for each image."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.hungarian import probability_cost, solve
from detbench.core.boxes import cxcywh_to_xyxy, query_giou
from detbench.core.losses.align import alignment_quality, rank_within
from detbench.core.losses.quality import stretch
from detbench.core.losses.sized import object_sides
from detbench.core.supervise import QuerySupervision
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import QueryPredictions, Targets
    from detbench.parts.assigners import QueryHungarian, Rank


RANK_FLOOR = 0.01
"""Least quality that ranks tell apart: the released code bounds qualities before it ranks them (spec 4.2)."""


@torch.no_grad()
def assign_query_hungarian(rule: QueryHungarian, predictions: QueryPredictions, targets: Targets) -> Matches:
    """The pairs of least total cost in each image of each layer (spec 1.8, 4.1)."""
    cost = query_cost(rule, predictions, targets)
    matches = solve(cost, targets.counts, copies=rule.copies, most_positive=rule.most_positive)
    if rule.rank is None:
        return matches
    return dataclasses.replace(matches, weights=rank_weights(rule.rank, predictions, targets, matches))


def rank_weights(rule: Rank, predictions: QueryPredictions, targets: Targets, matches: Matches) -> Tensor:
    """(K,) exp(-rank / tau), the rank that of the pair among its object's in the same layer (spec 4.2)."""
    pairs = QuerySupervision(predictions, targets, matches)
    quality = alignment_quality(pairs, alpha=rule.quality_alpha, iou_eps=rule.iou_eps).clamp(min=RANK_FLOOR)
    return (-rank_within(matches.target_idx, quality, matches.pred_idx) / rule.tau).exp()


def query_cost(rule: QueryHungarian, predictions: QueryPredictions, targets: Targets) -> Tensor:
    """(M, Q) cost of each object with every query of its own image and layer (spec 1.8)."""
    # (8, B, Q): a plane for each coordinate, of which an object's row is copied whole.
    planes = torch.cat([predictions.pred_boxes, cxcywh_to_xyxy(predictions.pred_boxes)], -1).movedim(-1, 0)
    pred = planes.contiguous().index_select(1, targets.image_idx)
    target = targets.cxcywh
    distance = (pred[:4] - target.T[..., None]).abs()
    if rule.sized_bbox:
        distance = distance * _mean_side_over_side(targets).T.repeat(2, 1)[..., None]
    bbox_cost = distance.sum(0)
    giou = query_giou(pred[4:].movedim(0, -1), cxcywh_to_xyxy(target)[:, None], eps=rule.iou_eps)
    # Only the object's own class is looked at, so the logits are gathered before any arithmetic.
    prob = predictions.pred_logits.transpose(1, 2)[targets.image_idx, targets.labels].sigmoid()
    if rule.position_power:
        prob = prob * _position(giou, targets) ** rule.position_power
    class_cost = probability_cost(prob, alpha=rule.focal_alpha, gamma=rule.focal_gamma, eps=rule.focal_eps)
    return rule.cost_class * class_cost + rule.cost_bbox * bbox_cost - rule.cost_giou * giou


def _mean_side_over_side(targets: Targets) -> Tensor:
    """(M, 2) mean width over width and mean height over height, the means those of the image's objects (spec 6.3)."""
    sides = object_sides(targets, min_side=1.0)
    of_image = sides.new_zeros(len(targets.counts), 2).index_add_(0, targets.image_idx, sides)
    counts = torch.tensor(targets.counts, dtype=sides.dtype, device=sides.device)
    return (of_image / counts[:, None])[targets.image_idx] / sides


def _position(giou: Tensor, targets: Targets) -> Tensor:
    """(M, Q) GIoU on a scale from 0 to 1, each image's best at 1 (Stable-DINO; spec 5.6)."""
    overlap = (giou + 1) / 2
    return overlap * stretch(overlap.amax(1), targets.image_idx, num_images=len(targets.counts))[:, None]
