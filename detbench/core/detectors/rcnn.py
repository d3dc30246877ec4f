"""Faster R-CNN's second stage: regions, each read from the level that fits (arXiv:1506.01497; spec 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.assign.sampled_iou import sampled_owner
from detbench.core.boxes import decode_deltas
from detbench.core.detectors.heads import in_full
from detbench.core.layers.roi import roi_features
from detbench.core.selection import take
from detbench.core.types import Matches, RegionPredictions, Targets

if TYPE_CHECKING:
    from detbench.parts.assigners import SampledIou
    from detbench.parts.auxiliary import RcnnPredictor


class RcnnHead(nn.Module):
    """RoIAlign, two fully connected layers with ReLU, classes and class-specific boxes.

    Args:
        part: sizes and widths.
        assigner: samples the regions.
        channels: of the feature maps.
        num_classes: C, without background.
        strides: of the feature maps.
    """

    def __init__(
        self,
        part: RcnnPredictor,
        assigner: SampledIou,
        channels: int,
        num_classes: int,
        *,
        strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.part, self.assigner, self.strides = part, assigner, strides
        self.hidden1 = nn.Linear(channels * part.roi_size**2, part.hidden_dim)
        self.hidden2 = nn.Linear(part.hidden_dim, part.hidden_dim)
        self.logits = nn.Linear(part.hidden_dim, num_classes + 1)
        self.deltas = nn.Linear(part.hidden_dim, 4 * num_classes)
        for layer in (self.hidden1, self.hidden2):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.hidden1, self.hidden2, self.logits, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(
        self, maps: Sequence[Tensor], proposals: Tensor, present: Tensor, targets: Targets
    ) -> RegionPredictions:
        """What it says about a sample of the proposals and of the objects themselves.

        Args:
            maps: (B, D, h, w) feature maps.
            proposals: (B, P, 4) xyxy pixels, see `detbench.core.detectors.rpn.propose`.
            present: (B, P) bool, which of them there are.
            targets: the batch's objects.
        """
        regions, owner, sampled = sample_regions(self.assigner, proposals, present, targets)
        num_images, num_regions = regions.shape[:2]
        features = roi_features(
            maps,
            regions.flatten(0, 1),
            torch.arange(num_images, device=regions.device).repeat_interleave(num_regions),
            strides=self.strides,
            size=self.part.roi_size,
            finest_side=self.part.finest_side,
        )
        hidden = F.relu(self.hidden2(F.relu(self.hidden1(features.flatten(1)))))
        logits = in_full(self.logits(hidden)).view(num_images, num_regions, -1)
        deltas = in_full(self.deltas(hidden)).view(num_images, num_regions, -1, 4)
        pairs = Matches.of_owner(owner, ~sampled)
        label = logits.detach()[..., :-1].argmax(-1)
        label[pairs.image_idx, pairs.pred_idx] = targets.labels[pairs.target_idx]
        of_label = deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        boxes = decode_deltas(regions, of_label * deltas.new_tensor(self.part.delta_stds))
        return RegionPredictions(logits, boxes, regions, pairs)


def sample_regions(
    rule: SampledIou, proposals: Tensor, present: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """The regions that take part: a sample of an image's proposals and objects.

    Args:
        rule: of the sample.
        proposals: (B, P, 4) xyxy pixels.
        present: (B, P) bool, which of them there are.
        targets: the batch's objects.

    Returns:
        (B, Q, 4) xyxy pixels; (B, Q) index of the object that each answers for, -1 for none; (B, Q) bool, False where
        an image has no more regions.
    """
    objects = targets.by_image(targets.boxes.to(proposals.dtype), fill=0.0)
    counts = torch.tensor(targets.counts, device=objects.device)
    is_object = torch.arange(objects.shape[1], device=objects.device) < counts.unsqueeze(1)
    regions, present = torch.cat([objects, proposals], 1), torch.cat([is_object, present], 1)
    owner, sampled = sampled_owner(rule, regions, present, targets)
    # An object answers for itself, though another may have the same box.
    itself = targets.first[:, None] + torch.arange(objects.shape[1], device=objects.device)
    mine = sampled[:, : objects.shape[1]] & is_object
    owner[:, : objects.shape[1]] = torch.where(mine, itself, -1)
    size = min(rule.sample, regions.shape[1])
    place = sampled.int().argsort(dim=1, descending=True, stable=True)[:, :size]
    return take(regions, place), owner.gather(1, place), sampled.gather(1, place)
