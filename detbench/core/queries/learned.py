"""One-stage queries."""

from __future__ import annotations

from torch import Tensor, nn


class LearnedQueries(nn.Module):
    """Learned position and content; the reference point is read off the position (spec 1.5).

    Args:
        num: Q.
        hidden_dim: D.
    """

    def __init__(self, num: int, hidden_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num, 2 * hidden_dim)
        self.reference_points = nn.Linear(hidden_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """(1, Q, D) position, (1, Q, D) content and the (1, Q, 2) xy reference before its sigmoid."""
        position, content = self.embedding.weight.unsqueeze(0).chunk(2, -1)
        return position, content, self.reference_points(position)
