"""Multi-scale deformable attention (Deformable-DETR, arXiv:2010.04159, equation 3; spec 1.3): sampling and module.

Shape letters beside those of `detbench.core.types`: S pixels over all levels, L levels, P points a level,
D channels of one head in the functions.

`deformable_attention` is the one to call. It is an operator of its own, so that `torch.compile` leaves it
whole, meta tensors pass and `FlopCounterMode` counts it. The dispatcher chooses between two forms:

* CPU: `_flat_*`, one table of pixels that `embedding_bag` reads, with a backward of its own.
  benchmarks/deformable_attention.py says what that gains.
* any other device: `_grid_*`, `grid_sample` level by level. The flat form's speed on CUDA is unmeasured.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

LevelSizes = tuple[tuple[int, int], ...]


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
    return _join_heads(out.view(batch, heads, channels, queries).transpose(2, 3))


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
    sizes = _pairs(level_sizes)
    passes = _passes(value, locations, weights)
    return _cat(tuple(_flat_forward(v, sizes, x, w) for v, x, w in passes))


@_attend_backward.register_kernel("cpu")
def _(
    grad: Tensor, value: Tensor, level_sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = _pairs(level_sizes)
    passes = _passes(grad, value, locations, weights)
    by_value, by_location, by_weight = zip(
        *[_flat_backward(g, v, sizes, x, w) for g, v, x, w in passes], strict=True
    )
    return _cat(by_value), _cat(by_location), _cat(by_weight)


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


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, Q, heads * D) to (B, heads, Q, D)."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    """(B, heads, Q, D) to (B, Q, heads * D)."""
    return x.transpose(1, 2).flatten(2)


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
    grad = _split_heads(grad, heads).transpose(2, 3).flatten(0, 1).unsqueeze(3)
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


# ---- one flat table


# An encoder's backward for two images of 480 x 640 takes 1.3 to 1.5 times as long in one pass as in two:
# fresh memory for what lies between is dear. Small calls are better in one pass.
_READS_IN_A_PASS = 1 << 22


def _passes(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (B, ...), the last one the weights, as groups of as many images as a pass takes."""
    reads = 4 * math.prod(tensors[-1].shape[1:])
    images = max(1, _READS_IN_A_PASS // max(1, reads))
    return zip(*(torch.split(x, images) for x in tensors), strict=True)


def _cat(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class _Table:
    """Where the pixels of a pyramid lie in a table of T rows, D channels each, one table for each head.

    Around each level are two pixels of zeros; those at the end of a line are also the ones before the next.
    With coordinates clamped to [-2, size] every point reads its four corners, no mask needed: outside they
    are zeros, and so is the gradient of its location. Tables are apart by head, as one alone fits a core's
    cache. Constants have one number for each of the K = L * P points of a query.

    Attributes:
        level_sizes: (height, width) of each level.
        starts: row of the first zero of each level.
        num_rows: T.
        lowest: (K,) coordinate, -2.
        width: (K,) of the level.
        height: (K,) of the level.
        stride: (K,) rows between a pixel and the one below.
        origin: (K,) row of the pixel (0, 0).
        corners: (4, K) int32, rows from the upper left corner to upper left, upper right, lower left, lower right.
    """

    level_sizes: LevelSizes
    starts: tuple[int, ...]
    num_rows: int
    lowest: Tensor
    width: Tensor
    height: Tensor
    stride: Tensor
    origin: Tensor
    corners: Tensor

    def windows(self, table: Tensor) -> Iterator[Tensor]:
        """Views (B, heads, h, w, D) of the levels in a table (B, heads, T, D)."""
        for (h, w), start in zip(self.level_sizes, self.starts, strict=True):
            rows = table[:, :, start : start + (h + 4) * (w + 2)]
            yield torch.unflatten(rows, 2, (h + 4, w + 2))[:, :, 2 : h + 2, 2:]

    def pixels(self, value: Tensor) -> Iterator[Tensor]:
        """Views (B, heads, h, w, D) of the levels in pixels (B, S, heads, D)."""
        levels = torch.split(value, [h * w for h, w in self.level_sizes], 1)
        for (h, w), level in zip(self.level_sizes, levels, strict=True):
            yield torch.unflatten(level, 1, (h, w)).permute(0, 3, 1, 2, 4)

    def fill(self, value: Tensor) -> Tensor:
        """(B, S, heads, D) to (B * heads * T, D)."""
        batch, _, heads, channels = value.shape
        table = value.new_zeros(batch, heads, self.num_rows, channels)
        for window, pixels in zip(self.windows(table), self.pixels(value), strict=True):
            window.copy_(pixels)
        return table.flatten(0, 2)

    def read(self, table: Tensor, like: Tensor) -> Tensor:
        """The inverse of `fill`, to the shape of `like`."""
        batch, _, heads, _ = like.shape
        value = torch.empty_like(like, memory_format=torch.contiguous_format)
        table = torch.unflatten(table, 0, (batch, heads, self.num_rows))
        for window, pixels in zip(self.windows(table), self.pixels(value), strict=True):
            pixels.copy_(window)
        return value


@lru_cache(maxsize=64)
def _table(level_sizes: LevelSizes, num_points: int, dtype: torch.dtype) -> _Table:
    starts, num_rows = [], 0
    for h, w in level_sizes:
        starts.append(num_rows)
        num_rows += (h + 4) * (w + 2) + 2

    def constant(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=dtype).repeat_interleave(num_points)

    width = constant([w for _, w in level_sizes])
    stride = width + 2
    one = torch.ones_like(width)
    return _Table(
        level_sizes=level_sizes,
        starts=tuple(starts),
        num_rows=num_rows,
        lowest=-2 * one,
        width=width,
        height=constant([h for h, _ in level_sizes]),
        stride=stride,
        origin=constant(starts) + 2 * stride + 2,
        corners=torch.stack([0 * one, one, stride, stride + 1]).int(),
    )


@dataclass(frozen=True)
class _Samples:
    """What the points read from a table, as a sparse matrix (N, B * heads * T) with N = B * heads * Q.

    Attributes:
        bounds: (N + 1,) int32, where in `rows` those of each query and head begin, and the end.
        rows: (N * 4 * K,) int32, rows of the table.
        factors: (N * 4 * K,) what each row is multiplied by: bilinear part times weight.
        right: (B, heads, Q, K) distance from the left corners, in pixels.
        down: (B, heads, Q, K) distance from the upper corners, in pixels.
        weights: (B, heads, Q, K).
    """

    bounds: Tensor
    rows: Tensor
    factors: Tensor
    right: Tensor
    down: Tensor
    weights: Tensor


def _sample(table: _Table, locations: Tensor, weights: Tensor) -> _Samples:
    batch, queries, heads, levels, points = weights.shape
    xy = locations.transpose(1, 2).flatten(3, 4)
    weights = weights.transpose(1, 2).flatten(3, 4)
    half = weights.new_tensor(-0.5)
    right = torch.addcmul(half, xy[..., 0], table.width).clamp_(table.lowest, table.width)
    down = torch.addcmul(half, xy[..., 1], table.height).clamp_(table.lowest, table.height)
    left, upper = right.floor(), down.floor()
    right -= left
    down -= upper

    # NaN becomes the smallest integer, which is no row to read; its factors stay NaN.
    upper_left = torch.addcmul(left, upper, table.stride).add_(table.origin).int().clamp_(min=0)
    heads_apart = torch.arange(0, batch * heads * table.num_rows, table.num_rows, dtype=torch.int32)
    corners = heads_apart.view(batch, heads, 1, 1, 1) + table.corners
    shape = (batch, heads, queries, 4, levels * points)
    rows = torch.empty(shape, dtype=torch.int32)
    torch.add(upper_left.unsqueeze(3), corners, out=rows)

    factors = weights.new_empty(shape)
    upper_left, upper_right, lower_left, lower_right = factors.unbind(3)
    lower = weights * down
    torch.mul(lower, right, out=lower_right)
    torch.sub(lower, lower_right, out=lower_left)
    torch.sub(weights * right, lower_right, out=upper_right)
    torch.sub(weights - lower, upper_right, out=upper_left)

    num_bags, bag = batch * heads * queries, 4 * levels * points
    bounds = torch.arange(0, num_bags * bag + 1, bag, dtype=torch.int32)
    return _Samples(bounds, rows.flatten(), factors.flatten(), right, down, weights)


def _flat_forward(value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points = weights.shape
    table = _table(level_sizes, points, value.dtype)
    samples = _sample(table, locations, weights)
    out = F.embedding_bag(
        samples.rows, table.fill(value), samples.bounds,
        mode="sum", per_sample_weights=samples.factors, include_last_offset=True,
    )  # fmt: skip
    return _join_heads(torch.unflatten(out, 0, (batch, heads, queries)))


def _flat_backward(
    grad: Tensor, value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    heads, points = weights.shape[2], weights.shape[4]
    table = _table(level_sizes, points, value.dtype)
    samples = _sample(table, locations, weights)
    grad = _split_heads(grad, heads).flatten(0, 2)
    filled = table.fill(value)
    shape = (len(grad), len(filled))

    _accept_sparse_csr()
    pattern = torch.sparse_csr_tensor(
        samples.bounds, samples.rows, samples.factors, shape, check_invariants=False
    )
    by_factor = torch.sparse.sampled_addmm(pattern, grad, filled.t(), beta=0.0).values()
    by_location, by_weight = _by_sample(by_factor, samples, table, locations)

    # SciPy's transposed product takes a tenth of the time of PyTorch's, index_add_ or scatter_add_.
    matrix = csr_array((samples.factors.numpy(), samples.rows.numpy(), samples.bounds.numpy()), shape)
    by_value = table.read(torch.from_numpy(matrix.T @ grad.numpy()), like=value)
    return by_value, by_location, by_weight


def _by_sample(
    by_factor: Tensor, samples: _Samples, table: _Table, locations: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by factor to those by location (B, Q, heads, L, P, 2) and by weight (B, Q, heads, L, P)."""
    right, down, weights = samples.right, samples.down, samples.weights
    corners = by_factor.view(*weights.shape[:3], 4, weights.shape[3]).unbind(3)
    upper_left, upper_right, lower_left, lower_right = corners
    upper, lower = upper_left.lerp(upper_right, right), lower_left.lerp(lower_right, right)
    slope = torch.lerp(upper_right - upper_left, lower_right - lower_left, down)

    by_location = torch.empty_like(locations, memory_format=torch.contiguous_format)
    by_weight = by_location.new_empty(locations.shape[:-1])
    x, y = by_location.flatten(3, 4).transpose(1, 2).unbind(-1)
    torch.mul(slope.mul_(weights), table.width, out=x)
    torch.mul((lower - upper).mul_(weights), table.height, out=y)
    torch.lerp(upper, lower, down, out=by_weight.flatten(3).transpose(1, 2))
    return by_location, by_weight


@cache
def _accept_sparse_csr() -> None:
    """Uses up PyTorch's one warning a process that sparse CSR is in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


class DeformableAttention(nn.Module):
    """Queries that look at a few points of every level, at places and with weights they choose themselves.

    Args:
        hidden_dim: channels of queries, memory and output; a multiple of `num_heads`.
        num_heads: heads, each with its own points and its own share of the channels.
        num_levels: L.
        num_points: P of each head and level.
    """

    def __init__(
        self, hidden_dim: int = 256, *, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, 2 * num_samples)
        self.attention_weights = nn.Linear(hidden_dim, num_samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Equal weights; each head looks along a direction of its own, point p at p + 1 pixels (spec 1.3)."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction /= direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)[:, None] * direction[:, None, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(steps.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        level_sizes: LevelSizes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """What each query reads.

        Args:
            query: (B, Q, hidden_dim) content plus position.
            reference: (B, Q, L, 2) points xy or (B, Q, L, 4) boxes cxcywh, in [0, 1] of the padded map of
                each level: multiplied by its valid ratios.
            value: (B, S, hidden_dim) memory without position.
            level_sizes: (height, width) of each level.
            padding_mask: (B, S) True where the memory is padding; None where nothing is.

        Returns:
            (B, Q, hidden_dim).
        """
        levels, points = self.num_levels, self.num_points
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        offsets = torch.unflatten(self.sampling_offsets(query), 2, (self.num_heads, levels, points, 2))
        center = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            step = _pixel(level_sizes, like=reference)
        else:
            step = reference[:, :, None, :, None, 2:] * (0.5 / points)
        scores = torch.unflatten(self.attention_weights(query), 2, (self.num_heads, levels * points))
        sampled = deformable_attention(
            torch.unflatten(value, 2, (self.num_heads, -1)),
            level_sizes,
            torch.addcmul(center, offsets, step),
            torch.unflatten(_softmax(scores), 3, (levels, points)),
        )
        out: Tensor = self.output_proj(sampled)
        return out


def _pixel(level_sizes: LevelSizes, like: Tensor) -> Tensor:
    """(L, 1, 2) width and height of a pixel of each level; an empty level counts as one pixel."""
    sizes = [[(1 / max(w, 1), 1 / max(h, 1))] for h, w in level_sizes]
    return torch.tensor(sizes, dtype=like.dtype).to(like.device, non_blocking=True)


def _softmax(x: Tensor) -> Tensor:
    """Over the last axis, by way of the first where that axis is shorter than one of the CPU's vectors.

    PyTorch then takes six times as long along the last: 12 values for 3 levels of 4 points, say.
    """
    if x.device.type == "cpu" and x.shape[-1] < 16:
        return x.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()
    return x.softmax(-1)
