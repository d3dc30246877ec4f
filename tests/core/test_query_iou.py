"""DETA's assignment against loops over single boxes, and its corner cases worked by hand (spec 6.2)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detbench.core.assign.query_iou import overlaps
from detbench.core.assign.sampling import random_subset
from detbench.core.boxes import cxcywh_to_xyxy
from detbench.core.supervise import QuerySupervision
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.parts.assigners import QueryIou
from detbench.parts.losses import Focal

SIZE = (100, 200)  # height, width
COUNTS = (3, 0, 4, 1)
Pair = tuple[int, int, int]


def targets_of(*images: list[tuple[float, float, float, float]]) -> Targets:
    """Objects of class 0, 1, 2, ... in each image, from normalised xyxy boxes."""
    height, width = SIZE
    boxes = [torch.tensor(image).reshape(-1, 4) * torch.tensor([width, height] * 2) for image in images]
    return Targets.of([torch.arange(len(image)) for image in boxes], boxes, [SIZE] * len(images))


def predictions_at(anchors: Tensor, *, num_layers: int = 1, num_classes: int = 5) -> QueryPredictions:
    """Random logits and boxes of candidates that start at (images, Q, 4) normalised xyxy boxes."""
    num_images, num = anchors.shape[:2]
    generator = torch.Generator().manual_seed(1)
    center, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    return QueryPredictions(
        torch.randn(num_layers * num_images, num, num_classes, generator=generator),
        torch.rand(num_layers * num_images, num, 4, generator=generator),
        num_layers=num_layers,
        anchors=torch.cat([center, size], -1),
    )


def random_boxes(num: int, generator: torch.Generator) -> Tensor:
    """(num, 4) normalised xyxy boxes on a coarse lattice, so that equal overlaps happen."""
    low = torch.randint(0, 6, (num, 2), generator=generator)
    return torch.cat([low, low + torch.randint(1, 5, (num, 2), generator=generator)], 1) / 10


def scene(seed: int, num: int = 30) -> tuple[QueryPredictions, Targets]:
    generator = torch.Generator().manual_seed(seed)
    objects = [[tuple(box) for box in random_boxes(n, generator).tolist()] for n in COUNTS]
    anchors = torch.stack([random_boxes(num, generator) for _ in COUNTS])
    return predictions_at(anchors), targets_of(*objects)


def plain_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area - width * height)


def as_pairs(matches: Matches) -> list[Pair]:
    columns = (matches.image_idx, matches.pred_idx, matches.target_idx)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def brute_force(rule: QueryIou, predictions: QueryPredictions, targets: Targets) -> set[Pair]:
    """Spec 6.2 word for word, one box after another, without the random subset; equal overlaps by lower index."""
    assert predictions.anchors is not None
    pairs: set[Pair] = set()
    table = overlaps(predictions.anchors, targets, eps=0.0)
    start = 0
    for image, count in enumerate(targets.counts):
        rows = table[image, :count].tolist()
        owner: dict[int, int] = {}
        for q in range(predictions.anchors.shape[1] if count else 0):
            column = [row[q] for row in rows]
            own = column.index(max(column))
            positive = column[own] >= rule.positive
            if rule.low_quality == "any":
                positive |= any(row[q] == max(row) for row in rows)
            elif rule.low_quality == "own":
                positive |= rows[own][q] == max(rows[own])
            if positive:
                owner[q] = own
        for j, row in enumerate(rows):
            mine = [q for q, own in owner.items() if own == j]
            order = sorted(range(len(row)), key=lambda q: -row[q])
            if rule.balance_by == "none":
                chosen = mine
            elif rule.balance_by == "row":
                chosen = order[: min(len(mine), rule.balance)]
            else:
                chosen = [q for q in mine if row[q] >= row[order[rule.balance - 1]]]
            pairs |= {(image, q, start + j) for q in chosen}
        start += count
    return pairs


def overlap_of(pair: Pair, predictions: QueryPredictions, targets: Targets) -> float:
    image, q, target = pair
    assert predictions.anchors is not None
    anchor = cxcywh_to_xyxy(predictions.anchors[image, q])
    return plain_iou(anchor.tolist(), cxcywh_to_xyxy(targets.cxcywh[target]).tolist())


def test_overlaps_are_those_of_single_boxes_and_minus_one_where_there_is_no_object() -> None:
    predictions, targets = scene(0, num=6)
    assert predictions.anchors is not None
    table = overlaps(predictions.anchors, targets.repeat(3), eps=0.0)
    assert table.shape == (4, 4, 6)
    for i, count in enumerate(COUNTS):
        assert (table[i, count:] == -1).all()
        for j in range(count):
            for q in range(6):
                plain = overlap_of((i, q, sum(COUNTS[:i]) + j), predictions, targets)
                assert table[i, j, q].item() == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "rule",
    [
        QueryIou(most_positive=1.0, positive=0.5),
        QueryIou(most_positive=1.0, positive=0.3, balance=2),
        QueryIou(most_positive=1.0, positive=0.3, balance_by="none"),
        QueryIou(most_positive=1.0, positive=0.3, balance=3, balance_by="threshold", low_quality="own"),
        QueryIou(most_positive=1.0, positive=0.6, low_quality="none"),
        QueryIou(most_positive=1.0, positive=0.6, balance=1),
    ],
)
def test_the_rule_agrees_with_a_loop_over_single_boxes(rule: QueryIou, seed: int) -> None:
    predictions, targets = scene(seed)
    found, plain = as_pairs(rule(predictions, targets)), brute_force(rule, predictions, targets)
    assert len(found) == len(set(found)) == len(plain)
    # Which of several equal overlaps is taken is open, so pairs are compared by object and overlap.
    assert Counter(
        (t, round(overlap_of((i, q, t), predictions, targets), 5)) for i, q, t in found
    ) == Counter((t, round(overlap_of((i, q, t), predictions, targets), 5)) for i, q, t in plain)
    if rule.balance_by != "row":
        assert set(found) == plain


def test_an_object_nobody_overlaps_makes_every_other_candidate_positive() -> None:
    far, near = (0.9, 0.9, 1.0, 1.0), (0.0, 0.0, 0.4, 0.4)
    anchors = torch.tensor([[[0.0, 0.0, 0.1, 0.1]] * 3 + [[0.2, 0.2, 0.6, 0.6]] * 3])
    rule = QueryIou(most_positive=1.0)
    # Every candidate has the far object's best overlap, 0, and belongs to the near one: four of the near one's row.
    found = as_pairs(rule(predictions_at(anchors), targets_of([near, far])))
    assert len(found) == 4
    assert {target for _, _, target in found} == {0}
    assert {q for _, q, _ in found} == {3, 4, 5} | {q for _, q, _ in found if q < 3}

    # Without balancing the flood is there in full; without the rule there is nothing.
    flood = as_pairs(replace(rule, balance_by="none")(predictions_at(anchors), targets_of([near, far])))
    assert [q for _, q, _ in flood] == [0, 1, 2, 3, 4, 5]
    assert not as_pairs(replace(rule, low_quality="none")(predictions_at(anchors), targets_of([near, far])))
    own = as_pairs(replace(rule, low_quality="own")(predictions_at(anchors), targets_of([near, far])))
    assert {q for _, q, _ in own} == {3, 4, 5}


def test_an_object_ends_without_a_positive_where_its_best_candidate_belongs_to_another() -> None:
    large, small = (0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.2, 0.2)
    anchors = torch.tensor([[[0.0, 0.0, 0.38, 0.38], [0.5, 0.5, 0.9, 0.9]]])
    found = as_pairs(QueryIou(most_positive=1.0)(predictions_at(anchors), targets_of([large, small])))
    assert found == [(0, 0, 0)]


def test_a_candidate_chosen_for_two_objects_answers_for_both_boxes_but_the_last_class() -> None:
    # Candidates 0 and 1 belong to the objects 0 and 1, and candidate 2 to object 1: object 1's two best are 0 and 1.
    objects = [(0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.4, 0.35)]
    anchors = torch.tensor([[[0.0, 0.0, 0.4, 0.39], [0.0, 0.0, 0.4, 0.35], [0.0, 0.0, 0.4, 0.22]]])
    predictions, targets = predictions_at(anchors), targets_of(objects)
    matches = QueryIou(most_positive=1.0, positive=0.6)(predictions, targets)
    assert as_pairs(matches) == [(0, 0, 0), (0, 1, 1), (0, 0, 1)]
    supervision = QuerySupervision(predictions, targets, matches)
    assert supervision.is_last.tolist() == [False, True, True]
    only_last = replace(
        matches,
        image_idx=matches.image_idx[1:],
        pred_idx=matches.pred_idx[1:],
        target_idx=matches.target_idx[1:],
    )
    torch.testing.assert_close(
        Focal()(supervision), Focal()(QuerySupervision(predictions, targets, only_last))
    )


def test_all_layers_share_one_assignment() -> None:
    predictions, targets = scene(3)
    assert predictions.anchors is not None
    once = as_pairs(QueryIou(most_positive=1.0)(predictions, targets))
    layered = QueryPredictions(
        predictions.pred_logits.repeat(3, 1, 1),
        predictions.pred_boxes.repeat(3, 1, 1),
        num_layers=3,
        anchors=predictions.anchors,
    )
    found = as_pairs(QueryIou(most_positive=1.0)(layered, targets.repeat(3)))
    images, objects = len(COUNTS), sum(COUNTS)
    assert found == [(i + n * images, q, t + n * objects) for n in range(3) for i, q, t in once]


def test_decoded_boxes_have_no_say() -> None:
    predictions, targets = scene(4)
    moved = replace(
        predictions, pred_boxes=predictions.pred_boxes.flip(1), pred_logits=-predictions.pred_logits
    )
    rule = QueryIou(most_positive=1.0)
    assert as_pairs(rule(predictions, targets)) == as_pairs(rule(moved, targets))


def test_positives_are_bounded_by_the_share_before_they_are_balanced() -> None:
    anchors = torch.tensor([[[0.0, 0.0, 0.4, 0.4]] * 20] * 2)
    targets = targets_of([(0.0, 0.0, 0.4, 0.4)], [(0.0, 0.0, 0.4, 0.39)])
    predictions = predictions_at(anchors)
    assert Counter(i for i, _, _ in as_pairs(QueryIou(balance_by="none")(predictions, targets))) == {
        0: 5,
        1: 5,
    }
    few = QueryIou(balance_by="none", sample=6, most_positive=0.5)
    assert Counter(i for i, _, _ in as_pairs(few(predictions, targets))) == {0: 3, 1: 3}
    # Three of the row's best, for three positives are left to count.
    assert len(as_pairs(QueryIou(sample=6, most_positive=0.5)(predictions, targets))) == 6


def test_every_positive_is_as_likely_to_stay_and_the_generator_decides() -> None:
    positive = torch.zeros(1, 10, dtype=torch.bool)
    positive[0, [1, 4, 5, 8]] = True
    torch.manual_seed(0)
    kept = torch.stack([random_subset(positive, most=2)[0] for _ in range(2000)])
    assert (kept.sum(1) == 2).all()
    share = kept.double().mean(0)
    assert share[~positive[0]].sum() == 0
    assert (share[positive[0]] - 0.5).abs().max() < 0.05  # 4.5 standard deviations
    torch.manual_seed(7)
    first = random_subset(positive, most=2)
    torch.manual_seed(7)
    assert torch.equal(first, random_subset(positive, most=2))
    assert torch.equal(random_subset(positive, most=5), positive)


def test_a_batch_without_objects_has_no_pairs() -> None:
    anchors = torch.rand(2, 7, 4).sort(-1).values
    matches = QueryIou()(predictions_at(anchors, num_layers=2), targets_of([], []).repeat(2))
    assert as_pairs(matches) == []
    assert matches.image_idx.dtype == matches.pred_idx.dtype == matches.target_idx.dtype == torch.int64


def test_the_overlap_of_the_smallest_boxes_has_no_epsilon() -> None:
    """An object of a quarter of a millionth of the image, candidates with IoU 1 and 0.64 ("Two IoU conventions")."""
    tiny = [(0.5, 0.5, 0.5005, 0.5005)]
    anchors = torch.tensor([[[0.5, 0.5, 0.5005, 0.5005], [0.5, 0.5, 0.5004, 0.5004], [0.2, 0.2, 0.4, 0.4]]])
    matches = QueryIou(positive=0.6, low_quality="none", most_positive=1.0)(
        predictions_at(anchors), targets_of(tiny)
    )
    assert matches.pred_idx.tolist() == [0, 1]
