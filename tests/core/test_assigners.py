"""What every assignment rule promises, and each rule against a plain form of itself."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import get_args

import pytest
import torch
from scenes import (
    SIZE,
    STRIDES,
    anchors_for,
    grid,
    image_of,
    points,
    some_predictions,
    some_targets,
    targets_of,
)

from detbench.core.assign.fcos import fcos_candidates, smallest_owner
from detbench.core.assign.hungarian import focal_cost, pair_cost, solve
from detbench.core.assign.max_iou import is_on_image, max_iou_owner
from detbench.core.assign.poto import pair_quality, poto_quality
from detbench.core.assign.quality_atss import above_own_threshold
from detbench.core.boxes import box_giou, pairwise_iou
from detbench.core.types import DensePredictions, Matches, Targets
from detbench.parts.assigners import DenseAssigner, FcosRule, Hungarian, LeastCost, MaxIou, Poto, QualityAtss

RULES = [pytest.param(rule(), id=rule().kind) for rule in get_args(DenseAssigner)]
ONE_TO_ONE = {"hungarian", "poto"}
ONE_PREDICTION_EACH = ONE_TO_ONE | {"least_cost"}
MAY_SHARE_PREDICTIONS = {"least_cost"}
COUNTS = (3, 0, 5, 1)

Pairs = set[tuple[int, int, tuple[float, ...]]]


def scene(
    rule: DenseAssigner, counts: tuple[int, ...] = COUNTS, seed: int = 0
) -> tuple[DensePredictions, Targets]:
    return some_predictions(anchors_for(rule.kind), len(counts), seed), some_targets(counts, seed)


def pairs(matches: Matches, targets: Targets) -> Pairs:
    """Matches as (image, prediction, the object's box): independent of how objects are numbered."""
    boxes = targets.boxes[matches.target_idx].tolist()
    triples = zip(matches.image_idx.tolist(), matches.pred_idx.tolist(), boxes, strict=True)
    return {(i, q, tuple(box)) for i, q, box in triples}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_matches_name_predictions_and_objects_of_one_image(rule: DenseAssigner, seed: int) -> None:
    predictions, targets = scene(rule, seed=seed)
    matches = rule(predictions, targets)
    assert len(matches.image_idx) == len(matches.pred_idx) == len(matches.target_idx) > 0
    assert ((matches.pred_idx >= 0) & (matches.pred_idx < predictions.pred_logits.shape[1])).all()
    assert torch.equal(targets.image_idx[matches.target_idx], matches.image_idx)
    if matches.ignored is not None:
        assert matches.ignored.shape == predictions.pred_logits.shape[:2]
        assert not matches.ignored[matches.image_idx, matches.pred_idx].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", [r for r in RULES if r.id not in MAY_SHARE_PREDICTIONS])
def test_a_prediction_answers_for_one_object_at_most(rule: DenseAssigner, seed: int) -> None:
    matches = rule(*scene(rule, seed=seed))
    places = list(zip(matches.image_idx.tolist(), matches.pred_idx.tolist(), strict=True))
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("rule", [r for r in RULES if r.id in ONE_PREDICTION_EACH])
def test_one_to_one_rules_use_each_object_once(rule: DenseAssigner) -> None:
    matches = rule(*scene(rule))
    assert sorted(matches.target_idx.tolist()) == list(range(sum(COUNTS)))


@pytest.mark.parametrize("rule", RULES)
def test_images_without_objects_match_nothing(rule: DenseAssigner) -> None:
    matches = rule(*scene(rule, counts=(0, 0)))
    assert len(matches.image_idx) == len(matches.pred_idx) == len(matches.target_idx) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_a_batch_is_matched_as_its_images_are_alone(rule: DenseAssigner, seed: int) -> None:
    predictions, targets = scene(rule, seed=seed)
    alone: Pairs = set()
    for i in range(len(COUNTS)):
        own = targets_of(targets, i)
        matches = rule(image_of(predictions, i), own)
        alone |= {(i, q, box) for _, q, box in pairs(matches, own)}
    assert pairs(rule(predictions, targets), targets) == alone


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_shuffling_the_objects_shuffles_the_matches_alike(rule: DenseAssigner, seed: int) -> None:
    predictions, targets = scene(rule, counts=(6,), seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    shuffled = Targets.of([targets.labels[order]], [targets.boxes[order]], [SIZE])
    assert pairs(rule(predictions, targets), targets) == pairs(rule(predictions, shuffled), shuffled)


@pytest.mark.parametrize("rule", RULES)
def test_matching_builds_no_graph(rule: DenseAssigner) -> None:
    predictions, targets = scene(rule)
    predictions.pred_logits.requires_grad_()
    matches = rule(predictions, targets)
    assert not matches.pred_idx.requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_double_precision_changes_no_match(rule: DenseAssigner) -> None:
    if isinstance(rule, MaxIou):
        # Anchors of one shape around a small object all have its best IoU, up to rounding.
        rule = MaxIou(low_quality=False)
    predictions, targets = scene(rule)
    double = some_predictions(anchors_for(rule.kind, torch.float64), len(COUNTS), 0)
    double = DensePredictions(
        predictions.pred_logits.double(), predictions.pred_boxes.double(), double.anchors
    )
    assert pairs(rule(predictions, targets), targets) == pairs(rule(double, targets), targets)


# --- Hungarian and least cost -----------------------------------------------------------------------


@pytest.mark.parametrize("maximise", [False, True])
def test_the_solver_finds_the_best_of_all_permutations(maximise: bool) -> None:
    cost = torch.rand(3, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    sums = {
        chosen: sum(cost[g, q].item() for g, q in enumerate(chosen))
        for chosen in itertools.permutations(range(5), 3)
    }
    best = (max if maximise else min)(sums, key=lambda chosen: sums[chosen])
    matches = solve(cost, (3,), maximise=maximise)
    assert tuple(matches.pred_idx.tolist()) == best
    assert matches.target_idx.tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", [Hungarian(), Poto()], ids=lambda r: r.kind)
def test_a_one_to_one_rule_finds_the_best_of_all_permutations(rule: Hungarian | Poto) -> None:
    # Five predictions near the middle of five points, three objects around them: 60 ways to match.
    everything, targets = points(), some_targets((3,), 11)
    near = (everything.centers - torch.tensor([64.0, 48.0])).norm(dim=1).argsort()[:5]
    anchors = type(everything)(
        everything.boxes[near], everything.centers[near], everything.strides[near], (5,)
    )
    predictions = some_predictions(anchors, 1, 11)
    values = {
        "pred_logits": predictions.pred_logits,
        "pred_boxes": predictions.pred_boxes,
        "labels": targets.labels,
        "boxes": targets.boxes,
        "image_idx": targets.image_idx,
    }
    if isinstance(rule, Poto):
        rule = Poto(center_radius=20.0)  # so that the prior leaves a choice
        score = poto_quality(
            **values,
            centers=anchors.centers,
            strides=anchors.strides,
            quality_alpha=0.8,
            center_radius=20.0,
            outside_quality=0.0,
        )
    else:
        score = -pair_cost(
            **values,
            whwh=targets.whwh,
            cost_class=2.0,
            cost_bbox=5.0,
            cost_giou=2.0,
            focal_alpha=0.25,
            focal_gamma=2.0,
            focal_eps=1e-12,
            box_format="cxcywh",
            giou_eps=1e-6,
        )
    best = max(
        sum(score[g, q].item() for g, q in enumerate(chosen))
        for chosen in itertools.permutations(range(5), 3)
    )
    matches = rule(predictions, targets)
    assert score[matches.target_idx, matches.pred_idx].sum().item() == pytest.approx(best, rel=1e-6)


def test_more_objects_than_predictions_leaves_the_dearest_objects_out() -> None:
    cost = torch.tensor([[5.0, 5.0], [1.0, 2.0], [2.0, 1.0]])
    matches = solve(cost, (3,))
    assert matches.target_idx.tolist() == [1, 2]
    assert matches.pred_idx.tolist() == [0, 1]


def test_a_diverged_network_is_matched_somehow() -> None:
    # Its loss will be NaN and is reported with step and batch; the solver must not raise before that.
    matches = solve(torch.tensor([[math.nan, 1.0], [math.inf, 2.0]]), (2,))
    assert len(matches.pred_idx) == 2


def test_the_cost_of_a_pair_by_hand() -> None:
    # p = 0.5: positive -.25 * .25 * ln .5 = .0433217, negative -.75 * .25 * ln .5 = .1299651, cost -.0866434.
    # Prediction (0,0,20,10), object (10,0,20,10) in an image 100 wide, 50 high:
    # cxcywh/size (.1,.1,.2,.2) and (.15,.1,.1,.2), L1 .05 + .1 = .15.
    # IoU 100/200 = .5, the enclosing box is the prediction, GIoU .5.
    # 2 * -.0866434 + 5 * .15 - 2 * .5 = -.4232868
    cost = pair_cost(
        torch.zeros(1, 1, 1),
        torch.tensor([[[0.0, 0.0, 20.0, 10.0]]]),
        torch.tensor([0]),
        torch.tensor([[10.0, 0.0, 20.0, 10.0]]),
        torch.tensor([0]),
        torch.tensor([[100.0, 50.0, 100.0, 50.0]]),
        cost_class=2.0,
        cost_bbox=5.0,
        cost_giou=2.0,
        focal_alpha=0.25,
        focal_gamma=2.0,
        focal_eps=1e-12,
        box_format="cxcywh",
        giou_eps=1e-6,
    )
    assert cost.item() == pytest.approx(-0.4232868, abs=1e-6)


def test_the_focal_cost_stays_finite_where_the_sigmoid_saturates() -> None:
    cost = focal_cost(torch.tensor([-200.0, 200.0]), alpha=0.25, gamma=2.0, eps=1e-12)
    # -.25 ln 1e-12 = 6.9078 for a sure miss; +.75 ln 1e-12 = -20.723 for a sure hit.
    assert cost.tolist() == pytest.approx([6.907755, -20.723266], abs=1e-4)


def test_least_cost_lets_two_objects_share_a_prediction() -> None:
    targets = Targets.of(
        [torch.tensor([0, 0])], [torch.tensor([[40.0, 40, 60, 60], [41.0, 41, 61, 61]])], [SIZE]
    )
    predictions = some_predictions(points(), 1, 0)
    boxes = torch.full_like(predictions.pred_boxes, 0.0)
    boxes[0, 17] = torch.tensor([40.0, 40, 60, 60])
    matches = LeastCost()(DensePredictions(predictions.pred_logits * 0, boxes, predictions.anchors), targets)
    assert matches.pred_idx.tolist() == [17, 17]
    assert matches.target_idx.tolist() == [0, 1]


# --- POTO -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outside", "radius"), [(0.0, 1.5), (-1.0, 1.5), (-1.0, 0.0)])
def test_poto_quality_written_as_loops(outside: float, radius: float) -> None:
    anchors, targets = points(), some_targets((2, 1), 3)
    predictions = some_predictions(anchors, 2, 3)
    quality = poto_quality(
        predictions.pred_logits,
        predictions.pred_boxes,
        anchors.centers,
        anchors.strides,
        targets.labels,
        targets.boxes,
        targets.image_idx,
        quality_alpha=0.8,
        center_radius=radius,
        outside_quality=outside,
    )
    for m in range(3):
        i, c, box = int(targets.image_idx[m]), int(targets.labels[m]), targets.boxes[m].tolist()
        for q in range(len(anchors.centers)):
            x, y = anchors.centers[q].tolist()
            reach = radius * float(anchors.strides[q]) if radius else 1e9
            cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            inside = max(cx - reach, box[0]) < x < min(cx + reach, box[2]) and max(
                cy - reach, box[1]
            ) < y < min(cy + reach, box[3])
            iou = plain_iou(predictions.pred_boxes[i, q].tolist(), box)
            prob = 1 / (1 + math.exp(-predictions.pred_logits[i, q, c].item()))
            expected = prob**0.2 * iou**0.8 if inside else outside
            assert quality[m, q].item() == pytest.approx(expected, abs=1e-5)


def test_poto_on_giou_has_no_quality_where_giou_is_negative() -> None:
    anchors, targets = points(), some_targets((2, 1), 3)
    predictions = some_predictions(anchors, 2, 3)
    values = {
        "pred_logits": predictions.pred_logits,
        "pred_boxes": predictions.pred_boxes,
        "labels": targets.labels,
        "boxes": targets.boxes,
        "image_idx": targets.image_idx,
    }
    quality = pair_quality(**values, quality_alpha=1.0, overlap="giou")
    giou = box_giou(predictions.pred_boxes[targets.image_idx], targets.boxes[:, None], eps=1e-6)
    assert (giou < 0).any()
    assert torch.allclose(quality, giou.where(giou > 0, 0.0))
    prior = {
        "centers": anchors.centers,
        "strides": anchors.strides,
        "center_radius": 1.5,
        "outside_quality": -1.0,
    }
    masked = poto_quality(**values, **prior, quality_alpha=1.0, overlap="giou")
    assert torch.equal(masked[masked >= 0], quality[masked >= 0])
    assert Poto(overlap="giou")(predictions, targets).pred_idx.shape == (3,)


# --- Quality ATSS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_quality_atss_written_as_loops(seed: int) -> None:
    rule = QualityAtss(per_level=5)
    predictions, targets = scene(rule, seed=seed)
    anchors = predictions.anchors
    levels, first = [], 0
    for size in anchors.level_sizes:
        levels.append(range(first, first + size))
        first += size
    claims: dict[tuple[int, int], tuple[float, int]] = {}
    for m, (x1, y1, x2, y2) in enumerate(targets.boxes.tolist()):
        i, c = int(targets.image_idx[m]), int(targets.labels[m])
        prob = [1 / (1 + math.exp(-x)) for x in predictions.pred_logits[i, :, c].tolist()]
        boxes = predictions.pred_boxes[i].tolist()
        quality = [
            p**0.2 * plain_iou(box, [x1, y1, x2, y2]) ** 0.8 for p, box in zip(prob, boxes, strict=True)
        ]
        candidates = [
            q for level in levels for q in sorted(level, key=lambda q: quality[q], reverse=True)[:5]
        ]
        values = [quality[q] for q in candidates]
        threshold = statistics.mean(values) + statistics.stdev(values)
        for q in candidates:
            x, y = anchors.centers[q].tolist()
            if quality[q] >= threshold and x1 < x < x2 and y1 < y < y2:
                claims[i, q] = max(claims.get((i, q), (-1.0, 0)), (quality[q], -m))
    expected = {(i, q, tuple(targets.boxes[-m].tolist())) for (i, q), (_, m) in claims.items()}
    assert expected
    assert pairs(rule(predictions, targets), targets) == expected


def test_a_level_with_fewer_predictions_than_candidates_gives_all_it_has() -> None:
    quality = torch.tensor([[0.9, 0.1, 0.1, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    # Mean 0.28, deviation sqrt(0.488 / 4) = 0.3493: only 0.9 reaches 0.6293. Equal qualities all reach their mean.
    chosen = above_own_threshold(quality, (4, 1), per_level=9)
    assert chosen.tolist() == [[True, False, False, False, False], [True] * 5]
    # Two candidates of the first level and the whole second: mean 0.4, deviation 0.4359.
    chosen = above_own_threshold(quality[:1], (4, 1), per_level=2)
    assert chosen.tolist() == [[True, False, False, False, False]]


# --- FCOS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_fcos_written_as_loops(seed: int, radius: float | None) -> None:
    ranges = ((-1.0, 16.0), (16.0, 24.0), (24.0, 32.0), (32.0, 64.0), (64.0, 1e8))
    rule = FcosRule(size_ranges=ranges, center_radius=radius)
    predictions, targets = scene(rule, seed=seed)
    anchors = predictions.anchors
    level = [n for n, size in enumerate(anchors.level_sizes) for _ in range(size)]
    expected = set()
    for i in range(len(COUNTS)):
        for q, (x, y) in enumerate(anchors.centers.tolist()):
            best, best_area = None, math.inf
            for m in range(len(targets.labels)):
                x1, y1, x2, y2 = targets.boxes[m].tolist()
                reach = radius * STRIDES[level[q]] if radius else 1e9
                cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
                inside = max(cx - reach, x1) < x < min(cx + reach, x2) and (
                    max(cy - reach, y1) < y < min(cy + reach, y2)
                )
                low, high = ranges[level[q]]
                fits = low <= max(x - x1, y - y1, x2 - x, y2 - y) <= high
                area = (x2 - x1) * (y2 - y1)
                if int(targets.image_idx[m]) == i and inside and fits and area < best_area:
                    best, best_area = m, area
            if best is not None:
                expected.add((i, q, tuple(targets.boxes[best].tolist())))
    assert pairs(rule(predictions, targets), targets) == expected


def test_fcos_prefers_the_first_of_equally_large_objects() -> None:
    candidates = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])
    (owner,) = smallest_owner(candidates, torch.tensor([4.0, 2.0, 2.0]), torch.tensor([0, 0, 0]), 1)
    assert owner.tolist() == [1, 2, 1]


def test_fcos_size_ranges_include_both_ends() -> None:
    # At the middle of a box 32 wide and 10 high the largest distance is exactly 16.
    box = torch.tensor([[0.0, 0.0, 32.0, 10.0]])
    ranges = torch.tensor([[-1.0, 16.0], [16.0, 32.0], [17.0, 32.0]])
    inside = fcos_candidates(
        torch.tensor([[16.0, 5.0]] * 3), torch.full((3,), 8.0), ranges, box, center_radius=None
    )
    assert inside.tolist() == [[True, True, False]]


def test_a_location_on_the_border_of_an_object_is_outside() -> None:
    box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    inside = fcos_candidates(
        torch.tensor([[4.0, 12.0], [5.0, 12.0]]),
        torch.full((2,), 8.0),
        torch.tensor([[-1.0, 1e8]] * 2),
        box,
        center_radius=None,
    )
    assert inside.tolist() == [[False, True]]


# --- Max IoU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_quality", [0.0, 0.35, None])
@pytest.mark.parametrize("seed", range(4))
def test_max_iou_written_as_loops(seed: int, low_quality: float | None) -> None:
    anchors = grid()
    targets = some_targets((4, 0, 7), seed, sizes=[(64, 96), (96, 128), (90, 120)])
    valid = is_on_image(anchors, targets.whwh[:, :2], pad_multiple=32)
    owner, ignored = max_iou_owner(
        anchors.boxes,
        valid,
        targets.boxes,
        targets.image_idx,
        positive=0.5,
        negative=0.4,
        low_quality=low_quality,
    )
    iou = pairwise_iou(targets.boxes, anchors.boxes, eps=1e-6)
    for i in range(3):
        objects = (targets.image_idx == i).nonzero().flatten().tolist()
        usable = valid[i].nonzero().flatten().tolist()
        expected, band = [-1] * len(anchors.boxes), [False] * len(anchors.boxes)
        for q in usable:
            overlaps = [(iou[m, q].item(), -m) for m in objects]
            best, minus_m = max(overlaps, default=(0.0, 0))
            if best >= 0.5:
                expected[q] = -minus_m
            band[q] = 0.4 <= best < 0.5
        for m in objects if low_quality is not None else []:
            top = max(iou[m, q].item() for q in usable)
            for q in usable:
                if iou[m, q].item() == top >= low_quality:
                    expected[q], band[q] = m, False
        assert owner[i].tolist() == expected
        assert ignored[i].tolist() == band


def test_of_two_objects_that_claim_one_anchor_the_later_gets_it() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[0.0, 0.0, 4.0, 10.0], [0.0, 0.0, 3.0, 10.0]])
    owner, _ = max_iou_owner(
        anchor,
        torch.ones(1, 1, dtype=torch.bool),
        boxes,
        torch.tensor([0, 0]),
        positive=0.5,
        negative=0.4,
        low_quality=0.0,
    )
    assert owner.tolist() == [[1]]


def test_anchors_beyond_an_images_own_padded_size_are_ignored() -> None:
    # 40 x 70 pixels pad to 64 x 96: at stride 8 that is 8 rows of 12 cells of the 12 x 16 there are.
    targets = some_targets((1, 1), 0, sizes=[(40, 70), SIZE])
    predictions = some_predictions(grid(), 2, 0)
    ignored = MaxIou(positive=1.0, negative=1.0)(predictions, targets).ignored
    assert ignored is not None
    finest = ignored[:, : 12 * 16 * 9].view(2, 12, 16, 9)
    expected = torch.ones(12, 16, dtype=torch.bool)
    expected[:8, :12] = False
    assert torch.equal(finest[0].all(-1), expected)
    assert torch.equal(finest[0].any(-1), expected)
    assert not finest[1].any()


def plain_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / max(union, 1e-6)
