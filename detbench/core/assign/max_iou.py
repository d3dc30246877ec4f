"""RetinaNet's rule: anchors by their overlap with objects, an ignored band, each object's best anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.boxes import box_iou, by_coordinate, pairwise_iou
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import Anchors, DensePredictions, Targets
    from detbench.parts.assigners import MaxIou

PAD_MULTIPLE = 32
"""An image's own padded size is its resized size rounded up to this; that of its batch may be larger."""


@torch.no_grad()
def assign_max_iou(rule: MaxIou, predictions: DensePredictions, targets: Targets) -> Matches:
    """At most one object for each anchor; those in the band and outside the image are ignored (spec 1.5)."""
    valid = is_on_image(predictions.anchors, targets.whwh[:, :2], pad_multiple=PAD_MULTIPLE)
    owner, ignored = max_iou_owner(
        predictions.anchors.boxes,
        valid,
        targets.boxes,
        targets.image_idx,
        positive=rule.positive,
        negative=rule.negative,
        low_quality=0.0 if rule.low_quality else None,
    )
    return Matches.of_owner(owner, ignored | ~valid)


def is_on_image(anchors: Anchors, sizes: Tensor, *, pad_multiple: int) -> Tensor:
    """(B, Q) whether each anchor's cell is one of the ceil(padded size / stride) cells of each image.

    Args:
        anchors: of the batch.
        sizes: (B, 2) width and height of each image before padding.
        pad_multiple: an image's own padded size is its size rounded up to this.
    """
    stride = anchors.strides[:, None]
    padded = (sizes / pad_multiple).ceil() * pad_multiple
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
    low_quality: float | None,
) -> tuple[Tensor, Tensor]:
    """Which object each anchor answers for, and which anchors are left out.

    Args:
        anchors: (Q, 4) xyxy pixels, or (B, Q, 4) where each image has its own.
        valid: (B, Q) bool; no other anchor takes part.
        boxes: (M, 4) xyxy pixels.
        image_idx: (M,) the image of each object.
        positive: least IoU of a positive anchor.
        negative: an anchor whose best IoU is below this is negative.
        low_quality: give each object all anchors that reach its best IoU, if that is at least so much; later objects
            take from earlier. None for nothing.

    Returns:
        (B, Q) index of the object, -1 for none; (B, Q) bool, True between `negative` and `positive`.
    """
    num_objects = len(boxes)
    if anchors.dim() == 2:
        iou_MQ = pairwise_iou(boxes, anchors, eps=1e-6)
    else:
        iou_MQ = box_iou(boxes[:, None], by_coordinate(anchors)[image_idx], eps=1e-6)
    iou_MQ = iou_MQ.masked_fill(~valid[image_idx], -1.0)

    # Few of all pairs overlap enough to matter: from here on only those are touched.
    target_idx, pred_idx = (iou_MQ >= negative).nonzero(as_tuple=True)
    place, iou = image_idx[target_idx] * valid.shape[1] + pred_idx, iou_MQ[target_idx, pred_idx]
    best = iou.new_zeros(valid.numel()).scatter_reduce_(0, place, iou, "amax")
    ignored = (best >= negative) & (best < positive)

    wins = (iou >= positive) & (iou == best[place])
    owner = torch.full_like(best, num_objects, dtype=torch.int64)
    owner.scatter_reduce_(0, place[wins], target_idx[wins], "amin")  # of equal overlaps the first object
    owner = owner.where(owner < num_objects, -1)

    if low_quality is not None and num_objects:
        best_of_object = iou_MQ.amax(1, keepdim=True).clamp(min=low_quality)
        target_idx, pred_idx = (iou_MQ == best_of_object).nonzero(as_tuple=True)
        place = image_idx[target_idx] * valid.shape[1] + pred_idx
        claimed = torch.full_like(owner, -1).scatter_reduce_(0, place, target_idx, "amax")
        owner = claimed.where(claimed >= 0, owner)
    return owner.view_as(valid), (ignored & (owner < 0)).view_as(valid)
