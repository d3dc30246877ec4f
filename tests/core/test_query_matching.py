"""What every assignment rule of query detectors promises; matching by cost against loops and permutations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import get_args

import pytest
import torch
from query_scenes import (
    NUM_CLASSES,
    NUM_LAYERS,
    NUM_QUERIES,
    alone,
    as_type,
    made_for,
    some_objects,
    some_queries,
)
from scipy.optimize import linear_sum_assignment

from detbench.core.assign.hungarian import solve
from detbench.core.assign.query_hungarian import query_cost
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.parts.assigners import Known, QueryAssigner, QueryHungarian, QueryIou, Rank

# The default of query_iou draws at random which positives stay.
CONTRACT: dict[type, QueryAssigner] = {QueryIou: QueryIou(most_positive=1.0)}
RULES = [
    *(pytest.param(CONTRACT.get(rule, rule()), id=rule().kind) for rule in get_args(QueryAssigner)),
    pytest.param(QueryHungarian(copies=3, most_positive=0.5, rank=Rank()), id="ranked_copies"),
    pytest.param(QueryHungarian(position_power=0.5), id="position_modulated"),
    pytest.param(QueryHungarian(sized_bbox=True), id="sized_bbox"),
]
MAY_SHARE_QUERIES = {"query_iou", "sparse_correspondence"}
READ_WITH_THE_PREDICTIONS = {"known", "sparse_correspondence"}
COUNTS = (3, 0, 5, 1)

Pairs = set[tuple[int, int, tuple[float, ...], float]]


def scene(
    counts: tuple[int, ...] = COUNTS,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    *,
    num_layers: int = NUM_LAYERS,
) -> tuple[QueryPredictions, Targets]:
    """Predictions, and their objects repeated for each layer."""
    targets = some_objects(counts, seed)
    return some_queries(targets, seed, num_layers=num_layers, dtype=dtype), targets.repeat(num_layers)


def pairs(matches: Matches, targets: Targets) -> Pairs:
    """Matches as (row, prediction, the object's box, weight): independent of how objects are numbered."""
    boxes = targets.boxes[matches.target_idx].tolist()
    weights = [1.0] * len(boxes) if matches.weights is None else matches.weights.tolist()
    rows = zip(matches.image_idx.tolist(), matches.pred_idx.tolist(), boxes, weights, strict=True)
    return {(i, q, tuple(box), round(weight, 9)) for i, q, box, weight in rows}


def triples(matches: Matches) -> set[tuple[int, int, int]]:
    """Matches as (row, prediction, object)."""
    columns = (matches.image_idx, matches.pred_idx, matches.target_idx)
    return set(zip(*(column.tolist() for column in columns), strict=True))


# --- every rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_matches_name_predictions_and_objects_of_one_image_and_layer(rule: QueryAssigner, seed: int) -> None:
    predictions, targets = scene(seed=seed)
    matches = rule(predictions, targets)
    assert len(matches.image_idx) == len(matches.pred_idx) == len(matches.target_idx) > 0
    assert ((matches.pred_idx >= 0) & (matches.pred_idx < NUM_QUERIES)).all()
    assert torch.equal(targets.image_idx[matches.target_idx], matches.image_idx)
    assert matches.weights is None or matches.weights.shape == matches.pred_idx.shape


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", [r for r in RULES if r.id not in MAY_SHARE_QUERIES])
def test_a_query_answers_for_one_object_at_most(rule: QueryAssigner, seed: int) -> None:
    matches = rule(*scene(seed=seed))
    places = list(zip(matches.image_idx.tolist(), matches.pred_idx.tolist(), strict=True))
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("counts", [(0,), (0, 0)])
@pytest.mark.parametrize("rule", RULES)
def test_a_batch_without_objects_has_no_pairs(rule: QueryAssigner, counts: tuple[int, ...]) -> None:
    matches = rule(*scene(counts))
    assert len(matches.image_idx) == len(matches.pred_idx) == len(matches.target_idx) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_layers_and_images_are_matched_together_as_each_is_alone(rule: QueryAssigner, seed: int) -> None:
    predictions, targets = scene(seed=seed)
    expected: Pairs = set()
    for row in range(len(targets.counts)):
        one, own = alone(predictions, targets, row)
        expected |= {(row, q, box, weight) for _, q, box, weight in pairs(rule(one, own), own)}
    assert pairs(rule(predictions, targets), targets) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", [r for r in RULES if r.id not in READ_WITH_THE_PREDICTIONS])
def test_shuffling_the_objects_shuffles_the_pairs_alike(rule: QueryAssigner, seed: int) -> None:
    predictions, targets = scene((5,), seed, num_layers=1)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = Targets.of([targets.labels[order]], [targets.boxes[order]], targets.sizes)
    assert pairs(rule(predictions, targets), targets) == pairs(rule(predictions, shuffled), shuffled)


@pytest.mark.parametrize("rule", RULES)
def test_matching_builds_no_graph(rule: QueryAssigner) -> None:
    predictions, targets = scene()
    predictions.pred_logits.requires_grad_()
    predictions.pred_boxes.requires_grad_()
    matches = rule(predictions, targets)
    assert not matches.pred_idx.requires_grad
    assert matches.weights is None or not matches.weights.requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_single_precision_finds_the_same_pairs(rule: QueryAssigner) -> None:
    predictions, targets = scene()
    double, single = rule(predictions, targets), rule(as_type(predictions, torch.float32), targets)
    assert triples(double) == triples(single)


@pytest.mark.parametrize("rule", RULES)
def test_a_diverged_network_is_matched_somehow(rule: QueryAssigner) -> None:
    # Its loss will be NaN and is reported with step and batch; no rule may raise before that.
    predictions, targets = scene()
    nan = torch.full_like(predictions.pred_logits, math.nan)
    boxes = torch.full_like(predictions.pred_boxes, math.nan)
    matches = rule(dataclasses.replace(predictions, pred_logits=nan, pred_boxes=boxes), targets)
    assert torch.equal(targets.image_idx[matches.target_idx], matches.image_idx)


# --- known ------------------------------------------------------------------------------------------


def test_known_pairs_are_those_that_the_predictions_bring_along() -> None:
    predictions, targets = scene()
    assert Known()(predictions, targets) is predictions.pairs


# --- least cost -------------------------------------------------------------------------------------


def plain_cost(rule: QueryHungarian, logit: float, pred: list[float], target: list[float]) -> float:
    """Spec 1.8 with one pair's numbers: the logit of the object's class and two cxcywh boxes."""
    p = 1 / (1 + math.exp(-logit))
    hit = rule.focal_alpha * (1 - p) ** rule.focal_gamma * -math.log(p + rule.focal_eps)
    miss = (1 - rule.focal_alpha) * p**rule.focal_gamma * -math.log(1 - p + rule.focal_eps)
    distance = sum(abs(a - b) for a, b in zip(pred, target, strict=True))
    inter, hull, union = 1.0, 1.0, 0.0
    for axis in (0, 1):
        (c, s), (d, t) = (pred[axis::2], target[axis::2])
        inter *= max(0.0, min(c + s / 2, d + t / 2) - max(c - s / 2, d - t / 2))
        hull *= max(c + s / 2, d + t / 2) - min(c - s / 2, d - t / 2)
    union = pred[2] * pred[3] + target[2] * target[3] - inter
    giou = inter / (union + rule.iou_eps) - (hull - union) / (hull + rule.iou_eps)
    return rule.cost_class * (hit - miss) + rule.cost_bbox * distance - rule.cost_giou * giou


def plain_costs(
    rule: QueryHungarian, predictions: QueryPredictions, targets: Targets, row: int
) -> list[list[float]]:
    """Objects by queries, for one image of one layer."""
    _, own = alone(predictions, targets, row)
    logits, boxes = predictions.pred_logits[row].tolist(), predictions.pred_boxes[row].tolist()
    return [
        [plain_cost(rule, logit[label], box, target) for logit, box in zip(logits, boxes, strict=True)]
        for label, target in zip(own.labels.tolist(), own.cxcywh.tolist(), strict=True)
    ]


EPSILONS = [pytest.param(QueryHungarian(iou_eps=eps), id=f"iou_eps={eps}") for eps in (0.0, 1e-6)]


@pytest.mark.parametrize("rule", EPSILONS)
@pytest.mark.parametrize("seed", range(3))
def test_the_usual_matcher_image_by_image_and_layer_by_layer_finds_the_same(
    rule: QueryHungarian, seed: int
) -> None:
    predictions, targets = scene(counts=(3, 0, 30, 1), seed=seed)  # 30 objects for 12 queries
    expected = set()
    for row in range(len(targets.counts)):
        start = sum(targets.counts[:row])
        if targets.counts[row]:
            chosen = linear_sum_assignment(plain_costs(rule, predictions, targets, row))
            expected |= {(row, q.item(), start + n.item()) for n, q in zip(*chosen, strict=True)}
    assert triples(rule(predictions, targets)) == expected


@pytest.mark.parametrize("rule", EPSILONS)
def test_the_cost_of_all_pairs_is_that_of_each_alone(rule: QueryHungarian) -> None:
    predictions, targets = scene()
    expected = [
        cost for row in range(len(targets.counts)) for cost in plain_costs(rule, predictions, targets, row)
    ]
    # The objects themselves are in single precision.
    assert torch.allclose(query_cost(rule, predictions, targets), torch.tensor(expected).double(), atol=1e-5)


@pytest.mark.parametrize(("eps", "giou"), [(0.0, 1 / 7 - 2 / 9), (1e-6, 1e-4 / 7.01e-4 - 2e-4 / 9.01e-4)])
def test_the_cost_of_a_small_pair_by_hand(eps: float, giou: float) -> None:
    # Sides of .02, centres .01 apart along both axes: intersection 1e-4, union 7e-4, hull 9e-4, L1 .02.
    # p = 1/2: .25 * .25 * ln 2 - .75 * .25 * ln 2 = -.0866434.
    targets = Targets.of([torch.tensor([0])], [torch.tensor([[50.0, 50.0, 52.0, 52.0]])], [(100, 100)])
    boxes = torch.tensor([[[0.5, 0.5, 0.02, 0.02]]], dtype=torch.float64)
    cost = query_cost(
        QueryHungarian(iou_eps=eps),
        QueryPredictions(torch.zeros(1, 1, 1, dtype=torch.float64), boxes),
        targets,
    )
    assert cost.item() == pytest.approx(2 * -0.0866434 + 5 * 0.02 - 2 * giou, abs=1e-6)


def test_the_cost_of_box_errors_in_the_sides_of_objects_by_hand() -> None:
    # Two objects of .1 by .2 and .3 by .2, mean .2 by .2; centres off by .02 along x and .04 along y, sides by none.
    # Widths count for .2 / .1 and .2 / .3, heights as they are: .02 * 2 + .04 and .02 * 2 / 3 + .04.
    corners = torch.tensor([[10.0, 10, 20, 30], [50.0, 40, 80, 60]])
    targets = Targets.of([torch.zeros(2, dtype=torch.int64)], [corners], [(100, 100)])
    boxes = targets.cxcywh.double() + torch.tensor([0.02, 0.04, 0, 0])
    predictions = QueryPredictions(torch.zeros(1, 2, 1, dtype=torch.float64), boxes[None])
    rule = QueryHungarian(cost_class=0.0, cost_giou=0.0, cost_bbox=3.0, sized_bbox=True)
    cost = query_cost(rule, predictions, targets)
    assert cost.diagonal().tolist() == pytest.approx([3 * 0.08, 3 * (0.04 / 3 + 0.04)], rel=1e-5)


def test_an_empty_object_has_a_finite_cost_in_its_own_sides() -> None:
    empty = torch.tensor([[10.0, 10, 10, 10]])
    targets = Targets.of([torch.zeros(1, dtype=torch.int64)], [empty], [(100, 100)])
    predictions = some_queries(targets, 0, num_layers=1)
    assert query_cost(QueryHungarian(sized_bbox=True, iou_eps=1e-6), predictions, targets).isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_the_total_cost_is_the_least_of_all_permutations(seed: int) -> None:
    rule = QueryHungarian()
    targets = some_objects((3,), seed)
    predictions = some_queries(targets, seed, num_layers=1, num_queries=6)
    cost = plain_costs(rule, predictions, targets, 0)
    ways = itertools.permutations(range(6), 3)
    best = min(ways, key=lambda way: sum(cost[n][q] for n, q in enumerate(way)))
    matches = rule(predictions, targets)
    assert matches.pred_idx[matches.target_idx.argsort()].tolist() == list(best)


def test_with_copies_the_total_cost_is_the_least_of_all_permutations() -> None:
    cost = torch.rand(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ways = itertools.permutations(range(6), 4)  # the queries of both objects, then those of their copies
    best = min(sum(cost[n % 2, q].item() for n, q in enumerate(way)) for way in ways)
    matches = solve(cost, (2,), copies=2)
    assert cost[matches.target_idx, matches.pred_idx].sum().item() == pytest.approx(best)
    assert sorted(matches.target_idx.tolist()) == [0, 0, 1, 1]
    assert len(set(matches.pred_idx.tolist())) == 4


def test_more_objects_than_queries_leave_the_dearest_objects_out() -> None:
    cost = torch.rand(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    best = min(
        itertools.permutations(range(5), 3), key=lambda way: sum(cost[n, q].item() for q, n in enumerate(way))
    )
    matches = solve(cost, (5,))
    assert matches.target_idx[matches.pred_idx.argsort()].tolist() == list(best)


def test_more_copies_than_queries_give_every_query_an_object() -> None:
    cost = torch.rand(4, 6, generator=torch.Generator().manual_seed(6))
    matches = solve(cost, (1, 3), copies=4)
    assert matches.image_idx.tolist() == [0] * 4 + [1] * 6
    assert sorted(matches.pred_idx[4:].tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, 4),
        (2, 3),
        (3, 2),
        (4, 1),
        (5, 1),
        (12, 1),
    ],  # of 12 queries 6 may be matched: 6 // count, not below 1
)
def test_copies_are_reduced_until_half_of_the_queries_stay_free(count: int, expected: int) -> None:
    cost = torch.rand(count, 12, generator=torch.Generator().manual_seed(count))
    matches = solve(cost, (count,), copies=4, most_positive=0.5)
    assert torch.bincount(matches.target_idx, minlength=count).tolist() == [expected] * count


def test_copies_are_reduced_in_each_image_by_itself() -> None:
    cost = torch.rand(7, 12, generator=torch.Generator().manual_seed(1))
    matches = solve(cost, (1, 0, 6), copies=4, most_positive=0.5)
    assert torch.bincount(matches.image_idx, minlength=3).tolist() == [4, 0, 6]


def test_saturated_logits_have_a_finite_cost() -> None:
    predictions, targets = scene(dtype=torch.float32)
    logits = torch.full_like(predictions.pred_logits, 500.0)
    logits[:, ::2] = -500.0
    assert (
        query_cost(QueryHungarian(), dataclasses.replace(predictions, pred_logits=logits), targets)
        .isfinite()
        .all()
    )


def test_objects_of_classes_apart_are_told_apart_by_their_own_class_alone() -> None:
    # Two objects in one place: only the queries' classes say which answers for which.
    targets = Targets.of([torch.tensor([2, 0])], [torch.tensor([[10.0, 10, 30, 30]] * 2)], [(50, 50)])
    logits = torch.full((1, 4, NUM_CLASSES), -3.0)
    logits[0, 1, 0] = logits[0, 3, 2] = 3.0
    logits[0, 0, 1] = logits[0, 2, 1] = 6.0  # the class of neither
    predictions = QueryPredictions(logits, torch.full((1, 4, 4), 0.4), pairs=made_for(targets))
    matches = QueryHungarian()(predictions, targets)
    assert dict(zip(matches.target_idx.tolist(), matches.pred_idx.tolist(), strict=True)) == {0: 3, 1: 1}
