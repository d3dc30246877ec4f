"""COCO evaluation, ours beside pycocotools: time, ratio and greatest difference of the twelve numbers.

    python benchmarks/evaluation.py [images] [classes] [detections per image] [objects per image]

Default: the size of val2017 (5,000 images, 80 classes, 100 detections, 7 objects an image); half a minute,
nearly all of it pycocotools'. Ours is the best of three, pycocotools' is timed once.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from detbench.metrics import coco, pycoco, tables


def drawn_tables(
    images: int, classes: int, detections: int, objects: int, seed: int = 0
) -> tuple[tables.GroundTruth, tables.DetectionTable]:
    """Objects of all sizes; half of the detections are shifted objects, half stand anywhere."""
    rng = np.random.default_rng(seed)
    count, found = images * objects, images * detections

    def boxes(number: int) -> np.ndarray:
        sizes = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
        return np.concatenate([rng.uniform(0, 340, (number, 2)), sizes], axis=1)

    truth_boxes = boxes(count)
    image = np.repeat(np.arange(images), objects)
    label = rng.integers(0, classes, count)
    source = np.repeat(np.arange(images), detections) * objects + rng.integers(0, objects, found)
    shifted = truth_boxes[source] * rng.normal(1, 0.1, (found, 4))
    near = rng.random(found) < 0.5
    truth = tables.GroundTruth(
        image=image,
        label=label,
        boxes_xywh=truth_boxes,
        area=truth_boxes[:, 2] * truth_boxes[:, 3] * 0.7,
        iscrowd=rng.random(count) < 0.01,
        num_images=images,
        num_classes=classes,
    )
    table = tables.DetectionTable(
        image=np.repeat(np.arange(images), detections),
        label=np.where(near, label[source], rng.integers(0, classes, found)),
        boxes_xywh=np.where(near[:, None], shifted, boxes(found)),
        scores=rng.random(found).round(3),
    )
    return truth, table


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] + [5000, 80, 100, 7][len(sys.argv) - 1 :]
    truth, table = drawn_tables(*sizes)
    ours_s = []
    for _ in range(3):
        start = time.perf_counter()
        ours = coco.evaluate(truth, table)
        ours_s.append(time.perf_counter() - start)
    start = time.perf_counter()
    theirs = pycoco.evaluate(truth, table)
    theirs_s = time.perf_counter() - start
    difference = max(abs(ours.summary[name] - theirs.summary[name]) for name in coco.METRIC_NAMES)
    print("{} images, {} classes, {} detections and {} objects an image".format(*sizes))
    print(f"pycocotools {theirs_s:.2f} s   detbench {min(ours_s):.3f} s   {theirs_s / min(ours_s):.1f}x")
    print(f"AP {ours.summary['AP']:.6f}, greatest difference of the twelve numbers {difference:.1e}")


if __name__ == "__main__":
    main()
