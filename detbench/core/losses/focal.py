"""Focal loss of class logits, without ever writing down a one-hot target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from detbench.core.supervise import Supervision


def focal_of(supervision: Supervision, *, alpha: float, gamma: float) -> Tensor:
    """The sum over all predictions and classes that aren't ignored (spec 0).

    A prediction that answers for several objects (`LeastCost`) is positive for the last one's class only.
    """
    positives = foreground_focal(supervision.positive_logits, alpha=alpha, gamma=gamma)
    return sum_over_classes(supervision, positives, alpha=alpha, gamma=gamma)


def sum_over_classes(supervision: Supervision, positives: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The sum over all predictions and classes: `positives` where matched, `background_focal` elsewhere.

    Args:
        supervision: its ignored predictions cost nothing.
        positives: (K,) what each pair's logit for the object's class costs.
        alpha: of the background.
        gamma: of the background.
    """
    background = background_focal(supervision.predictions.pred_logits, alpha=alpha, gamma=gamma).sum(-1)
    if supervision.matches.ignored is not None:
        background = background.masked_fill(supervision.matches.ignored, 0.0)
    correction = positives - background_focal(supervision.positive_logits, alpha=alpha, gamma=gamma)
    return background.sum() + (correction * supervision.is_last).sum()


def foreground_focal(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of logits whose target is 1: -alpha (1 - p)^gamma ln p (arXiv:1708.02002, Eq. 5)."""
    # It is the loss for target 0 of the negated logit, with the other alpha.
    return background_focal(-logits, alpha=1 - alpha, gamma=gamma)


def background_focal(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of logits whose target is 0: -(1 - alpha) p^gamma ln(1 - p). Differentiable once."""
    loss: Tensor = _BackgroundFocal.apply(logits, 1 - alpha, gamma)
    return loss


class _BackgroundFocal(torch.autograd.Function):
    """c p^gamma s with s = -ln(1 - p); its derivative c p^gamma (gamma (1 - p) s + p) comes almost for free.

    Most of a dense detector's logits pass here, so the gradient is formed while everything is at hand.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, factor: float, gamma: float) -> Tensor:
        prob = logits.sigmoid()
        surprise = F.softplus(logits)
        weight = prob.pow(gamma).mul_(factor)
        if ctx.needs_input_grad[0]:
            slope = (1 - prob).mul_(surprise).mul_(gamma).add_(prob).mul_(weight)
            ctx.save_for_backward(slope)
        return weight.mul_(surprise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None
