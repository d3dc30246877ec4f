"""ATSS against a loop over objects, and its conventions by hand (spec 7)."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch
from scenes import LEVELS, SIZE, STRIDES, some_predictions, some_targets
from torchvision.ops import box_iou

from detbench.core.anchors import grid_anchors
from detbench.core.assign.atss import assign_atss
from detbench.core.types import Anchors, DensePredictions, Matches, Targets
from detbench.parts.assigners import Atss

SIZES = [SIZE, (64, 96), (90, 70)]
COUNTS = (5, 0, 7)


def squares() -> Anchors:
    return grid_anchors(
        LEVELS,
        STRIDES,
        octave_scale=2.0,
        scales_per_octave=1,
        ratios=(1.0,),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def scene(seed: int) -> tuple[DensePredictions, Targets]:
    return some_predictions(squares(), 3, seed), some_targets(COUNTS, seed, sizes=SIZES)


def pairs(matches: Matches) -> dict[tuple[int, int], int]:
    triples = zip(
        *(x.tolist() for x in (matches.image_idx, matches.pred_idx, matches.target_idx)), strict=True
    )
    return {(i, q): m for i, q, m in triples}


def by_loops(anchors: Anchors, targets: Targets, per_level: int) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], tuple[float, int]] = {}
    cells = [(r, c, s) for (h, w), s in zip(LEVELS, STRIDES, strict=True) for r in range(h) for c in range(w)]
    for m, (x1, y1, x2, y2) in enumerate(targets.boxes.tolist()):
        image = int(targets.image_idx[m])
        height, width = targets.sizes[image]
        candidates, start = [], 0
        for h, w in LEVELS:
            level = []
            for q in range(start, start + h * w):
                row, column, stride = cells[q]
                if row * stride < height and column * stride < width:
                    distance = math.dist((column * stride, row * stride), ((x1 + x2) / 2, (y1 + y2) / 2))
                    level.append((distance, q))
            candidates += [q for _, q in sorted(level)[:per_level]]
            start += h * w
        iou = {q: float(box_iou(anchors.boxes[q : q + 1], targets.boxes[m : m + 1])) for q in candidates}
        threshold = statistics.mean(iou.values()) + statistics.stdev(iou.values())
        for q in candidates:
            row, column, stride = cells[q]
            x, y = column * stride, row * stride
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if iou[q] >= threshold and inside and iou[q] > found.get((image, q), (-1.0, 0))[0]:
                found[image, q] = (iou[q], m)
    return {place: m for place, (_, m) in found.items()}


@pytest.mark.parametrize("per_level", [1, 4, 9])
@pytest.mark.parametrize("seed", range(6))
def test_the_rule_written_as_a_loop_over_objects(seed: int, per_level: int) -> None:
    predictions, targets = scene(seed)
    found = pairs(assign_atss(Atss(per_level=per_level), predictions, targets))
    assert found == by_loops(predictions.anchors, targets, per_level)
    assert found


def test_anchors_beyond_an_images_own_size_are_ignored() -> None:
    predictions, targets = scene(0)
    ignored = Atss()(predictions, targets).ignored
    assert ignored is not None
    finest = ignored[:, : 12 * 16].view(3, 12, 16)
    for image, (height, width) in zip(finest, SIZES, strict=True):
        expected = torch.ones(12, 16, dtype=torch.bool)
        expected[: math.ceil(height / 8), : math.ceil(width / 8)] = False
        assert torch.equal(image, expected)


def test_a_batch_is_matched_as_its_images_alone_in_any_order() -> None:
    predictions, targets = scene(1)
    order = [2, 0, 1]
    first = [0, 5, 5]
    turned = Targets.of(
        [targets.labels[targets.image_idx == i] for i in order],
        [targets.boxes[targets.image_idx == i] for i in order],
        [SIZES[i] for i in order],
    )
    found = pairs(Atss()(dataclasses.replace(predictions), turned))
    moved = [0, 7, 12]
    back = {(order[i], q): m - moved[i] + first[order[i]] for (i, q), m in found.items()}
    assert back == pairs(Atss()(predictions, targets))


def test_of_two_objects_the_one_with_more_overlap_gets_an_anchor() -> None:
    predictions, _ = scene(0)
    anchor = predictions.anchors.boxes[5 * 16 + 6]  # 16 pixels wide around (48, 40)
    boxes = torch.stack([anchor + torch.tensor([-2.0, -2, 2, 2]), anchor, anchor])
    targets = Targets.of([torch.zeros(3, dtype=torch.int64)], [boxes], [SIZE])
    one = some_predictions(squares(), 1, 0)
    assert pairs(Atss()(one, targets))[0, 5 * 16 + 6] == 1  # of equals the first


def test_images_without_objects_match_nothing() -> None:
    matches = Atss()(some_predictions(squares(), 2, 0), some_targets((0, 0), 0))
    assert len(matches.pred_idx) == 0


def test_the_rule_looks_at_anchors_and_not_at_what_is_predicted() -> None:
    predictions, targets = scene(2)
    other = some_predictions(squares(), 3, 99)
    assert pairs(Atss()(predictions, targets)) == pairs(Atss()(other, targets))
