"""How long it takes to say which query answers for which object: Hungarian matching against Match-Free (Table 2)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detbench.core.boxes import cxcywh_to_xyxy, query_giou
from detbench.core.detectors.gt_probe import ProbeModule
from detbench.core.supervise import supervise
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.parts.assigners import QueryHungarian, SparseCorrespondence
from detbench.parts.branches import Branch, DecoderOutput, GtProbe
from detbench.parts.losses import BoxL1, Correspondence, Focal, QueryGiou, WeightedFocal

Method = Literal[
    "hungarian_per_layer", "hungarian", "hungarian_with_losses", "match_free_forward", "match_free"
]

_CLASSES, _STATE_DIM = 80, 256
_WARM_UP = 3

_HUNGARIAN = Branch(
    predictor=DecoderOutput(),
    assigner=QueryHungarian(),
    losses={
        "cls": Focal(weight=2.0, divide_by="objects"),
        "bbox": BoxL1(divide_by="objects"),
        "giou": QueryGiou(),
    },
)
_MATCH_FREE = Branch(
    predictor=DecoderOutput(probe=GtProbe()),
    assigner=SparseCorrespondence(),
    losses={
        "cls": WeightedFocal(),
        "bbox": BoxL1(weigh_by="match", divide_by="objects"),
        "giou": QueryGiou(weigh_by="match"),
        "correspondence": Correspondence(),
    },
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is matched.

    Attributes:
        queries: of each image.
        objects: mean number of an image's objects.
        batch: images.
        layers: of the decoder.
    """

    queries: int
    objects: int
    batch: int
    layers: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one training step: the median of many, and the quartiles around it."""

    median: float
    low: float
    high: float


def time_matching(shape: Shape, *, device: torch.device, repeats: int) -> dict[Method, Timing]:
    """Every way to supervise the same synthetic batch, timed one after the other in this process.

    hungarian_per_layer     cost, transfer and assignment, layer by layer, as DETR's code does
    hungarian               the same pairs from one cost of all layers and images
    hungarian_with_losses   that, then the losses, forward and backward
    match_free_forward      probe and sparse correspondence
    match_free              these, then both losses, forward and backward

    Args:
        shape: of the batch.
        device: where predictions and objects are.
        repeats: steps that are timed, after a few that aren't.
    """
    predictions, targets = synthetic(shape, device)
    layered = targets.repeat(shape.layers)
    torch.manual_seed(0)
    probe = ProbeModule(GtProbe(), num_classes=_CLASSES, state_dim=_STATE_DIM, num_layers=shape.layers).to(
        device
    )
    assert predictions.states is not None
    weights = [predictions.states, *probe.parameters()]
    leaves = [predictions.pred_logits, predictions.pred_boxes]

    def match_free_forward() -> Matches:
        seen = replace(predictions, correspondence=probe(predictions, targets))
        return SparseCorrespondence()(seen, layered)

    def match_free() -> None:
        seen = replace(predictions, correspondence=probe(predictions, targets))
        losses = supervise(_MATCH_FREE, seen, targets)
        torch.autograd.grad(_total(losses), [*leaves, *weights])

    def with_losses() -> None:
        torch.autograd.grad(_total(supervise(_HUNGARIAN, predictions, targets)), leaves)

    steps: dict[Method, Callable[[], object]] = {
        "hungarian_per_layer": lambda: match_layer_by_layer(predictions, targets),
        "hungarian": lambda: QueryHungarian()(predictions, layered),
        "hungarian_with_losses": with_losses,
        "match_free_forward": match_free_forward,
        "match_free": match_free,
    }
    return {name: _timing(_times(step, device, repeats)) for name, step in steps.items()}


def synthetic(shape: Shape, device: torch.device) -> tuple[QueryPredictions, Targets]:
    """Random predictions that want gradients, and objects in numbers that spread much as COCO's do.

    They are the quantiles of an exponential distribution, so a batch of any size has its crowded image.
    """
    generator = torch.Generator().manual_seed(0)
    counts = [
        min(shape.queries, round(-shape.objects * math.log1p(-(i + 0.5) / shape.batch)))
        for i in range(shape.batch)
    ]
    center, size = torch.rand(2, sum(counts), 2, generator=generator)
    boxes = cxcywh_to_xyxy(torch.cat([0.2 + 0.6 * center, 0.02 + 0.35 * size], 1)) * 1000
    labels = torch.randint(_CLASSES, (sum(counts),), generator=generator)
    targets = Targets.of(
        torch.split(labels, counts), torch.split(boxes, counts), [(1000, 1000)] * shape.batch
    )

    def leaf(channels: int) -> Tensor:
        values = torch.randn(shape.layers * shape.batch, shape.queries, channels, generator=generator)
        return values.to(device).requires_grad_()

    predictions = QueryPredictions(
        pred_logits=leaf(_CLASSES),
        pred_boxes=leaf(4).detach().sigmoid().requires_grad_(),
        num_layers=shape.layers,
        states=leaf(_STATE_DIM),
    )
    return predictions, targets.to(device)


@torch.no_grad()
def match_layer_by_layer(predictions: QueryPredictions, targets: Targets) -> Matches:
    """Hungarian matching as DETR's and Deformable DETR's code does it; `QueryHungarian` finds the same pairs.

    Each layer's cost holds every query of the batch against every object of the batch, and the class cost is formed
    for all classes; each layer is sent to the host by itself.
    """
    rule = QueryHungarian()
    boxes = targets.cxcywh
    num_images, num_objects = len(targets.counts), len(boxes)
    columns: list[Tensor] = []
    logits, pred_boxes = predictions.pred_logits, predictions.pred_boxes
    layers = zip(logits.chunk(predictions.num_layers), pred_boxes.chunk(predictions.num_layers), strict=True)
    for layer, (of_logits, of_boxes) in enumerate(layers):
        prob, pred = of_logits.flatten(0, 1).sigmoid(), of_boxes.flatten(0, 1)
        positive = rule.focal_alpha * (1 - prob) ** rule.focal_gamma * -(prob + rule.focal_eps).log()
        negative = (1 - rule.focal_alpha) * prob**rule.focal_gamma * -(1 - prob + rule.focal_eps).log()
        of_class = (positive - negative)[:, targets.labels]
        giou = query_giou(cxcywh_to_xyxy(pred)[:, None], cxcywh_to_xyxy(boxes), eps=rule.iou_eps)
        cost = (
            rule.cost_class * of_class
            + rule.cost_bbox * torch.cdist(pred, boxes, p=1)
            - rule.cost_giou * giou
        )
        on_host = cost.view(num_images, -1, num_objects).cpu()
        start = layer * num_objects
        for image, of_image in enumerate(torch.split(on_host, list(targets.counts), -1)):
            query, rank = map(torch.from_numpy, linear_sum_assignment(of_image[image].numpy()))
            columns.append(
                torch.stack([torch.full_like(query, layer * num_images + image), query, start + rank])
            )
            start += of_image.shape[-1]
    image_idx, pred_idx, target_idx = torch.cat(columns, 1).to(boxes.device)
    return Matches(image_idx, pred_idx, target_idx)


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _times(step: Callable[[], object], device: torch.device, repeats: int) -> Iterator[float]:
    """Milliseconds of each repetition, the device idle before and after."""
    for i in range(_WARM_UP + repeats):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        if i >= _WARM_UP:
            yield 1000 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(times: Iterator[float]) -> Timing:
    ordered = list(times)
    low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Timing(median, low, high)
