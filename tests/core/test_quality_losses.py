"""Losses and costs that know how good a box is, each entry by entry (spec 5), and the score with the IoU branch."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from soft_targets import (
    NUM_QUERIES,
    class_loss_entry_by_entry,
    cross_entropy,
    matched_in_turn,
    pair_values,
    plain_iou,
    queries,
)
from torch import Tensor

from detbench.core.assign.query_hungarian import query_cost
from detbench.core.boxes import cxcywh_to_xyxy
from detbench.core.losses.quality import matched_iou, quality_focal, soft_cross_entropy
from detbench.core.postprocess import with_quality
from detbench.core.types import QueryPredictions, Targets
from detbench.parts.assigners import QueryHungarian
from detbench.parts.losses import IouQuality, PositionSupervised, QualityFocal, Varifocal
from detbench.parts.test import TopK

COUNTS = (3, 0, 2)


def test_quality_focal_loss_is_the_sum_over_its_entries() -> None:
    supervision = matched_in_turn(*queries(COUNTS, layers=2))
    values = pair_values(supervision)
    for beta in (1.0, 2.0):
        expected = class_loss_entry_by_entry(
            supervision,
            lambda pair, p, beta=beta: abs(values[pair][1] - p) ** beta * cross_entropy(p, values[pair][1]),
            lambda p, beta=beta: p**beta * cross_entropy(p, 0.0),
        )
        assert QualityFocal(beta=beta)(supervision).item() == pytest.approx(expected, rel=1e-6)


def test_an_iou_target_without_epsilon_counts_unions_as_a_millionth_of_the_image_at_least() -> None:
    corners = torch.tensor([[100.0, 100, 100.5, 100.5], [300, 300, 300, 300], [200, 200, 400, 400]])
    targets = Targets.of([torch.zeros(3, dtype=torch.int64)], [corners], [(1000, 1000)])
    predictions = QueryPredictions(torch.zeros(1, 3, 1), targets.cxcywh[None])
    supervision = matched_in_turn(predictions, targets, copies=1)
    assert matched_iou(supervision, eps=0.0).tolist() == pytest.approx([0.25, 0.0, 1.0], rel=1e-4)


def test_varifocal_loss_is_the_sum_over_its_entries() -> None:
    predictions, targets = queries(COUNTS)
    predictions.pred_boxes[0, 1] = torch.tensor([0.99, 0.01, 0.001, 0.001])  # meets no object
    supervision = matched_in_turn(predictions, targets)
    values = pair_values(supervision)
    assert min(iou for _, iou in values) == 0

    def negative(p: float) -> float:
        return 0.75 * p**2 * cross_entropy(p, 0.0)

    def positive(pair: int, p: float) -> float:
        iou = values[pair][1]
        return iou * cross_entropy(p, iou) if iou > 0 else negative(p)

    expected = class_loss_entry_by_entry(supervision, positive, negative)
    assert Varifocal()(supervision).item() == pytest.approx(expected, rel=1e-6)


def test_varifocal_loss_weighs_a_pair_by_its_iou_however_small() -> None:
    targets = Targets.of([torch.tensor([0])], [torch.tensor([[0.0, 0, 50, 50]])], [(100, 100)])
    predictions = QueryPredictions(torch.zeros(1, 1, 1), torch.tensor([[[0.025, 0.025, 0.05, 0.05]]]))
    supervision = matched_in_turn(predictions, targets, copies=1)
    # IoU 0.01; the cross-entropy of a probability of one half is ln 2 whatever the target.
    assert Varifocal(iou_eps=0.0)(supervision).item() == pytest.approx(0.01 * math.log(2), rel=1e-4)


def test_position_supervised_loss_is_the_sum_over_its_entries() -> None:
    supervision = matched_in_turn(*queries(COUNTS, layers=2))
    images = supervision.matches.image_idx.tolist()
    squares = [iou**2 for _, iou in pair_values(supervision)]
    best = {i: max(s for s, j in zip(squares, images, strict=True) if i == j) for i in images}

    def positive(pair: int, p: float) -> float:
        target = squares[pair] * max(1.0, 1 / (best[images[pair]] + 1e-8))
        return 0.25 * abs(target - p) ** 2 * cross_entropy(p, target)

    expected = class_loss_entry_by_entry(supervision, positive, lambda p: 0.75 * p**2 * cross_entropy(p, 0.0))
    assert PositionSupervised()(supervision).item() == pytest.approx(expected, rel=1e-6)


def test_the_iou_branch_learns_the_iou_of_matched_queries_alone() -> None:
    predictions, targets = queries(COUNTS, layers=2)
    assert predictions.pred_quality is not None
    predictions.pred_quality.requires_grad_()
    supervision = matched_in_turn(predictions, targets)
    matches = supervision.matches
    p = predictions.pred_quality.sigmoid()[matches.image_idx, matches.pred_idx].tolist()
    expected = sum(cross_entropy(a, iou) for a, (_, iou) in zip(p, pair_values(supervision), strict=True))
    value = IouQuality()(supervision)
    assert value.item() == pytest.approx(expected, rel=1e-6)

    (gradient,) = torch.autograd.grad(value, predictions.pred_quality)
    touched = torch.zeros_like(gradient, dtype=torch.bool)
    touched[matches.image_idx, matches.pred_idx] = True
    assert gradient[touched].all()
    assert not gradient[~touched].any()


@pytest.mark.parametrize("loss", [QualityFocal(), Varifocal(), PositionSupervised()], ids=lambda x: x.kind)
def test_targets_have_no_gradient_and_logits_that_of_finite_differences(
    loss: QualityFocal | Varifocal | PositionSupervised,
) -> None:
    predictions, targets = queries((2, 1))

    def value(logits: Tensor, boxes: Tensor) -> Tensor:
        made = dataclasses.replace(predictions, pred_logits=logits, pred_boxes=boxes)
        return loss(matched_in_turn(made, targets))

    boxes = predictions.pred_boxes.clone().requires_grad_()
    assert not value(predictions.pred_logits, boxes).requires_grad
    logits = predictions.pred_logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value(x, predictions.pred_boxes), logits)


def test_losses_stay_finite_where_probabilities_are_0_or_1_to_the_last_digit() -> None:
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    for targets in (torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])):
        value = (soft_cross_entropy(logits, targets) + quality_focal(logits, targets, beta=2.0)).sum()
        assert value.isfinite()
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


# ------------------------------------------------------------------ position-modulated cost


def test_the_position_modulated_cost_is_that_of_every_pair_by_itself() -> None:
    predictions, targets = queries((2, 3))
    rule = QueryHungarian(position_power=0.5, iou_eps=1e-6)
    cost = query_cost(rule, predictions, targets)
    first = 0
    for image, count in enumerate(targets.counts):
        height, width = targets.sizes[image]
        pred = cxcywh_to_xyxy(predictions.pred_boxes[image])
        boxes = targets.boxes[first : first + count] / torch.tensor([width, height] * 2)
        giou = [[plain_giou(p, b) for p in pred.tolist()] for b in boxes.tolist()]
        most = max(max(row) for row in giou)
        scale = max(1.0, 1 / ((most + 1) / 2 + 1e-8))
        for j, q in itertools.product(range(count), range(NUM_QUERIES)):
            label = int(targets.labels[first + j])
            p = predictions.pred_logits[image, q, label].sigmoid().item()
            p *= math.sqrt((giou[j][q] + 1) / 2 * scale)
            class_cost = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
            l1 = (predictions.pred_boxes[image, q] - targets.cxcywh[first + j]).abs().sum().item()
            expected = 2 * class_cost + 5 * l1 - 2 * giou[j][q]
            assert cost[first + j, q].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        first += count


def plain_giou(a: list[float], b: list[float]) -> float:
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    union -= max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return plain_iou(a, b, eps=1e-6) - (hull - union) / (hull + 1e-6)


def test_objects_of_one_image_leave_the_cost_of_another_alone() -> None:
    predictions, targets = queries((2, 3))
    rule = QueryHungarian(position_power=0.5)
    moved = dataclasses.replace(targets, boxes=targets.boxes.clone())
    moved.boxes[2:] += 3.0
    before, after = query_cost(rule, predictions, targets), query_cost(rule, predictions, moved)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])


# ------------------------------------------------------------------ the score with the IoU branch


def test_the_score_is_the_class_probability_times_the_estimated_iou_or_the_root_of_that() -> None:
    predictions, _ = queries(COUNTS)
    assert predictions.pred_quality is not None
    product = predictions.pred_logits.sigmoid() * predictions.pred_quality.sigmoid()[..., None]
    assert torch.allclose(with_quality(predictions, root=False).pred_logits.sigmoid(), product)
    assert torch.allclose(with_quality(predictions, root=True).pred_logits.sigmoid(), product.sqrt())


def test_certain_predictions_keep_a_score_of_0_or_1() -> None:
    logits = torch.tensor([[[-200.0], [200.0]]])
    predictions = QueryPredictions(logits, torch.full((1, 2, 4), 0.5), pred_quality=torch.full((1, 2), 200.0))
    assert with_quality(predictions, root=True).pred_logits.sigmoid().flatten().tolist() == [0.0, 1.0]


def test_the_quality_decides_which_predictions_are_kept() -> None:
    logits = torch.tensor([[[1.0], [2.0], [3.0]]])
    quality = torch.tensor([[4.0, -4.0, -6.0]])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]) * torch.tensor([[1.0], [0.5], [0.25]])
    predictions = QueryPredictions(logits, boxes[None], pred_quality=quality)
    plain = TopK(score_threshold=0.0, per_level=1, keep=1)(predictions, [(100, 100)])[0]
    fused = dataclasses.replace(TopK(score_threshold=0.0, per_level=1, keep=1), quality="sqrt")(
        predictions, [(100, 100)]
    )[0]
    assert plain.scores.tolist() == pytest.approx([torch.sigmoid(torch.tensor(3.0)).item()])
    score = math.sqrt(1 / (1 + math.exp(-1)) / (1 + math.exp(-4)))
    assert fused.scores.tolist() == pytest.approx([score])
    assert fused.boxes[0].tolist() == pytest.approx([40, 40, 60, 60])
