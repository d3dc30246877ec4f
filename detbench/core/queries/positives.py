"""Queries made from an auxiliary head's positives (Co-DETR, arXiv:2211.12860, section 3.3; spec 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detbench.core.boxes import xyxy_to_cxcywh
from detbench.core.distributed import most_over_processes, part_of_draw
from detbench.core.layers.position import box_positions
from detbench.core.layers.transformer import inverse_sigmoid, xavier_
from detbench.core.queries.proposals import linear_norm
from detbench.core.selection import take
from detbench.core.types import Matches, Targets

if TYPE_CHECKING:
    from detbench.parts.auxiliary import PositivesOutput


@dataclass(frozen=True, slots=True)
class AuxiliaryQueries:
    """Queries of a batch that answer for given objects.

    Attributes:
        content: (B, Q, D).
        position: (B, Q, D); None where every layer makes its own from the reference.
        reference: (B, Q, 4) cxcywh.
        matches: which of them answers for which object.
    """

    content: Tensor
    position: Tensor | None
    reference: Tensor
    matches: Matches

    def pairs(self, targets: Targets, num_layers: int) -> Matches:
        """The same matches in all layers (see `QueryPredictions.pairs`).

        Args:
            targets: those the queries were made for.
            num_layers: of the decoder.
        """
        return self.matches.repeat(num_layers, targets)


class PositiveQueries(nn.Module):
    """Chooses among an auxiliary head's candidates and makes them queries.

    Args:
        part: how many.
        hidden_dim: D.
        with_position: the box gives the queries' position, too; otherwise it follows the reference.
        logit_eps: of the inverse sigmoid that references pass through.
    """

    def __init__(
        self, part: PositivesOutput, hidden_dim: int, *, with_position: bool, logit_eps: float
    ) -> None:
        super().__init__()
        self.part, self.hidden_dim = part, hidden_dim
        self.with_position, self.logit_eps = with_position, logit_eps
        self.box = linear_norm(2 * hidden_dim, 2 * hidden_dim if with_position else hidden_dim)
        xavier_(self)

    def forward(self, boxes: Tensor, pairs: Matches, targets: Targets) -> AuxiliaryQueries:
        """The queries of a batch.

        Random numbers are drawn on the CPU from torch's global generator.

        Args:
            boxes: (B, Q, 4) xyxy pixels of the candidates.
            pairs: which of them answer for which objects.
            targets: the batch's objects.
        """
        place, matches = choose(
            pairs, (boxes.shape[0], boxes.shape[1]), fewest=self.part.fewest, most=self.part.most
        )
        reference = xyxy_to_cxcywh(take(boxes, place) / targets.whwh[:, None])
        reference = inverse_sigmoid(reference, eps=self.logit_eps).sigmoid()
        embedded = self.box(box_positions(reference, self.hidden_dim, order="xywh")).to(reference.dtype)
        if not self.with_position:
            return AuxiliaryQueries(embedded, None, reference, matches)
        position, content = embedded.chunk(2, -1)
        return AuxiliaryQueries(content, position, reference, matches)


@torch.no_grad()
def choose(pairs: Matches, shape: tuple[int, int], *, fewest: int, most: int) -> tuple[Tensor, Matches]:
    """As many candidates of each image as the one with most positives has of these, within bounds.

    An image's positives go first, then negatives, then ignored candidates, each drawn at random.

    Args:
        pairs: which candidates answer for which objects.
        shape: images, and candidates of each.
        fewest: candidates of an image to choose, if it has them.
        most: likewise.

    Returns:
        (B, K) indices of the candidates; which of these K answer for which objects, and which are ignored.
    """
    device = pairs.image_idx.device
    owner = torch.full(shape, -1, device=device)
    owner[pairs.image_idx, pairs.pred_idx] = pairs.target_idx
    positive = owner >= 0
    preference = positive.float() * 2 + (0 if pairs.ignored is None else 1 - pairs.ignored.float())
    num_positive = most_over_processes(int(positive.sum(1).max()))
    num = min(max(fewest, num_positive), most, shape[1])
    place = (preference + part_of_draw(torch.rand, shape).to(device)).topk(num).indices
    chosen = owner.gather(1, place)
    ignored = None if pairs.ignored is None else pairs.ignored.gather(1, place)
    return place, Matches.of_owner(chosen, ignored)
