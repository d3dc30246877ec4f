"""Align-DETR: ranks, weights and targets by hand, both class losses entry by entry, mixed matching (spec 4)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scenes import targets_of
from soft_targets import (
    class_loss_entry_by_entry,
    cross_entropy,
    matched_in_turn,
    pair_values,
    queries,
)
from torch import Tensor

from detbench.core.assign.query_hungarian import rank_weights
from detbench.core.losses.align import alignment_quality, rank_within, soft_target
from detbench.core.losses.quality import matched_iou
from detbench.core.supervise import QuerySupervision, supervise
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.parts.assigners import QueryHungarian, Rank
from detbench.parts.branches import Branch, DecoderOutput
from detbench.parts.losses import Align, BoxL1, IaBce, QueryGiou

COUNTS = (3, 0, 2)


def two_objects() -> tuple[QueryPredictions, Targets]:
    """Two objects of 40 x 40 pixels, two queries for each, which cover 4 shares of them; a fifth is elsewhere.

    Object 0 (class 0): query 0 with score 0.8 and IoU 0.8, query 1 with 0.5 and 0.5.
    Object 1 (class 1): query 2 with score 0.2 and IoU 0.8, query 3 with 0.9 and 0.9.
    """
    targets = Targets.of(
        [torch.tensor([0, 1])], [torch.tensor([[0.0, 0, 40, 40], [50.0, 50, 90, 90]])], [(100, 100)]
    )
    scores = torch.full((1, 5, 2), 0.1, dtype=torch.float64)
    scores[0, [0, 1], 0] = torch.tensor([0.8, 0.5], dtype=torch.float64)
    scores[0, [2, 3], 1] = torch.tensor([0.2, 0.9], dtype=torch.float64)
    corners = torch.tensor([0, 0, 50, 50, 0], dtype=torch.float64) / 100
    widths = torch.tensor([32, 20, 32, 36, 5], dtype=torch.float64) / 100
    heights = torch.tensor([40, 40, 40, 40, 5], dtype=torch.float64) / 100
    boxes = torch.stack([corners + widths / 2, corners + heights / 2, widths, heights], 1)
    return QueryPredictions(scores.logit(), boxes[None]), targets


def rank_halves() -> QueryHungarian:
    """Two queries for each object; each rank halves the weight; quality = sqrt(score * IoU)."""
    return QueryHungarian(copies=2, rank=Rank(quality_alpha=0.5, tau=1 / math.log(2), iou_eps=0.0))


# ------------------------------------------------------------------ ranks, weights, targets


def test_two_objects_with_two_queries_each_have_the_targets_worked_out_by_hand() -> None:
    predictions, targets = two_objects()
    matches = rank_halves()(predictions, targets)
    pairs = dict(zip(matches.pred_idx.tolist(), matches.target_idx.tolist(), strict=True))
    assert pairs == {0: 0, 1: 0, 2: 1, 3: 1}

    order = matches.pred_idx.argsort()
    assert matches.weights is not None
    # Qualities are 0.8, 0.5 and 0.4, 0.9: query 1 is second of its object, and so is query 2.
    assert matches.weights[order].tolist() == pytest.approx([1, 0.5, 0.5, 1])
    target = soft_target(
        QuerySupervision(predictions, targets, matches), quality_alpha=0.5, floor=0.01, iou_eps=0.0
    )
    assert target[order].tolist() == pytest.approx([0.8, 0.25, 0.2, 0.9])


def test_alpha_weighs_the_score_against_the_box() -> None:
    predictions, targets = two_objects()
    supervision = QuerySupervision(predictions, targets, rank_halves()(predictions, targets))
    order = supervision.matches.pred_idx.argsort()

    def quality(alpha: float) -> list[float]:
        return alignment_quality(supervision, alpha=alpha, iou_eps=0.0)[order].tolist()

    assert quality(0.0) == pytest.approx([0.8, 0.5, 0.8, 0.9])  # IoU alone
    assert quality(1.0) == pytest.approx([0.8, 0.5, 0.2, 0.9])  # score alone
    assert quality(0.25) == pytest.approx([0.8, 0.5, 0.2**0.25 * 0.8**0.75, 0.9])


def test_the_rank_is_the_number_of_better_pairs_in_the_bag() -> None:
    generator = torch.Generator().manual_seed(0)
    bags = torch.randint(0, 7, (60,), generator=generator)
    quality = torch.randint(0, 9, (60,), generator=generator) / 8  # with ties
    order = torch.randperm(60, generator=generator)
    expected = [
        sum(
            bags[j] == bags[i]
            and (quality[j] > quality[i] or (quality[j] == quality[i] and order[j] < order[i]))
            for j in range(60)
        )
        for i in range(60)
    ]
    assert rank_within(bags, quality, order).tolist() == [int(r) for r in expected]
    assert rank_within(bags[:0], quality[:0], order[:0]).shape == (0,)


def test_qualities_below_the_floor_rank_by_the_number_of_the_query_as_in_the_released_code() -> None:
    """Five queries of one object, in an order that copies may take them in; q = IoU (spec 4.2).

    Query 3 has IoU 0.5, query 4 0.0104. The others are bounded to 0.01: queries 0 and 2 miss, query 1 has 0.0098.
    """
    targets = Targets.of([torch.tensor([0])], [torch.tensor([[0.0, 0, 50, 50]])], [(100, 100)])
    corners = (
        torch.tensor([[80.0, 80, 90, 90], [0, 0, 5, 4.9], [70, 80, 90, 90], [0, 0, 25, 50], [0, 0, 5.2, 5]])
        / 100
    )
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    predictions = QueryPredictions(torch.zeros(1, 5, 1), boxes[None])
    taken, first = torch.tensor([2, 1, 0, 4, 3]), torch.zeros(5, dtype=torch.int64)
    matches = Matches(first, taken, first)
    quality = alignment_quality(QuerySupervision(predictions, targets, matches), alpha=0.0, iou_eps=0.0)
    assert quality.tolist() == pytest.approx([0, 0.0098, 0, 0.0104, 0.5], rel=1e-4)

    rule = Rank(quality_alpha=0.0, tau=1 / math.log(2), iou_eps=0.0)
    weights = rank_weights(rule, predictions, targets, matches)
    assert weights.tolist() == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])


def test_a_quality_below_the_floor_counts_as_the_floor() -> None:
    predictions, targets = two_objects()
    far = dataclasses.replace(predictions, pred_boxes=predictions.pred_boxes * 0.01)
    supervision = matched_in_turn(far, targets, copies=1)
    assert alignment_quality(supervision, alpha=0.25, iou_eps=1e-6).max() < 0.2
    target = soft_target(supervision, quality_alpha=0.25, floor=0.3, iou_eps=1e-6)
    assert target.tolist() == pytest.approx([0.3, 0.3])


# ------------------------------------------------------------------ the losses


@pytest.mark.parametrize("loss", [Align(), Align(gamma=1.5, quality_alpha=0.6), IaBce(), IaBce(gamma=1.0)])
def test_a_class_loss_is_the_sum_over_its_entries(loss: Align | IaBce) -> None:
    predictions, targets = queries(COUNTS, layers=2)
    weights = torch.rand(2 * 2 * sum(COUNTS), generator=torch.Generator().manual_seed(3)).double()
    supervision = matched_in_turn(predictions, targets, weights=weights)
    values = pair_values(supervision)
    alpha, gamma = loss.quality_alpha, loss.gamma

    def positive(pair: int, p: float) -> float:
        score, iou = values[pair]
        t = weights[pair].item() * max(score**alpha * iou ** (1 - alpha), loss.quality_floor)
        if loss.kind == "ia_bce":
            return cross_entropy(p, t)
        return -t * (1 - p) ** gamma * math.log(p) - (1 - t) * p**gamma * math.log(1 - p)

    expected = class_loss_entry_by_entry(supervision, positive, lambda p: -(p**gamma) * math.log(1 - p))
    # Boxes of objects are float32.
    assert loss(supervision).item() == pytest.approx(expected, rel=1e-6)


def test_one_query_for_each_object_judged_by_its_box_alone_is_cross_entropy_with_the_iou() -> None:
    """k = 1, alpha = 0 and tau without end: of the Align loss's own ideas nothing but the IoU as target is left."""
    predictions, targets = queries(COUNTS)
    rule = QueryHungarian(copies=1, rank=Rank(quality_alpha=0.0, tau=1e30))
    matches = rule(predictions, targets)
    supervision = QuerySupervision(predictions, targets, matches)
    label = targets.labels[matches.target_idx]
    at_pairs = predictions.pred_logits[matches.image_idx, matches.pred_idx, label]
    iou = matched_iou(supervision, eps=1e-6)

    everything = predictions.pred_logits
    background = everything.sigmoid() ** 2 * -(1 - everything.sigmoid()).log()
    background[matches.image_idx, matches.pred_idx, label] = 0
    plain = torch.nn.functional.binary_cross_entropy_with_logits(at_pairs, iou.double(), reduction="sum")
    value = IaBce(quality_alpha=0.0, quality_floor=0.0)(supervision)
    assert value.item() == pytest.approx((background.sum() + plain).item(), rel=1e-9)


