"""Two-stage queries: the tokens that look most like objects (spec 1.7, 2, 3, 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from detbench.core.layers.position import box_positions
from detbench.core.layers.tokens import TokenGrid
from detbench.core.layers.transformer import Mlp, xavier_

if TYPE_CHECKING:
    from detbench.parts.detectors import ProposalQueries as ProposalQueriesPart


def anchor_logits(grid: TokenGrid, side: float) -> Tensor:
    """(B, S, 4) cxcywh logits of each token's initial box; B is 1 where no image is padded (spec 1.7).

    Infinite for padding and for boxes whose centre or size comes within 0.01 of 0 or 1.

    Args:
        grid: where the tokens stand.
        side: of the boxes on the finest level over the image's; doubles by level.
    """
    sides = [
        grid.centers.new_full((h * w, 2), side * 2**level) for level, (h, w) in enumerate(grid.level_sizes)
    ]
    boxes = torch.cat([grid.centers, torch.cat(sides).expand_as(grid.centers)], -1)
    unusable = ((boxes <= 0.01) | (boxes >= 0.99)).any(-1)
    if grid.padding_mask is not None:
        unusable = unusable | grid.padding_mask
    return (boxes / (1 - boxes)).log().masked_fill(unusable.unsqueeze(-1), torch.inf)


def proposal_scores(logits: Tensor, select_by: Literal["first_class", "best_class"]) -> Tensor:
    """(B, S, C) logits of the tokens to the (B, S) by which they are ranked; without gradient."""
    logits = logits.detach()
    return logits[..., 0] if select_by == "first_class" else logits.amax(-1)


class ProposalQueries(nn.Module):
    """The first stage's own layers, and how its proposals become queries.

    Args:
        part: what queries start with.
        hidden_dim: D.
    """

    def __init__(self, part: ProposalQueriesPart, hidden_dim: int) -> None:
        super().__init__()
        self.part, self.hidden_dim = part, hidden_dim
        self.token = linear_norm(hidden_dim, hidden_dim)
        self.box: nn.Sequential | None = None
        self.box_position: Mlp | None = None
        self.token_content: nn.Sequential | None = None
        self.content: nn.Embedding | None = None
        if part.position == "reference":
            self.box_position = Mlp(2 * hidden_dim, hidden_dim, hidden_dim)
        if part.position == "proposal" or part.content in ("proposal", "proposal_and_token"):
            self.box = linear_norm(2 * hidden_dim, 2 * hidden_dim)
        if part.content in ("token", "proposal_and_token"):
            self.token_content = linear_norm(hidden_dim, hidden_dim)
        xavier_(self)
        if part.content == "learned":
            self.content = self.learned_content(part.num)

    def learned_content(self, num: int) -> nn.Embedding:
        """(num, D) rows freshly drawn."""
        content = nn.Embedding(num, self.hidden_dim)
        if self.part.content_init == "xavier":
            nn.init.xavier_uniform_(content.weight)
        return content

    def tokens(self, memory: Tensor, anchors: Tensor) -> Tensor:
        """What the first stage's heads read.

        Args:
            memory: (B, S, D).
            anchors: (B, S, 4) logits; memory counts as zero where they are infinite.

        Returns:
            (B, S, D).
        """
        out: Tensor = self.token(memory.masked_fill(anchors[..., :1].isinf(), 0.0))
        return out.to(memory.dtype)

    def forward(
        self, reference: Tensor, tokens: Tensor, further: nn.Embedding | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the decoder's queries start with.

        Args:
            reference: (B, K + Q, 4) cxcywh of K queries made otherwise and of the Q proposals.
            tokens: (B, Q, D) of the proposals.
            further: learned content of those proposals that `part.num` doesn't count; None for none.

        Returns:
            (B, Q, D) content of the proposals, and (B, K + Q, D) position; None where it follows the reference from
            layer to layer (see `position_of`).
        """
        position: Tensor | None = None
        if self.box is not None:
            embedded = self.box(box_positions(reference, self.hidden_dim, order="xywh")).to(reference.dtype)
            position, content = embedded.chunk(2, -1)
            content = content[:, -tokens.shape[1] :]
        if self.content is not None:
            rows = self.content.weight
            if further is not None:
                rows = torch.cat([rows, further.weight])
            content = rows.expand(len(tokens), -1, -1)
        elif self.token_content is not None and self.part.content == "token":
            content = self.token_content(tokens)
        elif self.token_content is not None:
            content = content + self.token_content(tokens.detach())
        return content.to(reference.dtype), position if self.part.position == "proposal" else None

    def position_of(self, reference: Tensor) -> Tensor:
        """(B, Q, 4) cxcywh references of a layer, on the padded finest level, to (B, Q, D) position (spec 2.3)."""
        assert self.box_position is not None
        out: Tensor = self.box_position(box_positions(reference, self.hidden_dim, order="yxwh"))
        return out


def linear_norm(before: int, after: int) -> nn.Sequential:
    """A linear layer with a LayerNorm behind it."""
    return nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after))
