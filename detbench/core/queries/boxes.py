"""Queries made elsewhere: a place and a content for each, decoded beside the detector's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BoxQueries:
    """Queries at given boxes, several groups of which stand in front of all others.

    A group sees itself and the one-to-one queries; nobody else sees it.

    Attributes:
        content: (B, K, D) of one group.
        reference: (B, K, 4) cxcywh over the image's unpadded size.
        groups: identical ones.
    """

    content: Tensor
    reference: Tensor
    groups: int
