"""Dropout that falls alike on an image's values, whichever process holds it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.distributed import num_processes, part_of_draw


class Dropout(nn.Dropout):
    """torch's own, except that each of several processes takes its part of what one would draw."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same."""
        if not self.training or num_processes() == 1:
            return super().forward(x)
        return x * _mask(x, self.p)


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, *, dropout: float) -> Tensor:
    """Scaled dot-product attention of (B, heads, Q, d) with dropout of the probabilities.

    torch's own, except where several processes drop: it can't be told what. On CUDA one process's fused kernel draws
    otherwise than this, so that one and several differ there as two seeds do.
    """
    if not dropout or num_processes() == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    probabilities = logits.softmax(-1)
    return (probabilities * _mask(probabilities, dropout)) @ value


def _mask(x: Tensor, probability: float) -> Tensor:
    """0 where a value of (B, ...) is dropped, else what makes up for those that are."""
    return part_of_draw(lambda shape: F.dropout(x.new_ones(shape), probability), x.shape)
