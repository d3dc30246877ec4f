"""Matching by cost: the focal, L1 and GIoU cost of DETR-like matchers, and two ways to pick from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detbench.core.boxes import box_giou, by_coordinate, xyxy_to_cxcywh
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Targets
    from detbench.parts.assigners import DenseCost, Hungarian, LeastCost


@torch.no_grad()
def assign_hungarian(rule: Hungarian, predictions: DensePredictions, targets: Targets) -> Matches:
    """The pairs of least total cost in each image (spec 2.2)."""
    return solve(_cost(rule, predictions, targets), targets.counts)


@torch.no_grad()
def assign_least_cost(rule: LeastCost, predictions: DensePredictions, targets: Targets) -> Matches:
    """Each object with its cheapest prediction (spec 2.1)."""
    cost = _cost(rule, predictions, targets)
    return Matches(targets.image_idx, cost.argmin(1), torch.arange(len(cost), device=cost.device))


def pair_cost(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    labels: Tensor,
    boxes: Tensor,
    image_idx: Tensor,
    whwh: Tensor,
    *,
    cost_class: float,
    cost_bbox: float,
    cost_giou: float,
    focal_alpha: float,
    focal_gamma: float,
    focal_eps: float,
    box_format: Literal["cxcywh", "xyxy"],
    giou_eps: float,
) -> Tensor:
    """What it costs to let a prediction answer for an object (spec 0, 2.1, 2.2).

    Args:
        pred_logits: (B, Q, C) class scores before the sigmoid.
        pred_boxes: (B, Q, 4) xyxy pixels.
        labels: (M,) the objects' classes.
        boxes: (M, 4) xyxy pixels.
        image_idx: (M,) the image of each object.
        whwh: (B, 4) width and height of each unpadded image, twice.

    Returns:
        (M, Q) costs of each object with the predictions of its own image.
    """
    # Only the object's own class is looked at, so the logits are gathered before any arithmetic.
    class_cost_MQ = focal_cost(
        pred_logits[image_idx, :, labels], alpha=focal_alpha, gamma=focal_gamma, eps=focal_eps
    )
    own_boxes = by_coordinate(pred_boxes[image_idx])
    size = whwh[image_idx]
    pred, target = own_boxes / size[:, None], boxes / size
    if box_format == "cxcywh":
        pred, target = xyxy_to_cxcywh(pred), xyxy_to_cxcywh(target)
    bbox_cost_MQ = (pred - target[:, None]).abs().sum(-1)
    giou_MQ = box_giou(own_boxes, boxes[:, None], eps=giou_eps)
    return cost_class * class_cost_MQ + cost_bbox * bbox_cost_MQ - cost_giou * giou_MQ


def focal_cost(logits: Tensor, *, alpha: float, gamma: float, eps: float) -> Tensor:
    """Focal loss if positive minus focal loss if negative, for each logit (spec 0)."""
    return probability_cost(logits.sigmoid(), alpha=alpha, gamma=gamma, eps=eps)


def probability_cost(prob: Tensor, *, alpha: float, gamma: float, eps: float) -> Tensor:
    """`focal_cost` of the probabilities that logits stand for."""
    positive = -alpha * (1 - prob) ** gamma * (prob + eps).log()
    negative = -(1 - alpha) * prob**gamma * (1 - prob + eps).log()
    return positive - negative


def solve(
    cost: Tensor,
    counts: tuple[int, ...],
    *,
    maximise: bool = False,
    copies: int = 1,
    most_positive: float | None = None,
) -> Matches:
    """Pairs of least (or greatest) sum in each image, no prediction in two of them.

    Args:
        cost: (M, Q), the rows of an image's objects next to each other.
        counts: objects of each image; they sum to M.
        maximise: treat `cost` as a quality.
        copies: how often each object is repeated; its copies go to distinct predictions.
        most_positive: largest share of the predictions that may be matched; reduces the copies of an image, not
            below 1; None for no bound.

    Returns:
        min(Q, copies * N) pairs for an image of N objects.
    """
    # Where training diverged the cost isn't finite and the solver would raise: the loss says so better.
    on_host = cost.nan_to_num().cpu().numpy()
    num_predictions = cost.shape[1]
    columns = [np.zeros((3, 0), np.int64)]
    start = 0
    for image, count in enumerate(counts):
        if count:
            times = copies
            if most_positive is not None:
                times = max(1, min(copies, int(most_positive * num_predictions / count)))
            rows = on_host[start : start + count]
            offered = np.tile(rows, (times, 1)) if times > 1 else rows
            row, pred = linear_sum_assignment(offered, maximize=maximise)
            columns.append(np.stack([np.full(len(pred), image), pred, start + row % count]))
        start += count
    image_idx, pred_idx, target_idx = torch.from_numpy(np.concatenate(columns, axis=1)).to(cost.device)
    return Matches(image_idx, pred_idx, target_idx, copies=copies)


def _cost(rule: DenseCost, predictions: DensePredictions, targets: Targets) -> Tensor:
    return pair_cost(
        predictions.pred_logits,
        predictions.pred_boxes,
        targets.labels,
        targets.boxes,
        targets.image_idx,
        targets.whwh,
        cost_class=rule.cost_class,
        cost_bbox=rule.cost_bbox,
        cost_giou=rule.cost_giou,
        focal_alpha=rule.focal_alpha,
        focal_gamma=rule.focal_gamma,
        focal_eps=rule.focal_eps,
        box_format=rule.box_format,
        giou_eps=rule.giou_eps,
    )
