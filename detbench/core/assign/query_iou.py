"""Queries and tokens by how their starting boxes overlap objects, several for each object (DETA; spec 6).

Shape letters beside those of `detbench.core.types`: I images, without repetition for layers; N the most objects of
any of them, but at least 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from detbench.core.assign.sampling import random_subset
from detbench.core.boxes import by_coordinate, cxcywh_to_xyxy, query_iou
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import QueryPredictions, Targets
    from detbench.parts.assigners import QueryIou


@torch.no_grad()
def assign_query_iou(rule: QueryIou, predictions: QueryPredictions, targets: Targets) -> Matches:
    """The pairs of one assignment by the predictions' anchors, the same for all layers (spec 6.2 to 6.5)."""
    assert predictions.anchors is not None  # Experiment refuses the rule without a first stage
    iou = overlaps(predictions.anchors, targets, eps=rule.iou_eps)
    positive, owner = positive_candidates(iou, threshold=rule.positive, low_quality=rule.low_quality)
    size = positive.shape[1] if rule.sample is None else rule.sample
    positive = random_subset(positive, most=int(rule.most_positive * size))
    if rule.balance_by == "row":
        image_idx, rank, pred_idx = best_of_each_row(iou, positive, owner, most=rule.balance)
    else:
        if rule.balance_by == "threshold":
            positive &= reaches_nth_best(iou, owner, n=rule.balance)
        image_idx, pred_idx = positive.nonzero(as_tuple=True)
        rank = owner[image_idx, pred_idx]
    targets = targets.of_first(len(iou))
    pairs = Matches(image_idx, pred_idx, targets.first[image_idx] + rank)
    return pairs.repeat(predictions.num_layers, targets)


def overlaps(anchors: Tensor, targets: Targets, *, eps: float) -> Tensor:
    """(I, N, Q) IoU of every object with every candidate of its image; -1 where an image has fewer than N.

    Args:
        anchors: (I, Q, 4) normalised cxcywh.
        targets: of these images, and perhaps of their repetitions, which are passed over.
        eps: added to the union.
    """
    counts = targets.counts[: len(anchors)]
    image_idx = targets.image_idx[: sum(counts)]
    boxes = anchors.new_full((len(anchors), max(1, *counts), 4), -1.0)
    boxes[image_idx, targets.rank[: len(image_idx)]] = targets.cxcywh[: len(image_idx)].to(boxes.dtype)
    iou = query_iou(
        cxcywh_to_xyxy(boxes)[:, :, None], by_coordinate(cxcywh_to_xyxy(anchors))[:, None], eps=eps
    )
    return iou.masked_fill_(boxes[..., 2:3] < 0, -1.0)


def positive_candidates(
    iou: Tensor, *, threshold: float, low_quality: Literal["any", "own", "none"]
) -> tuple[Tensor, Tensor]:
    """Which candidates are positive, and for which object.

    Args:
        iou: (I, N, Q), -1 for objects that aren't there.
        threshold: least IoU with the candidate's own object, the one that it overlaps most.
        low_quality: "any": whatever reaches the best IoU of some object is positive too, for its own object all the
            same; "own": whatever reaches its own object's best; "none": nothing else.

    Returns:
        (I, Q) bool; (I, Q) the own object's place among those of its image, the first of equals.
    """
    best, owner = iou.max(1)
    positive = best >= threshold
    if low_quality != "none":
        is_best = (iou == iou.amax(2, keepdim=True)) & (iou >= 0)
        positive |= is_best.any(1) if low_quality == "any" else is_best.gather(1, owner[:, None]).squeeze(1)
    return positive, owner


def best_of_each_row(
    iou: Tensor, positive: Tensor, owner: Tensor, *, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As many of an object's best candidates as positives have it for their own, but no more than `most`.

    The best may be other candidates than those positives, and may serve two objects (spec 6.2).

    Args:
        iou: (I, N, Q), -1 for objects that aren't there.
        positive: (I, Q) bool.
        owner: (I, Q) place of each candidate's own object.
        most: of one object.

    Returns:
        (K,) image, place of the object among its image's, and candidate of each pair; object after object.
    """
    num_positives = torch.zeros_like(iou[..., 0], dtype=torch.int64).scatter_add_(1, owner, positive.long())
    best = iou.topk(min(most, iou.shape[2]), 2).indices
    kept = torch.arange(best.shape[2], device=best.device) < num_positives[..., None]
    image_idx, rank, _ = kept.nonzero(as_tuple=True)
    return image_idx, rank, best[kept]


def reaches_nth_best(iou: Tensor, owner: Tensor, *, n: int) -> Tensor:
    """(I, Q) whether a candidate's IoU with its own object is among the object's n greatest (DETA, section 5.3).

    Args:
        iou: (I, N, Q), -1 for objects that aren't there.
        owner: (I, Q) place of each candidate's own object.
    """
    nth = iou.topk(min(n, iou.shape[2]), 2).values[..., -1]
    return iou.amax(1) >= nth.gather(1, owner)
