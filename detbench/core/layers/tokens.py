"""Where the tokens of a feature pyramid stand in their images, padding included."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from detbench.core.layers.position import token_positions

LevelSizes = tuple[tuple[int, int], ...]
"""Height and width of each level."""


@dataclass(frozen=True)
class Layout:
    """What the geometry of tokens depends on beside their number.

    Attributes:
        hidden_dim: D of the position encoding.
        temperature: of the position encoding.
        offset: of the position encoding.
    """

    hidden_dim: int
    temperature: float
    offset: float


@dataclass(frozen=True)
class TokenGrid:
    """The geometry of a batch's S tokens, level after level, row by row.

    The first axis of positions and centers is 1 where no image is padded: all are alike then.

    Attributes:
        level_sizes: (height, width) of each level.
        padding_mask: (B, S) True where a token is padding; None where none is.
        valid_ratios: (B, L, 2) unpadded share of each level's width and height; None where all are 1.
        positions: (B, S, D) sine encodings (spec 1.2).
        centers: (B, S, 2) xy of each token over the unpadded size of its level (spec 1.4, 1.7).
    """

    level_sizes: LevelSizes
    padding_mask: Tensor | None
    valid_ratios: Tensor | None
    positions: Tensor
    centers: Tensor

    def maps_of(self, tokens: Tensor) -> list[Tensor]:
        """(B, S, D) tokens to the feature maps they are, each (B, D, h, w)."""
        num_images, _, hidden_dim = tokens.shape
        by_level = torch.split(tokens, [h * w for h, w in self.level_sizes], 1)
        return [
            level.transpose(1, 2).reshape(num_images, hidden_dim, h, w)
            for level, (h, w) in zip(by_level, self.level_sizes, strict=True)
        ]

    def on_levels(self, reference: Tensor) -> Tensor:
        """(B, Q, 2 or 4) points or boxes of the unpadded image to (B, Q, L, 2 or 4) of each padded level."""
        if self.valid_ratios is None:
            return reference.unsqueeze(2).expand(-1, -1, len(self.level_sizes), -1)
        return reference.unsqueeze(2) * self.valid_ratios.repeat(1, 1, reference.shape[-1] // 2).unsqueeze(1)


def lay_out(
    layout: Layout,
    level_sizes: LevelSizes,
    *,
    sizes: Sequence[tuple[int, int]],
    padded_size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> TokenGrid:
    """The tokens of a batch.

    Args:
        layout: what the network decides.
        level_sizes: (height, width) of each level.
        sizes: height and width of each image, padding excluded.
        padded_size: height and width of the batch.
        device: of the result.
        dtype: of the result.
    """
    # Padding is at the bottom and right, so that a count along each axis says where it starts.
    cells = tuple(
        tuple(
            (unpadded_cells(h, padded_size[0], rows), unpadded_cells(w, padded_size[1], columns))
            for rows, columns in level_sizes
        )
        for h, w in sizes
    )
    if all(of_image == level_sizes for of_image in cells):
        return _lay_out_whole(layout, level_sizes, device, dtype)
    return _lay_out(layout, level_sizes, cells, device, dtype)


def unpadded_cells(unpadded: int, padded: int, cells: int) -> int:
    """How many of a level's cells along an axis a nearest-neighbour resize of the padding mask leaves unpadded.

    Args:
        unpadded: pixels of the image.
        padded: pixels of the batch.
        cells: of the level.
    """
    return bisect_left(_sources(padded, cells), unpadded)


@lru_cache(maxsize=256)
def _sources(pixels: int, cells: int) -> tuple[int, ...]:
    """The pixel that each cell is resized from; in float32, as `interpolate` reckons."""
    step = np.float32(pixels) / np.float32(cells)
    return tuple(int(cell * step) for cell in np.arange(cells, dtype=np.float32))


@lru_cache(maxsize=4)
def _lay_out_whole(
    layout: Layout, level_sizes: LevelSizes, device: torch.device, dtype: torch.dtype
) -> TokenGrid:
    """The tokens of a batch without padding, of which one image stands for all."""
    with torch.inference_mode(
        False
    ):  # made during a test, a training step may still save it for its backward
        return _lay_out(layout, level_sizes, (level_sizes,), device, dtype)


def _lay_out(
    layout: Layout,
    level_sizes: LevelSizes,
    cells: tuple[LevelSizes, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> TokenGrid:
    """The tokens of images with so many unpadded (rows, columns) on each level."""
    counts = torch.tensor(cells, dtype=dtype, device=device)  # (B, L, 2)
    unpadded, centers = [], []
    for level, (h, w) in enumerate(level_sizes):
        rows, columns = counts[:, level].unsqueeze(-1).unbind(1)
        y, x = torch.arange(h, device=device), torch.arange(w, device=device)
        unpadded.append((y < rows).unsqueeze(2) & (x < columns).unsqueeze(1))
        center_x = ((x + 0.5) / columns).unsqueeze(1).expand(-1, h, -1)
        center_y = ((y + 0.5) / rows).unsqueeze(2).expand(-1, -1, w)
        centers.append(torch.stack([center_x, center_y], -1).flatten(1, 2))
    padded = cells != (level_sizes,)
    ratios = counts / torch.tensor(level_sizes, dtype=dtype, device=device)
    return TokenGrid(
        level_sizes=level_sizes,
        padding_mask=~torch.cat([level.flatten(1) for level in unpadded], 1) if padded else None,
        valid_ratios=ratios.flip(-1) if padded else None,
        positions=token_positions(
            unpadded, layout.hidden_dim, temperature=layout.temperature, offset=layout.offset, dtype=dtype
        ),
        centers=torch.cat(centers, 1),
    )
