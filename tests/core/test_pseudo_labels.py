"""Which detections become pseudo labels, and where they are in another view."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detbench.core.boxes import xyxy_to_cxcywh
from detbench.core.teaching.labels import Candidates, candidates_of, moved
from detbench.core.types import QueryPredictions
from detbench.parts.teaching import PseudoLabels

SIZE = (100, 200)  # height, width of every image
RULE = PseudoLabels()


def predicted(images: list[list[tuple[tuple[float, ...], list[float]]]]) -> QueryPredictions:
    """Two layers of two classes: xyxy pixels and class probabilities of each query; the first layer says nothing."""
    whwh = torch.tensor([SIZE[1], SIZE[0]] * 2, dtype=torch.float64)
    boxes = torch.tensor([[box for box, _ in image] for image in images], dtype=torch.float64) / whwh
    logits = torch.tensor([[prob for _, prob in image] for image in images], dtype=torch.float64).logit()
    return QueryPredictions(
        torch.cat([torch.full_like(logits, 5.0), logits]), xyxy_to_cxcywh(torch.cat([boxes, boxes])), 2
    )


def candidates(boxes: list[tuple[float, ...]], scores: list[float], counts: tuple[int, ...]) -> Candidates:
    """Of class 0, on images of `SIZE`."""
    return Candidates(
        torch.zeros(len(scores), dtype=torch.int64),
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores),
        torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        counts,
        (SIZE,) * len(counts),
    )


LEFT, NEAR_LEFT, RIGHT = (0.0, 0.0, 50.0, 80.0), (2.0, 0.0, 52.0, 80.0), (100.0, 10.0, 180.0, 90.0)
NOBODY = (60.0, 0.0, 90.0, 30.0)


def test_a_score_must_reach_mean_plus_unbiased_deviation_of_what_suppression_leaves():
    # Left: .9, and .6 suppressed by it; right: .3; nobody: .2; other classes: .02 each, at all four.
    found = candidates_of(
        RULE,
        predicted(
            [[(LEFT, [0.9, 0.02]), (NEAR_LEFT, [0.6, 0.005]), (RIGHT, [0.3, 0.02]), (NOBODY, [0.2, 0.02])]]
        ),
        [SIZE],
    )
    left = [0.9, 0.3, 0.2, 0.02, 0.02, 0.02]
    mean = sum(left) / 6
    deviation = math.sqrt(sum((s - mean) ** 2 for s in left) / 5)
    assert 0.3 < mean + deviation < 0.9
    assert found.counts == (1,)
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.boxes[0].tolist() == pytest.approx(LEFT)
    assert found.labels.tolist() == [0]


def test_suppression_is_by_class():
    found = candidates_of(RULE, predicted([[(LEFT, [0.9, 0.001]), (NEAR_LEFT, [0.001, 0.9])]]), [SIZE])
    assert sorted(found.labels.tolist()) == [0, 1]  # equal scores have no deviation


def test_a_lone_detection_has_no_deviation_to_stand_out_from_and_an_image_may_have_none():
    found = candidates_of(
        RULE,
        predicted([[(LEFT, [0.005, 0.001])], [(RIGHT, [0.9, 0.9])], [(LEFT, [0.001, 0.9])]]),
        [SIZE] * 3,
    )
    assert found.counts == (0, 2, 0)
    assert found.image_idx.tolist() == [1, 1]
    assert sorted(found.labels.tolist()) == [0, 1]


def test_what_lies_outside_the_image_is_no_candidate_but_counts_for_the_deviation():
    outside = (210.0, 10.0, 240.0, 30.0)
    inside = [(LEFT, [0.5, 0.001]), (RIGHT, [0.02, 0.001]), (NOBODY, [0.02, 0.001])]
    images = [[(outside, [0.9, 0.001]), *inside]]
    assert candidates_of(RULE, predicted(images), [SIZE]).counts == (0,)
    assert candidates_of(RULE, predicted([inside]), [SIZE]).counts == (1,)


def test_the_threshold_keeps_equal_scores_and_gives_pseudo_objects():
    found = candidates([LEFT, RIGHT, LEFT], [0.7, 0.4, 0.3], (2, 1))
    objects = found.above(0.4)
    assert objects.pseudo
    assert objects.counts == (2, 0)
    assert objects.image_idx.tolist() == [0, 0]
    assert torch.equal(objects.boxes, found.boxes[:2])


def _affine(angle: float, shift: tuple[float, float]) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, shift[0]], [s, c, shift[1]], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_a_moved_box_is_the_box_around_its_turned_corners():
    found = candidates([(10.0, 20.0, 50.0, 40.0), (60.0, 30.0, 90.0, 50.0)], [0.9, 0.8], (1, 1))
    turned = moved(
        found, torch.stack([_affine(0.3, (12.0, 3.0)), _affine(0.0, (-10.0, 5.0))]), [(120, 220)] * 2
    )
    points = [
        (math.cos(0.3) * x - math.sin(0.3) * y + 12, math.sin(0.3) * x + math.cos(0.3) * y + 3)
        for x in (10, 50)
        for y in (20, 40)
    ]
    xs, ys = zip(*points, strict=True)
    assert turned.boxes[0].tolist() == pytest.approx([min(xs), min(ys), max(xs), max(ys)])
    assert turned.boxes[1].tolist() == pytest.approx([50, 35, 80, 55])
    assert turned.sizes == ((120, 220), (120, 220))
    assert torch.equal(turned.scores, found.scores)


def test_a_box_that_leaves_the_view_becomes_empty_and_stays():
    found = candidates([LEFT, RIGHT], [0.9, 0.8], (2,))
    gone = moved(found, _affine(0.0, (100.0, 0.0))[None], [(50, 100)])
    assert gone.counts == (2,)
    assert gone.boxes[0].tolist() == [100, 0, 100, 50]
    assert gone.boxes[1].tolist() == [100, 10, 100, 50]
