"""3D max filtering: each location held against its neighbours in space and scale (DeFCN; spec 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from detbench.parts.branches import MaxFilter


class MaxFilterModule(nn.Module):
    """Says of each location whether it is the peak of its surroundings, from the box tower's features.

    Args:
        part: how far the surroundings reach.
        channels: of the tower.
        groups: of the GroupNorm.
        init_std: standard deviation of both convolutions' weights.
    """

    def __init__(self, part: MaxFilter, channels: int, *, groups: int, init_std: float) -> None:
        super().__init__()
        self.part = part
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels)
        self.activation = nn.ReLU()
        self.predict = nn.Conv2d(channels, 1, 3, padding=1)
        for conv in (self.conv, self.predict):
            nn.init.normal_(conv.weight, std=init_std)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's levels (B, D, h, w) to one logit a location, (B, 1, h, w) of each level."""
        peaks = max_of_surroundings(
            [self.conv(x) for x in features], levels=self.part.levels, window=self.part.window
        )
        joined = [self.norm(peak + x) for peak, x in zip(peaks, features, strict=True)]
        return [self.predict(self.activation(x)) for x in joined]


def max_of_surroundings(features: Sequence[Tensor], *, levels: int, window: int) -> list[Tensor]:
    """Each value's greatest neighbour in space and scale; what lies outside an image takes no part.

    Args:
        features: (B, D, h, w) of each level, from fine to coarse.
        levels: how many levels to either side are looked at, brought bilinearly to the level's own size.
        window: side of the square of cells that is looked at; odd.

    Returns:
        The same shapes.
    """
    out = []
    for i, own in enumerate(features):
        greatest = own
        for other in range(max(0, i - levels), min(len(features), i + levels + 1)):
            if other != i:
                resized = F.interpolate(
                    features[other], size=own.shape[-2:], mode="bilinear", align_corners=False
                )
                greatest = torch.maximum(greatest, resized)
        out.append(F.max_pool2d(greatest, window, stride=1, padding=window // 2))
    return out


def fuse(logits: Tensor, keep: Tensor, *, eps: float | None) -> Tensor:
    """The logit of the fused probability sigmoid(logits) * sigmoid(keep) (spec 3.3).

    Args:
        logits: (B, Q, C) of the classes.
        keep: (B, Q, 1) of the filter.
        eps: least probability and least distance from 1 that a logit is made of, as DATE has it, without a
            gradient beyond; None for the exact logit, with which everything is as on DeFCN's probabilities.
    """
    if eps is None:
        # (1 - q) / q = e^-a + e^-b + e^-(a + b) for q = sigmoid(a) * sigmoid(b).
        return -torch.logaddexp(torch.logaddexp(-logits, -keep), -(logits + keep))
    prob = logits.sigmoid() * keep.sigmoid()
    return prob.clamp(min=eps).log() - (1 - prob).clamp(min=eps).log()