def test_with_a_target_of_one_the_align_loss_is_focal_loss_without_its_alpha() -> None:
    predictions, targets = queries(COUNTS)
    supervision = matched_in_turn(predictions, targets)
    # The floor of 1 makes every quality 1.
    expected = class_loss_entry_by_entry(
        supervision, lambda _, p: -((1 - p) ** 2) * math.log(p), lambda p: -(p**2) * math.log(1 - p)
    )
    assert Align(quality_floor=1.0)(supervision).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [Align(), IaBce()], ids=lambda loss: loss.kind)
def test_the_target_has_no_gradient(loss: Align | IaBce) -> None:
    predictions, targets = queries(COUNTS)
    logits = predictions.pred_logits.clone().requires_grad_()
    boxes = predictions.pred_boxes.clone().requires_grad_()
    made = dataclasses.replace(predictions, pred_logits=logits, pred_boxes=boxes)
    value = loss(matched_in_turn(made, targets))
    of_boxes, of_logits = torch.autograd.grad(value, [boxes, logits], allow_unused=True)
    assert of_boxes is None

    fixed = soft_target(
        matched_in_turn(predictions, targets),
        quality_alpha=loss.quality_alpha,
        floor=loss.quality_floor,
        iou_eps=loss.iou_eps,
    )
    # The same loss with the target as weights of pairs whose quality is held at 1.
    constant = loss.__class__(quality_floor=1.0)(matched_in_turn(made, targets, weights=fixed))
    (expected,) = torch.autograd.grad(constant, logits)
    assert torch.allclose(of_logits, expected)


