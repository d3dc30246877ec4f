"""Choosing among candidates of all levels, laid end to end: the best of each level, what suppression leaves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def take(x: Tensor, index: Tensor) -> Tensor:
    """(B or 1, S, D) at (B, Q) to (B, Q, D)."""
    x = x.expand(len(index), -1, -1)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def best_of_levels(
    scores: Tensor, level_sizes: Sequence[int], most: int | None, *, largest: bool = True
) -> tuple[Tensor, Tensor]:
    """The best candidates of each level, the best of a level first.

    Args:
        scores: (N, S).
        level_sizes: candidates of each level; they sum to S.
        most: of each level; None for all.
        largest: the best is the largest, not the smallest.

    Returns:
        (N, K) indices into S; (K,) their levels.
    """
    places, levels, start = [], [], 0
    for level, of_level in enumerate(torch.split(scores, list(level_sizes), 1)):
        size = of_level.shape[1]
        place = of_level.topk(size if most is None else min(most, size), 1, largest=largest).indices
        places.append(place + start)
        levels.append(place.new_full((place.shape[1],), level))
        start += size
    return torch.cat(places, 1), torch.cat(levels)


def survive_nms(
    boxes: Tensor, scores: Tensor, level: Tensor, *, num_levels: int, iou_threshold: float
) -> Tensor:
    """What suppression within each level of each image leaves, (B, K) bool.

    Args:
        boxes: (B, K, 4) xyxy of any unit.
        scores: (B, K) of any scale.
        level: (K,) from 0.
        num_levels: L.
        iou_threshold: a box that overlaps a kept one by more is suppressed.
    """
    group = torch.arange(len(boxes), device=level.device)[:, None] * num_levels + level
    kept = batched_nms(boxes.flatten(0, 1).float(), scores.flatten().float(), group.flatten(), iou_threshold)
    return torch.zeros_like(scores, dtype=torch.bool).view(-1).index_fill_(0, kept, True).view_as(scores)
