"""Class losses whose target is how well the matched box fits, and the loss of predicting that fit itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from detbench.core.boxes import query_iou
from detbench.core.losses.focal import background_focal, sum_over_classes

if TYPE_CHECKING:
    from detbench.core.supervise import QuerySupervision


def matched_iou(supervision: QuerySupervision, *, eps: float) -> Tensor:
    """(K,) IoU of each pair's boxes, `eps` added to the union, which counts as at least 1e-6; no gradient.

    The bound is mmdetection's; with an epsilon of 1e-6, detrex's, it never takes hold.
    """
    # Not under no_grad: the supervision keeps what it gathers, and the box losses want its gradient.
    pred, target = supervision.normalised("xyxy")
    return query_iou(pred.detach(), target, eps=eps, least_union=1e-6)


def quality_focal_of(supervision: QuerySupervision, *, beta: float, iou_eps: float) -> Tensor:
    """The sum of `quality_focal` over pairs and of p^beta (-ln(1 - p)) over everything else (spec 5.3)."""
    positives = quality_focal(supervision.positive_logits, matched_iou(supervision, eps=iou_eps), beta=beta)
    return sum_over_classes(supervision, positives, alpha=0.0, gamma=beta)


def task_aligned_focal_of(supervision: QuerySupervision, *, gamma: float) -> Tensor:
    """The sum of `quality_focal` over pairs, at their weights, and of p^gamma (-ln(1 - p)) elsewhere (spec 8.2)."""
    positives = quality_focal(supervision.positive_logits, supervision.pair_weights, beta=gamma)
    return sum_over_classes(supervision, positives, alpha=0.0, gamma=gamma)


def varifocal_of(supervision: QuerySupervision, *, alpha: float, gamma: float, iou_eps: float) -> Tensor:
    """The sum over pairs of u BCE(p, u) with u their IoU, and of alpha p^gamma (-ln(1 - p)) over everything else.

    A pair whose boxes don't overlap is part of everything else (spec 5.4).
    """
    logits, iou = supervision.positive_logits, matched_iou(supervision, eps=iou_eps)
    background = background_focal(logits, alpha=1 - alpha, gamma=gamma)
    positives = torch.where(iou > 0, iou * soft_cross_entropy(logits, iou), background)
    return sum_over_classes(supervision, positives, alpha=1 - alpha, gamma=gamma)


def position_supervised_of(
    supervision: QuerySupervision, *, power: float, alpha: float, gamma: float, iou_eps: float
) -> Tensor:
    """The sum of alpha `quality_focal` over pairs, at targets IoU^power, and of focal loss elsewhere (spec 5.5).

    Targets of an image (in a layer) are stretched until its best pair's is 1.
    """
    target = matched_iou(supervision, eps=iou_eps) ** power
    target = target * stretch(
        target, supervision.matches.image_idx, num_images=len(supervision.targets.counts)
    )
    positives = alpha * quality_focal(supervision.positive_logits, target, beta=gamma)
    return sum_over_classes(supervision, positives, alpha=alpha, gamma=gamma)


def iou_quality_of(supervision: QuerySupervision, *, iou_eps: float) -> Tensor:
    """The sum over pairs of the binary cross-entropy between the quality logit and the pair's IoU (spec 5.2)."""
    logits = supervision.predictions.pred_quality
    assert logits is not None  # Experiment refuses this loss without a quality head
    return soft_cross_entropy(supervision.gather(logits), matched_iou(supervision, eps=iou_eps)).sum()


def quality_focal(logits: Tensor, targets: Tensor, *, beta: float) -> Tensor:
    """|target - p|^beta BCE(p, target), p with its gradient in both factors (arXiv:2006.04388, Eq. 3)."""
    return (targets - logits.sigmoid()).abs() ** beta * soft_cross_entropy(logits, targets)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with targets anywhere in [0, 1], unreduced."""
    # Not F.binary_cross_entropy_with_logits: it wants targets of the logits' precision.
    return F.softplus(logits) - targets * logits


def stretch(values: Tensor, image_idx: Tensor, *, num_images: int) -> Tensor:
    """(K,) factors that bring the greatest of each image's (K,) values in [0, 1] up to 1 (spec 5.5)."""
    greatest = values.new_zeros(num_images).scatter_reduce_(0, image_idx, values, "amax")
    return (1 / (greatest + 1e-8)).clamp(min=1)[image_idx]
