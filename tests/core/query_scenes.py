"""Random outputs of a query detector and objects to match them with: small, but with every field filled."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from detbench.core.types import Matches, QueryPredictions, Targets

NUM_CLASSES = 3
NUM_QUERIES = 12
NUM_LAYERS = 2
SIZES = ((96, 128), (100, 50), (64, 64), (80, 200))  # of the images, in turn


def some_objects(counts: tuple[int, ...], seed: int) -> Targets:
    """Objects of a tenth to a half of their image's sides."""
    generator = torch.Generator().manual_seed(seed + 1000)
    sizes = [SIZES[i % len(SIZES)] for i in range(len(counts))]
    labels, boxes = [], []
    for count, (height, width) in zip(counts, sizes, strict=True):
        side = 0.1 + 0.4 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * (1 - side)
        boxes.append(torch.cat([corner, corner + side], 1) * torch.tensor([width, height, width, height]))
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
    return Targets.of(labels, boxes, sizes)


def some_queries(
    targets: Targets,
    seed: int,
    *,
    num_layers: int = NUM_LAYERS,
    num_queries: int = NUM_QUERIES,
    dtype: torch.dtype = torch.float64,
) -> QueryPredictions:
    """Predictions for the images of `targets`; an image's first denoising queries belong to its objects."""
    generator = torch.Generator().manual_seed(seed)
    num_images, rows = len(targets.counts), len(targets.counts) * num_layers

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return QueryPredictions(
        pred_logits=normal(rows, num_queries, NUM_CLASSES) - 1,
        pred_boxes=normal(rows, num_queries, 4).sigmoid(),
        num_layers=num_layers,
        anchors=normal(num_images, num_queries, 4).sigmoid(),
        pred_quality=normal(rows, num_queries),
        pairs=made_for(targets.repeat(num_layers)),
        correspondence=(2 * normal(sum(targets.counts) * num_layers, num_queries)).softmax(1),
    )


def made_for(targets: Targets) -> Matches:
    """The n-th object of an image with its query 2n."""
    nth = torch.cat([torch.arange(count) for count in targets.counts])
    return Matches(targets.image_idx, 2 * nth, torch.arange(len(nth)))


def alone(predictions: QueryPredictions, targets: Targets, row: int) -> tuple[QueryPredictions, Targets]:
    """One layer of one image as an output of its own, with its objects; `targets` are repeated for the layers."""
    assert predictions.anchors is not None
    assert predictions.pred_quality is not None
    assert predictions.correspondence is not None
    mine = targets.image_idx == row
    own = Targets.of([targets.labels[mine]], [targets.boxes[mine]], [targets.sizes[row]])
    one = slice(row, row + 1)
    image = row % len(predictions.anchors)
    return QueryPredictions(
        predictions.pred_logits[one],
        predictions.pred_boxes[one],
        anchors=predictions.anchors[image : image + 1],
        pred_quality=predictions.pred_quality[one],
        pairs=made_for(own),
        correspondence=predictions.correspondence[mine],
    ), own


def as_type(predictions: QueryPredictions, dtype: torch.dtype) -> QueryPredictions:
    """The same numbers in another precision."""
    tensors = {
        field.name: value.to(dtype)
        for field in dataclasses.fields(predictions)
        if isinstance(value := getattr(predictions, field.name), Tensor)
    }
    return dataclasses.replace(predictions, **tensors)
