"""From predictions to detections: thresholds, top-k, non-maximum suppression."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from detbench.core.boxes import box_iou, clip_boxes, cxcywh_to_xyxy
from detbench.core.selection import best_of_levels, take
from detbench.core.types import Anchors, DensePredictions, Detections, Predictions, QueryPredictions

if TYPE_CHECKING:
    from detbench.parts.test import Nms, SoftNms, TopK


@dataclass(frozen=True, slots=True)
class Candidates:
    """(prediction, class) pairs that may become detections.

    Attributes:
        boxes: (B, K, 4) xyxy pixels.
        scores: (B, K) class probability, times centre-ness where there is one.
        labels: (B, K) class indices.
        kept: (B, K) bool, whether the class probability exceeds the threshold.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    kept: Tensor


@torch.no_grad()
def detect_top_k(rule: TopK, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
    """The best pairs of each image, without suppression (spec 4.5)."""
    if rule.quality != "none":
        predictions = with_quality(cast(QueryPredictions, predictions), root=rule.quality == "sqrt")
    found = candidates(rule, predictions, sizes)
    scores = found.scores.masked_fill(~found.kept, -1.0)
    best, order = scores.topk(min(rule.keep, scores.shape[1]))
    counts = (best >= 0).sum(1).tolist()
    boxes, labels = take(found.boxes, order), found.labels.gather(1, order)
    return [Detections(boxes[i, :n], best[i, :n], labels[i, :n]) for i, n in enumerate(counts)]


@torch.no_grad()
def detect_nms(rule: Nms, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
    """What class-wise non-maximum suppression leaves of each image (spec 1.4, 1.5)."""
    found = candidates(rule, predictions, sizes)
    detections = []
    for boxes, scores, labels, kept in zip(found.boxes, found.scores, found.labels, found.kept, strict=True):
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        best = batched_nms(boxes, scores, labels, rule.iou_threshold)[: rule.keep]
        detections.append(Detections(boxes[best], scores[best], labels[best]))
    return detections


@torch.no_grad()
def detect_soft_nms(
    rule: SoftNms, predictions: Predictions, sizes: Sequence[tuple[int, int]]
) -> list[Detections]:
    """The best of each image after class-wise linear soft-NMS, all images in step (arXiv:1704.04503)."""
    found = candidates(rule, predictions, sizes)
    boxes, labels = found.boxes, found.labels
    scores = found.scores.masked_fill(~found.kept, 0.0)
    image = torch.arange(len(boxes), device=boxes.device)
    taken, order = [], []
    # Scores only fall, so detections are taken in the order of their final scores: after `keep` of them nothing
    # that is kept can change.
    for _ in range(min(rule.keep, scores.shape[1])):
        score, best = scores.max(1)
        taken.append(score)
        order.append(best)
        iou = box_iou(boxes[image, best].unsqueeze(1), boxes, eps=1e-6)
        lowered = (labels == labels[image, best].unsqueeze(1)) & (iou >= rule.iou_threshold)
        scores = torch.where(lowered, scores * (1 - iou), scores)
        scores[image, best] = -1.0
    final, place = torch.stack(taken, 1), torch.stack(order, 1)
    counts = (final > rule.score_threshold).sum(1).tolist()
    boxes, labels = take(boxes, place), labels.gather(1, place)
    return [Detections(boxes[i, :n], final[i, :n], labels[i, :n]) for i, n in enumerate(counts)]


def candidates(
    rule: TopK | Nms | SoftNms, predictions: Predictions, sizes: Sequence[tuple[int, int]]
) -> Candidates:
    """The pairs of greatest class probability on each level, levels joined.

    Choice and threshold look at the class probability alone; centre-ness enters the score (spec 1.4).

    Args:
        rule: what a pair's class probability must exceed, how many pairs of each level there are at most, and whether
            boxes are clipped to the unpadded image.
        predictions: of a batch.
        sizes: height and width of each unpadded image.
    """
    whwh = torch.tensor([(w, h, w, h) for h, w in sizes], device=predictions.pred_boxes.device)[:, None]
    if isinstance(predictions, QueryPredictions):
        predictions = _as_one_level(predictions.last, whwh)
    num_classes, logits = predictions.pred_logits.shape[-1], predictions.pred_logits.flatten(1)
    pairs_of_levels = [size * num_classes for size in predictions.anchors.level_sizes]
    place, _ = best_of_levels(logits, pairs_of_levels, rule.per_level)
    prob = logits.gather(1, place).sigmoid()
    pred_idx, labels = place.div(num_classes, rounding_mode="floor"), place % num_classes

    scores = prob
    if predictions.pred_centerness is not None:
        scores = prob * predictions.pred_centerness.gather(1, pred_idx).sigmoid()
    boxes = take(predictions.pred_boxes, pred_idx)
    if rule.clip:
        boxes = clip_boxes(boxes, whwh)
    return Candidates(boxes, scores, labels, prob > rule.score_threshold)


def with_quality(predictions: QueryPredictions, *, root: bool) -> QueryPredictions:
    """The same predictions, their class scores multiplied by the estimated IoU (spec 5.2).

    Args:
        predictions: of a detector with a quality head.
        root: take the product's square root.
    """
    assert predictions.pred_quality is not None  # Experiment refuses this score without a quality head
    log_score = F.logsigmoid(predictions.pred_logits) + F.logsigmoid(predictions.pred_quality)[..., None]
    if root:
        log_score = log_score / 2
    # The logit of a score s is ln s - ln(1 - s).
    return dataclasses.replace(predictions, pred_logits=log_score - (-log_score.expm1()).log())


def _as_one_level(predictions: QueryPredictions, whwh: Tensor) -> DensePredictions:
    """The queries as locations of a single level, their boxes in pixels."""
    boxes = cxcywh_to_xyxy(predictions.pred_boxes) * whwh
    num_queries = boxes.shape[1]
    nowhere = boxes.new_zeros(num_queries, 4)
    anchors = Anchors(nowhere, nowhere[:, :2], nowhere[:, 0], (num_queries,))
    return DensePredictions(predictions.pred_logits, boxes, anchors)
