"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Fpn(nn.Module):
    """Feature pyramid (arXiv:1612.03144): 1x1 laterals, nearest top-down sums, 3x3 outputs (spec 1.1).

    Args:
        in_channels: of the backbone's C3, C4, C5.
        channels: of every output.
        num_levels: outputs; those beyond the third are 3x3 stride-2 convolutions, the first of the last
            output, the next of its ReLU.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int, num_levels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            for _ in range(num_levels - len(in_channels))
        )
        for conv in [*self.laterals, *self.outputs, *self.extra]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """A backbone's features, of which C3, C4, C5 count, to P3, P4, ..., each (B, channels, h, w)."""
        merged = [
            lateral(x) for lateral, x in zip(self.laterals, features[-len(self.laterals) :], strict=True)
        ]
        for fine in range(len(merged) - 2, -1, -1):
            coarse = F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
            merged[fine] = merged[fine] + coarse
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        for i, conv in enumerate(self.extra):
            levels.append(conv(F.relu(levels[-1]) if i else levels[-1]))
        return levels
