"""Where assignment meets loss: the matched pairs of a batch, and what a branch makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from detbench.core.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detbench.core.distributed import num_processes, sum_over_processes
from detbench.core.losses.centerness import centerness_target
from detbench.core.types import (
    AnyPredictions,
    DensePredictions,
    Matches,
    QueryPredictions,
    RegionPredictions,
    Targets,
)

if TYPE_CHECKING:
    from detbench.parts.branches import Branch
    from detbench.parts.losses import DivideBy

# mmdetection 2.25 adds float32's epsilon to every normaliser (spec 0), so that nothing over nothing is 0.
_EPSILON = torch.finfo(torch.float32).eps
_LAYER_BY_LAYER = ("pairs_local", "pair_weights")


@dataclass(frozen=True)
class Supervision(ABC):
    """A branch's predictions with the objects they answer for; each gathered once, on first use.

    Attributes:
        predictions: of a batch.
        targets: the batch's objects, repeated for each layer of the predictions.
        matches: which prediction answers for which object.
    """

    predictions: AnyPredictions
    targets: Targets
    matches: Matches

    def gather(self, x: Tensor) -> Tensor:
        """(B, Q, ...) values of all predictions to (K, ...) those of the matched ones."""
        return x.flatten(0, 1).index_select(0, self._place)

    @cached_property
    def pred_boxes(self) -> Tensor:
        """(K, 4) boxes of the matched predictions, in the predictions' format and unit."""
        return self.gather(self.predictions.pred_boxes)

    @cached_property
    def target_labels(self) -> Tensor:
        """(K,) classes of the objects they answer for."""
        return self.targets.labels[self.matches.target_idx]

    @cached_property
    def positive_logits(self) -> Tensor:
        """(K,) logits of the matched predictions for their objects' classes."""
        return self.gather(self.predictions.pred_logits).gather(1, self.target_labels[:, None]).squeeze(1)

    @cached_property
    def pair_weights(self) -> Tensor:
        """(K,) how much each pair counts where a loss asks for it."""
        weights = self.matches.weights
        return self.positive_logits.new_ones(len(self._place)) if weights is None else weights

    @abstractmethod
    def normalised(self, box_format: Literal["cxcywh", "xyxy"]) -> tuple[Tensor, Tensor]:
        """(K, 4) boxes of the predictions and of their objects, divided by their image's unpadded size."""

    @property
    def num_layers(self) -> int:
        """How often the batch is repeated in the predictions."""
        return 1

    @cached_property
    def by_layer(self) -> Sequence[Supervision]:
        """Each layer of the predictions by itself."""
        return (self,)

    @cached_property
    def layer_of_pair(self) -> Tensor:
        """(K,) layer of each matched prediction, from 0."""
        num_images = len(self.targets.counts) // self.num_layers
        return self.matches.image_idx.div(num_images, rounding_mode="floor")

    @cached_property
    def is_last(self) -> Tensor:
        """(K,) False where a later pair names the same prediction again."""
        order = torch.arange(len(self._place), device=self._place.device)
        num_images, num_predictions = self.predictions.pred_logits.shape[:2]
        last = order.new_zeros(num_images * num_predictions).scatter_reduce_(0, self._place, order, "amax")
        return last[self._place] == order

    @cached_property
    def num_positives(self) -> Tensor:
        """Number of matched pairs, of all processes."""
        boxes = self.predictions.pred_boxes
        return sum_over_processes(boxes.new_tensor(float(len(self._place))))

    def normaliser(self, divide_by: DivideBy) -> Tensor:
        """What a summed loss is divided by; `detbench.parts.losses` says what each name means."""
        match divide_by:
            case "positives":
                return self.num_positives.clamp(min=1)
            case "positives_raw":
                return self.num_positives
            case "positives_local":
                return self._positives_by_image * num_processes()
            case "positives_image":
                return sum_over_processes(self._positives_by_image.to(self.predictions.pred_boxes.dtype))
            case "centerness" | "centerness_or_one":
                dense = cast(DenseSupervision, self)  # Experiment refuses it elsewhere
                least = 1e-6 if divide_by == "centerness" else 1.0
                return sum_over_processes(dense.centerness_targets.sum()).clamp(min=least)
            case "sampled":
                return sum_over_processes(self._num_sampled).clamp(min=1)
            case "objects":
                return self._num_objects.clamp(min=1)
            case "copies":
                return (self._num_objects * self.matches.copies).clamp(min=1)
            case "pairs_local":
                return self.predictions.pred_boxes.new_tensor(
                    float(max(len(self._place), 1) * num_processes())
                )
            case "pair_weights":
                return sum_over_processes(self.pair_weights.sum()).clamp(min=1)
            case "pairs":
                return (self.num_positives / self.num_layers).clamp(min=1)
            case "one":
                return self.predictions.pred_boxes.new_ones(())

    @property
    def _num_objects(self) -> Tensor:
        """Number of objects in one layer, of all processes."""
        objects = self.predictions.pred_boxes.new_tensor(float(sum(self.targets.counts) // self.num_layers))
        return sum_over_processes(objects)

    @property
    def _positives_by_image(self) -> Tensor:
        """Sum over images of the number of matched pairs, at least one each."""
        ones = torch.ones_like(self.matches.image_idx)
        of_image = ones.new_zeros(len(self.targets.counts)).index_add_(0, self.matches.image_idx, ones)
        return of_image.clamp(min=1).sum()

    @property
    def _num_sampled(self) -> Tensor:
        """Number of predictions that are positive or negative."""
        num_images, num_predictions = self.predictions.pred_logits.shape[:2]
        num = self.predictions.pred_boxes.new_tensor(float(num_images * num_predictions))
        return num if self.matches.ignored is None else num - self.matches.ignored.sum()

    @cached_property
    def _place(self) -> Tensor:
        """(K,) indices into the predictions of all images laid end to end."""
        return self.matches.image_idx * self.predictions.pred_logits.shape[1] + self.matches.pred_idx


@dataclass(frozen=True)
class PixelSupervision(Supervision):
    """Of predictions whose boxes are xyxy pixels."""

    @cached_property
    def target_boxes(self) -> Tensor:
        """(K, 4) xyxy pixels of the objects that the matched predictions answer for."""
        return self.targets.boxes[self.matches.target_idx]

    def normalised(self, box_format: Literal["cxcywh", "xyxy"]) -> tuple[Tensor, Tensor]:
        """(K, 4) boxes of the predictions and of their objects, divided by their image's unpadded size."""
        whwh = self.targets.whwh[self.matches.image_idx]
        pred, target = self.pred_boxes / whwh, self.target_boxes / whwh
        if box_format == "cxcywh":
            return xyxy_to_cxcywh(pred), xyxy_to_cxcywh(target)
        return pred, target


@dataclass(frozen=True)
class DenseSupervision(PixelSupervision):
    """Of a dense head: predictions stand on anchors."""

    predictions: DensePredictions

    @cached_property
    def anchor_boxes(self) -> Tensor:
        """(K, 4) xyxy pixels of the anchors of the matched predictions."""
        return self.predictions.anchors.boxes[self.matches.pred_idx]

    @cached_property
    def centerness_targets(self) -> Tensor:
        """(K,) centre-ness of each matched location in its object, in the predictions' precision."""
        centers = self.predictions.anchors.centers[self.matches.pred_idx]
        return centerness_target(centers, self.target_boxes).to(self.predictions.pred_boxes.dtype)


@dataclass(frozen=True)
class RegionSupervision(PixelSupervision):
    """Of a second stage: predictions stand on regions, and one of their classes is the background."""

    predictions: RegionPredictions


@dataclass(frozen=True)
class QuerySupervision(Supervision):
    """Of a query detector: boxes are normalised cxcywh, layers count as images."""

    predictions: QueryPredictions

    def normalised(self, box_format: Literal["cxcywh", "xyxy"]) -> tuple[Tensor, Tensor]:
        """(K, 4) boxes of the predictions and of their objects."""
        pred, target = self.pred_boxes, self.targets.cxcywh[self.matches.target_idx]
        if box_format == "xyxy":
            return cxcywh_to_xyxy(pred), cxcywh_to_xyxy(target)
        return pred, target

    @property
    def num_layers(self) -> int:
        """Layers of the output."""
        return self.predictions.num_layers

    @cached_property
    def by_layer(self) -> Sequence[Supervision]:
        """Each layer by itself."""
        num_images = len(self.targets.counts) // self.num_layers
        targets, matches = self.targets.of_first(num_images), self.matches
        layers = []
        for layer in range(self.num_layers):
            pairs = (self.layer_of_pair == layer).nonzero().squeeze(1)
            own = Matches(
                matches.image_idx[pairs] - layer * num_images,
                matches.pred_idx[pairs],
                matches.target_idx[pairs] - layer * len(targets.labels),
                ignored=None if matches.ignored is None else matches.ignored.chunk(self.num_layers)[layer],
                weights=None if matches.weights is None else matches.weights[pairs],
                copies=matches.copies,
            )
            layers.append(QuerySupervision(self.predictions.layer(layer), targets, own))
        return layers


def supervise(branch: Branch, predictions: AnyPredictions, targets: Targets) -> dict[str, Tensor]:
    """The branch's losses by name, weighed and normalised; their sum is what the branch adds to training."""
    # Experiment saw to it that it fits the predictor.
    assign: Callable[[Any, Targets], Matches] = branch.assigner
    supervision: Supervision
    if isinstance(predictions, QueryPredictions):
        targets = targets.repeat(predictions.num_layers)
        if branch.predictor.kind == "encoder" and branch.predictor.labels == "binary":
            targets = targets.of_one_class()
        supervision = QuerySupervision(predictions, targets, assign(predictions, targets))
    elif isinstance(predictions, RegionPredictions):
        supervision = RegionSupervision(predictions, targets, predictions.pairs)
    else:
        if branch.predictor.kind == "rpn":
            targets = targets.of_one_class()
        pairs = assign(predictions, targets) if predictions.pairs is None else predictions.pairs
        supervision = DenseSupervision(predictions, targets, pairs)
    losses = {}
    for name, loss in branch.losses.items():
        value: Callable[[Any], Tensor] = loss
        parts = supervision.by_layer if loss.divide_by in _LAYER_BY_LAYER else (supervision,)
        means = [value(part) / (part.normaliser(loss.divide_by) + _EPSILON) for part in parts]
        losses[name] = branch.weight * loss.weight * torch.stack(means).sum()
    return losses
