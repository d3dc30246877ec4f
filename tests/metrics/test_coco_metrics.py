"""COCO's numbers: against pycocotools on awkward scenes, and against values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from detbench.metrics import coco, pycoco
from detbench.metrics.coco import METRIC_NAMES
from detbench.metrics.tables import DetectionTable, GroundTruth


def awkward_scene(seed: int) -> tuple[GroundTruth, DetectionTable]:
    """Boxes on a grid, so that overlaps tie; few score values; crowds, zero-area boxes, areas on the limits,
    empty images and classes, up to 800 detections of an image."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(0, 7)), int(rng.integers(1, 5))
    objects = int(rng.integers(0, 40)) if images else 0
    found = int(rng.integers(0, rng.choice([5, 60, 800]))) if objects else 0
    grid = rng.choice([0.3, 1.0, 8.0])
    boxes = (
        np.concatenate(
            [rng.integers(0, 8, (objects, 2)) * 4, rng.integers(0, rng.choice([6, 40]), (objects, 2))], axis=1
        )
        * grid
    )
    image, label = rng.integers(0, max(images, 1), objects), rng.integers(0, classes, objects)
    limits = rng.choice([0, 1023.0, 1024, 1025, 9216, 9217, 2e10], objects)
    truth = GroundTruth(
        image=image,
        label=label,
        boxes_xywh=boxes,
        area=np.where(rng.random(objects) < 0.5, boxes[:, 2] * boxes[:, 3], limits),
        iscrowd=rng.random(objects) < rng.choice([0, 0.2]),
        num_images=images,
        num_classes=classes,
        image_area_factor=rng.choice([0.25, 1, 4], images) if rng.random() < 0.3 else None,
    )
    source = rng.integers(0, max(objects, 1), found)
    shifted = boxes[source] + rng.integers(-2, 3, (found, 4)) * grid * rng.choice([0, 0.5, 1])
    shifted[:, 2:] = np.maximum(shifted[:, 2:], 0)
    other_class = rng.random(found) < 0.2
    table = DetectionTable(
        image=image[source],
        label=np.where(other_class, rng.integers(0, classes, found), label[source]),
        boxes_xywh=shifted,
        scores=rng.integers(0, rng.choice([3, 1000]), found) / 1000,
    )
    return truth, table


