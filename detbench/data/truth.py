"""Annotations as the metrics want them. No torch."""

from __future__ import annotations

import numpy as np

from detbench.data.annotations import Annotations
from detbench.metrics.tables import GroundTruth
from detbench.parts.test import CocoMetrics, CrowdMetrics


def ground_truth(annotations: Annotations, metrics: CocoMetrics | CrowdMetrics) -> GroundTruth:
    """The annotated objects of a split, with the size limits that the metrics ask for."""
    factor = None
    if metrics.kind == "coco" and metrics.size_limits == "relative":
        factor = 640.0 * 480.0 / (annotations.widths * annotations.heights.astype(np.float64))
    return GroundTruth(
        image=annotations.image_idx,
        label=annotations.labels.astype(np.int64),
        boxes_xywh=annotations.boxes,
        area=annotations.areas,
        iscrowd=annotations.iscrowd,
        num_images=annotations.num_images,
        num_classes=len(annotations.category_names),
        image_area_factor=factor,
    )
