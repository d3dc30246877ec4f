"""What reads classes, boxes and their quality off the states of a query detector."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from detbench.core.layers.transformer import Mlp

Head = TypeVar("Head", bound=nn.Module)


class Heads(nn.Module):
    """Heads of the decoder's layers and of the first stage. All return at least float32.

    Args:
        class_heads: D to C, one for each decoder layer or one for all.
        box_heads: D to 4, likewise.
        encoder_class: D to C, of a first stage; None without.
        encoder_box: D to 4, likewise.
        quality_heads: D to 1, like `class_heads`; None for none.
    """

    def __init__(
        self,
        *,
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        encoder_class: nn.Module | None,
        encoder_box: nn.Module | None,
        quality_heads: Sequence[nn.Module] | None,
    ) -> None:
        super().__init__()
        self.class_heads, self.box_heads = nn.ModuleList(class_heads), nn.ModuleList(box_heads)
        self.encoder_class, self.encoder_box = encoder_class, encoder_box
        self.quality_heads = None if quality_heads is None else nn.ModuleList(quality_heads)

    def classes(self, layer: int, states: Tensor) -> Tensor:
        """(..., D) states of a decoder layer to (..., C) logits."""
        return in_full(_of_layer(self.class_heads, layer)(states))

    def offsets(self, layer: int, states: Tensor) -> Tensor:
        """(..., D) states of a decoder layer to (..., 4), to be added to the logits of references."""
        return in_full(_of_layer(self.box_heads, layer)(states))

    def qualities(self, layer: int, states: Tensor) -> Tensor | None:
        """(..., D) states of a decoder layer to (...) logits of the IoU; None without such heads."""
        if self.quality_heads is None:
            return None
        return in_full(_of_layer(self.quality_heads, layer)(states)).squeeze(-1)

    def encoder_classes(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens to (..., C) logits of the first stage."""
        assert self.encoder_class is not None
        return in_full(self.encoder_class(tokens))

    def encoder_offsets(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens to (..., 4), to be added to the logits of anchors."""
        assert self.encoder_box is not None
        return in_full(self.encoder_box(tokens))

    def parameters_of(self, layers: Sequence[int]) -> Iterator[nn.Parameter]:
        """Those that predict for these decoder layers: boxes are passed on from layer to layer, classes aren't."""
        yield from self.box_heads.parameters()
        for heads in (self.class_heads, self.quality_heads):
            if heads is not None:
                for head in dict.fromkeys(_of_layer(heads, layer) for layer in layers):
                    yield from head.parameters()

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the first stage."""
        for head in (self.encoder_class, self.encoder_box):
            if head is not None:
                yield from head.parameters()


def class_head(hidden_dim: int, num_classes: int, *, class_prior: float) -> nn.Linear:
    """A linear layer that starts by giving every class this probability (spec 1.6)."""
    head = nn.Linear(hidden_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - class_prior) / class_prior))
    return head


def box_head(hidden_dim: int) -> Mlp:
    """A perceptron of three layers that starts by leaving boxes where they are (spec 1.6)."""
    head = Mlp(hidden_dim, hidden_dim, hidden_dim, 4)
    nn.init.zeros_(head.last.weight)
    nn.init.zeros_(head.last.bias)
    return head


def copies(head: Head, num: int) -> list[Head]:
    """The head and copies of it, `num` in all: they start alike."""
    return [head, *(copy.deepcopy(head) for _ in range(num - 1))]


@torch.no_grad()
def start_small(head: Mlp) -> None:
    """Lets boxes without a size of their own start at sigmoid(-2) of the image (spec 1.6)."""
    head.last.bias[2:] = -2.0


def _of_layer(heads: nn.ModuleList, layer: int) -> nn.Module:
    return heads[layer if len(heads) > 1 else 0]


def in_full(x: Tensor) -> Tensor:
    """At least float32: under mixed precision, boxes and losses are computed in full."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