@pytest.mark.parametrize("loss", [Align(quality_floor=1.0), IaBce(quality_floor=1.0)], ids=lambda x: x.kind)
def test_the_gradient_of_the_logits_is_that_of_finite_differences(loss: Align | IaBce) -> None:
    predictions, targets = queries((2, 1))
    weights = torch.rand(6, generator=torch.Generator().manual_seed(1)).double()

    def value(logits: Tensor) -> Tensor:
        made = dataclasses.replace(predictions, pred_logits=logits)
        return loss(matched_in_turn(made, targets, weights=weights))

    assert torch.autograd.gradcheck(value, predictions.pred_logits.clone().requires_grad_())


def test_box_losses_keep_their_gradient_whichever_loss_is_asked_first() -> None:
    predictions, targets = queries(COUNTS)

    def gradient(*losses: Align | BoxL1 | QueryGiou) -> Tensor:
        boxes = predictions.pred_boxes.clone().requires_grad_()
        supervision = matched_in_turn(dataclasses.replace(predictions, pred_boxes=boxes), targets)
        total = torch.stack([loss(supervision) for loss in losses]).sum()
        return torch.autograd.grad(total, boxes)[0]

    boxes_only = gradient(BoxL1(), QueryGiou())
    assert boxes_only.any()
    assert torch.equal(gradient(Align(), BoxL1(), QueryGiou()), boxes_only)


