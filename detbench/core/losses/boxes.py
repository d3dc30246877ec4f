"""Losses of matched boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from detbench.core.boxes import box_giou, box_iou, encode_deltas, query_giou

if TYPE_CHECKING:
    from detbench.core.supervise import DenseSupervision, PixelSupervision, Supervision
    from detbench.parts.losses import WeighBy


def box_l1_of(
    supervision: Supervision, *, box_format: Literal["cxcywh", "xyxy"], weigh_by: WeighBy
) -> Tensor:
    """The sum over pairs and coordinates of |difference|, boxes divided by their image's size (spec 4.2)."""
    pred, target = supervision.normalised(box_format)
    return _sum((pred - target).abs().sum(-1), supervision, weigh_by)


def query_giou_of(supervision: Supervision, *, eps: float, weigh_by: WeighBy) -> Tensor:
    """The sum over pairs of 1 - GIoU of normalised boxes (spec 1.8)."""
    pred, target = supervision.normalised("xyxy")
    return _sum(1 - query_giou(pred, target, eps=eps), supervision, weigh_by)


def delta_l1_of(supervision: DenseSupervision) -> Tensor:
    """The sum over pairs and coordinates of |delta - target delta| (spec 1.5)."""
    deltas = supervision.predictions.pred_deltas
    assert deltas is not None  # Experiment refuses delta_l1 without the anchor predictor
    wanted = encode_deltas(supervision.anchor_boxes, supervision.target_boxes)
    return (supervision.gather(deltas) - wanted).abs().sum()


def giou_of(supervision: PixelSupervision, *, eps: float) -> Tensor:
    """The sum of `giou_loss` over pairs."""
    return giou_loss(supervision.pred_boxes, supervision.target_boxes, eps=eps).sum()


def centerness_giou_of(supervision: DenseSupervision, *, eps: float) -> Tensor:
    """The sum of `giou_loss` over pairs, each weighed by its centre-ness target."""
    loss = giou_loss(supervision.pred_boxes, supervision.target_boxes, eps=eps)
    return (loss * supervision.centerness_targets).sum()


def log_iou_of(
    supervision: DenseSupervision, *, eps: float, weigh_by: Literal["centerness", "one"]
) -> Tensor:
    """The sum of `log_iou_loss` over pairs, each weighed by its centre-ness target or by one."""
    loss = log_iou_loss(supervision.pred_boxes, supervision.target_boxes, eps=eps)
    return (loss * supervision.centerness_targets if weigh_by == "centerness" else loss).sum()


def giou_loss(pred_boxes: Tensor, boxes: Tensor, *, eps: float) -> Tensor:
    """(K,) 1 - GIoU of (K, 4) xyxy boxes (spec 0)."""
    return 1 - box_giou(pred_boxes, boxes, eps=eps)


def log_iou_loss(pred_boxes: Tensor, boxes: Tensor, *, eps: float) -> Tensor:
    """(K,) -ln(max(IoU, eps)) of (K, 4) xyxy boxes (spec 1.4); no gradient where IoU is below eps."""
    # The union's own clamp is that of every IoU (spec 0); `eps` bounds the logarithm.
    return -box_iou(pred_boxes, boxes, eps=1e-6).clamp(min=eps).log()


def _sum(losses: Tensor, supervision: Supervision, weigh_by: WeighBy) -> Tensor:
    """The sum of (K,) losses of pairs, each weighed as its match says where that is asked for."""
    return (losses * supervision.pair_weights if weigh_by == "match" else losses).sum()
