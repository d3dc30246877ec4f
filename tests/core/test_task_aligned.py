"""One-to-many assignment by class and box together, against loops over single pairs (spec 8.2)."""

from __future__ import annotations

import math

import pytest
import torch
from query_scenes import some_objects, some_queries

from detbench.core import distributed
from detbench.core.supervise import supervise
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.parts.assigners import TaskAligned
from detbench.parts.branches import Branch, DecoderOutput, EncoderOutput
from detbench.parts.losses import BoxL1, Focal, QueryGiou, TaskAlignedFocal

LAYERS = 2
LOSSES = {
    "cls": TaskAlignedFocal(),
    "bbox": BoxL1(weight=10.0, weigh_by="match", divide_by="pair_weights"),
    "giou": QueryGiou(eps=1e-7, weigh_by="match", divide_by="pair_weights"),
}
Pair = tuple[int, int, int]


def crowded(seed: int) -> tuple[QueryPredictions, Targets]:
    """Queries close to objects, half of which lie upon each other: every conflict happens."""
    objects = some_objects((4, 0, 3), seed)
    boxes = objects.boxes.clone()
    boxes[1] = boxes[0] + torch.tensor([1.0, 0.5, 2.0, 1.0])  # near its neighbour
    boxes[3] = boxes[2]  # the same place, perhaps another class
    objects = Targets(objects.labels, boxes, objects.image_idx, objects.counts, objects.sizes)
    predictions = some_queries(objects, seed, num_layers=LAYERS)
    near = predictions.pred_boxes.clone()
    generator = torch.Generator().manual_seed(seed)
    first = objects.first.tolist()
    for row in range(len(near)):
        image = row % 3
        for query in range(near.shape[1] if objects.counts[image] else 0):
            of = objects.cxcywh[first[image] + query % objects.counts[image]]
            near[row, query] = of + 0.05 * torch.randn(4, generator=generator) * of[2:].repeat(2)
    return QueryPredictions(predictions.pred_logits, near.clamp(0.001, 0.999), num_layers=LAYERS), objects


def corners(predictions: QueryPredictions, row: int, query: int, size: tuple[int, int]) -> list[float]:
    x, y, w, h = predictions.pred_boxes[row, query].tolist()
    height, width = size
    return [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]


def plain_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / max(area - width * height, 1e-6)


def in_loops(rule: TaskAligned, predictions: QueryPredictions, targets: Targets) -> dict[Pair, float]:
    """(row, query, object) of every pair and its weight, one pair after another."""
    claims: dict[tuple[int, int], list[tuple[float, int]]] = {}  # (row, query) -> (IoU, object)
    quality, iou = {}, {}
    for m in range(len(targets.labels)):
        row = int(targets.image_idx[m])
        for query in range(predictions.pred_logits.shape[1]):
            prob = 1 / (1 + math.exp(-float(predictions.pred_logits[row, query, targets.labels[m]])))
            overlap = plain_iou(
                corners(predictions, row, query, targets.sizes[row]), targets.boxes[m].tolist()
            )
            iou[m, query] = overlap
            quality[m, query] = prob**rule.score_power * overlap**rule.iou_power
        best = sorted(range(predictions.pred_logits.shape[1]), key=lambda q: -quality[m, q])
        for query in best[: rule.per_object]:
            if quality[m, query] > 0:
                claims.setdefault((row, query), []).append((iou[m, query], m))
    owner = {place: max(who, key=lambda claim: (claim[0], -claim[1]))[1] for place, who in claims.items()}
    weights = {}
    for (row, query), m in owner.items():
        own = [q for (_, q), other in owner.items() if other == m]
        best_quality, best_iou = max(quality[m, q] for q in own), max(iou[m, q] for q in own)
        weights[row, query, m] = quality[m, query] / (best_quality + 1e-7) * best_iou
    return weights


def as_dict(matches: Matches) -> dict[Pair, float]:
    assert matches.weights is not None
    columns = (matches.image_idx, matches.pred_idx, matches.target_idx)
    pairs = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(pairs, matches.weights.tolist(), strict=True))


