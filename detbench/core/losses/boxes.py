"""Losses of matched boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from detbench.core.boxes import box_giou, box_iou, encode_deltas, xyxy_to_cxcywh

if TYPE_CHECKING:
    from detbench.core.supervise import Supervision


def box_l1_of(supervision: Supervision, *, box_format: Literal["cxcywh", "xyxy"]) -> Tensor:
    """The sum of `normalised_l1` over pairs and coordinates."""
    return normalised_l1(
        supervision.pred_boxes, supervision.target_boxes, supervision.whwh, box_format=box_format
    ).sum()


def delta_l1_of(supervision: Supervision) -> Tensor:
    """The sum over pairs and coordinates of |delta - target delta| (spec 1.5)."""
    deltas = supervision.predictions.pred_deltas
    assert deltas is not None  # Experiment refuses delta_l1 without the anchor predictor
    wanted = encode_deltas(supervision.anchor_boxes, supervision.target_boxes)
    return (supervision.gather(deltas) - wanted).abs().sum()


def giou_of(supervision: Supervision, *, eps: float) -> Tensor:
    """The sum of `giou_loss` over pairs."""
    return giou_loss(supervision.pred_boxes, supervision.target_boxes, eps=eps).sum()


def log_iou_of(supervision: Supervision, *, eps: float, weigh_by: Literal["centerness", "one"]) -> Tensor:
    """The sum of `log_iou_loss` over pairs, each weighed by its centre-ness target or by one."""
    loss = log_iou_loss(supervision.pred_boxes, supervision.target_boxes, eps=eps)
    return (loss * supervision.centerness_targets if weigh_by == "centerness" else loss).sum()


def normalised_l1(
    pred_boxes: Tensor, boxes: Tensor, whwh: Tensor, *, box_format: Literal["cxcywh", "xyxy"]
) -> Tensor:
    """|difference| of each coordinate, boxes divided by their image's size (spec 4.2).

    Args:
        pred_boxes: (K, 4) xyxy pixels.
        boxes: (K, 4) xyxy pixels.
        whwh: (K, 4) width, height, width, height of the unpadded image.
        box_format: the coordinates to compare in.

    Returns:
        (K, 4).
    """
    pred, target = pred_boxes / whwh, boxes / whwh
    if box_format == "cxcywh":
        pred, target = xyxy_to_cxcywh(pred), xyxy_to_cxcywh(target)
    return (pred - target).abs()


def giou_loss(pred_boxes: Tensor, boxes: Tensor, *, eps: float) -> Tensor:
    """(K,) 1 - GIoU of (K, 4) xyxy boxes (spec 0)."""
    return 1 - box_giou(pred_boxes, boxes, eps=eps)


def log_iou_loss(pred_boxes: Tensor, boxes: Tensor, *, eps: float) -> Tensor:
    """(K,) -ln(max(IoU, eps)) of (K, 4) xyxy boxes (spec 1.4); no gradient where IoU is below eps."""
    # The union's own clamp is that of every IoU (spec 0); `eps` bounds the logarithm.
    return -box_iou(pred_boxes, boxes, eps=1e-6).clamp(min=eps).log()
