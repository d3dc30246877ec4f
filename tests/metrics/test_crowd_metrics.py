"""CrowdHuman's numbers: against values worked out by hand and against a reference that walks box by box."""

import itertools
import math

import numpy as np
import pytest

from detbench.metrics import crowd
from detbench.metrics.tables import DetectionTable, GroundTruth


def scene(
    objects: list[tuple[float, ...]], detections: list[tuple[float, ...]], images: int = 1
) -> tuple[GroundTruth, DetectionTable, np.ndarray]:
    """Objects (image, ignore, x, y, w, h) and detections (image, score, x, y, w, h) on 200 x 100 pixels."""
    rows, found = np.array(objects, float).reshape(-1, 6), np.array(detections, float).reshape(-1, 6)
    truth = GroundTruth(
        image=rows[:, 0].astype(np.int64),
        label=np.zeros(len(rows), np.int64),
        boxes_xywh=rows[:, 2:],
        area=rows[:, 4] * rows[:, 5],
        iscrowd=rows[:, 1].astype(bool),
        num_images=images,
        num_classes=1,
    )
    table = DetectionTable(
        found[:, 0].astype(np.int64), np.zeros(len(found), np.int64), found[:, 2:], found[:, 1]
    )
    return truth, table, np.full((images, 2), [200, 100])


def drawn_scene(seed: int) -> tuple[GroundTruth, DetectionTable, np.ndarray]:
    """Overlapping boxes on a grid, some beyond the image, so that overlaps and scores tie."""
    rng = np.random.default_rng(seed)
    images, count, found = int(rng.integers(1, 6)), int(rng.integers(1, 20)), int(rng.integers(0, 36))
    grid = rng.choice([5.0, 10.0])

    def boxes(number: int) -> np.ndarray:
        corners = rng.integers(-2, 12, (number, 2))
        return np.concatenate([corners, rng.integers(1, 6, (number, 2))], axis=1) * grid

    objects = np.column_stack([rng.integers(0, images, count), rng.random(count) < 0.2, boxes(count)])
    copied = objects[rng.integers(0, count, found)]
    copied[:, 2:] += rng.integers(-1, 2, (found, 4)) * grid * rng.choice([0, 0.5, 1])
    copied[:, 4:] = np.maximum(copied[:, 4:], 1)
    copied[:, 1] = rng.integers(0, rng.choice([4, 100]), found) / rng.choice([4, 100])
    return scene(objects.tolist(), copied.tolist(), images)


def naive_reference(truth: GroundTruth, table: DetectionTable, sizes: np.ndarray) -> dict[str, float]:
    """The definitions of spec 5.2, word for word; the assignment by trying all."""

    def clip(box, image):
        (x, y, w, h), (width, height) = box, sizes[image]
        return (
            min(max(x, 0), width - 1), min(max(y, 0), height - 1),
            max(min(x + w, width), 0), max(min(y + h, height), 0),
        )  # fmt: skip

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    def common(a, b):
        return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)

    def iou(a, b):
        return common(a, b) / (area(a) + area(b) - common(a, b) + 1e-6)

    def covered(a, regions):
        return any(common(a, region) / (area(a) + 1e-6) > 0.5 for region in regions)

    def heaviest(edges, used=frozenset()):
        """(weight, pairs) of the heaviest matching of edges[(d, g)], detection by detection."""
        if not edges:
            return 0.0, ()
        head, rest = edges[0], edges[1:]
        best = heaviest(rest, used)
        for g, weight in head[1]:
            if g not in used:
                tail = heaviest(rest, used | {g})
                if weight + tail[0] > best[0] + 1e-12:
                    best = weight + tail[0], ((head[0], g), *tail[1])
        return best

    merged, valid_total, jaccard = [], 0, {s: [] for s in range(10)}
    for image in range(truth.num_images):
        mine = [i for i in range(len(truth.image)) if truth.image[i] == image]
        objects = [clip(truth.boxes_xywh[i], image) for i in mine if not truth.iscrowd[i]]
        regions = [clip(truth.boxes_xywh[i], image) for i in mine if truth.iscrowd[i]]
        order = sorted((i for i in range(len(table.image)) if table.image[i] == image),
                       key=lambda i: -table.scores[i])  # fmt: skip
        boxes = [clip(table.boxes_xywh[i], image) for i in order]
        scores = [table.scores[i] for i in order]
        valid_total += len(objects)
        free = set(range(len(objects)))
        for box, score in zip(boxes, scores, strict=True):
            best, found = 0.5, None
            for g in sorted(free):
                if iou(box, objects[g]) > best:
                    best, found = iou(box, objects[g]), g
            if found is not None:
                free.remove(found)
                merged.append((score, True))
            elif not covered(box, regions):
                merged.append((score, False))
        for s in range(10):
            kept = [d for d, score in enumerate(scores) if score > s / 10]
            edges = [
                (d, [(g, iou(boxes[d], o)) for g, o in enumerate(objects) if iou(boxes[d], o) > 0.5])
                for d in kept
            ]
            pairs = heaviest([edge for edge in edges if edge[1]])[1]
            with_d, with_g = {d for d, _ in pairs}, {g for _, g in pairs}
            n = sum(d in with_d or not covered(boxes[d], regions) for d in kept)
            m = sum(g in with_g or not covered(o, regions) for g, o in enumerate(objects))
            if n or m:
                jaccard[s].append(len(pairs) / (n + m - len(pairs) + 1e-6))
    merged.sort(key=lambda row: -row[0])
    hits = list(itertools.accumulate(int(right) for _, right in merged))
    recall = [h / valid_total for h in hits]
    precision = [h / (i + 1) for i, h in enumerate(hits)]
    fppi = [(i + 1 - h) / truth.num_images for i, h in enumerate(hits)]
    misses = []
    for reference in (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0):
        at = [r for f, r in zip(fppi, recall, strict=True) if f >= reference] or recall[-1:] or [0]
        misses.append(1 - at[0])
    return {
        "AP50": sum(
            (recall[i] - recall[i - 1]) * (precision[i] + precision[i - 1]) / 2 for i in range(1, len(hits))
        ),
        "mMR": math.prod(misses) ** (1 / 9),
        "recall": recall[-1] if recall else 0,
        "JI": max(sum(values) / max(len(values), 1) for values in jaccard.values()),
    }


