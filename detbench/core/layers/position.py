"""Sine encodings of places: of the tokens of a feature pyramid and of boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

BOX_TEMPERATURE = 10000.0
"""Of the encodings of boxes, whatever that of the tokens is (spec 1.7, 2)."""


def sine_waves(x: Tensor, num_features: int, *, temperature: float) -> Tensor:
    """(...) numbers to (..., F): sines and cosines in turn of ever slower waves.

    Feature k is that of x / temperature^(2 floor(k / 2) / F) (spec 1.2).

    Args:
        x: radians of the fastest wave.
        num_features: F, even.
        temperature: ratio of the slowest to the fastest wave.
    """
    angle = x.unsqueeze(-1) / _periods(num_features, temperature, x.dtype, x.device)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def token_positions(
    unpadded: Sequence[Tensor], hidden_dim: int, *, temperature: float, offset: float, dtype: torch.dtype
) -> Tensor:
    """(B, S, D) encoding of every token: half of the features for its row, half for its column (spec 1.2).

    Args:
        unpadded: (B, h, w) bool of each level, True inside the image.
        hidden_dim: D.
        temperature: see `sine_waves`.
        offset: added to the running count of unpadded cells, which starts at 1.
        dtype: of the result.
    """
    levels = []
    for level in unpadded:
        axes = []
        for axis in (1, 2):
            count = level.cumsum(axis, dtype=dtype)
            last = count.narrow(axis, -1, 1)
            axes.append((count + offset) / (last + 1e-6) * (2 * math.pi))
        levels.append(torch.stack(axes, -1).flatten(1, 2))
    return sine_waves(torch.cat(levels, 1), hidden_dim // 2, temperature=temperature).flatten(-2)


def box_positions(boxes: Tensor, hidden_dim: int, *, order: Literal["xywh", "yxwh"]) -> Tensor:
    """(..., 4) boxes to (..., 2 D): D / 2 waves for each number.

    Args:
        boxes: cxcywh in [0, 1].
        hidden_dim: D.
        order: which number's features come first: "xywh" of Deformable-DETR's proposals (spec 1.7), "yxwh" of
            DINO's references (spec 2.3).
    """
    if order == "yxwh":
        x, y, w, h = boxes.unbind(-1)
        boxes = torch.stack([y, x, w, h], -1)
    return sine_waves(boxes * (2 * math.pi), hidden_dim // 2, temperature=BOX_TEMPERATURE).flatten(-2)


@lru_cache(maxsize=16)
def _periods(num_features: int, temperature: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F / 2,) what sine and cosine of each wave divide by."""
    periods = [temperature ** (2 * i / num_features) for i in range(num_features // 2)]
    with torch.inference_mode(
        False
    ):  # made during a test, a training step may still save it for its backward
        return torch.tensor(periods, dtype=dtype, device=device)
