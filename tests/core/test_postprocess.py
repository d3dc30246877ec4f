"""What is kept of predictions: against loops, and the conventions by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scenes import LEVELS, NUM_CLASSES, points, some_predictions

from detbench.core.types import DensePredictions, Detections
from detbench.parts.test import Nms, SoftNms, TopK

SIZES = [(90, 120), (96, 128)]


def predictions(seed: int = 0, *, centerness: bool = True) -> DensePredictions:
    p = some_predictions(points(), 2, seed)
    # Boxes of a location are alike, so that suppression has something to do.
    boxes = p.anchors.boxes + 3 * torch.randn(
        p.pred_boxes.shape, generator=torch.Generator().manual_seed(seed)
    )
    return dataclasses.replace(
        p, pred_boxes=boxes, pred_deltas=None, pred_centerness=p.pred_centerness if centerness else None
    )


def by_loops(p: DensePredictions, i: int, rule: TopK | Nms | SoftNms) -> list[tuple[float, int, list[float]]]:
    """(score, label, box) of one image, best first."""
    height, width = SIZES[i]
    found, start = [], 0
    for h, w in LEVELS:
        level = []
        for q in range(start, start + h * w):
            for c in range(NUM_CLASSES):
                prob = p.pred_logits[i, q, c].sigmoid().item()
                if prob > rule.score_threshold:
                    level.append((prob, q, c))
        level.sort(reverse=True)
        for prob, q, c in level[: rule.per_level]:
            factor = 1.0 if p.pred_centerness is None else p.pred_centerness[i, q].sigmoid().item()
            box = p.pred_boxes[i, q].tolist()
            if rule.clip:
                box = [min(max(v, 0.0), end) for v, end in zip(box, (width, height) * 2, strict=True)]
            found.append((prob * factor, c, box))
        start += h * w
    found.sort(key=lambda d: -d[0])
    if isinstance(rule, Nms):
        kept: list[tuple[float, int, list[float]]] = []
        for score, c, box in found:
            if all(c != other or overlap(box, b) <= rule.iou_threshold for _, other, b in kept):
                kept.append((score, c, box))
        found = kept
    if isinstance(rule, SoftNms):
        kept = []
        while found:
            found.sort(key=lambda d: -d[0])
            score, c, box = found.pop(0)
            kept.append((score, c, box))
            for i, (lower, other, b) in enumerate(found):
                shared = overlap(box, b) if other == c else 0.0
                if shared >= rule.iou_threshold:
                    found[i] = (lower * (1 - shared), other, b)
        found = [d for d in kept if d[0] > rule.score_threshold]
    return found[: rule.keep]


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


@pytest.mark.parametrize("centerness", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "rule",
    [
        TopK(score_threshold=0.3, per_level=20, keep=30),
        TopK(score_threshold=0.0, per_level=None, keep=10_000),
        TopK(score_threshold=0.9),
        Nms(score_threshold=0.3, per_level=60, iou_threshold=0.1),
        Nms(score_threshold=0.1, per_level=None, iou_threshold=0.4, keep=40),
        TopK(score_threshold=0.3, per_level=20, keep=30, clip=False),
        Nms(score_threshold=0.1, per_level=None, iou_threshold=0.4, keep=40, clip=False),
        SoftNms(score_threshold=0.3, per_level=60, iou_threshold=0.1),
        SoftNms(score_threshold=0.001, per_level=None, iou_threshold=0.4, keep=40),
        SoftNms(score_threshold=0.001, per_level=20, iou_threshold=0.0, keep=400, clip=False),
    ],
    ids=[
        "top-k", "everything", "few", "nms", "nms, all of each level", "top-k, unclipped", "nms, unclipped",
        "soft", "soft, all of each level", "soft, every overlap",
    ],
)  # fmt: skip
def test_detections_written_as_loops(rule: TopK | Nms | SoftNms, seed: int, centerness: bool) -> None:
    p = predictions(seed, centerness=centerness)
    for i, got in enumerate(rule(p, SIZES)):
        wanted = by_loops(p, i, rule)
        assert got.scores.tolist() == pytest.approx([s for s, _, _ in wanted], abs=1e-6)
        assert got.labels.tolist() == [c for _, c, _ in wanted]
        boxes = torch.tensor([b for _, _, b in wanted]).reshape(-1, 4)
        assert torch.allclose(got.boxes, boxes, atol=1e-4)


def one_location(probability: float, centerness: float) -> DensePredictions:
    anchors = points()
    first = dataclasses.replace(
        anchors,
        boxes=anchors.boxes[:1],
        centers=anchors.centers[:1],
        strides=anchors.strides[:1],
        level_sizes=(1,),
    )
    return DensePredictions(
        torch.tensor([[[probability]]]).logit(),
        torch.tensor([[[10.0, 10, 20, 20]]]),
        first,
        pred_centerness=torch.tensor([[centerness]]).logit(),
    )


@pytest.mark.parametrize("rule", [TopK(score_threshold=0.05), Nms()], ids=["top-k", "nms"])
def test_the_threshold_is_on_the_class_and_the_score_is_its_product_with_centerness(rule: TopK | Nms) -> None:
    # 0.2 * 0.1 = 0.02 would fall below the threshold of 0.05, 0.2 doesn't.
    (kept,) = rule(one_location(0.2, 0.1), [(96, 128)])
    assert kept.scores.tolist() == pytest.approx([0.02])
    (none,) = rule(one_location(0.04, 0.99), [(96, 128)])
    assert none.scores.tolist() == []


def test_boxes_of_different_classes_dont_suppress_each_other() -> None:
    p = some_predictions(points(), 1, 0)
    logits = torch.full_like(p.pred_logits, -9.0)
    logits[0, 3] = torch.tensor([2.0, 1.0, -9.0])
    logits[0, 4] = torch.tensor([1.5, -9.0, -9.0])
    same = torch.tensor([10.0, 10, 30, 30]).expand_as(p.pred_boxes)
    (kept,) = Nms()(DensePredictions(logits, same, p.anchors), [(96, 128)])
    assert kept.labels.tolist() == [0, 1]


def test_soft_suppression_lowers_a_second_box_by_their_overlap_and_may_let_a_third_pass() -> None:
    p = some_predictions(points(), 1, 0)
    logits = torch.full_like(p.pred_logits, -9.0)
    logits[0, :3, 0] = torch.tensor([0.9, 0.8, 0.5]).logit()
    boxes = torch.zeros_like(p.pred_boxes)
    boxes[0, :3] = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60]]
    )  # IoU 0.9 of the first two
    (kept,) = SoftNms()(DensePredictions(logits, boxes, p.anchors), [(96, 128)])
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5, 0.08], abs=1e-6)
    assert kept.boxes[1].tolist() == [50, 50, 60, 60]
    (kept,) = SoftNms(iou_threshold=0.95)(DensePredictions(logits, boxes, p.anchors), [(96, 128)])
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.5], abs=1e-6)


def test_detections_are_no_part_of_a_graph() -> None:
    p = predictions()
    p.pred_logits.requires_grad_()
    detections: list[Detections] = TopK()(p, SIZES)
    assert not detections[0].scores.requires_grad
