"""Each object's most confident and best detection, by hand and against loops (Align-DETR, Figure 1)."""

from __future__ import annotations

import numpy as np
import pytest

from detbench.metrics import matching
from detbench.metrics.alignment import measure
from detbench.metrics.tables import DetectionTable, GroundTruth


def truth_of(image: list[int], label: list[int], boxes: list[list[float]], crowd: list[int]) -> GroundTruth:
    xywh = np.array(boxes, float).reshape(-1, 4)
    return GroundTruth(
        image=np.array(image, np.int64), label=np.array(label, np.int64), boxes_xywh=xywh,
        area=xywh[:, 2] * xywh[:, 3], iscrowd=np.array(crowd, bool), num_images=10, num_classes=5,
    )  # fmt: skip


def table_of(
    image: list[int], label: list[int], boxes: list[list[float]], scores: list[float]
) -> DetectionTable:
    return DetectionTable(
        np.array(image, np.int64),
        np.array(label, np.int64),
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores, float),
    )


def test_one_object_whose_most_confident_box_is_not_its_best() -> None:
    truth = truth_of([3], [1], [[0, 0, 10, 10]], [0])
    found = measure(
        truth,
        table_of(
            image=[3, 3, 3, 3, 2],
            label=[1, 1, 0, 1, 1],
            boxes=[[0, 0, 10, 5], [0, 0, 10, 8], [0, 0, 10, 9], [50, 50, 10, 10], [0, 0, 10, 10]],
            # The highest score is of a box elsewhere, the next of the object's worst, that of another class counts
            # for the best alone, and another image for nothing.
            scores=[0.7, 0.4, 0.8, 0.9, 1.0],
        ),
    )
    assert found.confident.tolist() == [0.5]
    assert found.best.tolist() == [0.9]
    assert found.gap == pytest.approx(0.4)
    assert found.objects == 1


def test_objects_nobody_found_and_crowds_are_left_out() -> None:
    truth = truth_of([0, 0, 1], [0, 1, 0], [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], [0, 0, 1])
    found = measure(truth, table_of([0, 1], [0, 0], [[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.5]))
    assert found.best.tolist() == [1.0]
    assert found.objects == 2
    nothing = measure(truth, table_of([], [], [], []))
    assert len(nothing.best) == len(nothing.confident) == 0


@pytest.mark.parametrize("pairs_at_once", [7, 1 << 18])
def test_it_is_what_loops_over_objects_and_detections_find(
    pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", pairs_at_once)
    random = np.random.default_rng(0)

    def boxes(count: int) -> list[list[float]]:
        return np.concatenate(
            [random.integers(0, 20, (count, 2)), random.integers(1, 20, (count, 2))], 1
        ).tolist()

    objects = (random.integers(0, 10, 25).tolist(), random.integers(0, 3, 25).tolist(), boxes(25))
    truth = truth_of(*objects, (random.random(25) < 0.2).astype(int).tolist())
    scores = random.permutation(200) / 200
    table = table_of(
        random.integers(0, 10, 200).tolist(), random.integers(0, 3, 200).tolist(), boxes(200), scores.tolist()
    )
    expected = []
    for image, label, box, crowd in zip(*objects, truth.iscrowd, strict=True):
        mine = [
            (score, other == label, iou(box, theirs))
            for i, other, theirs, score in zip(
                table.image, table.label, table.boxes_xywh.tolist(), table.scores, strict=True
            )
            if i == image
        ]
        upon = [(score, value) for score, same, value in mine if same and value > 0]
        if upon and not crowd:
            expected.append((max(upon)[1], max(value for *_, value in mine)))
    found = measure(truth, table)
    assert len(expected) > 10
    assert sorted(zip(found.confident.tolist(), found.best.tolist(), strict=True)) == sorted(expected)
    assert found.gap > 0


def iou(a: list[float], b: list[float]) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(high, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)