def repeated(
    truth: GroundTruth, table: DetectionTable, weights: np.ndarray
) -> tuple[GroundTruth, DetectionTable]:
    """The data set in which image i stands weights[i] times, its copies side by side."""
    first = np.cumsum(weights) - weights

    def rows_and_images(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        copies = [(row, first[i] + copy) for row, i in enumerate(image) for copy in range(weights[i])]
        rows, images = np.array(copies, np.int64).reshape(-1, 2).T
        return rows, images

    rows, images = rows_and_images(truth.image)
    factor = truth.image_area_factor
    many_truth = GroundTruth(
        image=images,
        label=truth.label[rows],
        boxes_xywh=truth.boxes_xywh[rows],
        area=truth.area[rows],
        iscrowd=truth.iscrowd[rows],
        num_images=int(weights.sum()),
        num_classes=truth.num_classes,
        image_area_factor=None if factor is None else np.repeat(factor, weights),
    )
    rows, images = rows_and_images(table.image)
    many = DetectionTable(images, table.label[rows], table.boxes_xywh[rows], table.scores[rows])
    return many_truth, many


def assert_equal_results(ours: coco.CocoResult, theirs: coco.CocoResult) -> None:
    assert list(ours.summary) == list(METRIC_NAMES)
    assert ours.summary == pytest.approx(theirs.summary, abs=1e-12)
    np.testing.assert_allclose(ours.precision, theirs.precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall, theirs.recall, rtol=0, atol=1e-12)
    for name, values in ours.per_class.items():
        np.testing.assert_allclose(values, theirs.per_class[name], rtol=0, atol=1e-12)


def scene_of_one_image(
    objects: list[tuple[float, ...]], detections: list[tuple[float, ...]], **changes: object
) -> tuple[GroundTruth, DetectionTable]:
    """Objects as (label, x, y, w, h), detections as (label, score, x, y, w, h)."""
    rows, found = np.array(objects, float).reshape(-1, 5), np.array(detections, float).reshape(-1, 6)
    truth = GroundTruth(
        image=np.zeros(len(rows), np.int64),
        label=rows[:, 0].astype(np.int64),
        boxes_xywh=rows[:, 1:],
        area=rows[:, 3] * rows[:, 4],
        iscrowd=np.zeros(len(rows), bool),
        num_images=1,
        num_classes=2,
    )
    table = DetectionTable(
        np.zeros(len(found), np.int64), found[:, 0].astype(np.int64), found[:, 2:], found[:, 1]
    )
    return replace(truth, **changes), table


@pytest.mark.parametrize("block", range(8))
def test_four_hundred_awkward_scenes_give_pycocotools_numbers(block):
    for seed in range(block * 50, block * 50 + 50):
        truth, table = awkward_scene(seed)
        assert_equal_results(coco.evaluate(truth, table), pycoco.evaluate(truth, table))


def test_awkward_scenes_are_awkward():
    scenes = [awkward_scene(seed) for seed in range(400)]
    crowded = [np.bincount(table.image, minlength=1).max() > 100 for _, table in scenes]
    assert sum(crowded) > 50
    assert sum(truth.iscrowd.any() for truth, _ in scenes) > 100
    assert sum(len(np.unique(table.scores)) < len(table.scores) for _, table in scenes) > 200
    assert sum(bool((truth.boxes_xywh[:, 2:] == 0).any()) for truth, _ in scenes) > 100
    assert sum(truth.num_images == 0 for truth, _ in scenes) > 20


@pytest.mark.parametrize("block", range(4))
def test_image_weights_give_what_pycocotools_gives_on_copied_images(block):
    for seed in range(1000 + block * 25, 1000 + block * 25 + 25):
        truth, table = awkward_scene(seed)
        weights = np.random.default_rng(seed).integers(0, 4, truth.num_images)
        matches = coco.match(truth, table)
        weighted = coco.accumulate(matches, weights)
        copied = pycoco.evaluate(*repeated(truth, table, weights))
        assert_equal_results(weighted, copied)


def test_weights_of_one_change_nothing():
    matches = coco.match(*awkward_scene(7))
    assert_equal_results(
        coco.accumulate(matches, np.ones(matches.num_images, np.int64)), coco.accumulate(matches)
    )


def test_a_perfect_detection_scores_one_at_its_size_and_minus_one_where_nothing_is():
    # One object of 40 x 50 = 2000 square pixels: medium.
    truth, table = scene_of_one_image([(0, 10, 10, 40, 50)], [(0, 0.9, 10, 10, 40, 50)])
    summary = coco.evaluate(truth, table).summary
    absent = ["APs", "APl", "ARs", "ARl"]
    assert {name: summary[name] for name in absent} == dict.fromkeys(absent, -1)
    assert [summary[name] for name in METRIC_NAMES if name not in absent] == pytest.approx([1] * 8)


def test_average_precision_of_three_detections_by_hand():
    # Two objects. Ranked: right with IoU 1, wrong, right with IoU 8/10 = 0.8.
    # Precision envelope 1 up to recall 1/2, then 2/3: 51 and 50 of 101 recall points.
    # At 0.5, 0.55, ... 0.8 (7 thresholds): (51 + 50 * 2/3) / 101. At the other 3: 51 / 101.
    truth, table = scene_of_one_image(
        [(0, 0, 0, 10, 10), (0, 100, 0, 10, 10)],
        [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 50, 50, 10, 10), (0, 0.7, 100, 0, 8, 10)],
    )
    result = coco.evaluate(truth, table)
    at_half = (51 + 50 * 2 / 3) / 101
    assert result.summary["AP50"] == pytest.approx(at_half)
    assert result.summary["AP"] == pytest.approx(0.7 * at_half + 0.3 * 51 / 101)
    assert result.summary["AR1"] == 0.5
    assert result.summary["AR100"] == pytest.approx(0.7 * 1 + 0.3 * 0.5)
    np.testing.assert_allclose(result.per_class["AP"], [result.summary["AP"], -1])


