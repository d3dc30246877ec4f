"""Proposals chosen after suppression, every level with its share (DETA; spec 6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.boxes import cxcywh_to_xyxy
from detbench.core.selection import best_of_levels, survive_nms, take

if TYPE_CHECKING:
    from detbench.parts.detectors import ProposalNms


@torch.no_grad()
def select_after_nms(
    rule: ProposalNms, scores: Tensor, boxes: Tensor, level_sizes: Sequence[int], num: int
) -> Tensor:
    """The best tokens that suppression leaves, an equal share of each level first, filled up with the best others.

    An image in which fewer than `num` are left takes its best tokens without suppression. Levels smaller than
    `per_level` take part as they are; the released code fills them up with arbitrary tokens of other levels.

    Args:
        rule: how many take part and what is suppressed.
        scores: (B, S), of any scale.
        boxes: (B, S, 4) normalised cxcywh; clipped to the image for the suppression.
        level_sizes: tokens of each level; they sum to S.
        num: how many to choose, at most S.

    Returns:
        (B, num) indices of tokens, the best first.
    """
    best = scores.topk(num, 1).indices
    place, level = best_of_levels(scores, level_sizes, rule.per_level)
    # Meta tensors, with which costs are counted, have no values to suppress by; any choice costs the same.
    if place.shape[1] < num or scores.is_meta:
        return best
    score = scores.gather(1, place)
    box = take(cxcywh_to_xyxy(boxes).clamp(0, 1), place)
    alive = survive_nms(box, score, level, num_levels=len(level_sizes), iou_threshold=rule.iou_threshold)

    order = score.masked_fill(~alive, -torch.inf).argsort(dim=1, descending=True, stable=True)
    is_of_level = level[order][..., None] == torch.arange(len(level_sizes), device=level.device)
    nth_of_level = (is_of_level.cumsum(1) * is_of_level).sum(-1)
    alive = alive.gather(1, order)
    in_share = alive & (nth_of_level <= num // len(level_sizes))
    # Shares first, then the other survivors, each by score; what is taken is put back into the order of scores.
    preference = in_share.int() + alive.int()
    taken = preference.argsort(dim=1, descending=True, stable=True)[:, :num].sort(1).values
    chosen = place.gather(1, order.gather(1, taken))
    return torch.where(alive.sum(1, keepdim=True) >= num, chosen, best)
