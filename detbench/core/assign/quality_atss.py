"""DeFCN's auxiliary rule: the best predictions of each level, by an object's own threshold (spec 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.claims import strongest_claims
from detbench.core.assign.inside import is_inside
from detbench.core.assign.poto import pair_quality
from detbench.core.selection import best_of_levels
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Targets
    from detbench.parts.assigners import QualityAtss


@torch.no_grad()
def assign_quality_atss(rule: QualityAtss, predictions: DensePredictions, targets: Targets) -> Matches:
    """At most one object for each prediction; an object may have none."""
    anchors = predictions.anchors
    quality_MQ = pair_quality(
        predictions.pred_logits,
        predictions.pred_boxes,
        targets.labels,
        targets.boxes,
        targets.image_idx,
        quality_alpha=rule.quality_alpha,
    )
    inside_MQ = is_inside(anchors.centers, anchors.strides, targets.boxes, radius=0.0)
    chosen_MQ = above_own_threshold(quality_MQ, anchors.level_sizes, per_level=rule.per_level) & inside_MQ
    target_idx, pred_idx = chosen_MQ.nonzero(as_tuple=True)
    num_images, num_predictions = predictions.pred_logits.shape[:2]
    return strongest_claims(
        quality_MQ[target_idx, pred_idx],
        image_idx=targets.image_idx[target_idx],
        pred_idx=pred_idx,
        target_idx=target_idx,
        shape=(num_images, num_predictions),
    )


def above_own_threshold(quality: Tensor, level_sizes: tuple[int, ...], *, per_level: int) -> Tensor:
    """Which of each object's candidates reach the mean plus the unbiased standard deviation of all of them.

    Args:
        quality: (M, Q).
        level_sizes: predictions of each level; they sum to Q.
        per_level: candidates of each level, its best.

    Returns:
        (M, Q) bool.
    """
    candidates_MK, _ = best_of_levels(quality, level_sizes, per_level)
    of_candidates = quality.gather(1, candidates_MK)
    mean = of_candidates.mean(1, keepdim=True)
    # Not `std`, which warns where there is no object.
    variance = (of_candidates - mean).square().sum(1, keepdim=True) / (of_candidates.shape[1] - 1)
    reaches = of_candidates >= mean + variance.sqrt()
    return torch.zeros_like(quality, dtype=torch.bool).scatter_(1, candidates_MK, reaches)
