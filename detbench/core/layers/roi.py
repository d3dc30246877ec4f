"""Features of boxes: each box cut out of the level that fits its size (FPN, arXiv:1612.03144, Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align


def roi_features(
    levels: Sequence[Tensor],
    boxes: Tensor,
    image_idx: Tensor,
    *,
    strides: Sequence[int],
    size: int,
    finest_side: float,
) -> Tensor:
    """RoIAlign of boxes, a box of side s on level floor(log2(s / finest_side)), or the nearest there is.

    Args:
        levels: (B, D, h, w) of each level, fine to coarse.
        boxes: (K, 4) xyxy pixels of the network input.
        image_idx: (K,) image of each.
        strides: of each level, in pixels.
        size: cells of the result, each way; sampled as densely as the box has cells (arXiv:1703.06870).
        finest_side: boxes smaller than twice this are taken from the finest level (56 in mmdetection).

    Returns:
        (K, D, size, size) in the boxes' precision.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
    side = (width * height).sqrt()
    level = (side / finest_side + 1e-6).log2().floor().clamp(0, len(levels) - 1)
    rois = torch.cat([image_idx[:, None].to(boxes), boxes], 1)
    features = boxes.new_zeros(len(boxes), levels[0].shape[1], size, size)
    for index, (maps, stride) in enumerate(zip(levels, strides, strict=True)):
        (here,) = (level == index).nonzero(as_tuple=True)
        cut = roi_align(maps.to(boxes), rois[here], size, spatial_scale=1 / stride, aligned=True)
        features = features.index_copy(0, here, cut)
    return features
