"""Faster R-CNN's first stage: which anchors hold an object, and proposals made of them (arXiv:1506.01497; spec 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.anchors import grid_anchors
from detbench.core.boxes import clip_boxes, decode_deltas
from detbench.core.detectors.dense import by_location
from detbench.core.selection import best_of_levels, survive_nms, take
from detbench.core.types import DensePredictions

if TYPE_CHECKING:
    from detbench.parts.auxiliary import RpnPredictor


class RpnHead(nn.Module):
    """A 3x3 convolution with ReLU, on it one logit and four deltas for each anchor; the same for all levels.

    Args:
        part: anchors and proposals.
        channels: of the feature maps.
        strides: of the feature maps.
    """

    def __init__(self, part: RpnPredictor, channels: int, *, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.part, self.strides = part, strides
        num_anchors = part.scales_per_octave * len(part.ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.logits = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * num_anchors, 1)
        for conv in (self.conv, self.logits, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> DensePredictions:
        """What it says about the (B, D, h, w) feature maps, of a single class."""
        hidden = [F.relu(self.conv(x)) for x in maps]
        logits = torch.cat([by_location(self.logits(x)).flatten(1) for x in hidden], 1).unsqueeze(-1)
        deltas = torch.cat([by_location(self.deltas(x)).flatten(1) for x in hidden], 1)
        deltas = deltas.view(*logits.shape[:2], 4)
        anchors = grid_anchors(
            tuple((x.shape[-2], x.shape[-1]) for x in maps),
            self.strides,
            octave_scale=self.part.octave_scale,
            scales_per_octave=self.part.scales_per_octave,
            ratios=self.part.ratios,
            device=logits.device,
            dtype=logits.dtype,
        )
        return DensePredictions(logits, decode_deltas(anchors.boxes, deltas), anchors, pred_deltas=deltas)


@torch.no_grad()
def propose(part: RpnPredictor, predictions: DensePredictions, whwh: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest boxes that suppression within each level leaves, cut to their image.

    Args:
        part: how many take part, what is suppressed, how many are kept.
        predictions: of the first stage.
        whwh: (B, 4) width, height, width, height of each image before padding.

    Returns:
        (B, P, 4) xyxy pixels, the best first; (B, P) bool, False where an image has no more boxes.
    """
    scores = predictions.pred_logits.squeeze(-1)
    place, level = best_of_levels(scores, predictions.anchors.level_sizes, part.per_level)
    score = scores.gather(1, place)
    boxes = clip_boxes(take(predictions.pred_boxes, place), whwh[:, None])
    num_levels = len(predictions.anchors.level_sizes)
    alive = survive_nms(boxes, score, level, num_levels=num_levels, iou_threshold=part.iou_threshold)
    alive &= (boxes[..., 2:] > boxes[..., :2]).all(-1)
    best, order = score.masked_fill(~alive, -torch.inf).topk(min(part.num_proposals, score.shape[1]))
    return take(boxes, order), best.isfinite()
