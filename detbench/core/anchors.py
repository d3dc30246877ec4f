"""Where the predictions of a dense head stand: points and anchors of all pyramid levels, laid end to end.

Levels follow each other from fine to coarse; within a level the order is row-major (spec 1.4).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from detbench.core.types import Anchors

Sizes = tuple[tuple[int, int], ...]
"""Height and width of each level's feature map."""

# Multi-scale training visits many sizes, and the anchors of one can take megabytes: keep a few, not all.
_REMEMBERED = 16


@lru_cache(maxsize=_REMEMBERED)
def point_anchors(
    sizes: Sizes, strides: tuple[int, ...], *, device: torch.device, dtype: torch.dtype
) -> Anchors:
    """A point in the middle of each cell, (i + 0.5, j + 0.5) * stride, with the cell as its box."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve training later
        centers = [(_cells(*size) + 0.5) * stride for size, stride in zip(sizes, strides, strict=True)]
        per_point = [torch.full((len(c),), float(s)) for c, s in zip(centers, strides, strict=True)]
        center, stride = torch.cat(centers), torch.cat(per_point)
        half = stride[:, None] / 2
        return Anchors(
            boxes=torch.cat([center - half, center + half], -1).to(device, dtype),
            centers=center.to(device, dtype),
            strides=stride.to(device, dtype),
            level_sizes=tuple(h * w for h, w in sizes),
        )


@lru_cache(maxsize=_REMEMBERED)
def grid_anchors(
    sizes: Sizes,
    strides: tuple[int, ...],
    *,
    octave_scale: float,
    scales_per_octave: int,
    ratios: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Anchors:
    """RetinaNet's anchors (spec 1.5): each ratio (outer) in each size (inner), centred at (i, j) * stride."""
    with torch.inference_mode(False):
        half = _anchor_shapes(octave_scale, scales_per_octave, ratios) / 2
        boxes, centers, per_anchor = [], [], []
        for size, stride in zip(sizes, strides, strict=True):
            center = (_cells(*size) * stride)[:, None].expand(-1, len(half), -1)
            boxes.append(torch.cat([center - half * stride, center + half * stride], -1).reshape(-1, 4))
            centers.append(center.reshape(-1, 2))
            per_anchor.append(torch.full((len(boxes[-1]),), float(stride)))
        return Anchors(
            boxes=torch.cat(boxes).to(device, dtype),
            centers=torch.cat(centers).to(device, dtype),
            strides=torch.cat(per_anchor).to(device, dtype),
            level_sizes=tuple(len(b) for b in boxes),
        )


def _cells(height: int, width: int) -> Tensor:
    """(height * width, 2) column and row of each cell, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).double()


def _anchor_shapes(octave_scale: float, scales_per_octave: int, ratios: tuple[float, ...]) -> Tensor:
    """(A, 2) width and height over the stride, ratio by ratio."""
    scale = octave_scale * 2 ** (torch.arange(scales_per_octave).double() / scales_per_octave)
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()[:, None]
    return torch.stack([scale / root, scale * root], -1).reshape(-1, 2)
