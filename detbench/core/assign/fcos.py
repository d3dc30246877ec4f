"""FCOS's rule: a location answers for the smallest object around it whose size its level is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detbench.core.assign.inside import is_inside
from detbench.core.boxes import box_area, boxes_to_distances
from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Targets
    from detbench.parts.assigners import FcosRule


@torch.no_grad()
def assign_fcos(rule: FcosRule, predictions: DensePredictions, targets: Targets) -> Matches:
    """At most one object for each location; an object may have none (spec 1.4)."""
    anchors = predictions.anchors
    ranges = torch.tensor(rule.size_ranges, dtype=anchors.centers.dtype)
    candidates = fcos_candidates(
        anchors.centers,
        anchors.strides,
        ranges.repeat_interleave(torch.tensor(anchors.level_sizes), 0).to(anchors.centers.device),
        targets.boxes,
        center_radius=rule.center_radius,
    )
    areas, num_images = box_area(targets.boxes), len(predictions.pred_logits)
    return Matches.of_owner(smallest_owner(candidates, areas, targets.image_idx, num_images))


def fcos_candidates(
    centers: Tensor, strides: Tensor, size_ranges: Tensor, boxes: Tensor, *, center_radius: float | None
) -> Tensor:
    """Which locations may answer for which objects.

    Args:
        centers: (Q, 2) xy pixels.
        strides: (Q,) of the location's level.
        size_ranges: (Q, 2) least and greatest side distance, both inclusive, of the location's level.
        boxes: (M, 4) xyxy pixels.
        center_radius: half side of centre sampling in strides; None for anywhere inside.

    Returns:
        (M, Q) bool.
    """
    inside = is_inside(centers, strides, boxes, radius=center_radius or 0.0)
    reach = boxes_to_distances(centers, boxes[:, None]).amax(-1)
    low, high = size_ranges.unbind(-1)
    return inside & (reach >= low) & (reach <= high)


def smallest_owner(candidates: Tensor, areas: Tensor, image_idx: Tensor, num_images: int) -> Tensor:
    """The smallest object that claims each location; of equal ones the first.

    Args:
        candidates: (M, Q) bool.
        areas: (M,) of the objects.
        image_idx: (M,) the image of each object.
        num_images: B.

    Returns:
        (B, Q) index of the object, -1 where none claims the location.
    """
    num_objects, num_predictions = candidates.shape
    order = areas.argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(num_objects, device=order.device))
    target_idx, pred_idx = candidates.nonzero(as_tuple=True)
    best = torch.full((num_images * num_predictions,), num_objects, device=candidates.device)
    best.scatter_reduce_(0, image_idx[target_idx] * num_predictions + pred_idx, rank[target_idx], "amin")
    # One past the last rank stands for nobody.
    return torch.cat([order, order.new_full((1,), -1)])[best].view(num_images, num_predictions)
