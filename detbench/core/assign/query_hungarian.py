"""Matching of query predictions: all layers and images in one cost, one transfer, one solver call for each image."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detbench.core.assign.hungarian import probability_cost
from detbench.core.boxes import cxcywh_to_xyxy, query_giou
from detbench.core.losses.align import alignment_quality, rank_within
from detbench.core.losses.quality import stretch
from detbench.core.losses.sized import object_sides
from detbench.core.supervise import QuerySupervision
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import QueryPredictions, Targets
    from detbench.parts.assigners import QueryHungarian, Rank


@torch.no_grad()
def assign_query_hungarian(rule: QueryHungarian, predictions: QueryPredictions, targets: Targets) -> Matches:
    """The pairs of least total cost in each image of each layer (spec 1.8, 4.1)."""
    cost = query_cost(rule, predictions, targets)
    matches = solve_with_copies(cost, targets.counts, copies=rule.copies, most_positive=rule.most_positive)
    if rule.rank is None:
        return matches
    return dataclasses.replace(matches, weights=rank_weights(rule.rank, predictions, targets, matches))


def rank_weights(rule: Rank, predictions: QueryPredictions, targets: Targets, matches: Matches) -> Tensor:
    """(K,) exp(-rank / tau), the rank that of the pair among its object's in the same layer (spec 4.2)."""
    pairs = QuerySupervision(predictions, targets, matches)
    quality = alignment_quality(pairs, alpha=rule.quality_alpha, iou_eps=rule.iou_eps)
    return (-rank_within(matches.target_idx, quality) / rule.tau).exp()


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


def solve_with_copies(
    cost: Tensor, counts: tuple[int, ...], *, copies: int = 1, most_positive: float | None = None
) -> Matches:
    """Pairs of least sum in each image, every object offered several times.

    Args:
        cost: (M, Q), the rows of an image's objects next to each other.
        counts: objects of each image; they sum to M.
        copies: how often each object is repeated; its copies go to distinct queries.
        most_positive: largest share of the queries that may be matched; reduces the copies of an image, not below 1.

    Returns:
        min(Q, copies * N) pairs for an image of N objects.
    """
    # Where training diverged the cost isn't finite and the solver would raise: the loss says so better.
    on_host = cost.nan_to_num().cpu().numpy()
    num_queries = cost.shape[1]
    columns: list[NDArray[np.int64]] = []
    start = 0
    for image, count in enumerate(counts):
        if count:
            times = copies
            if most_positive is not None:
                times = max(1, min(copies, int(most_positive * num_queries / count)))
            rows = on_host[start : start + count]
            row, pred = linear_sum_assignment(np.tile(rows, (times, 1)) if times > 1 else rows)
            columns.append(np.stack([np.full(len(pred), image), pred, start + row % count]))
        start += count
    matched = np.concatenate(columns, axis=1) if columns else np.zeros((3, 0), dtype=np.int64)
    image_idx, pred_idx, target_idx = torch.from_numpy(matched).to(cost.device)
    return Matches(image_idx, pred_idx, target_idx, copies=copies)
