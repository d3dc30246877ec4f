"""The nouns of the core.

Shape letters, the same in every docstring of the core:
    B images in a batch      Q predictions for one image, over all levels and queries
    M objects in the batch   N objects in one image     K matched pairs in the batch
    C classes, no background D channels                 L pyramid levels

Dense detectors think in pixels of the network input (xyxy, before padding at bottom and right): their
assignment rules compare integers, which normalised coordinates would blur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of a batch, laid end to end image after image.

    Attributes:
        labels: (M,) int64, class indices from 0.
        boxes: (M, 4) float32, xyxy pixels of the network input.
        image_idx: (M,) int64, ascending: the image of each object.
        counts: number of objects of each image; a Python tuple, so that no device has to be asked.
        sizes: height and width of each resized image before padding.
    """

    labels: Tensor
    boxes: Tensor
    image_idx: Tensor
    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @staticmethod
    def of(labels: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Targets:
        """Joins images: labels (N,), boxes (N, 4) and (height, width) of each."""
        counts = tuple(len(x) for x in labels)
        device = boxes[0].device
        image_idx = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
        return Targets(
            torch.cat(list(labels)), torch.cat(list(boxes)).reshape(-1, 4), image_idx, counts,
            tuple((int(h), int(w)) for h, w in sizes),
        )  # fmt: skip

    @property
    def whwh(self) -> Tensor:
        """(B, 4) width, height, width, height of each image: what divides xyxy boxes to normalise them."""
        sizes = [(w, h, w, h) for h, w in self.sizes]
        return torch.tensor(sizes, dtype=self.boxes.dtype, device=self.boxes.device)

    def to(self, device: torch.device | str) -> Targets:
        """The same objects on another device."""
        return Targets(
            self.labels.to(device), self.boxes.to(device), self.image_idx.to(device), self.counts, self.sizes
        )


@dataclass(frozen=True, slots=True)
class Anchors:
    """Where the predictions of a dense head stand; the same for every image of a batch.

    Attributes:
        boxes: (Q, 4) xyxy pixels: anchors, or for point predictors the cell around each location.
        centers: (Q, 2) xy pixels.
        strides: (Q,) of the level each stands on.
        level_sizes: predictions of each pyramid level; they sum to Q.
    """

    boxes: Tensor
    centers: Tensor
    strides: Tensor
    level_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DensePredictions:
    """What one branch of a dense detector says about a batch, before any threshold.

    Attributes:
        pred_logits: (B, Q, C) class scores before the sigmoid.
        pred_boxes: (B, Q, 4) decoded, xyxy pixels of the network input, not clipped.
        anchors: where the predictions stand.
        pred_deltas: (B, Q, 4) box deltas of an anchor predictor; None for point predictors.
        pred_centerness: (B, Q) logits; None where the predictor has none.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    anchors: Anchors
    pred_deltas: Tensor | None = None
    pred_centerness: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Matches:
    """Which predictions of a batch answer for which objects. Every prediction not named is negative.

    Attributes:
        image_idx: (K,) indices into B.
        pred_idx: (K,) indices into Q of that image.
        target_idx: (K,) indices into M.
        ignored: (B, Q) bool, True where a prediction is neither positive nor negative; None for nowhere.
    """

    image_idx: Tensor
    pred_idx: Tensor
    target_idx: Tensor
    ignored: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Detections:
    """What is kept of one image.

    Attributes:
        boxes: (K, 4) xyxy pixels.
        scores: (K,) descending.
        labels: (K,) class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
