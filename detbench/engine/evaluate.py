"""A trained model on validation images: raw detections, and the numbers they come to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detbench.core.distributed import num_processes, process_index
from detbench.core.types import Detections
from detbench.data.annotations import Annotations
from detbench.data.batch import Batch, to_network
from detbench.data.dataset import OpenData
from detbench.data.loader import test_batches
from detbench.data.truth import ground_truth
from detbench.engine.objective import autocast
from detbench.engine.processes import gather_objects
from detbench.errors import DataError
from detbench.metrics import coco, crowd, pycoco, tables
from detbench.metrics.coco import PER_CLASS_NAMES, CocoResult
from detbench.metrics.crowd import CrowdResult
from detbench.metrics.tables import DetectionTable
from detbench.parts.experiment import Experiment
from detbench.parts.test import CocoMetrics, CrowdMetrics
from detbench.store import whole_file

Metrics = CocoMetrics | CrowdMetrics
Measured = CocoResult | CrowdResult

_Columns = list[tuple[NDArray[Any], ...]]  # image, class, box and score of detections, image by image


def detect(
    model: nn.Module,
    experiment: Experiment,
    data: OpenData,
    *,
    device: torch.device,
    workers: int,
    progress: float = 1.0,
) -> DetectionTable:
    """Every detection on the validation images, in pixels of the images as annotated.

    Several processes take turns at the batches, and each gets the detections of all.

    Args:
        model: the detector; left in evaluation mode.
        experiment: says which branch predicts and what is kept of it.
        progress: how far the model is trained, over all its steps; a first stage keeps other detections.
    """
    batches = test_batches(
        data.val, experiment.data, batch=experiment.test.batch, workers=workers, rank=process_index(),
        world=num_processes(),
    )  # fmt: skip
    own = _detections(batches, model, experiment, device=device, progress=progress)
    in_turn = itertools.zip_longest(*gather_objects(own), fillvalue=[])
    return _table(columns for turn in in_turn for columns in turn)


def detect_in(
    batches: Iterable[Batch],
    model: nn.Module,
    experiment: Experiment,
    *,
    device: torch.device,
    progress: float = 1.0,
) -> DetectionTable:
    """Every detection in some batches, of which there is at least one; otherwise as `detect`."""
    return _table(_detections(batches, model, experiment, device=device, progress=progress))


def _detections(
    batches: Iterable[Batch],
    model: nn.Module,
    experiment: Experiment,
    *,
    device: torch.device,
    progress: float,
) -> list[_Columns]:
    """The detections in each batch."""
    test, postprocess = experiment.test, experiment.postprocess_at(progress)
    model.eval()
    found: list[_Columns] = []
    with torch.inference_mode():
        for batch in batches:
            images = to_network(batch, experiment.data.pixels, device)
            with autocast(device, experiment.training.precision):
                predictions = model(images, batch.sizes, branches=(test.branch,))[test.branch]
            found.append(_as_columns(batch, postprocess(predictions, batch.sizes)))
    return found


def _table(batches: Iterable[_Columns]) -> DetectionTable:
    columns = itertools.chain.from_iterable(batches)
    image, label, boxes, scores = (np.concatenate(column) for column in zip(*columns, strict=True))
    return DetectionTable(image=image, label=label, boxes_xywh=boxes, scores=scores)


def require_measurable(data: OpenData, metrics: Metrics) -> None:
    """Refuses data that the metrics aren't defined on, before anything is trained.

    Raises:
        DataError: CrowdHuman's metrics are asked for of several classes.
    """
    if metrics.kind == "crowd" and data.num_classes > 1:
        raise DataError(
            f"{data.root}: CrowdHuman's metrics are defined for one class, this data has {data.num_classes}. "
            "Set test.metrics.kind=coco"
        )


def measure(table: DetectionTable, annotations: Annotations, metrics: Metrics) -> Measured:
    """The metrics of a table of detections."""
    truth = ground_truth(annotations, metrics)
    if metrics.kind == "crowd":
        return crowd.evaluate(truth, table, np.stack([annotations.widths, annotations.heights], axis=1))
    if metrics.backend == "pycocotools":
        return pycoco.evaluate(truth, table)
    return coco.evaluate(truth, table)


def percent(result: Measured) -> dict[str, float | None]:
    """The numbers in percent, the most telling first; None for what no object allows to measure."""
    return {name: tables.percent(value) for name, value in result.summary.items()}


def percent_per_class(result: Measured, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """AP and its kin of each class in percent; empty for CrowdHuman's metrics, which know one class only."""
    if isinstance(result, CrowdResult):
        return {}
    return {
        name: {metric: tables.percent(result.per_class[metric][i]) for metric in PER_CLASS_NAMES}
        for i, name in enumerate(names)
    }


def write_detections(path: Path, table: DetectionTable) -> None:
    """The raw detections, exactly as they were measured."""
    with whole_file(path) as file:
        np.savez_compressed(
            file, image=table.image, label=table.label, boxes_xywh=table.boxes_xywh, scores=table.scores
        )


def _as_columns(batch: Batch, found: list[Detections]) -> _Columns:
    columns: _Columns = []
    for i, detections in enumerate(found):
        (height, width), (original_height, original_width) = batch.sizes[i], batch.original_sizes[i]
        scale = np.array([original_width / width, original_height / height] * 2)
        boxes = detections.boxes.double().cpu().numpy() * scale
        boxes[:, 2:] -= boxes[:, :2]
        columns.append(
            (
                np.full(len(boxes), batch.image_index[i], dtype=np.int64),
                detections.labels.cpu().numpy(),
                boxes,
                detections.scores.double().cpu().numpy(),
            )
        )
    return columns
