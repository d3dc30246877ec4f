"""The dense head that ATSS supervises, on feature maps of any detector (arXiv:1912.02424; spec 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detbench.core.anchors import Sizes, grid_anchors
from detbench.core.boxes import decode_deltas
from detbench.core.detectors.dense import Towers, convolve
from detbench.core.detectors.predictors import DensePredictor, Raw, scaled
from detbench.core.types import DensePredictions

if TYPE_CHECKING:
    from detbench.parts.auxiliary import AtssPredictor

INIT_STD = 0.01
"""Of all its convolutions' weights, as of RetinaNet's."""


class AtssModule(DensePredictor):
    """Class logits off one tower, deltas of a square anchor and centre-ness off the other."""

    def __init__(self, part: AtssPredictor, channels: int, num_classes: int, *, class_prior: float) -> None:
        outputs = {"logits": num_classes, "deltas": 4, "centerness": 1}
        super().__init__(channels, outputs, init_std=INIT_STD, class_prior=class_prior)
        self.reads = {"logits": "class", "deltas": "box", "centerness": "box"}
        self.part = part

    def decode(self, raw: Raw, scales: Tensor, sizes: Sizes, strides: tuple[int, ...]) -> DensePredictions:
        """Deltas of each cell's anchor, with centre-ness."""
        logits = torch.cat(raw["logits"], 1)
        anchors = grid_anchors(
            sizes,
            strides,
            octave_scale=self.part.octave_scale,
            scales_per_octave=1,
            ratios=(1.0,),
            device=logits.device,
            dtype=logits.dtype,
        )
        deltas = scaled(raw["deltas"], scales) * logits.new_tensor(self.part.delta_stds)
        return DensePredictions(
            logits,
            decode_deltas(anchors.boxes, deltas),
            anchors,
            pred_centerness=torch.cat(raw["centerness"], 1).squeeze(-1),
        )


class AtssHead(nn.Module):
    """Towers, learned scales and a predictor, the same for all levels but the scales.

    Args:
        part: of the predictor.
        channels: of the feature maps.
        num_classes: C.
        strides: of the feature maps.
        groups: of each GroupNorm.
        class_prior: initial probability of every class.
    """

    def __init__(
        self,
        part: AtssPredictor,
        channels: int,
        num_classes: int,
        *,
        strides: tuple[int, ...],
        groups: int,
        class_prior: float,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.towers = Towers(channels, part.num_convs, groups=groups, init_std=INIT_STD)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        self.predictor = AtssModule(part, channels, num_classes, class_prior=class_prior)

    def forward(self, maps: Sequence[Tensor]) -> DensePredictions:
        """What it says about the (B, D, h, w) feature maps."""
        raw: dict[str, list[Tensor]] = {}
        for tower, tops in self.towers(maps).items():
            convs = self.predictor.convs_on(tower)
            raw |= dict(zip(convs, convolve(tops, list(convs.values())), strict=True))
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        return self.predictor.decode(raw, self.scales, sizes, self.strides)
