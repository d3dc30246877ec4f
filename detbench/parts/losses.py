"""Losses: what a matched pair, or an unmatched prediction, costs. The union `Loss` lists all of them.

`divide_by` is the normaliser, a convention in which papers differ without saying so. Where it doesn't say otherwise,
everything is counted over the whole batch, whichever process holds it:

    positives          max(number of positives, 1)
    positives_raw      number of positives, not clamped (an epsilon avoids 0/0)
    positives_local    sum over a process's images of max(number of positives, 1), process by process
    positives_image    the same sum over all images
    centerness         max(sum of centre-ness targets, 1e-6)
    centerness_or_one  max(sum of centre-ness targets, 1)
    sampled            max(number of predictions that aren't ignored, 1)
    objects            max(number of objects, 1), whatever the number of layers
    copies             the same, each object counted as often as it is offered (denoising groups, H-DETR)
    pairs              max(number of matched pairs in one layer, 1)
    pairs_local        max(number of matched pairs of a process, 1), layer by layer and process by process
    pair_weights       max(sum of the pairs' weights, 1), layer by layer
    one                nothing: the plain sum

Several processes train as one would, but for what is divided "process by process" as some released code does: each
process divides its own sum, and what comes of them is averaged.

Where it doesn't say "layer by layer", the sum over a query detector's layers is divided once; in either case layers
add up as in DETR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from detbench.parts.assigners import QueryHungarian
from detbench.parts.part import Fraction, NonNegative, Positive, part

if TYPE_CHECKING:
    from torch import Tensor

    from detbench.core.supervise import (
        DenseSupervision,
        PixelSupervision,
        QuerySupervision,
        RegionSupervision,
        Supervision,
    )

DivideBy = Literal[
    "positives",
    "positives_raw",
    "positives_local",
    "positives_image",
    "centerness",
    "centerness_or_one",
    "sampled",
    "objects",
    "copies",
    "pairs",
    "pairs_local",
    "pair_weights",
    "one",
]

WeighBy = Literal["one", "match"]

Rescale = Literal["none", "axis_mean", "scalar_mean", "loss_preserving", "constant"]


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
class BinaryCrossEntropy:
    """Binary cross-entropy of all predictions and classes not ignored (Faster R-CNN's first stage; spec 7)."""

    kind: Literal["bce"] = "bce"
    weight: NonNegative = 1.0
    divide_by: DivideBy = "sampled"

    def __call__(self, supervision: Supervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.cross_entropy import binary_cross_entropy_of

        return binary_cross_entropy_of(supervision)


@part
class CrossEntropy:
    """Cross-entropy of one class or the background for each region not ignored (R-CNN; spec 7)."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    weight: NonNegative = 1.0
    divide_by: DivideBy = "sampled"

    def __call__(self, supervision: RegionSupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.cross_entropy import cross_entropy_of

        return cross_entropy_of(supervision)


@part
class BoxL1:
    """L1 distance of matched boxes, both normalised by their image's unpadded size (DETR; spec 4.2).

    Attributes:
        weigh_by: "match" for the weights that an assigner gave its pairs (Align-DETR, Eq. 6).
    """

    kind: Literal["box_l1"] = "box_l1"
    weight: NonNegative = 5.0
    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    weigh_by: WeighBy = "one"
    divide_by: DivideBy = "positives_raw"

    def __call__(self, supervision: Supervision) -> Tensor:
        """The sum over pairs and coordinates, not yet weighed or divided."""
        from detbench.core.losses.boxes import box_l1_of

        return box_l1_of(supervision, box_format=self.box_format, weigh_by=self.weigh_by)


@part
class SizedL1:
    """`BoxL1` with x and width counted in widths of the object, y and height in its heights (Sized L1; spec 6).

    Sides are normalised as boxes are. They weigh the loss and have no part in what it is divided by.

    Attributes:
        rescale: factor that brings the loss back to about the plain L1's size. The paper speaks of the boxes' average
            dimensions and gives no formula (spec 6.2): "none"; "axis_mean": the matched objects' mean width for x and
            width, their mean height for y and height; "scalar_mean": the mean of all their sides;
            "loss_preserving": whatever gives the plain L1's value, without a gradient of its own; "constant":
            `mean_size`, axis by axis.
        mean_size: of "constant": width and height, such as the training set's normalised means.
        mean_over: the pairs behind a factor: those of "all_processes", so that N train as one does, or of
            "this_process". Each layer of a query detector has its own.
        min_side: sides count as at least so many pixels of the network input: an object may be empty.
        labels: "annotated" leaves a teacher's objects to the plain L1 (the paper's "Sup only").
        weigh_by: as in `BoxL1`.
    """

    kind: Literal["sized_l1"] = "sized_l1"
    weight: NonNegative = 5.0
    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    rescale: Rescale = "axis_mean"
    mean_size: tuple[Positive, Positive] | None = None
    mean_over: Literal["all_processes", "this_process"] = "all_processes"
    min_side: Positive = 1.0
    labels: Literal["all", "annotated"] = "all"
    weigh_by: WeighBy = "one"
    divide_by: DivideBy = "positives_raw"

    def __post_init__(self) -> None:
        if (self.rescale == "constant") != (self.mean_size is not None):
            raise ValueError("mean_size goes with rescale = 'constant', and with nothing else")

    def __call__(self, supervision: Supervision) -> Tensor:
        """The sum over pairs and coordinates, not yet weighed or divided."""
        from detbench.core.losses.boxes import box_l1_of
        from detbench.core.losses.sized import sized_l1_of

        if supervision.targets.pseudo and self.labels == "annotated":
            return box_l1_of(supervision, box_format=self.box_format, weigh_by=self.weigh_by)
        return sized_l1_of(
            supervision,
            box_format=self.box_format,
            rescale=self.rescale,
            mean_size=self.mean_size,
            mean_over=self.mean_over,
            min_side=self.min_side,
            weigh_by=self.weigh_by,
        )


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

    def __call__(self, supervision: PixelSupervision) -> Tensor:
        """The sum over pairs, not yet weighed or divided."""
        from detbench.core.losses.boxes import giou_of

        return giou_of(supervision, eps=self.eps)


@part
class CenternessGiou:
    """`Giou`, each pair weighed by its centre-ness target (ATSS; spec 7).

    Attributes:
        eps: clamp of union and enclosing area.
    """

    kind: Literal["centerness_giou"] = "centerness_giou"
    weight: NonNegative = 2.0
    eps: Positive = 1e-7
    divide_by: DivideBy = "centerness_or_one"

    def __call__(self, supervision: DenseSupervision) -> Tensor:
        """The weighed sum over pairs, not yet divided."""
        from detbench.core.losses.boxes import centerness_giou_of

        return centerness_giou_of(supervision, eps=self.eps)


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
        weigh_by: "match" for the weights that an assigner gave its pairs (Align-DETR, Eq. 6).
    """

    kind: Literal["query_giou"] = "query_giou"
    weight: NonNegative = 2.0
    eps: NonNegative = 0.0
    weigh_by: WeighBy = "one"
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum over pairs, not yet weighed or divided."""
        from detbench.core.losses.boxes import query_giou_of

        return query_giou_of(supervision, eps=self.eps, weigh_by=self.weigh_by)


@part
class SoftTarget:
    """A class loss whose target at matched queries joins score, box and pair weight (Align-DETR, Eq. 2, 4; spec 4.3).

    target = pair weight * max(score^quality_alpha * IoU^(1 - quality_alpha), quality_floor)

    Attributes:
        gamma: of the focal factors.
        quality_alpha: weight of classification against localisation.
        quality_floor: least quality; the released code's, the paper has none.
        iou_eps: added to the union.
    """

    kind: str
    weight: NonNegative = 1.0
    gamma: NonNegative = 2.0
    quality_alpha: Fraction = 0.25
    quality_floor: Fraction = 0.01
    iou_eps: NonNegative = 1e-6
    divide_by: DivideBy = "objects"


@part
class Align(SoftTarget):
    """Align Loss: focal loss with a soft target at matched queries (Align-DETR, Eq. 3 to 5; spec 4.3)."""

    kind: Literal["align"] = "align"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.align import align_of

        return align_of(
            supervision,
            gamma=self.gamma,
            quality_alpha=self.quality_alpha,
            floor=self.quality_floor,
            iou_eps=self.iou_eps,
        )


@part
class IaBce(SoftTarget):
    """The Align loss as released: cross-entropy without focal factors at matched queries (spec 4.3).

    Its gamma acts on the background alone.
    """

    kind: Literal["ia_bce"] = "ia_bce"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.align import ia_bce_of

        return ia_bce_of(
            supervision,
            gamma=self.gamma,
            quality_alpha=self.quality_alpha,
            floor=self.quality_floor,
            iou_eps=self.iou_eps,
        )


@part
class QualityFocal:
    """Quality focal loss: the class target of a matched query is its IoU (arXiv:2006.04388, Eq. 3; spec 5.3).

    Attributes:
        beta: exponent of |target - probability|.
        iou_eps: added to the union.
    """

    kind: Literal["quality_focal"] = "quality_focal"
    weight: NonNegative = 1.0
    beta: Annotated[float, Field(ge=1)] = 2.0
    iou_eps: NonNegative = 1e-6
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.quality import quality_focal_of

        return quality_focal_of(supervision, beta=self.beta, iou_eps=self.iou_eps)


@part
class TaskAlignedFocal:
    """Quality focal loss whose target at a matched query is the pair's weight (TOOD; Semi-DETR; spec 8.2).

    Attributes:
        gamma: exponent of |target - probability|.
    """

    kind: Literal["task_aligned_focal"] = "task_aligned_focal"
    weight: NonNegative = 2.0
    gamma: Annotated[float, Field(ge=1)] = 2.0
    divide_by: DivideBy = "pair_weights"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.quality import task_aligned_focal_of

        return task_aligned_focal_of(supervision, gamma=self.gamma)


@part
class Varifocal:
    """Varifocal loss: as `QualityFocal`, but matched queries are weighed by their IoU (arXiv:2008.13367, Eq. 2).

    Attributes:
        alpha: weight of the background (spec 5.4).
        gamma: of the background's focal factor.
        iou_eps: added to the union.
    """

    kind: Literal["varifocal"] = "varifocal"
    weight: NonNegative = 1.0
    alpha: Fraction = 0.75
    gamma: NonNegative = 2.0
    iou_eps: NonNegative = 1e-6
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.quality import varifocal_of

        return varifocal_of(supervision, alpha=self.alpha, gamma=self.gamma, iou_eps=self.iou_eps)


@part
class PositionSupervised:
    """Position-supervised loss: the class target is IoU^power, an image's best at 1 (Stable-DINO; spec 5.5).

    Attributes:
        power: of the IoU.
        alpha: weight of matched queries; 1 - alpha that of the background.
        gamma: exponent of |target - probability|, and of the background's focal factor.
        iou_eps: added to the union.
    """

    kind: Literal["position_supervised"] = "position_supervised"
    weight: NonNegative = 6.0
    power: NonNegative = 2.0
    alpha: Fraction = 0.25
    gamma: Annotated[float, Field(ge=1)] = 2.0
    iou_eps: NonNegative = 1e-6
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.quality import position_supervised_of

        return position_supervised_of(
            supervision, power=self.power, alpha=self.alpha, gamma=self.gamma, iou_eps=self.iou_eps
        )


@part
class IouQuality:
    """Binary cross-entropy of the quality head's logit and the IoU, at matched queries ("IoU branch"; spec 5.2).

    Attributes:
        iou_eps: added to the union.
    """

    kind: Literal["iou_quality"] = "iou_quality"
    weight: NonNegative = 1.0
    iou_eps: NonNegative = 1e-6
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum over pairs, not yet weighed or divided."""
        from detbench.core.losses.quality import iou_quality_of

        return iou_quality_of(supervision, iou_eps=self.iou_eps)


@part
class WeightedFocal:
    """Focal loss whose positives count as much as their pairs weigh (Match-Free; spec 7.2 c).

    With one pair of weight 1 for each object it is `Focal`. Pairs of one prediction and one class add up; a pair's
    class has no negative term at its prediction.

    Attributes:
        background: False for the pairs alone, as the paper's equation is printed: nothing pushes scores down.
    """

    kind: Literal["weighted_focal"] = "weighted_focal"
    weight: NonNegative = 2.0
    alpha: Fraction = 0.25
    gamma: NonNegative = 2.0
    background: bool = True
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum, not yet weighed or divided."""
        from detbench.core.losses.correspondence import weighted_focal_of

        return weighted_focal_of(supervision, alpha=self.alpha, gamma=self.gamma, background=self.background)


@part
class Correspondence:
    """The cost of every pair times its correspondence: teaches the probe (Match-Free; spec 7.1 L_w, 7.2 d to f).

    Attributes:
        weight: the paper's alpha.
        cost: the matching cost of a pair; its GIoU term is here 1 - GIoU. What the matcher says of copies and ranks
            has no part in it.
        detach_cost: predictions get no gradient through the cost.
    """

    kind: Literal["correspondence"] = "correspondence"
    weight: NonNegative = 1.0
    cost: QueryHungarian = QueryHungarian()
    detach_cost: bool = True
    divide_by: DivideBy = "objects"

    def __call__(self, supervision: QuerySupervision) -> Tensor:
        """The sum over all pairs of an image's objects and queries, not yet weighed or divided."""
        from detbench.core.losses.correspondence import correspondence_of

        return correspondence_of(supervision, cost=self.cost, detach_cost=self.detach_cost)


DenseLoss = (
    Focal | BinaryCrossEntropy | BoxL1 | SizedL1 | DeltaL1 | Giou | CenternessGiou | LogIou | Centerness
)
RegionLoss = CrossEntropy | BoxL1 | SizedL1 | Giou
QueryLoss = (
    Focal
    | BoxL1
    | SizedL1
    | QueryGiou
    | Align
    | IaBce
    | QualityFocal
    | TaskAlignedFocal
    | Varifocal
    | PositionSupervised
    | IouQuality
    | WeightedFocal
    | Correspondence
)
Loss = DenseLoss | RegionLoss | QueryLoss
"""Every loss a recipe may name."""
