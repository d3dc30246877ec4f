"""Proposals chosen after suppression, every level with its share (DETA; spec 6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detbench.core.boxes import cxcywh_to_xyxy

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
    num_images, num_candidates = place.shape
    # Meta tensors, with which costs are counted, have no values to suppress by; any choice costs the same.
    if num_candidates < num or scores.is_meta:
        return best
    score = scores.gather(1, place)
    box = cxcywh_to_xyxy(boxes).clamp(0, 1).gather(1, place[..., None].expand(-1, -1, 4))
    group = torch.arange(num_images, device=place.device)[:, None] * len(level_sizes) + level
    kept = batched_nms(
        box.flatten(0, 1).float(), score.flatten().float(), group.flatten(), rule.iou_threshold
    )
    alive = torch.zeros_like(score, dtype=torch.bool).view(-1).index_fill_(0, kept, True).view_as(score)

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


def best_of_levels(scores: Tensor, level_sizes: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """(B, K) indices of each level's best tokens; (K,) their levels."""
    places, levels, start = [], [], 0
    for level, (size, of_level) in enumerate(
        zip(level_sizes, torch.split(scores, list(level_sizes), 1), strict=True)
    ):
        places.append(of_level.topk(min(most, size), 1).indices + start)
        levels.append(places[-1].new_full((places[-1].shape[1],), level))
        start += size
    return torch.cat(places, 1), torch.cat(levels)
