"""Deformable attention on the CPU: one table of pixels that `embedding_bag` reads, with a backward of its own.

Shape letters are those of `deformable_sampling`. benchmarks/deformable_attention.py says what this form gains.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

from detbench.core.layers.tokens import LevelSizes


def flat_attention(value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable_attention` in this form, as many images at a time as a pass takes; float32 or float64."""
    passes = _passes(value, locations, weights)
    return _cat(tuple(_forward(v, level_sizes, x, w) for v, x, w in passes))


def flat_attention_backward(
    grad: Tensor, value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients by value, locations and weights."""
    passes = _passes(grad, value, locations, weights)
    by_value, by_location, by_weight = zip(
        *[_backward(g, v, level_sizes, x, w) for g, v, x, w in passes], strict=True
    )
    return _cat(by_value), _cat(by_location), _cat(by_weight)


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


def _forward(value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points = weights.shape
    table = _table(level_sizes, points, value.dtype)
    samples = _sample(table, locations, weights)
    out = F.embedding_bag(
        samples.rows, table.fill(value), samples.bounds,
        mode="sum", per_sample_weights=samples.factors, include_last_offset=True,
    )  # fmt: skip
    return join_heads(torch.unflatten(out, 0, (batch, heads, queries)))


def _backward(
    grad: Tensor, value: Tensor, level_sizes: LevelSizes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    heads, points = weights.shape[2], weights.shape[4]
    table = _table(level_sizes, points, value.dtype)
    samples = _sample(table, locations, weights)
    grad = split_heads(grad, heads).flatten(0, 2)
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


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, Q, heads * D) to (B, heads, Q, D)."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, Q, D) to (B, Q, heads * D)."""
    return x.transpose(1, 2).flatten(2)
