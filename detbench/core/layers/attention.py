"""Attention of queries among each other."""

from __future__ import annotations

import math

from torch import Tensor, nn

from detbench.core.layers.dropout import attention


class SelfAttention(nn.Module):
    """Multi-head attention (arXiv:1706.03762) in which only queries and keys know their position.

    The arithmetic of `nn.MultiheadAttention`, with queries and keys projected in one product.

    Args:
        hidden_dim: D, a multiple of `num_heads`.
        num_heads: heads.
        dropout: of the attention probabilities.
    """

    def __init__(self, hidden_dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_key = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, the three projections into the heads as one matrix (spec 1.6); biases 0."""
        bound = math.sqrt(6 / (4 * self.output.in_features))
        for projection in (self.query_key, self.value):
            nn.init.uniform_(projection.weight, -bound, bound)
        nn.init.xavier_uniform_(self.output.weight)
        for projection in (self.query_key, self.value, self.output):
            nn.init.zeros_(projection.bias)

    def forward(self, content: Tensor, position: Tensor, visible: Tensor | None = None) -> Tensor:
        """What each query gathers from the others.

        Args:
            content: (B, Q, D).
            position: (B, Q, D), added to the content for queries and keys.
            visible: (Q, Q) bool, True where the row's query sees the column's; None for everywhere.

        Returns:
            (B, Q, D).
        """
        query_key = self.query_key(content + position).unflatten(-1, (2, self.num_heads, -1))
        query, key = query_key.permute(2, 0, 3, 1, 4).unbind()
        value = self.value(content).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        gathered = attention(query, key, value, visible, dropout=dropout)
        out: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return out