def test_a_second_detection_of_the_same_object_is_wrong():
    # Ranked: right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    truth, table = scene_of_one_image(
        [(0, 0, 0, 10, 10), (0, 100, 0, 10, 10)],
        [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 0, 0, 10, 10), (0, 0.7, 100, 0, 10, 10)],
    )
    matches = coco.match(truth, table)
    assert matches.found_objects()[0].tolist() == [0, -1, 1]
    assert coco.accumulate(matches).summary["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_detections_inside_a_crowd_are_neither_right_nor_wrong():
    truth, table = scene_of_one_image(
        [(0, 0, 0, 10, 10), (0, 100, 100, 200, 200)],
        [(0, 0.9, 120, 120, 10, 10), (0, 0.8, 150, 150, 10, 10), (0, 0.7, 0, 0, 10, 10)],
        iscrowd=np.array([False, True]),
    )
    matches = coco.match(truth, table)
    assert matches.found_objects()[0].tolist() == [1, 1, 0]
    assert matches.ignored_detections()[0].tolist() == [True, True, False]
    assert coco.accumulate(matches).summary["AP"] == pytest.approx(1)


def test_of_equal_overlaps_the_later_object_wins():
    # The detection covers two equal neighbours alike: IoU 100 / 200 each.
    truth, table = scene_of_one_image([(0, 0, 0, 10, 10), (0, 10, 0, 10, 10)], [(0, 0.9, 0, 0, 20, 10)])
    assert coco.match(truth, table).found_objects()[0].tolist() == [1]


def test_areas_on_the_limits_belong_to_both_sizes():
    truth, table = scene_of_one_image([(0, 0, 0, 32, 32)], [(0, 0.9, 0, 0, 32, 32)])
    summary = coco.evaluate(truth, table).summary
    assert (summary["APs"], summary["APm"]) == (pytest.approx(1), pytest.approx(1))


def test_an_area_factor_moves_objects_and_detections_to_another_size():
    # 20 x 20 on an image of 160 x 120: a sixteenth of 640 x 480, so it counts as 80 x 80, medium.
    truth, table = scene_of_one_image(
        [(0, 0, 0, 20, 20)], [(0, 0.9, 0, 0, 20, 20)], image_area_factor=np.array([16.0])
    )
    summary = coco.evaluate(truth, table).summary
    assert (summary["APs"], summary["APm"]) == (-1, pytest.approx(1))


def test_only_the_best_hundred_of_an_image_and_class_count():
    detections = [(0, 0.5, 50, 50, 10, 10)] * 100 + [(0, 0.4, 0, 0, 10, 10), (1, 0.4, 0, 0, 10, 10)]
    truth, table = scene_of_one_image([(0, 0, 0, 10, 10), (1, 0, 0, 10, 10)], detections)
    matches = coco.match(truth, table)
    assert sorted(matches.detection.tolist()) == [*range(100), 101]
    assert coco.accumulate(matches).per_class["AP"].tolist() == [0, pytest.approx(1)]


def test_the_order_of_images_and_objects_changes_no_number_without_ties():
    rng = np.random.default_rng(3)
    truth, table = awkward_scene(15)
    table = replace(table, scores=rng.permutation(len(table.scores)) / 1000)
    shuffled = rng.permutation(len(table.image))
    table_shuffled = DetectionTable(*(column[shuffled] for column in vars(table).values()))
    assert_equal_results(coco.evaluate(truth, table), coco.evaluate(truth, table_shuffled))


def test_recall_can_be_counted_from_the_dense_flags():
    for seed in range(40):
        truth, table = awkward_scene(seed)
        matches = coco.match(truth, table)
        result = coco.accumulate(matches)
        for area, name in enumerate(coco.AREA_NAMES):
            right = (matches.found_objects(name) >= 0) & ~matches.ignored_detections(name)
            for label in range(truth.num_classes):
                positives = (~matches.object_ignored[area] & (truth.label == label)).sum()
                hits = right[:, matches.label == label].sum(axis=1)
                expected = hits / positives if positives else np.full(10, -1.0)
                np.testing.assert_allclose(result.recall[:, label, area, 2], expected)