def test_box_losses_weigh_pairs_as_their_match_says_where_asked() -> None:
    predictions, targets = queries(COUNTS)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.25, 1.0, 0.5, 0.125, 3.0]).double()
    supervision = matched_in_turn(predictions, targets, weights=weights)
    singles = [
        QuerySupervision(
            predictions,
            targets,
            Matches(*(x[i : i + 1] for x in (m.image_idx, m.pred_idx, m.target_idx))),
        )
        for m in [supervision.matches]
        for i in range(len(weights))
    ]
    for kind in (BoxL1, QueryGiou):
        each = [kind()(single).item() for single in singles]
        weighed = sum(w * x for w, x in zip(weights.tolist(), each, strict=True))
        assert kind(weigh_by="match")(supervision).item() == pytest.approx(weighed)
        assert kind()(supervision).item() == pytest.approx(sum(each))
        # Where the assigner gave no weights, each pair counts as one.
        assert kind(weigh_by="match")(matched_in_turn(predictions, targets)).item() == pytest.approx(
            sum(each)
        )


# ------------------------------------------------------------------ mixed matching


def layer_of(predictions: QueryPredictions, i: int) -> QueryPredictions:
    return QueryPredictions(predictions.pred_logits[i : i + 1], predictions.pred_boxes[i : i + 1])


def test_a_crowded_image_has_fewer_copies_and_the_others_are_as_they_are_alone() -> None:
    """12 queries, at most half positive, k = 4: 5 objects get one query each, 2 get three, 1 gets four."""
    counts = (5, 2, 1)
    rule = QueryHungarian(copies=4, most_positive=0.5, rank=Rank())
    predictions, targets = queries(counts, layers=2)
    matches = rule(predictions, targets)
    assert matches.weights is not None
    assert torch.bincount(matches.image_idx).tolist() == [5, 6, 4] * 2

    for image in range(len(targets.counts)):
        alone = rule(layer_of(predictions, image), targets_of(targets, image))
        mine = matches.image_idx == image
        assert alone.weights is not None
        assert torch.equal(matches.pred_idx[mine], alone.pred_idx)
        assert torch.equal(matches.target_idx[mine] - sum(targets.counts[:image]), alone.target_idx)
        assert torch.equal(matches.weights[mine], alone.weights)


def test_an_object_keeps_a_query_even_where_most_queries_are_matched() -> None:
    """12 queries, at most half positive: 8 objects would get 0.75 copies each (spec 4.1)."""
    predictions, targets = queries((8, 12))
    matches = QueryHungarian(copies=4, most_positive=0.5)(predictions, targets)
    assert sorted(matches.target_idx.tolist()) == list(range(20))


def test_a_batch_costs_what_its_images_cost_alone() -> None:
    predictions, targets = queries((5, 0, 2, 1))
    rule = QueryHungarian(copies=4, most_positive=0.5, rank=Rank())
    losses = (Align(), IaBce(), BoxL1(weigh_by="match"), QueryGiou(weigh_by="match"))
    together = QuerySupervision(predictions, targets, rule(predictions, targets))
    alone = [
        QuerySupervision(mine, objects, rule(mine, objects))
        for mine, objects in ((layer_of(predictions, i), targets_of(targets, i)) for i in range(4))
    ]
    for loss in losses:
        assert loss(together).item() == pytest.approx(sum(loss(one).item() for one in alone), rel=1e-9)


def test_losses_are_divided_by_the_objects_however_often_they_are_repeated() -> None:
    predictions, targets = queries((2, 1))
    for copies in (1, 3):
        rule = QueryHungarian(copies=copies, rank=Rank())
        branch = Branch(predictor=DecoderOutput(), assigner=rule, losses={"cls": Align()})
        total = Align()(QuerySupervision(predictions, targets, rule(predictions, targets)))
        assert supervise(branch, predictions, targets)["cls"].item() == pytest.approx(total.item() / 3)
