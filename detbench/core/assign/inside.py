"""Which locations lie inside an object, or inside the middle of it."""

from __future__ import annotations

from torch import Tensor


def is_inside(centers: Tensor, strides: Tensor, boxes: Tensor, *, radius: float) -> Tensor:
    """Whether each location is strictly inside each object's central box (spec 1.4, 3.1).

    Args:
        centers: (Q, 2) xy pixels.
        strides: (Q,) of the location's level.
        boxes: (M, 4) xyxy pixels.
        radius: half side, in strides, of the box around the object's centre to which the object is cut;
            0 for the whole object.

    Returns:
        (M, Q) bool.
    """
    x, y = centers.unbind(-1)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    if radius > 0:
        reach = radius * strides
        inside &= ((x - (x1 + x2) / 2).abs() < reach) & ((y - (y1 + y2) / 2).abs() < reach)
    return inside
