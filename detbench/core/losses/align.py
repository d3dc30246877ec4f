"""Align-DETR's class losses: a soft target that joins score, box and rank among an object's candidates (spec 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.losses.focal import background_focal, foreground_focal, sum_over_classes
from detbench.core.losses.quality import matched_iou, soft_cross_entropy

if TYPE_CHECKING:
    from detbench.core.supervise import QuerySupervision


def align_of(
    supervision: QuerySupervision, *, gamma: float, quality_alpha: float, floor: float, iou_eps: float
) -> Tensor:
    """The sum of `align_loss` over pairs and of p^gamma (-ln(1 - p)) over everything else (paper, Eq. 5)."""
    target = soft_target(supervision, quality_alpha=quality_alpha, floor=floor, iou_eps=iou_eps)
    positives = align_loss(supervision.positive_logits, target, gamma=gamma)
    return sum_over_classes(supervision, positives, alpha=0.0, gamma=gamma)


def ia_bce_of(
    supervision: QuerySupervision, *, gamma: float, quality_alpha: float, floor: float, iou_eps: float
) -> Tensor:
    """The same with plain cross-entropy at pairs, as the released code has it (spec 4.3)."""
    target = soft_target(supervision, quality_alpha=quality_alpha, floor=floor, iou_eps=iou_eps)
    positives = soft_cross_entropy(supervision.positive_logits, target)
    return sum_over_classes(supervision, positives, alpha=0.0, gamma=gamma)


def align_loss(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """-t (1 - p)^gamma ln p - (1 - t) p^gamma ln(1 - p), unreduced; both modulators have gradients (Eq. 3)."""
    foreground = foreground_focal(logits, alpha=1.0, gamma=gamma)
    return targets * foreground + (1 - targets) * background_focal(logits, alpha=0.0, gamma=gamma)


def soft_target(
    supervision: QuerySupervision, *, quality_alpha: float, floor: float, iou_eps: float
) -> Tensor:
    """(K,) quality, at least `floor`, times the pair's weight (Eq. 4); no gradient."""
    quality = alignment_quality(supervision, alpha=quality_alpha, iou_eps=iou_eps)
    return quality.clamp(min=floor) * supervision.pair_weights


def alignment_quality(supervision: QuerySupervision, *, alpha: float, iou_eps: float) -> Tensor:
    """(K,) score^alpha IoU^(1 - alpha) of each pair, the score that of the object's class (Eq. 2); no gradient."""
    score = supervision.positive_logits.detach().sigmoid()
    return score**alpha * matched_iou(supervision, eps=iou_eps) ** (1 - alpha)


def rank_within(bags: Tensor, quality: Tensor, order: Tensor) -> Tensor:
    """(K,) place of each pair among those of its bag: 0 for the greatest quality.

    Args:
        bags: (K,) int64, any numbers; equal ones are one bag.
        quality: (K,).
        order: (K,) int64; of equal qualities that with the smaller number goes first.
    """
    by_order = order.argsort(stable=True)
    by_quality = by_order[quality[by_order].argsort(descending=True, stable=True)]
    by_bag = by_quality[bags[by_quality].argsort(stable=True)]
    in_bags = bags[by_bag]
    place = torch.arange(len(bags), device=bags.device) - torch.searchsorted(in_bags, in_bags)
    return torch.empty_like(place).scatter_(0, by_bag, place)
