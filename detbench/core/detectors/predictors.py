"""What stands on the towers of a dense head: convolutions, and how their outputs become predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from detbench.core.anchors import Sizes, grid_anchors, point_anchors
from detbench.core.boxes import decode_deltas, distances_to_boxes
from detbench.core.detectors.max_filter import MaxFilterModule, fuse
from detbench.core.types import DensePredictions

if TYPE_CHECKING:
    from detbench.parts.branches import AnchorPredictor, FcosPredictor, PointPredictor

Tower = Literal["class", "box"]
Raw = Mapping[str, list[Tensor]]
"""What each convolution of a predictor says: for every level (B, h * w, its channels), at least float32."""
FILTER = "filter"
"""What a max filter's logits are called among a predictor's raw outputs."""


class DensePredictor(nn.Module):
    """The 3x3 convolutions of one branch and the tower each of them reads.

    Attributes:
        convs: by the name of what they predict; "logits" is among them.
        reads: the tower under each convolution.
        max_filter: on the box tower, where the predictor has one.
    """

    reads: Mapping[str, Tower]
    max_filter: MaxFilterModule | None

    def __init__(
        self, channels: int, outputs: Mapping[str, int], *, init_std: float, class_prior: float
    ) -> None:
        super().__init__()
        convs = {name: nn.Conv2d(channels, width, 3, padding=1) for name, width in outputs.items()}
        for conv in convs.values():
            nn.init.normal_(conv.weight, std=init_std)
            nn.init.zeros_(_bias(conv))
        nn.init.constant_(_bias(convs["logits"]), -math.log((1 - class_prior) / class_prior))
        self.convs = nn.ModuleDict(convs)
        self.max_filter = None

    def convs_on(self, tower: Tower) -> dict[str, nn.Conv2d]:
        """The convolutions that read a tower, by what they predict."""
        return {name: cast(nn.Conv2d, self.convs[name]) for name, read in self.reads.items() if read == tower}

    def decode(self, raw: Raw, scales: Tensor, sizes: Sizes, strides: tuple[int, ...]) -> DensePredictions:
        """The convolutions' outputs as predictions.

        Args:
            raw: by the convolutions' names; with `FILTER` among them, class scores are fused with it.
            scales: (L,) the head's learned factor of each level's boxes.
            sizes: height and width of each level.
            strides: of each level.
        """
        raise NotImplementedError


class PointModule(DensePredictor):
    """OneNet's predictor: distances relu(scale * raw) * stride (spec 4.2), with or without a max filter."""

    def __init__(
        self,
        part: PointPredictor,
        channels: int,
        num_classes: int,
        *,
        groups: int,
        init_std: float,
        class_prior: float,
    ) -> None:
        super().__init__(
            channels, {"logits": num_classes, "distances": 4}, init_std=init_std, class_prior=class_prior
        )
        self.reads = {"logits": "class", "distances": "box"}
        self.part = part
        if part.max_filter is not None:
            self.max_filter = MaxFilterModule(part.max_filter, channels, groups=groups, init_std=init_std)

    def decode(self, raw: Raw, scales: Tensor, sizes: Sizes, strides: tuple[int, ...]) -> DensePredictions:
        """Distances from each cell's middle; no centre-ness."""
        logits = torch.cat(raw["logits"], 1)
        if self.part.max_filter is not None and FILTER in raw:
            logits = fuse(logits, torch.cat(raw[FILTER], 1), eps=self.part.max_filter.logit_eps)
        anchors = point_anchors(sizes, strides, device=logits.device, dtype=logits.dtype)
        distances = scaled(raw["distances"], scales).relu() * anchors.strides[:, None]
        return DensePredictions(logits, distances_to_boxes(anchors.centers, distances), anchors)


class FcosModule(DensePredictor):
    """FCOS's predictor: distances exp(scale * raw) in pixels or strides, and centre-ness (spec 1.4)."""

    def __init__(
        self, part: FcosPredictor, channels: int, num_classes: int, *, init_std: float, class_prior: float
    ) -> None:
        outputs = {"logits": num_classes, "distances": 4, "centerness": 1}
        super().__init__(channels, outputs, init_std=init_std, class_prior=class_prior)
        self.reads = {"logits": "class", "distances": "box", "centerness": part.centerness_from}
        self.part = part

    def decode(self, raw: Raw, scales: Tensor, sizes: Sizes, strides: tuple[int, ...]) -> DensePredictions:
        """Distances from each cell's middle, with centre-ness."""
        logits = torch.cat(raw["logits"], 1)
        anchors = point_anchors(sizes, strides, device=logits.device, dtype=logits.dtype)
        distances = scaled(raw["distances"], scales).exp()
        if self.part.unit == "strides":
            distances = distances * anchors.strides[:, None]
        return DensePredictions(
            logits,
            distances_to_boxes(anchors.centers, distances),
            anchors,
            pred_centerness=torch.cat(raw["centerness"], 1).squeeze(-1),
        )


class AnchorModule(DensePredictor):
    """RetinaNet's predictor: channel a * C + c is anchor a's class c, a * 4 + k its delta k (spec 1.5)."""

    def __init__(
        self, part: AnchorPredictor, channels: int, num_classes: int, *, init_std: float, class_prior: float
    ) -> None:
        self.num_anchors = part.scales_per_octave * len(part.ratios)
        outputs = {"logits": self.num_anchors * num_classes, "deltas": self.num_anchors * 4}
        super().__init__(channels, outputs, init_std=init_std, class_prior=class_prior)
        self.reads = {"logits": "class", "deltas": "box"}
        self.part, self.num_classes = part, num_classes

    def decode(self, raw: Raw, scales: Tensor, sizes: Sizes, strides: tuple[int, ...]) -> DensePredictions:
        """Deltas of each cell's anchors."""
        logits = torch.cat(raw["logits"], 1)
        deltas = scaled(raw["deltas"], scales if self.part.scale_deltas else torch.ones_like(scales))
        anchors = grid_anchors(
            sizes,
            strides,
            octave_scale=self.part.octave_scale,
            scales_per_octave=self.part.scales_per_octave,
            ratios=self.part.ratios,
            device=logits.device,
            dtype=logits.dtype,
        )
        deltas = deltas.reshape(len(deltas), -1, 4)
        return DensePredictions(
            logits.reshape(len(logits), -1, self.num_classes),
            decode_deltas(anchors.boxes, deltas),
            anchors,
            pred_deltas=deltas,
        )


def build_predictor(
    part: PointPredictor | FcosPredictor | AnchorPredictor,
    channels: int,
    num_classes: int,
    *,
    groups: int,
    init_std: float,
    class_prior: float,
) -> DensePredictor:
    """The module for a branch's predictor part, if it has weights of its own."""
    match part.kind:
        case "point":
            return PointModule(
                part, channels, num_classes, groups=groups, init_std=init_std, class_prior=class_prior
            )
        case "fcos":
            return FcosModule(part, channels, num_classes, init_std=init_std, class_prior=class_prior)
        case "anchor":
            return AnchorModule(part, channels, num_classes, init_std=init_std, class_prior=class_prior)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def scaled(levels: list[Tensor], scales: Tensor) -> Tensor:
    """(B, Q, channels) of all levels, each times its factor."""
    return torch.cat([x * scale for x, scale in zip(levels, scales, strict=True)], 1)