@pytest.mark.parametrize("rule", [TaskAligned(), TaskAligned(per_object=3, score_power=0.5, iou_power=2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_and_weights_are_those_of_loops_over_pairs(rule: TaskAligned, seed: int) -> None:
    predictions, objects = crowded(seed)
    targets = objects.repeat(LAYERS)
    expected = in_loops(rule, predictions, targets)
    found = as_dict(rule(predictions, targets))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5)


def one_object(*queries: tuple[float, float]) -> tuple[QueryPredictions, Targets]:
    """An object of class 0 and queries on it of (probability, IoU), the boxes cut from its right."""
    boxes = [[0.1 + 0.1 * iou, 0.2, 0.2 * iou, 0.2] for _, iou in queries]
    probs = torch.tensor([[[p] for p, _ in queries]], dtype=torch.float64)
    targets = Targets.of(
        [torch.zeros(1, dtype=torch.int64)], [torch.tensor([[10.0, 10.0, 30.0, 30.0]])], [(100, 100)]
    )
    return QueryPredictions(probs.logit(), torch.tensor([boxes], dtype=torch.float64)), targets


def test_the_best_pair_of_an_object_weighs_its_best_iou_and_the_worse_one_less() -> None:
    # Qualities .9 * .5^6 = .0140625 and .2 * .8^6 = .0524288; the best IoU is .8.
    matches = TaskAligned()(*one_object((0.9, 0.5), (0.2, 0.8)))
    assert matches.weights is not None
    assert matches.weights.tolist() == pytest.approx(
        [0.8 * 0.0140625 / 0.0524289, 0.8 * 0.0524288 / 0.0524289]
    )


def test_a_query_that_misses_its_object_is_never_taken() -> None:
    predictions, targets = one_object((0.9, 0.5), (0.9, 0.0))
    assert TaskAligned()(predictions, targets).pred_idx.tolist() == [0]


def by_hand(predictions: QueryPredictions, objects: Targets, labels: torch.Tensor) -> dict[str, float]:
    """Each layer's losses over max(sum of weights, 1), layers added up."""
    targets = objects.repeat(LAYERS)
    targets = Targets(labels.repeat(LAYERS), targets.boxes, targets.image_idx, targets.counts, targets.sizes)
    weights = in_loops(TaskAligned(), predictions, targets)
    num_images = len(objects.counts)
    total = {"cls": 0.0, "bbox": 0.0, "giou": 0.0}
    for layer in range(LAYERS):
        rows = range(layer * num_images, (layer + 1) * num_images)
        own = {pair: t for pair, t in weights.items() if pair[0] in rows}
        divisor = max(sum(own.values()), 1.0)
        aims = {(row, q, int(targets.labels[m])): t for (row, q, m), t in own.items()}
        for row in rows:
            for q, logits in enumerate(predictions.pred_logits[row].tolist()):
                for c, logit in enumerate(logits):
                    p, t = 1 / (1 + math.exp(-logit)), aims.get((row, q, c), 0.0)
                    entropy = -t * math.log(p) - (1 - t) * math.log(1 - p)
                    total["cls"] += 2 * entropy * (t - p) ** 2 / divisor
        for (row, q, m), t in own.items():
            off = (predictions.pred_boxes[row, q] - targets.cxcywh[m]).abs().sum()
            total["bbox"] += 10 * t * float(off) / divisor
            x, y, w, h = predictions.pred_boxes[row, q].tolist()
            a = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            x, y, w, h = targets.cxcywh[m].tolist()
            b = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
            iou = plain_iou(a, b)
            union = sum((r[2] - r[0]) * (r[3] - r[1]) for r in (a, b)) / (1 + iou)
            total["giou"] += 2 * t * (1 - iou + (hull - union) / hull) / divisor
    return total


@pytest.mark.parametrize("seed", range(2))
def test_losses_are_divided_by_the_sum_of_weights_of_each_layer(seed: int) -> None:
    predictions, objects = crowded(seed)
    branch = Branch(predictor=DecoderOutput(), assigner=TaskAligned(), losses=dict(LOSSES))
    losses = supervise(branch, predictions, objects)
    found = {name: float(value) for name, value in losses.items()}
    assert found == pytest.approx(by_hand(predictions, objects, objects.labels), rel=1e-4)


def test_a_first_stage_counts_every_object_as_class_0() -> None:
    predictions, objects = crowded(0)
    branch = Branch(predictor=EncoderOutput(labels="binary"), assigner=TaskAligned(), losses=dict(LOSSES))
    losses = supervise(branch, predictions, objects)
    expected = by_hand(predictions, objects, torch.zeros_like(objects.labels))
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_the_sum_of_weights_is_of_all_processes_and_at_least_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictions, targets = one_object((0.9, 0.5), (0.2, 0.8))
    branch = Branch(
        predictor=DecoderOutput(),
        assigner=TaskAligned(),
        losses={"bbox": BoxL1(weigh_by="match", divide_by="pair_weights")},
    )
    alone = supervise(branch, predictions, targets)["bbox"]
    monkeypatch.setattr("detbench.core.supervise.sum_over_processes", lambda x: x + 2)
    weights = TaskAligned()(predictions, targets).weights
    assert weights is not None
    many = supervise(branch, predictions, targets)["bbox"]
    assert float(weights.sum()) < 1.5
    assert float(many) == pytest.approx(float(alone * weights.sum().clamp(min=1) / (weights.sum() + 2)))


def test_pairs_local_asks_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, objects = crowded(0)
    branch = Branch(
        predictor=DecoderOutput(), assigner=TaskAligned(), losses={"cls": Focal(divide_by="pairs_local")}
    )
    alone = supervise(branch, predictions, objects)["cls"]

    def refused(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    monkeypatch.setattr(distributed, "sum_over_processes", refused)
    monkeypatch.setattr("detbench.core.supervise.sum_over_processes", refused)
    assert supervise(branch, predictions, objects)["cls"] == alone
    summed = 0.0
    for layer in range(LAYERS):
        one = predictions.layer(layer)
        plain = Branch(
            predictor=DecoderOutput(), assigner=TaskAligned(), losses={"cls": Focal(divide_by="one")}
        )
        num_pairs = len(TaskAligned()(one, objects).pred_idx)
        summed += float(supervise(plain, one, objects)["cls"]) / num_pairs
    assert float(alone) == pytest.approx(summed, rel=1e-6)
