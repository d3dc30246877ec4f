"""Losses of soft pairs: what teaches a correspondence, and classes under weighed pairs (Match-Free; spec 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.query_hungarian import query_cost
from detbench.core.losses.focal import background_focal, foreground_focal

if TYPE_CHECKING:
    from detbench.core.supervise import QuerySupervision
    from detbench.parts.assigners import QueryHungarian


def correspondence_of(supervision: QuerySupervision, *, cost: QueryHungarian, detach_cost: bool) -> Tensor:
    """The sum over all pairs of correspondence times cost, the cost's box term being 1 - GIoU (spec 7.1 L_w)."""
    predictions = supervision.predictions
    assert predictions.correspondence is not None  # Experiment refuses the loss without a probe
    with torch.set_grad_enabled(not detach_cost and torch.is_grad_enabled()):
        of_pairs = query_cost(cost, predictions, supervision.targets) + cost.cost_giou
    return (predictions.correspondence * of_pairs).sum()


def weighted_focal_of(
    supervision: QuerySupervision, *, alpha: float, gamma: float, background: bool
) -> Tensor:
    """The sum of weighed positive terms over pairs, and of negative terms where no pair stands (spec 7.2 c).

    Pairs of one query and one class add up: their term counts as often as their weights sum to.
    """
    positive = foreground_focal(supervision.positive_logits, alpha=alpha, gamma=gamma)
    of_pairs = (positive * supervision.pair_weights).sum()
    if not background:
        return of_pairs
    matches = supervision.matches
    negative = background_focal(supervision.predictions.pred_logits, alpha=alpha, gamma=gamma)
    taken = (matches.image_idx, matches.pred_idx, supervision.target_labels)
    return of_pairs + negative.index_put(taken, negative.new_zeros(())).sum()
