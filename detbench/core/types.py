"""The nouns of the core.

Shape letters, the same in every docstring of the core:
    B images in a batch      Q predictions for one image, over all levels and queries
    M objects in the batch   N objects in one image     K matched pairs in the batch
    C classes, no background D channels                 L pyramid levels

Dense detectors think in pixels of the network input (xyxy, before padding at bottom and right): their
assignment rules compare integers, which normalised coordinates would blur. Query detectors think in cxcywh boxes
divided by the image's unpadded size: the epsilons of their losses mean something there only.

A layer of a decoder is one more copy of the batch to everything behind the detector: B then counts images times
layers, layer by layer, and `Targets.repeat` lays the objects out the same way. All layers are matched in one go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from detbench.core.boxes import xyxy_to_cxcywh
from detbench.core.distributed import most_over_processes


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of a batch, laid end to end image after image.

    Attributes:
        labels: (M,) int64, class indices from 0.
        boxes: (M, 4) float32, xyxy pixels of the network input.
        image_idx: (M,) int64, ascending: the image of each object.
        counts: number of objects of each image; a Python tuple, so that no device has to be asked.
        sizes: height and width of each resized image before padding.
        pseudo: they are what a teacher made out, not annotations.
    """

    labels: Tensor
    boxes: Tensor
    image_idx: Tensor
    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    pseudo: bool = False

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

    @property
    def cxcywh(self) -> Tensor:
        """(M, 4) boxes as centre and size, divided by their image's unpadded size."""
        return xyxy_to_cxcywh(self.boxes / self.whwh[self.image_idx])

    @property
    def first(self) -> Tensor:
        """(B,) index of each image's first object; of the next image's where it has none."""
        return torch.tensor([0, *accumulate(self.counts[:-1])], device=self.image_idx.device)

    @property
    def rank(self) -> Tensor:
        """(M,) place of each object among those of its image, from 0."""
        return torch.arange(len(self.image_idx), device=self.image_idx.device) - self.first[self.image_idx]

    def repeat(self, times: int) -> Targets:
        """The whole batch `times` times, one copy after another, as the layers of a decoder see it."""
        if times == 1:
            return self
        shift = torch.arange(times, device=self.image_idx.device) * len(self.counts)
        return dataclasses.replace(
            self,
            labels=self.labels.repeat(times),
            boxes=self.boxes.repeat(times, 1),
            image_idx=(shift[:, None] + self.image_idx).flatten(),
            counts=self.counts * times,
            sizes=self.sizes * times,
        )

    def of_first(self, num_images: int) -> Targets:
        """The objects of the first images alone."""
        num = sum(self.counts[:num_images])
        return dataclasses.replace(
            self,
            labels=self.labels[:num],
            boxes=self.boxes[:num],
            image_idx=self.image_idx[:num],
            counts=self.counts[:num_images],
            sizes=self.sizes[:num_images],
        )

    def by_image(self, x: Tensor, *, fill: float) -> Tensor:
        """(M, D) values of the objects to (B, N, D), `fill` where an image has fewer than N objects.

        N are those of the image with most, on whichever process.
        """
        pages = x.new_full((len(self.counts), most_over_processes(max(self.counts)), x.shape[1]), fill)
        return pages.index_put((self.image_idx, self.rank), x)

    def of_one_class(self) -> Targets:
        """The same objects, all of class 0: a first stage that only tells objects from background."""
        return dataclasses.replace(self, labels=torch.zeros_like(self.labels))

    def to(self, device: torch.device | str) -> Targets:
        """The same objects on another device."""
        return dataclasses.replace(
            self,
            labels=self.labels.to(device),
            boxes=self.boxes.to(device),
            image_idx=self.image_idx.to(device),
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
        pairs: what answers for which object, where the detector had to know; None where that is open.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    anchors: Anchors
    pred_deltas: Tensor | None = None
    pred_centerness: Tensor | None = None
    pairs: Matches | None = None


@dataclass(frozen=True, slots=True)
class RegionPredictions:
    """What a second stage says about regions of interest, which are other ones in each image.

    Attributes:
        pred_logits: (B, Q, C + 1) class scores before the softmax, the background's last.
        pred_boxes: (B, Q, 4) decoded, xyxy pixels of the network input, not clipped: the box for the object's class
            where a region answers for an object, otherwise for the likeliest class.
        regions: (B, Q, 4) xyxy pixels.
        pairs: which region answers for which object; places that an image couldn't fill are ignored.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    regions: Tensor
    pairs: Matches


@dataclass(frozen=True, slots=True)
class Matches:
    """Which predictions of a batch answer for which objects. Every prediction not named is negative.

    Attributes:
        image_idx: (K,) indices into B.
        pred_idx: (K,) indices into Q of that image.
        target_idx: (K,) indices into M.
        ignored: (B, Q) bool, True where a prediction is neither positive nor negative; None for nowhere.
        weights: (K,) how much each pair counts where a loss asks for it; None for one each.
        copies: how often each object was offered to the predictions.
    """

    image_idx: Tensor
    pred_idx: Tensor
    target_idx: Tensor
    ignored: Tensor | None = None
    weights: Tensor | None = None
    copies: int = 1

    @staticmethod
    def of_owner(owner: Tensor, ignored: Tensor | None = None) -> Matches:
        """At most one object for each prediction: (B, Q) index of it, -1 for none."""
        image_idx, pred_idx = (owner >= 0).nonzero(as_tuple=True)
        return Matches(image_idx, pred_idx, owner[image_idx, pred_idx], ignored)

    def repeat(self, times: int, targets: Targets) -> Matches:
        """The same pairs in every layer of a decoder, as `Targets.repeat` lays the objects out.

        Args:
            times: layers.
            targets: the batch's objects, without repetition.
        """
        layer = torch.arange(times, device=self.image_idx.device)[:, None]
        return dataclasses.replace(
            self,
            image_idx=(layer * len(targets.counts) + self.image_idx).flatten(),
            pred_idx=self.pred_idx.repeat(times),
            target_idx=(layer * len(targets.labels) + self.target_idx).flatten(),
            ignored=None if self.ignored is None else self.ignored.repeat(times, 1),
            weights=None if self.weights is None else self.weights.repeat(times),
        )


@dataclass(frozen=True, slots=True)
class QueryPredictions:
    """What one output of a query detector says about a batch: layers laid end to end (see the module's head).

    Attributes:
        pred_logits: (B, Q, C) class scores before the sigmoid, B = layers times images.
        pred_boxes: (B, Q, 4) cxcywh divided by the image's unpadded size.
        num_layers: how many layers B holds.
        anchors: (images, Q, 4) cxcywh, where each prediction stood before it looked; None without a first stage.
        states: (B, Q, D) what the heads read; None where nobody asks for it.
        pred_quality: (B, Q) logits of the IoU; None where the detector has no such head.
        pairs: which query was made for which object; None where that is open.
        correspondence: (M, Q) how much each query of its image answers for each object of the batch as repeated
            for the layers, in training; None without a probe.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    num_layers: int = 1
    anchors: Tensor | None = None
    states: Tensor | None = None
    pred_quality: Tensor | None = None
    pairs: Matches | None = None
    correspondence: Tensor | None = None

    def layer(self, index: int) -> QueryPredictions:
        """One layer alone; whom its queries answer for is left out."""

        def own(x: Tensor) -> Tensor:
            num_rows = len(x) // self.num_layers
            return x[index * num_rows : (index + 1) * num_rows]

        return QueryPredictions(
            own(self.pred_logits),
            own(self.pred_boxes),
            anchors=self.anchors,
            states=None if self.states is None else own(self.states),
            pred_quality=None if self.pred_quality is None else own(self.pred_quality),
            correspondence=None if self.correspondence is None else own(self.correspondence),
        )

    @property
    def last(self) -> QueryPredictions:
        """The last layer alone, which is what a test looks at."""
        return self.layer(self.num_layers - 1)


Predictions = DensePredictions | QueryPredictions
"""What can be tested."""

AnyPredictions = Predictions | RegionPredictions
"""What can be supervised."""


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
