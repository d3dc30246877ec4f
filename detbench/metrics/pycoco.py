"""The same inputs evaluated by pycocotools: the reference that coco.py is held to, and a choice for users."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from detbench.metrics.coco import METRIC_NAMES, CocoResult, summarize
from detbench.metrics.matching import Bools, Floats, Ints
from detbench.metrics.tables import DetectionTable, GroundTruth


def evaluate(truth: GroundTruth, detections: DetectionTable) -> CocoResult:
    """COCO's evaluation of boxes by pycocotools' COCOeval; its report on stdout is swallowed."""
    from pycocotools.cocoeval import COCOeval

    detected_area = detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]
    not_crowd = np.zeros(len(detections.image), bool)
    annotations = _annotations(truth, truth.image, truth.label, truth.boxes_xywh, truth.area, truth.iscrowd)
    results = _annotations(
        truth, detections.image, detections.label, detections.boxes_xywh, detected_area, not_crowd
    )
    for annotation, score in zip(results, detections.scores.tolist(), strict=True):
        annotation["score"] = score
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_data_set(truth, annotations), _data_set(truth, results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    result = summarize(evaluation.eval["precision"][..., -1], evaluation.eval["recall"])
    result.summary.update(zip(METRIC_NAMES, evaluation.stats.tolist(), strict=True))
    return result


def _annotations(
    truth: GroundTruth, image: Ints, label: Ints, boxes_xywh: Floats, area: Floats, iscrowd: Bools
) -> list[dict[str, Any]]:
    areas = truth.scaled_areas(area, image)
    columns = (image.tolist(), label.tolist(), boxes_xywh.tolist(), areas.tolist(), iscrowd.tolist())
    return [
        # From 1: COCOeval takes a match with id 0 for no match.
        {"id": index, "image_id": i, "category_id": k, "bbox": box, "area": a, "iscrowd": int(crowd)}
        for index, (i, k, box, a, crowd) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _data_set(truth: GroundTruth, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    data_set = COCO()
    data_set.dataset = {
        "images": [{"id": index} for index in range(truth.num_images)],
        "categories": [{"id": index} for index in range(truth.num_classes)],
        "annotations": annotations,
    }
    data_set.createIndex()
    return data_set
