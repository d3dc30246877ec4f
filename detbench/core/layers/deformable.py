"""Multi-scale deformable attention as a layer (Deformable-DETR, arXiv:2010.04159; spec 1.3).

Shape letters beside those of `detbench.core.types`: S pixels over all levels, L levels, P points a level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detbench.core.layers.deformable_sampling import deformable_attention
from detbench.core.layers.tokens import LevelSizes


class DeformableAttention(nn.Module):
    """Queries that look at a few points of every level, at places and with weights they choose themselves.

    Args:
        hidden_dim: channels of queries, memory and output; a multiple of `num_heads`.
        num_heads: heads, each with its own points and its own share of the channels.
        num_levels: L.
        num_points: P of each head and level.
    """

    def __init__(
        self, hidden_dim: int = 256, *, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, 2 * num_samples)
        self.attention_weights = nn.Linear(hidden_dim, num_samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Equal weights; each head looks along a direction of its own, point p at p + 1 pixels (spec 1.3)."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction /= direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)[:, None] * direction[:, None, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(steps.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        level_sizes: LevelSizes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """What each query reads.

        Args:
            query: (B, Q, hidden_dim) content plus position.
            reference: (B, Q, L, 2) points xy or (B, Q, L, 4) boxes cxcywh, in [0, 1] of the padded map of
                each level: multiplied by its valid ratios.
            value: (B, S, hidden_dim) memory without position.
            level_sizes: (height, width) of each level.
            padding_mask: (B, S) True where the memory is padding; None where nothing is.

        Returns:
            (B, Q, hidden_dim).
        """
        levels, points = self.num_levels, self.num_points
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        offsets = torch.unflatten(self.sampling_offsets(query), 2, (self.num_heads, levels, points, 2))
        center = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            step = _pixel(level_sizes, like=reference)
        else:
            step = reference[:, :, None, :, None, 2:] * (0.5 / points)
        scores = torch.unflatten(self.attention_weights(query), 2, (self.num_heads, levels * points))
        sampled = deformable_attention(
            torch.unflatten(value, 2, (self.num_heads, -1)),
            level_sizes,
            torch.addcmul(center, offsets, step),
            torch.unflatten(_softmax(scores), 3, (levels, points)),
        )
        out: Tensor = self.output_proj(sampled)
        return out


def _pixel(level_sizes: LevelSizes, like: Tensor) -> Tensor:
    """(L, 1, 2) width and height of a pixel of each level; an empty level counts as one pixel."""
    sizes = [[(1 / max(w, 1), 1 / max(h, 1))] for h, w in level_sizes]
    return torch.tensor(sizes, dtype=like.dtype).to(like.device, non_blocking=True)


def _softmax(x: Tensor) -> Tensor:
    """Over the last axis, by way of the first where that axis is shorter than one of the CPU's vectors.

    PyTorch then takes six times as long along the last: 12 values for 3 levels of 4 points, say.
    """
    if x.device.type == "cpu" and x.shape[-1] < 16:
        return x.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()
    return x.softmax(-1)
