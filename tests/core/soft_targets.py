"""Queries near their objects, and class losses spelled out entry by entry: for tests of losses with soft targets."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scenes import some_targets
from torch import Tensor

from detbench.core.boxes import cxcywh_to_xyxy
from detbench.core.supervise import QuerySupervision
from detbench.core.types import Matches, QueryPredictions, Targets

NUM_QUERIES = 12
NUM_CLASSES = 3


def queries(counts: tuple[int, ...], *, layers: int = 1, seed: int = 0) -> tuple[QueryPredictions, Targets]:
    """Float64 predictions around the objects of a batch, and the objects repeated for each layer."""
    generator = torch.Generator().manual_seed(seed)
    targets = some_targets(counts, seed).repeat(layers)
    num = layers * len(counts)
    boxes = torch.rand(num, NUM_QUERIES, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    for image, mine in enumerate(torch.split(targets.cxcywh.double(), list(targets.counts))):
        if len(mine):
            near = mine.repeat(NUM_QUERIES, 1)[:NUM_QUERIES]
            boxes[image] = (near + 0.1 * (boxes[image] - 0.4)).clamp(0.02, 0.98)
    logits = torch.randn(num, NUM_QUERIES, NUM_CLASSES, generator=generator, dtype=torch.float64)
    quality = torch.randn(num, NUM_QUERIES, generator=generator, dtype=torch.float64)
    return QueryPredictions(logits, boxes, num_layers=layers, pred_quality=quality), targets


def matched_in_turn(
    predictions: QueryPredictions, targets: Targets, *, copies: int = 2, weights: Tensor | None = None
) -> QuerySupervision:
    """Each object with `copies` queries: of an image with N objects, object j with queries j, j + N, ..."""
    pairs = [
        (image, copy * count + j, sum(targets.counts[:image]) + j)
        for image, count in enumerate(targets.counts)
        for copy in range(copies)
        for j in range(count)
    ]
    image_idx, pred_idx, target_idx = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return QuerySupervision(predictions, targets, Matches(image_idx, pred_idx, target_idx, weights=weights))


def class_loss_entry_by_entry(
    supervision: QuerySupervision,
    positive: Callable[[int, float], float],
    negative: Callable[[float], float],
) -> float:
    """The sum over (image, query, class): `positive(pair, p)` where a pair has its class, `negative(p)` elsewhere."""
    matches, labels = supervision.matches, supervision.targets.labels
    places = zip(
        matches.image_idx.tolist(),
        matches.pred_idx.tolist(),
        labels[matches.target_idx].tolist(),
        strict=True,
    )
    pair_at = {place: pair for pair, place in enumerate(places)}
    total = 0.0
    probs = supervision.predictions.pred_logits.sigmoid()
    for image, of_image in enumerate(probs.tolist()):
        for query, of_query in enumerate(of_image):
            for label, p in enumerate(of_query):
                pair = pair_at.get((image, query, label))
                total += negative(p) if pair is None else positive(pair, p)
    return total


def pair_values(supervision: QuerySupervision, *, eps: float = 1e-6) -> list[tuple[float, float]]:
    """(score of the object's class, IoU) of each pair, one after the other."""
    values = []
    matches, targets = supervision.matches, supervision.targets
    for image, query, target in zip(
        matches.image_idx.tolist(), matches.pred_idx.tolist(), matches.target_idx.tolist(), strict=True
    ):
        logit = supervision.predictions.pred_logits[image, query, int(targets.labels[target])].item()
        height, width = targets.sizes[image]
        a = cxcywh_to_xyxy(supervision.predictions.pred_boxes[image, query]).tolist()
        b = [x / side for x, side in zip(targets.boxes[target].tolist(), (width, height) * 2, strict=True)]
        values.append((1 / (1 + math.exp(-logit)), plain_iou(a, b, eps=eps)))
    return values


def plain_iou(a: list[float], b: list[float], *, eps: float) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / (area - wide * high + eps)


def cross_entropy(p: float, target: float) -> float:
    return -target * math.log(p) - (1 - target) * math.log(1 - p)
