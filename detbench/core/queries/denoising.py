"""Queries made from noisy objects: contrastive denoising (DINO, arXiv:2203.03605; spec 2.8)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detbench.core.boxes import xyxy_to_cxcywh
from detbench.core.distributed import most_over_processes, part_of_draw
from detbench.core.layers.transformer import inverse_sigmoid
from detbench.core.types import Matches, Targets

if TYPE_CHECKING:
    from detbench.parts.branches import DenoisingOutput


@dataclass(frozen=True, slots=True)
class NoisyQueries:
    """Denoising queries of a batch: group after group, in each the positives of all objects, then the negatives.

    Every image has as many slots as the one with most objects, on whichever process; those it can't fill are empty:
    zero content, reference 0.5.

    Attributes:
        content: (B, Q, D).
        reference: (B, Q, 4) cxcywh.
        num_groups: how often each object is there.
        most_objects: N of the image with most objects; a group has twice as many slots.
    """

    content: Tensor
    reference: Tensor
    num_groups: int
    most_objects: int

    def pairs(self, targets: Targets, num_layers: int) -> Matches:
        """The positives and their objects, in all layers (see `QueryPredictions.pairs`).

        Args:
            targets: those the queries were made from.
            num_layers: of the decoder.
        """
        group = torch.arange(self.num_groups, device=targets.labels.device)[:, None]
        of_layer = Matches(
            image_idx=targets.image_idx.repeat(self.num_groups),
            pred_idx=(group * (2 * self.most_objects) + targets.rank).flatten(),
            target_idx=torch.arange(len(targets.labels), device=group.device).repeat(self.num_groups),
            copies=self.num_groups,
        )
        return of_layer.repeat(num_layers, targets)


class DenoisingQueries(nn.Module):
    """Makes noisy queries from objects; holds the content of each class.

    Args:
        part: numbers and noise.
        num_classes: C.
        hidden_dim: D.
        logit_eps: of the inverse sigmoid that references pass through.
    """

    def __init__(self, part: DenoisingOutput, *, num_classes: int, hidden_dim: int, logit_eps: float) -> None:
        super().__init__()
        self.part, self.logit_eps = part, logit_eps
        self.label_embed = nn.Embedding(num_classes, hidden_dim)

    def forward(self, targets: Targets) -> NoisyQueries:
        """The queries of a batch: none where it has no object.

        Random numbers are drawn on the CPU from torch's global generator.
        """
        most = most_over_processes(max(targets.counts))
        num_groups = max(1, self.part.num_queries // most) if most else 1
        labels, boxes = noisy_objects(
            targets,
            num_groups,
            num_classes=self.label_embed.num_embeddings,
            label_noise=self.part.label_noise,
            box_noise=self.part.box_noise,
        )
        embedded = self.label_embed(labels).flatten(0, 2)
        reference = inverse_sigmoid(boxes, eps=self.logit_eps).sigmoid().flatten(0, 2)

        num_images, num_slots = len(targets.counts), 2 * num_groups * most
        first_slot = torch.arange(0, num_slots, max(most, 1), device=labels.device)[:, None]
        slot = (first_slot + targets.image_idx * num_slots + targets.rank).flatten()
        content = embedded.new_zeros(num_images * num_slots, embedded.shape[1]).index_copy(0, slot, embedded)
        references = reference.new_full((num_images * num_slots, 4), 0.5).index_copy(0, slot, reference)
        return NoisyQueries(
            content.view(num_images, num_slots, embedded.shape[1]),
            references.view(num_images, num_slots, 4),
            num_groups,
            most,
        )


def noisy_objects(
    targets: Targets, num_groups: int, *, num_classes: int, label_noise: float, box_noise: float
) -> tuple[Tensor, Tensor]:
    """Every object of the batch twice in each group, as a positive and as a negative, labels and boxes disturbed.

    Args:
        targets: M objects.
        num_groups: G.
        num_classes: a disturbed label is any of these, the true one included.
        label_noise: twice the probability that a label is drawn anew.
        box_noise: by how many half sides a corner moves at most (positives), at least (negatives; at most twice).

    Returns:
        (G, 2, M) labels and (G, 2, M, 4) cxcywh over the image's size. Corners stay inside the image; a negative's
        may change places, so that its width or height is negative.
    """
    shape = (num_groups, 2, len(targets.labels))
    device = targets.labels.device
    redrawn = part_of_draw(torch.rand, shape, dim=2) < 0.5 * label_noise
    drawn = part_of_draw(partial(torch.randint, num_classes), shape, dim=2)
    sign = part_of_draw(partial(torch.randint, 2), (*shape, 4), dim=2) * 2 - 1
    amount = part_of_draw(torch.rand, (*shape, 4), dim=2)
    amount[:, 1] += 1
    shift = (sign * amount * box_noise).to(device)

    labels = torch.where(redrawn.to(device), drawn.to(device), targets.labels)
    corners = targets.boxes / targets.whwh[targets.image_idx]
    half = (corners[:, 2:] - corners[:, :2]) / 2
    noisy = (corners + shift * half.repeat(1, 2)).clamp(0, 1)
    return labels, xyxy_to_cxcywh(noisy)