def test_drawn_scenes_give_what_walking_box_by_box_gives():
    compared = 0
    for seed in range(150):
        truth, table, sizes = drawn_scene(seed)
        if truth.iscrowd.all():
            continue
        result = crowd.evaluate(truth, table, sizes)
        assert result.summary == pytest.approx(naive_reference(truth, table, sizes), abs=1e-9), seed
        compared += 1
    assert compared > 130


def test_four_detections_by_hand():
    # Two images, three people. Ranked: right, right, wrong, right.
    # Precision 1, 1, 2/3, 3/4 at recall 1/3, 2/3, 2/3, 1; false positives per image 0, 0, 1/2, 1/2.
    truth, table, sizes = scene(
        [(0, 0, 0, 0, 20, 40), (0, 0, 50, 0, 20, 40), (1, 0, 0, 0, 20, 40)],
        [
            (0, 0.95, 0, 0, 20, 40),
            (0, 0.85, 50, 0, 20, 40),
            (0, 0.75, 120, 0, 20, 40),
            (1, 0.65, 0, 0, 20, 40),
        ],
        images=2,
    )
    result = crowd.evaluate(truth, table, sizes)
    assert result.summary["AP50"] == pytest.approx(1 / 3 * 1 + 0 + 1 / 3 * (2 / 3 + 3 / 4) / 2)
    assert result.summary["recall"] == 1
    # Up to 0.3162 the third detection is the first that reaches the rate (miss 1/3), beyond it the last
    # stands in (miss 0): the mean of logarithms is minus infinity.
    assert result.summary["mMR"] == 0
    # Keeping all: image 0 has 2 pairs of 3 detections and 2 people, 2/3; image 1 has 1.
    # Keeping those above 0.8: 1 and 0. The best is (2/3 + 1) / 2.
    assert result.summary["JI"] == pytest.approx(5 / 6, abs=1e-6)


def test_the_miss_rate_is_a_geometric_mean_by_hand():
    # Two images; of four people one is found before and one after the only false positive (1/2 an image).
    # The seven points 0.01 to 0.3162 are reached with it: miss 3/4. The points 0.5623 and 1 are never
    # reached, so the last detection stands in: miss 1/2.
    truth, table, sizes = scene(
        [(0, 0, 50.0 * i, 0, 20, 40) for i in range(4)],
        [(0, 0.9, 0, 0, 20, 40), (1, 0.8, 0, 0, 20, 40), (0, 0.7, 50, 0, 20, 40)],
        images=2,
    )
    expected = math.exp((7 * math.log(3 / 4) + 2 * math.log(1 / 2)) / 9)
    assert crowd.evaluate(truth, table, sizes).summary["mMR"] == pytest.approx(expected)


