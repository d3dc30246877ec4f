"""The deformable transformer's layers, post-norm (Deformable-DETR, arXiv:2010.04159; spec 1.4 to 1.6)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.layers.attention import SelfAttention
from detbench.core.layers.deformable import DeformableAttention
from detbench.core.layers.dropout import Dropout
from detbench.core.layers.tokens import TokenGrid

if TYPE_CHECKING:
    from detbench.parts.detectors import Transformer as TransformerPart


def inverse_sigmoid(x: Tensor, *, eps: float) -> Tensor:
    """log(max(x, eps) / max(1 - x, eps)) of x clamped to [0, 1]; undoes the sigmoid between eps and 1 - eps."""
    return (x.clamp(eps, 1) / (1 - x).clamp(eps, 1)).log()


def refine(offset: Tensor, reference: Tensor, *, eps: float) -> Tensor:
    """Boxes moved and resized in the space before the sigmoid (spec 1.6).

    Args:
        offset: (..., 4) what a box head says.
        reference: (..., 4) cxcywh, or (..., 2) xy, which leaves width and height to the head alone.
        eps: of the inverse sigmoid.

    Returns:
        (..., 4) cxcywh.
    """
    logit = inverse_sigmoid(reference, eps=eps)
    if logit.shape[-1] == 2:
        logit = F.pad(logit, (0, 2))
    return (offset + logit).sigmoid()


def xavier_(module: nn.Module) -> None:
    """Draws weights as Deformable-DETR does: all matrices Xavier-uniform, attentions by their own rule (spec 1.6)."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for layer in module.modules():
        if isinstance(layer, DeformableAttention | SelfAttention):
            layer.reset_parameters()


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: of the input, of every layer between, of the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., first width) to (..., last width)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.last(x)
        return out

    @property
    def last(self) -> nn.Linear:
        """The layer that no ReLU follows."""
        return cast(nn.Linear, self.layers[-1])


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear, dropout, residual, LayerNorm."""

    def __init__(self, hidden_dim: int, dim_feedforward: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, D) to the same shape."""
        hidden = self.dropout(F.relu(self.linear1(x), inplace=True))
        out: Tensor = self.norm(x + self.dropout(self.linear2(hidden)))
        return out


class EncoderLayer(nn.Module):
    """Deformable attention of the tokens among each other, then feed-forward (spec 1.4).

    Args:
        hidden_dim: D.
        num_heads: of the attention.
        num_levels: of the pyramid.
        num_points: sampled by each head on each level.
        dim_feedforward: hidden width of the feed-forward block.
        dropout: after every block and inside feed-forward.
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            hidden_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = _dropout(dropout)
        self.feed_forward = FeedForward(hidden_dim, dim_feedforward, dropout=dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, grid: TokenGrid) -> Tensor:
        """The tokens, each having looked at the others.

        Args:
            x: (B, S, D).
            position: (1 or B, S, D), added to the queries.
            reference: (B, S, L, 2) centres in each level.
            grid: where they stand.

        Returns:
            (B, S, D).
        """
        seen = self.attention(x + position, reference, x, grid.level_sizes, grid.padding_mask)
        out: Tensor = self.feed_forward(self.norm(x + self.dropout(seen)))
        return out


class Encoder(nn.Module):
    """Encoder layers and the learned vector that tells a token's level.

    Args:
        layers: at least one.
        num_levels: of the pyramid.
        hidden_dim: D.
    """

    def __init__(self, layers: Iterable[EncoderLayer], *, num_levels: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim))

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """(B, S, D) features to memory of the same shape."""
        by_level = [
            vector.expand(h * w, -1)
            for vector, (h, w) in zip(self.level_embed, grid.level_sizes, strict=True)
        ]
        position = grid.positions + torch.cat(by_level)
        reference = grid.on_levels(grid.centers.expand(len(x), -1, -1))
        for layer in self.layers:
            x = layer(x, position, reference, grid)
        return x


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the memory, feed-forward (spec 1.5).

    Args:
        hidden_dim: D.
        num_heads: of both attentions.
        num_levels: of the pyramid.
        num_points: sampled by each head on each level.
        dim_feedforward: hidden width of the feed-forward block.
        dropout: of attention probabilities, after every block and inside feed-forward.
        self_attention: False leaves the first block out.
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float,
        self_attention: bool,
    ) -> None:
        super().__init__()
        self.self_attention: SelfAttention | None = None
        if self_attention:
            self.self_attention = SelfAttention(hidden_dim, num_heads=num_heads, dropout=dropout)
            self.self_norm = nn.LayerNorm(hidden_dim)
        self.cross_attention = DeformableAttention(
            hidden_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_norm = nn.LayerNorm(hidden_dim)
        self.dropout = _dropout(dropout)
        self.feed_forward = FeedForward(hidden_dim, dim_feedforward, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        grid: TokenGrid,
        visible: Tensor | None,
    ) -> Tensor:
        """The queries, having looked at each other and at the memory.

        Args:
            x: (B, Q, D) content.
            position: (B, Q, D), added to the content of whoever asks or is asked.
            reference: (B, Q, L, 2 or 4) points or boxes in each level.
            memory: (B, S, D).
            grid: where the memory's tokens stand.
            visible: (Q, Q) bool, see `SelfAttention`.

        Returns:
            (B, Q, D).
        """
        if self.self_attention is not None:
            x = self.self_norm(x + self.dropout(self.self_attention(x, position, visible)))
        seen = self.cross_attention(x + position, reference, memory, grid.level_sizes, grid.padding_mask)
        out: Tensor = self.feed_forward(self.cross_norm(x + self.dropout(seen)))
        return out


class Decoder(nn.Module):
    """Decoder layers; whoever runs them decides between layers where the queries look next.

    Args:
        layers: at least one.
        norm: of each layer's output in front of the heads; None for none.
    """

    def __init__(self, layers: Iterable[DecoderLayer], *, norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class Transformer(nn.Module):
    """Encoder and decoder, drawn as Deformable-DETR draws them (spec 1.6).

    Args:
        part: depths and widths.
        hidden_dim: D.
        num_levels: of the pyramid.
    """

    def __init__(self, part: TransformerPart, *, hidden_dim: int, num_levels: int) -> None:
        super().__init__()
        settings = {
            "num_heads": part.num_heads,
            "num_levels": num_levels,
            "num_points": part.num_points,
            "dim_feedforward": part.dim_feedforward,
        }
        self.encoder: Encoder | None = None
        if part.encoder_layers:
            layers = [
                EncoderLayer(hidden_dim, **settings, dropout=part.dropout) for _ in range(part.encoder_layers)
            ]
            self.encoder = Encoder(layers, num_levels=num_levels, hidden_dim=hidden_dim)
        self.decoder = Decoder(
            [
                DecoderLayer(hidden_dim, **settings, dropout=part.dropout, self_attention=part.self_attention)
                for _ in range(part.decoder_layers)
            ],
            norm=nn.LayerNorm(hidden_dim) if part.final_norm else None,
        )
        xavier_(self)
        if self.encoder is not None:
            nn.init.normal_(self.encoder.level_embed)


def _dropout(probability: float) -> nn.Module:
    """Dropout, or nothing at all where it would copy its input for nothing."""
    return Dropout(probability) if probability else nn.Identity()
