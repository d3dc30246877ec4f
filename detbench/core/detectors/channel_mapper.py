"""The neck of query detectors: every level to the transformer's width."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ChannelMapper(nn.Module):
    """1x1 convolutions of the last features, 3x3 stride-2 ones for further levels, GroupNorm on each (spec 1.1).

    Args:
        in_channels: of the features that are read, C5 the last of them.
        channels: of every output.
        num_levels: outputs; the first beyond the features reads C5 itself, the next that one.
        groups: of each GroupNorm.
        bias: of the convolutions.
    """

    def __init__(
        self, in_channels: Sequence[int], *, channels: int, num_levels: int, groups: int, bias: bool = True
    ) -> None:
        super().__init__()
        num_extra = num_levels - len(in_channels)
        self.maps = nn.ModuleList(
            conv_norm(nn.Conv2d(c, channels, 1, bias=bias), groups) for c in in_channels
        )
        self.extra = nn.ModuleList(
            conv_norm(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=bias), groups)
            for before, after in pairwise([in_channels[-1], *[channels] * num_extra])
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """A backbone's features, of which the last count, to levels, fine to coarse, each (B, channels, h, w)."""
        levels = [level_map(x) for level_map, x in zip(self.maps, features[-len(self.maps) :], strict=True)]
        x = features[-1]
        for conv in self.extra:
            x = conv(x)
            levels.append(x)
        return levels


def conv_norm(conv: nn.Conv2d, groups: int) -> nn.Sequential:
    """The convolution with weights drawn anew, and a GroupNorm behind it."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(groups, conv.out_channels))
