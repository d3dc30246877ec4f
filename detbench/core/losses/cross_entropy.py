"""Cross-entropy of classes: each by itself, or one out of all with the background among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from detbench.core.losses.focal import foreground_focal, sum_over_classes

if TYPE_CHECKING:
    from detbench.core.supervise import RegionSupervision, Supervision


def binary_cross_entropy_of(supervision: Supervision) -> Tensor:
    """The sum over all predictions and classes that aren't ignored."""
    # Focal loss that weighs nothing: gamma 0, and of either target all.
    positives = foreground_focal(supervision.positive_logits, alpha=1.0, gamma=0.0)
    return sum_over_classes(supervision, positives, alpha=0.0, gamma=0.0)


def cross_entropy_of(supervision: RegionSupervision) -> Tensor:
    """The sum over all regions that aren't ignored; the last class is that of those without an object."""
    logits, matches = supervision.predictions.pred_logits, supervision.matches
    labels = matches.image_idx.new_full(logits.shape[:2], logits.shape[2] - 1)
    labels[matches.image_idx, matches.pred_idx] = supervision.target_labels
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    if matches.ignored is not None:
        loss = loss.masked_fill(matches.ignored.flatten(), 0.0)
    return loss.sum()
