"""Box arithmetic: formats, overlaps, deltas and distances. Nothing here knows what a prediction is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Largest |ln| by which a decoded box's side may differ from its anchor's (spec 1.5)."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy to (...) areas, without a "+1" pixel convention."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def box_iou(a: Tensor, b: Tensor, *, eps: float) -> Tensor:
    """Intersection over union of boxes that broadcast against each other.

    Args:
        a: (..., 4) xyxy.
        b: (..., 4) xyxy.
        eps: smallest union to divide by (spec 0: 1e-6).
    """
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=eps)


def box_giou(a: Tensor, b: Tensor, *, eps: float) -> Tensor:
    """Generalised IoU (arXiv:1902.09630) of boxes that broadcast against each other.

    Args:
        a: (..., 4) xyxy.
        b: (..., 4) xyxy.
        eps: smallest union and enclosing area (spec 0: 1e-6 in costs, 1e-7 in the loss).
    """
    intersection, union = _intersection_and_union(a, b)
    union = union.clamp(min=eps)
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    height = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    enclosing = (width.clamp(min=0) * height.clamp(min=0)).clamp(min=eps)
    return intersection / union - (enclosing - union) / enclosing


def query_iou(a: Tensor, b: Tensor, *, eps: float, least_union: float = 0.0) -> Tensor:
    """(...) IoU of boxes that broadcast against each other, as query detectors have it ("Two IoU conventions").

    Args:
        a: (..., 4) xyxy, normalised.
        b: (..., 4) xyxy, normalised.
        eps: added to the union.
        least_union: what the union counts as at least.
    """
    intersection, union = _intersection_and_union(a, b)
    return intersection / (union + eps).clamp(min=least_union)


def query_giou(a: Tensor, b: Tensor, *, eps: float) -> Tensor:
    """Generalised IoU of boxes that broadcast against each other, as query detectors have it.

    Args:
        a: (..., 4) xyxy, normalised.
        b: (..., 4) xyxy, normalised.
        eps: added to union and hull: 0 in Deformable-DETR and its kin, 1e-6 in DINO and its kin.
    """
    intersection, union = _intersection_and_union(a, b)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def pairwise_iou(a: Tensor, b: Tensor, *, eps: float) -> Tensor:
    """(N, 4) and (M, 4) xyxy to the (N, M) IoU of every pair."""
    return box_iou(a[:, None], by_coordinate(b), eps=eps)


def by_coordinate(boxes: Tensor) -> Tensor:
    """The same (..., 4) boxes with each coordinate's values next to each other in memory.

    Pairwise arithmetic takes coordinates apart; over contiguous rows it is about three times as fast.
    """
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)


def encode_deltas(anchors: Tensor, boxes: Tensor) -> Tensor:
    """What to tell an anchor so that it becomes a box; `decode_deltas` gives the box back.

    Args:
        anchors: (..., 4) xyxy.
        boxes: (..., 4) xyxy.

    Returns:
        (..., 4) centre shifts over the anchor's size and logarithms of the size ratios (spec 1.5).
    """
    anchor, box = xyxy_to_cxcywh(anchors), xyxy_to_cxcywh(boxes)
    shift = (box[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    return torch.cat([shift, (box[..., 2:] / anchor[..., 2:]).log()], -1)


def decode_deltas(anchors: Tensor, deltas: Tensor) -> Tensor:
    """(..., 4) xyxy boxes from xyxy anchors and deltas; size ratios stay within 16/1000 and 1000/16."""
    anchor = xyxy_to_cxcywh(anchors)
    center = anchor[..., :2] + deltas[..., :2] * anchor[..., 2:]
    half = anchor[..., 2:] * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat([center - half, center + half], -1)


def distances_to_boxes(centers: Tensor, distances: Tensor) -> Tensor:
    """(..., 4) xyxy boxes from (..., 2) points and (..., 4) distances to left, top, right and bottom."""
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)


def boxes_to_distances(centers: Tensor, boxes: Tensor) -> Tensor:
    """(..., 4) distances of (..., 2) points to left, top, right and bottom; negative where outside."""
    return torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], -1)


def clip_boxes(boxes: Tensor, whwh: Tensor) -> Tensor:
    """(..., 4) xyxy boxes cut to images of width and height (w, h, w, h), which broadcast."""
    return torch.minimum(boxes.clamp(min=0), whwh)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    return intersection, box_area(a) + box_area(b) - intersection
