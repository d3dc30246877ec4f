"""FCOS's centre-ness: how far inside its object a location stands, and the loss of predicting it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from detbench.core.boxes import boxes_to_distances

if TYPE_CHECKING:
    from detbench.core.supervise import DenseSupervision


def centerness_of(supervision: DenseSupervision) -> Tensor:
    """The sum over pairs of the binary cross-entropy between centre-ness logits and targets (spec 1.4)."""
    logits = supervision.predictions.pred_centerness
    assert logits is not None  # Experiment refuses this loss without the fcos predictor
    return F.binary_cross_entropy_with_logits(
        supervision.gather(logits), supervision.centerness_targets, reduction="sum"
    )


def centerness_target(centers: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of each location in its box; 0 outside (spec 1.4).

    Args:
        centers: (K, 2) xy pixels.
        boxes: (K, 4) xyxy pixels.
    """
    left, top, right, bottom = boxes_to_distances(centers, boxes).clamp(min=0).unbind(-1)
    across = left.minimum(right) / left.maximum(right)
    down = top.minimum(bottom) / top.maximum(bottom)
    return (across * down).sqrt()
