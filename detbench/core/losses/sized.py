"""Sized L1: the L1 distance of boxes in units of their object's width and height."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from detbench.core.distributed import sum_over_processes

if TYPE_CHECKING:
    from detbench.core.supervise import Supervision
    from detbench.core.types import Targets
    from detbench.parts.losses import Rescale, WeighBy


def sized_l1_of(
    supervision: Supervision,
    *,
    box_format: Literal["cxcywh", "xyxy"],
    rescale: Rescale,
    mean_size: tuple[float, float] | None,
    mean_over: Literal["all_processes", "this_process"],
    min_side: float,
    weigh_by: WeighBy,
) -> Tensor:
    """The sum over pairs and coordinates of |difference| / side, times what `rescale` says (spec 6.1, 6.2)."""
    pred, target = supervision.normalised(box_format)
    sides = object_sides(supervision.targets, min_side=min_side)[supervision.matches.target_idx]
    # Both formats alternate between the axes, so that (K, 2) holds what belongs to width and to height.
    plain = (pred - target).abs().reshape(-1, 2, 2).sum(1)
    if weigh_by == "match":
        plain = plain * supervision.pair_weights[:, None]
    sized = plain / sides

    # A layer may match other objects than the next one: its means are those of its own pairs.
    layers = torch.arange(supervision.num_layers, device=sides.device)
    of_layer = (supervision.layer_of_pair == layers[:, None]).to(plain.dtype).unsqueeze(2)

    def by_layer(x: Tensor) -> Tensor:
        """(K, 2) to (layers, 2)."""
        return (of_layer * x).sum(1)

    num_pairs = of_layer.sum(1)
    match rescale:
        case "none":
            scale = sides.new_ones(2)
        case "axis_mean":
            scale = _ratio(by_layer(sides), num_pairs, over=mean_over)
        case "scalar_mean":
            scale = _ratio(by_layer(sides).sum(1, keepdim=True), 2 * num_pairs, over=mean_over)
        case "loss_preserving":
            plain_sum, sized_sum = (by_layer(x.detach()).sum(1, keepdim=True) for x in (plain, sized))
            scale = _ratio(plain_sum, sized_sum, over=mean_over)
        case "constant":
            assert mean_size is not None  # the part sees to it
            scale = sides.new_tensor(mean_size)
    return (by_layer(sized) * scale).sum()


def object_sides(targets: Targets, *, min_side: float) -> Tensor:
    """(M, 2) width and height of each object over those of its image, at least `min_side` pixels of it."""
    limits = min_side / targets.whwh[targets.image_idx, :2]
    return targets.cxcywh[:, 2:].maximum(limits)


def _ratio(total: Tensor, count: Tensor, *, over: Literal["all_processes", "this_process"]) -> Tensor:
    """The quotients of sums over the pairs of all processes or of this one; 0 where there are none."""
    if over == "all_processes":
        total, count = sum_over_processes(total), sum_over_processes(count)
    return total / count.clamp(min=torch.finfo(count.dtype).tiny)