def test_the_miss_rate_is_read_at_nine_rates_of_false_positives():
    # One false positive more in each of 10,000 places, and fewer misses in each.
    place = np.arange(10_000)
    fppi, recall = (place + 1) / 10_000, place / 11_000
    read = [100, 178, 316, 562, 1000, 1778, 3162, 5623, 10_000]
    expected = math.prod(1 - (n - 1) / 11_000 for n in read) ** (1 / 9)
    assert crowd._log_average_miss_rate(fppi, recall) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_result_loses_the_area_before_its_first_detection():
    boxes = [(30.0 * i, 10, 20, 50) for i in range(6)]
    truth, table, sizes = scene([(0, 0, *box) for box in boxes], [(0, 1, *box) for box in boxes])
    summary = crowd.evaluate(truth, table, sizes).summary
    assert summary == pytest.approx({"AP50": 5 / 6, "mMR": 0, "recall": 1, "JI": 1}, abs=1e-6)


def test_an_ignore_region_absorbs_any_number_of_detections_but_not_a_match():
    # The person stands inside the region; two more detections there do not count.
    truth, table, sizes = scene(
        [(0, 0, 10, 10, 20, 40), (0, 1, 0, 0, 100, 100)],
        [(0, 0.9, 60, 10, 20, 40), (0, 0.8, 70, 20, 20, 40), (0, 0.7, 10, 10, 20, 40)],
    )
    result = crowd.evaluate(truth, table, sizes)
    assert result.precision.tolist() == [1]
    assert result.summary == pytest.approx({"AP50": 0, "mMR": 0, "recall": 1, "JI": 1}, abs=1e-6)


def test_boxes_are_clipped_before_they_are_compared():
    # Beyond the right edge the two boxes differ; within 200 pixels both are 20 wide.
    truth, table, sizes = scene([(0, 0, 180, 0, 20, 50)], [(0, 0.9, 180, 0, 100, 50)])
    assert crowd.evaluate(truth, table, sizes).summary["recall"] == 1


def test_an_overlap_of_one_half_is_not_enough():
    truth, table, sizes = scene([(0, 0, 0, 0, 20, 40)], [(0, 0.9, 0, 0, 10, 40)])
    assert crowd.evaluate(truth, table, sizes).summary["recall"] == 0


def test_without_detections_everything_is_missed():
    truth, table, sizes = scene([(0, 0, 0, 0, 20, 40)], [])
    assert crowd.evaluate(truth, table, sizes).summary == {"AP50": 0, "mMR": 1, "recall": 0, "JI": 0}


def test_without_people_there_is_nothing_to_measure():
    truth, table, sizes = scene([(0, 1, 0, 0, 20, 40)], [(0, 0.9, 100, 0, 20, 40)])
    assert set(crowd.evaluate(truth, table, sizes).summary.values()) == {-1}


def test_what_nms_leaves_over_is_what_torchvision_leaves_over():
    import torch
    from torchvision.ops import batched_nms

    for seed in range(30):
        rng = np.random.default_rng(seed)
        corners, sides = rng.uniform(-20, 90, (60, 2)), rng.uniform(5, 60, (60, 2))
        group = rng.integers(0, 4, 60)
        left = crowd.survives_nms(
            np.concatenate([corners, sides], axis=1), group, np.full((60, 2), 100), iou_threshold=0.5
        )
        # The metric clips low corners to the last pixel; falling scores say which of two comes first.
        low, high = corners.clip(0, 99), (corners + sides).clip(0, 100)
        theirs = batched_nms(
            torch.from_numpy(np.concatenate([low, high], axis=1)),
            torch.arange(60.0, 0, -1).double(),
            torch.from_numpy(group),
            0.5,
        )
        assert np.flatnonzero(left).tolist() == sorted(theirs.tolist())
        assert 0 < left.sum() < 60


def test_a_box_suppressed_itself_suppresses_no_other():
    chain = np.array([[0, 0, 10, 10], [3, 0, 10, 10], [6, 0, 10, 10]], float)  # neighbours have IoU 7/13
    group, sizes = np.zeros(3, np.int64), np.full((3, 2), 50)
    assert crowd.survives_nms(chain, group, sizes, iou_threshold=0.5).tolist() == [True, False, True]
    assert crowd.survives_nms(chain, group, sizes, iou_threshold=0.6).all()
    assert crowd.survives_nms(chain, np.arange(3), sizes, iou_threshold=0.1).all()
