"""Losses: what a matched pair, or an unmatched prediction, costs. The union `Loss` lists all of them.

`divide_by` is the normaliser, a convention in which papers differ without saying so:

    positives          max(mean over processes of the number of positives, 1)
    positives_raw      mean over processes of the number of positives, not clamped (an epsilon avoids 0/0)
    positives_local    sum over this process's images of max(number of positives, 1); not averaged
    centerness         max(mean over processes of the sum of centre-ness targets, 1e-6)
    objects            max(mean over processes of the number of objects, 1), whatever the number of layers
    copies             the same, each object counted as often as the assigner repeats it (denoising groups, H-DETR)

The sum over a query detector's layers is divided once, so that layers add up as in DETR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from detbench.parts.part import Fraction, NonNegative, Positive, part

if TYPE_CHECKING:
    from torch import Tensor

    from detbench.core.supervise import DenseSupervision, QuerySupervision, Supervision

DivideBy = Literal["positives", "positives_raw", "positives_local", "centerness", "objects", "copies"]


@part
class Focal:
    """Sigmoid focal loss of all predictions and classes not ignored (arXiv:1708.02002, Eq. 5; spec 0)."""

    kind: Literal["focal"] = "focal"
    weight: NonNegative = 1.0
    alpha: Fraction = 0.25
    gamma: NonNegative = 2.0
    divide_by: DivideBy = "positives"

    def __call__(self, supervision: Supervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.focal import focal_of

        return focal_of(supervision, alpha=self.alpha, gamma=self.gamma)


@part
class BoxL1:
    """L1 distance of matched boxes, both normalised by their image's unpadded size (DETR; spec 4.2)."""

    kind: Literal["box_l1"] = "box_l1"
    weight: NonNegative = 5.0
    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    divide_by: DivideBy = "positives_raw"

    def __call__(self, supervision: Supervision) -> Tensor:
        """The sum over pairs and coordinates, not yet weighed or divided."""
        from detbench.core.losses.boxes import box_l1_of

        return box_l1_of(supervision, box_format=self.box_format)


@part
class DeltaL1:
    """L1 distance of box deltas to the targets' deltas from their anchors (RetinaNet; spec 1.5)."""

    kind: Literal["delta_l1"] = "delta_l1"
    weight: NonNegative = 1.0
    divide_by: DivideBy = "positives_local"

    def __call__(self, supervision: DenseSupervision) -> Tensor:
        """The sum over pairs and coordinates, not yet weighed or divided."""
        from detbench.core.losses.boxes import delta_l1_of

        return delta_l1_of(supervision)


@part
class Giou:
    """1 - GIoU of matched boxes in pixels (arXiv:1902.09630; spec 0).

    Attributes:
        eps: clamp of union and enclosing area (1e-7 inside the loss).
    """

    kind: Literal["giou"] = "giou"
    weight: NonNegative = 2.0
    eps: Positive = 1e-7
    divide_by: DivideBy = "positives_raw"

    def __call__(self, supervision: DenseSupervision) -> Tensor:
        """The sum over pairs, not yet weighed or divided."""
        from detbench.core.losses.boxes import giou_of

        return giou_of(supervision, eps=self.eps)


@part
class LogIou:
    """-log(max(IoU, eps)) of matched boxes, weighed by centre-ness targets (mmdetection's FCOS; spec 1.4)."""

    kind: Literal["log_iou"] = "log_iou"
    weight: NonNegative = 1.0
    eps: Positive = 1e-6
    weigh_by: Literal["centerness", "one"] = "centerness"
    divide_by: DivideBy = "centerness"

    def __call__(self, supervision: DenseSupervision) -> Tensor:
        """The weighed sum over pairs, not yet divided."""
        from detbench.core.losses.boxes import log_iou_of

        return log_iou_of(supervision, eps=self.eps, weigh_by=self.weigh_by)


@part
class Centerness:
    """Binary cross-entropy of the centre-ness logit at positives (FCOS; spec 1.4)."""

    kind: Literal["centerness"] = "centerness"
    weight: NonNegative = 1.0
    divide_by: DivideBy = "positives"

    def __call__(self, supervision: DenseSupervision) -> Tensor:
        """The sum over pairs, not yet weighed or divided."""
        from detbench.core.losses.centerness import centerness_of

        return centerness_of(supervision)


@part
class QueryGiou:
    """1 - GIoU of matched normalised boxes (spec 1.8).

    Attributes:
        eps: added to union and hull (0 Deformable-DETR, 1e-6 DINO).
    """

    kind: Literal["query_giou"] = "query_giou"
    weight: NonNegative = 2.0
    eps: NonNegative = 0.0
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum over pairs, not yet weighed or divided."""
        from detbench.core.losses.boxes import query_giou_of

        return query_giou_of(supervision, eps=self.eps)


DenseLoss = Focal | BoxL1 | DeltaL1 | Giou | LogIou | Centerness
QueryLoss = Focal | BoxL1 | QueryGiou
Loss = DenseLoss | QueryLoss
"""Every loss a recipe may name."""
