"""RetinaNet's rule: anchors by their overlap with objects, an ignored band, each object's best anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.boxes import pairwise_iou
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import Anchors, DensePredictions, Targets
    from detbench.parts.assigners import MaxIou

PAD_MULTIPLE = 32
"""An image's own padded size is its resized size rounded up to this; that of its batch may be larger."""


@torch.no_grad()
def assign_max_iou(rule: MaxIou, predictions: DensePredictions, targets: Targets) -> Matches:
    """At most one object for each anchor; those in the band and outside the image are ignored (spec 1.5)."""
    valid = is_on_image(predictions.anchors, targets.whwh[:, :2])
    owner, ignored = max_iou_owner(
        predictions.anchors.boxes,
        valid,
        targets.boxes,
        targets.image_idx,
        positive=rule.positive,
        negative=rule.negative,
        low_quality=rule.low_quality,
    )
    image_idx, pred_idx = (owner >= 0).nonzero(as_tuple=True)
    return Matches(image_idx, pred_idx, owner[image_idx, pred_idx], ignored | ~valid)


def is_on_image(anchors: Anchors, sizes: Tensor) -> Tensor:
    """(B, Q) whether each anchor's cell is one of the ceil(padded size / stride) cells of each image.

    Args:
        anchors: of the batch.
        sizes: (B, 2) width and height of each image before padding.
    """
    stride = anchors.strides[:, None]
    padded = (sizes / PAD_MULTIPLE).ceil() * PAD_MULTIPLE
    num_cells = (padded[:, None] / stride).ceil()
    return ((anchors.centers / stride).floor() < num_cells).all(-1)


def max_iou_owner(
    anchors: Tensor,
    valid: Tensor,
    boxes: Tensor,
    image_idx: Tensor,
    *,
    positive: float,
    negative: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor]:
    """Which object each anchor answers for, and which anchors are left out.

    Args:
        anchors: (Q, 4) xyxy pixels.
        valid: (B, Q) bool; no other anchor takes part.
        boxes: (M, 4) xyxy pixels.
        image_idx: (M,) the image of each object.
        positive: least IoU of a positive anchor.
        negative: an anchor whose best IoU is below this is negative.
        low_quality: give each object all anchors that reach its best IoU; later objects take from earlier.

    Returns:
        (B, Q) index of the object, -1 for none; (B, Q) bool, True between `negative` and `positive`.
    """
    num_objects = len(boxes)
    iou_MQ = pairwise_iou(boxes, anchors, eps=1e-6).masked_fill(~valid[image_idx], -1.0)

    # Few of all pairs overlap enough to matter: from here on only those are touched.
    target_idx, pred_idx = (iou_MQ >= negative).nonzero(as_tuple=True)
    place, iou = image_idx[target_idx] * len(anchors) + pred_idx, iou_MQ[target_idx, pred_idx]
    best = iou.new_zeros(valid.numel()).scatter_reduce_(0, place, iou, "amax")
    ignored = (best >= negative) & (best < positive)

    wins = (iou >= positive) & (iou == best[place])
    owner = torch.full_like(best, num_objects, dtype=torch.int64)
    owner.scatter_reduce_(0, place[wins], target_idx[wins], "amin")  # of equal overlaps the first object
    owner = owner.where(owner < num_objects, -1)

    if low_quality and num_objects:
        target_idx, pred_idx = (iou_MQ == iou_MQ.amax(1, keepdim=True)).nonzero(as_tuple=True)
        place = image_idx[target_idx] * len(anchors) + pred_idx
        claimed = torch.full_like(owner, -1).scatter_reduce_(0, place, target_idx, "amax")
        owner = claimed.where(claimed >= 0, owner)
    return owner.view_as(valid), (ignored & (owner < 0)).view_as(valid)
