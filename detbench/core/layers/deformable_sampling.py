"""The sum of bilinear samples that multi-scale deformable attention is (arXiv:2010.04159, equation 3; spec 1.3).

Shape letters beside those of `detbench.core.types`: S pixels over all levels, L levels, P points a level,
D channels of one head.

`deformable_attention` is the one to call. It is an operator of its own, so that `torch.compile` leaves it
whole, meta tensors pass and `FlopCounterMode` counts it. The dispatcher chooses between two forms:

* CPU: that of `deformable_table`.
* any other device: `_grid_*`, `grid_sample` level by level. The table's speed on CUDA is unmeasured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from detbench.core.layers.deformable_table import (
    flat_attention,
    flat_attention_backward,
    join_heads,
    split_heads,
)
from detbench.core.layers.tokens import LevelSizes


def deformable_attention(
    value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> Tensor:
    """Sums of bilinear samples of a pyramid, one for each query and head.

    A sample is 0 outside its map; pixel centres lie at (i + 0.5) / size (`align_corners=False`). It is
    differentiable once, by value, locations and weights. Computed in float32 (float64 if value is), under
    autocast too: bfloat16 has 8 bits for a coordinate.

    `FlopCounterMode` counts 5 D multiply-accumulates for each sampled point (4 corners, 1 weight), and twice
    as much for the backward.

    Args:
        value: (B, S, heads, D) pixels of all levels, row by row, level after level.
        level_sizes: (height, width) of each level, summing to S; either may be 0.
        locations: (B, Q, heads, L, P, 2) xy, in [0, 1] inside the padded map.
        weights: (B, Q, heads, L, P) of the samples.

    Returns:
        (B, Q, heads * D) in value's dtype.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    numbers = [number for size in level_sizes for number in size]
    out: Tensor = _attend(value.to(dtype), numbers, locations.to(dtype), weights.to(dtype))
    return out.to(value.dtype)


def deformable_attention_reference(
    value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> Tensor:
    """`deformable_attention` in its plain form, for float32 and float64: what the fast one is tested against."""
    batch, queries, heads = weights.shape[:3]
    channels = value.shape[3]
    out = value.new_zeros(batch * heads, channels, queries)
    for level in _grid_levels(value, level_sizes, locations, weights):
        out = out + (F.grid_sample(level.maps, level.grid, align_corners=False) * level.weights).sum(-1)
    return join_heads(out.view(batch, heads, channels, queries).transpose(2, 3))


# ---- the operator: (height, width, height, width, ...) stands for level_sizes, as a schema has no pairs


@torch.library.custom_op(
    "detbench::deformable_attention",
    mutates_args=(),
    schema="(Tensor value, int[] level_sizes, Tensor locations, Tensor weights) -> Tensor",
)
def _attend(value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    # Contiguous, as the fake kernel below promises.
    return deformable_attention_reference(value, _pairs(level_sizes), locations, weights).contiguous()


@torch.library.custom_op(
    "detbench::deformable_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, int[] level_sizes, Tensor locations, Tensor weights)"
    " -> (Tensor, Tensor, Tensor)",
)
def _attend_backward(
    grad: Tensor, value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by value, locations and weights; samples anew what the forward sampled, to save memory."""
    return _grid_backward(grad, value, _pairs(level_sizes), locations, weights)


@_attend.register_kernel("cpu")
def _(value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return flat_attention(value, _pairs(level_sizes), locations, weights)


@_attend_backward.register_kernel("cpu")
def _(
    grad: Tensor, value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return flat_attention_backward(grad, value, _pairs(level_sizes), locations, weights)


@_attend.register_fake
def _(value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads = weights.shape[:3]
    return value.new_empty(batch, queries, heads * value.shape[3])


@_attend_backward.register_fake
def _(
    grad: Tensor, value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), value.new_empty(locations.shape), value.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.level_sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_location, by_weight = _attend_backward(grad, value, ctx.level_sizes, locations, weights)
    return by_value, None, by_location, by_weight


_attend.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.detbench.deformable_attention)
def _flops(
    value: list[int], level_sizes: list[int], locations: list[int], weights: list[int], **_: Any
) -> int:
    return 2 * 5 * value[3] * math.prod(weights)


@register_flop_formula(torch.ops.detbench.deformable_attention_backward)
def _flops_backward(
    grad: list[int],
    value: list[int],
    level_sizes: list[int],
    locations: list[int],
    weights: list[int],
    **_: Any,
) -> int:
    return 2 * _flops(value, level_sizes, locations, weights)


def _pairs(numbers: Sequence[int]) -> LevelSizes:
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


# ---- grid_sample, level by level


class _GridLevel(NamedTuple):
    """One level as `grid_sample` wants it: batch and heads in one axis."""

    number: int
    maps: Tensor  # (B * heads, D, h, w)
    grid: Tensor  # (B * heads, Q, P, 2) xy, in [-1, 1] inside the map
    weights: Tensor  # (B * heads, 1, Q, P)


def _grid_levels(
    value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> Iterator[_GridLevel]:
    """The levels that have pixels."""
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2).unsqueeze(2)
    start = 0
    for number, (h, w) in enumerate(level_sizes):
        if h * w:
            level = maps[:, :, start : start + h * w].reshape(*maps.shape[:2], h, w)
            yield _GridLevel(number, level, grids[number], weights[number])
        start += h * w


def _grid_backward(
    grad: Tensor, value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, heads, _, points = weights.shape
    grad = split_heads(grad, heads).transpose(2, 3).flatten(0, 1).unsqueeze(3)
    by_value, by_location, by_weight = (x.new_zeros(x.shape) for x in (value, locations, weights))
    pixels = torch.split(by_value, [h * w for h, w in level_sizes], 1)
    for level in _grid_levels(value, level_sizes, locations, weights):
        sampled = F.grid_sample(level.maps, level.grid, align_corners=False)
        by_maps, by_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * level.weights, level.maps, level.grid,
            0, 0, False, (True, True),  # bilinear, zero padding, align_corners, both gradients
        )  # fmt: skip
        pixels[level.number].copy_(
            by_maps.view(batch, heads, *by_maps.shape[1:]).flatten(3).permute(0, 3, 1, 2)
        )
        by_location[:, :, :, level.number] = (
            by_grid.mul_(2).view(batch, heads, queries, points, 2).transpose(1, 2)
        )
        by_weight[:, :, :, level.number] = (
            (grad * sampled).sum(1).view(batch, heads, queries, points).transpose(1, 2)
        )
    return by_value, by_location, by_weight
