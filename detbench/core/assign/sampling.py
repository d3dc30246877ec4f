"""Random subsets of candidates, drawn from torch's own CPU generator, which the trainer seeds for every step."""

from __future__ import annotations

import torch
from torch import Tensor

from detbench.core.distributed import part_of_draw


def random_subset(positive: Tensor, *, most: int) -> Tensor:
    """(I, Q) bool to the same with at most so many in each image, all choices equally likely."""
    if most >= positive.shape[1]:
        return positive
    keys = part_of_draw(torch.rand, positive.shape).to(positive.device).masked_fill_(~positive, -1.0)
    chosen, place = keys.topk(most)
    return torch.zeros_like(positive).scatter_(1, place, chosen >= 0)


def random_sample(positive: Tensor, negative: Tensor, *, size: int, most_positive: int) -> Tensor:
    """Candidates of each image drawn at random: positives up to a number, negatives for the rest (Faster R-CNN).

    Args:
        positive: (I, Q) bool.
        negative: (I, Q) bool; whatever is neither isn't drawn.
        size: of the sample of an image that has enough.
        most_positive: positives in it.

    Returns:
        (I, Q) bool.
    """
    positive = random_subset(positive, most=most_positive)
    keys = part_of_draw(torch.rand, negative.shape).to(negative.device).masked_fill_(~negative, -1.0)
    keys.masked_fill_(positive, 1.0)  # above all that is drawn
    chosen, place = keys.topk(min(size, keys.shape[1]))
    return torch.zeros_like(positive).scatter_(1, place, chosen >= 0)
