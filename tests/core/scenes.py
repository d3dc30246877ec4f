"""Random predictions and objects for the tests of the core: small, but with every field filled."""

from __future__ import annotations

import torch
from torch import Tensor

from detbench.core.anchors import grid_anchors, point_anchors
from detbench.core.boxes import decode_deltas
from detbench.core.types import Anchors, DensePredictions, Targets

SIZE = (96, 128)  # height, width of the padded images
STRIDES = (8, 16, 32, 64, 128)
LEVELS = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
NUM_CLASSES = 3


def points(dtype: torch.dtype = torch.float32) -> Anchors:
    return point_anchors(LEVELS, STRIDES, device=torch.device("cpu"), dtype=dtype)


def grid(dtype: torch.dtype = torch.float32) -> Anchors:
    return grid_anchors(
        LEVELS,
        STRIDES,
        octave_scale=4.0,
        scales_per_octave=3,
        ratios=(0.5, 1.0, 2.0),
        device=torch.device("cpu"),
        dtype=dtype,
    )


def anchors_for(kind: str, dtype: torch.dtype = torch.float32) -> Anchors:
    """Anchors for max_iou; every other rule is tried on points."""
    return grid(dtype) if kind == "max_iou" else points(dtype)


def some_predictions(anchors: Anchors, num_images: int, seed: int) -> DensePredictions:
    generator = torch.Generator().manual_seed(seed)
    dtype = anchors.boxes.dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    num = len(anchors.boxes)
    deltas = normal(num_images, num, 4) * 0.5
    return DensePredictions(
        pred_logits=normal(num_images, num, NUM_CLASSES) - 1,
        pred_boxes=decode_deltas(anchors.boxes, deltas),
        anchors=anchors,
        pred_deltas=deltas,
        pred_centerness=normal(num_images, num),
    )


def some_targets(counts: tuple[int, ...], seed: int, sizes: list[tuple[int, int]] | None = None) -> Targets:
    """Objects of 8 to 56 pixels a side, anywhere inside their image."""
    generator = torch.Generator().manual_seed(seed + 1000)
    labels, boxes = [], []
    sizes = sizes or [SIZE] * len(counts)
    for count, (height, width) in zip(counts, sizes, strict=True):
        side = 8 + 48 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - side)
        boxes.append(torch.cat([corner, corner + side], 1))
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
    return Targets.of(labels, boxes, sizes)


def image_of(predictions: DensePredictions, i: int) -> DensePredictions:
    """The predictions of one image as a batch of its own."""
    assert predictions.pred_deltas is not None
    assert predictions.pred_centerness is not None
    return DensePredictions(
        predictions.pred_logits[i : i + 1],
        predictions.pred_boxes[i : i + 1],
        predictions.anchors,
        predictions.pred_deltas[i : i + 1],
        predictions.pred_centerness[i : i + 1],
    )


def targets_of(targets: Targets, i: int) -> Targets:
    """The objects of one image as a batch of its own."""
    mine = targets.image_idx == i
    return Targets.of([targets.labels[mine]], [targets.boxes[mine]], [targets.sizes[i]])
