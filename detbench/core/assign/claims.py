"""Who gets a prediction that several objects claim."""

from __future__ import annotations

import torch
from torch import Tensor

from detbench.core.types import Matches


def strongest_claims(
    strength: Tensor,
    *,
    image_idx: Tensor,
    pred_idx: Tensor,
    target_idx: Tensor,
    shape: tuple[int, int],
    ignored: Tensor | None = None,
) -> Matches:
    """Each claimed prediction with the object whose claim on it is strongest, the first of equals.

    Args:
        strength: (P,) of each claim, at least 0.
        image_idx: (P,) image of the prediction and the object.
        pred_idx: (P,) the prediction.
        target_idx: (P,) the object.
        shape: images in the batch, and predictions of each.
        ignored: handed on.
    """
    num_images, num_predictions = shape
    place = image_idx * num_predictions + pred_idx
    best = strength.new_zeros(num_images * num_predictions).scatter_reduce_(0, place, strength, "amax")
    wins = strength == best[place]
    nobody = torch.iinfo(torch.int64).max
    owner = torch.full_like(best, nobody, dtype=torch.int64)
    owner.scatter_reduce_(0, place[wins], target_idx[wins], "amin")
    return Matches.of_owner(owner.where(owner < nobody, -1).view(shape), ignored)
