"""Label assignment: which predictions answer for which objects. The union `Assigner` lists all rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from detbench.parts.part import Count, Fraction, NonNegative, Positive, part

if TYPE_CHECKING:
    from detbench.core.types import DensePredictions, Matches, QueryPredictions, Targets


@part
class PairCost:
    """What it costs to let a prediction answer for an object (DETR; spec 0).

    cost_class * focal cost + cost_bbox * L1 of normalised boxes + cost_giou * (-GIoU).

    Attributes:
        cost_class: weight of the focal classification cost.
        cost_bbox: weight of the L1 distance.
        cost_giou: weight of the negative GIoU.
        focal_alpha: alpha of the focal cost.
        focal_gamma: gamma of the focal cost.
        focal_eps: added inside the logarithms (1e-12 mmdetection, 1e-8 OneNet's repository and query detectors).
    """

    kind: str
    cost_class: NonNegative = 2.0
    cost_bbox: NonNegative = 5.0
    cost_giou: NonNegative = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: NonNegative = 2.0
    focal_eps: Positive = 1e-8


@part
class DenseCost(PairCost):
    """The same of predictions in pixels.

    Attributes:
        box_format: of the normalised boxes in the L1 term ("cxcywh" DATE, "xyxy" OneNet's repository).
        giou_eps: clamp of union and enclosing area.
    """

    box_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    giou_eps: Positive = 1e-6


@part
class Hungarian(DenseCost):
    """One-to-one matching of least total cost (DETR; OneNet; DATE's "cost matcher", spec 2.2)."""

    kind: Literal["hungarian"] = "hungarian"
    focal_eps: Positive = 1e-12

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """The matched pairs; min(Q, N) of them in an image of N objects."""
        from detbench.core.assign.hungarian import assign_hungarian

        return assign_hungarian(self, predictions, targets)


@part
class LeastCost(DenseCost):
    """Each object takes its cheapest prediction; two objects may share one (OneNet's option, spec 2.1)."""

    kind: Literal["least_cost"] = "least_cost"
    box_format: Literal["cxcywh", "xyxy"] = "xyxy"

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """One pair for each object."""
        from detbench.core.assign.hungarian import assign_least_cost

        return assign_least_cost(self, predictions, targets)


@part
class Poto:
    """Prediction-aware one-to-one assignment (DeFCN, arXiv:2012.03544, section 3.1; spec 3.1).

    quality = inside * probability^(1 - quality_alpha) * IoU^quality_alpha, maximised by the Hungarian method.

    Attributes:
        quality_alpha: weight of localisation against classification.
        center_radius: half side of the spatial prior's box in strides; 0 means strictly inside the object.
        outside_quality: of a prediction outside the prior: 0 in DATE, -1 in DeFCN.
        overlap: "iou" as in all released code, or "giou", which DATE's configuration names without ever being
            read, with negative values taken as 0.
    """

    kind: Literal["poto"] = "poto"
    quality_alpha: Fraction = 0.8
    center_radius: NonNegative = 1.5
    outside_quality: Annotated[float, Field(ge=-1, le=0)] = 0.0
    overlap: Literal["iou", "giou"] = "iou"

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """The matched pairs; min(Q, N) of them in an image of N objects."""
        from detbench.core.assign.poto import assign_poto

        return assign_poto(self, predictions, targets)


@part
class QualityAtss:
    """Several predictions for each object, by POTO's quality and ATSS's threshold (DeFCN; spec 3.2).

    The `per_level` best predictions of every level are an object's candidates. Those whose quality reaches the
    candidates' mean plus standard deviation, and that stand inside the object, answer for it. One that several
    objects claim answers for that of its greatest quality.

    Attributes:
        quality_alpha: weight of localisation against classification.
        per_level: candidates of each level; all of a level that has fewer predictions.
    """

    kind: Literal["quality_atss"] = "quality_atss"
    quality_alpha: Fraction = 0.8
    per_level: Count = 9

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """At most one object for each prediction; an object may have none."""
        from detbench.core.assign.quality_atss import assign_quality_atss

        return assign_quality_atss(self, predictions, targets)


@part
class FcosRule:
    """FCOS's rule (arXiv:1904.01355; spec 1.4): inside the object, fit for the level, smallest object wins.

    Attributes:
        size_ranges: (low, high) of the largest side distance in pixels for each level, both inclusive.
        center_radius: half side of centre sampling in strides; None for anywhere strictly inside the object.
    """

    kind: Literal["fcos"] = "fcos"
    size_ranges: tuple[tuple[float, float], ...] = (
        (-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8),
    )  # fmt: skip
    center_radius: Positive | None = None

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """At most one object for each prediction; an object may have none."""
        from detbench.core.assign.fcos import assign_fcos

        return assign_fcos(self, predictions, targets)


@part
class MaxIou:
    """RetinaNet's rule (arXiv:1708.02002; spec 1.5): anchors by IoU, a band ignored, each object's best.

    Attributes:
        positive: least IoU of a positive anchor.
        negative: an anchor whose best IoU is below this is negative; between the two it is ignored.
        low_quality: every anchor that reaches an object's best IoU is given to that object, whatever the
            value; later objects overwrite earlier ones.
    """

    kind: Literal["max_iou"] = "max_iou"
    positive: Fraction = 0.5
    negative: Fraction = 0.4
    low_quality: bool = True

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """At most one object for each anchor; those outside the padded image and in the band are ignored."""
        from detbench.core.assign.max_iou import assign_max_iou

        return assign_max_iou(self, predictions, targets)


@part
class Atss:
    """Adaptive training sample selection (ATSS, arXiv:1912.02424, Algorithm 1; spec 7).

    The `per_level` anchors of each level whose centres are nearest to an object's are its candidates. Those whose IoU
    with it reaches the candidates' mean plus standard deviation, and whose centre lies inside of it, answer for it.
    One that several objects claim answers for the one that it overlaps most.

    Attributes:
        per_level: candidates of each level; all of a level that has fewer anchors.
    """

    kind: Literal["atss"] = "atss"
    per_level: Count = 9

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """At most one object for each anchor, an object may have none; anchors outside the image are ignored."""
        from detbench.core.assign.atss import assign_atss

        return assign_atss(self, predictions, targets)


@part
class SampledIou:
    """Faster R-CNN's rule: `MaxIou` on a random sample of each image's anchors or regions (arXiv:1506.01497; spec 7).

    Attributes:
        positive: least IoU of a positive.
        negative: whatever overlaps no object as much is negative; between the two it is ignored.
        low_quality: all that reach an object's best IoU are given to it, if that is at least so much; later objects
            overwrite earlier ones. None for nothing.
        sample: how many of an image take part, as far as there are; the rest is ignored.
        most_positive: at most this share of them is positive; negatives fill up.
    """

    kind: Literal["sampled_iou"] = "sampled_iou"
    positive: Fraction = 0.5
    negative: Fraction = 0.5
    low_quality: Fraction | None = None
    sample: Count = 512
    most_positive: Fraction = 0.25

    def __call__(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """At most one object for each anchor; those not sampled are ignored."""
        from detbench.core.assign.sampled_iou import assign_sampled_iou

        return assign_sampled_iou(self, predictions, targets)


@part
class Rank:
    """An object's pairs weigh less the worse they are: exp(-rank / tau), by quality (Align-DETR; spec 4.2).

    quality = score^quality_alpha * IoU^(1 - quality_alpha); the best pair of an object in a layer has rank 0. As in
    the released code, qualities below 0.01 are equal, and of equal pairs that of the earlier query goes first.

    Attributes:
        quality_alpha: weight of classification against localisation; `Poto` counts it the other way round.
        tau: how slowly weights fall.
        iou_eps: added to the union.
    """

    quality_alpha: Fraction = 0.25
    tau: Positive = 1.5
    iou_eps: NonNegative = 1e-6


@part
class QueryHungarian(PairCost):
    """Matching of query predictions of least total cost, each layer by itself (DETR; spec 1.8, 4.1).

    Boxes are normalised cxcywh.

    Attributes:
        iou_eps: added to union and hull (0 Deformable-DETR, 1e-6 DINO).
        copies: how often each object is repeated, so many distinct queries answer for it (H-DETR, Align-DETR).
        most_positive: copies are reduced, down to 1, until objects times copies are at most this share of the
            queries (Align-DETR: 0.5); each image by itself; None for no bound.
        rank: weights of the pairs, for the losses that ask for them; None for one each.
        position_power: in the class cost the probability is multiplied by this power of (GIoU + 1) / 2, stretched
            until the image's best is 1 (Stable-DINO's position-modulated cost: 0.5; spec 5.6).
        sized_bbox: the L1 distance is that of Sized L1, rescaled by the mean sides of the image's objects. Its paper
            doesn't speak of matching (spec 6.3).
    """

    kind: Literal["query_hungarian"] = "query_hungarian"
    iou_eps: NonNegative = 0.0
    copies: Count = 1
    most_positive: Fraction | None = None
    rank: Rank | None = None
    position_power: NonNegative = 0.0
    sized_bbox: bool = False

    def __call__(self, predictions: QueryPredictions, targets: Targets) -> Matches:
        """The matched pairs; min(Q, copies * N) of them in an image of N objects."""
        from detbench.core.assign.query_hungarian import assign_query_hungarian

        return assign_query_hungarian(self, predictions, targets)


@part
class QueryIou:
    """Candidates by the overlap of where they start with the objects, several for each (DETA; spec 6.2 to 6.5).

    A token starts at its anchor, a query at its proposal. Each belongs to the object that it overlaps most. The
    assignment is made once and serves all layers; whatever it doesn't name is negative.

    Attributes:
        positive: least IoU of a positive with its object (DETA: 0.7 for tokens, 0.6 for queries).
        low_quality: what else is positive: "any": a candidate that reaches the best IoU of some object, though
            it may belong to another (released code); "own": one that reaches the best IoU of its own object
            (the paper's Equation 3); "none".
        sample: with `most_positive` a bound on an image's positives; None for the number of candidates.
        most_positive: at most this share of `sample` stays positive, drawn at random (DETA: 0.5 of 256 tokens,
            0.25 of all queries).
        balance: most positives of one object.
        balance_by: which of them: "row": as many as it had, of all candidates those that overlap it most (released
            code); "threshold": those of its own whose IoU is among the object's `balance` greatest (section 5.3);
            "none": all, without a bound.
        iou_eps: added to the union.
    """

    kind: Literal["query_iou"] = "query_iou"
    positive: Fraction = 0.6
    low_quality: Literal["any", "own", "none"] = "any"
    sample: Count | None = None
    most_positive: Fraction = 0.25
    balance: Count = 4
    balance_by: Literal["row", "threshold", "none"] = "row"
    iou_eps: NonNegative = 0.0

    def __call__(self, predictions: QueryPredictions, targets: Targets) -> Matches:
        """The same pairs for each layer; a prediction may answer for two objects, an object may have none."""
        from detbench.core.assign.query_iou import assign_query_iou

        return assign_query_iou(self, predictions, targets)


@part
class TaskAligned:
    """Several queries for each object, the best by class and box together, weighed (TOOD; Semi-DETR; spec 8.2).

    quality = probability^score_power * IoU^iou_power. A query claimed by several objects answers for the one that it
    overlaps most. A pair weighs its quality over the object's best, times the object's best IoU.

    Attributes:
        per_object: most queries of an object; those of quality 0 don't count.
        score_power: TOOD's alpha.
        iou_power: TOOD's beta.
    """

    kind: Literal["task_aligned"] = "task_aligned"
    per_object: Count = 13
    score_power: NonNegative = 1.0
    iou_power: NonNegative = 6.0

    def __call__(self, predictions: QueryPredictions, targets: Targets) -> Matches:
        """Each layer by itself; a query answers for at most one object, an object may have none."""
        from detbench.core.assign.task_aligned import assign_task_aligned

        return assign_task_aligned(self, predictions, targets)


@part
class SparseCorrespondence:
    """The pairs that stand out in a probe's correspondence, weighed (Match-Free, section 3.3; spec 7.1, 7.2 a, b, e).

    An entry must stand out among the queries of its object's row, then among the objects of its query's column.

    Attributes:
        rho: an entry must reach this share of the greatest entry of its column.
        row_filter: in its row an entry must reach `rho_row` of the greatest ("threshold"), be the greatest
            ("argmax"), or nothing ("none"). The paper names a row filter without defining it.
        rho_row: of the row filter "threshold"; None for `rho`.
        compare: what is held against the column's threshold: entries that the row filter left ("filtered"), or all
            of them ("unfiltered", as the paper's equation is printed: it keeps whole columns).
        keep_row_argmax: an object that is left with nothing keeps its best query.
        normalization: the weights of an object: as they are ("none"), divided by their "sum" or by their "max".
        eps: added to the divisor.
        detach_correspondence: the weights have no gradient.
    """

    kind: Literal["sparse_correspondence"] = "sparse_correspondence"
    rho: Fraction = 0.5
    row_filter: Literal["threshold", "argmax", "none"] = "threshold"
    rho_row: Fraction | None = None
    compare: Literal["filtered", "unfiltered"] = "filtered"
    keep_row_argmax: bool = True
    normalization: Literal["none", "sum", "max"] = "sum"
    eps: NonNegative = 1e-6
    detach_correspondence: bool = True

    def __call__(self, predictions: QueryPredictions, targets: Targets) -> Matches:
        """Any number of weighed pairs for each object and each prediction."""
        from detbench.core.assign.correspondence import assign_sparse

        return assign_sparse(self, predictions, targets)


@part
class Known:
    """The pairs that the predictions were made for: denoising queries and their objects (spec 2.8), and the like."""

    kind: Literal["known"] = "known"

    def __call__(self, predictions: QueryPredictions, targets: Targets) -> Matches:
        """The pairs that come with the predictions."""
        assert predictions.pairs is not None  # Experiment refuses `known` with any other output
        return predictions.pairs


DenseAssigner = Hungarian | LeastCost | Poto | QualityAtss | FcosRule | MaxIou
AuxiliaryAssigner = Atss | SampledIou
QueryAssigner = QueryHungarian | QueryIou | TaskAligned | SparseCorrespondence | Known
Assigner = DenseAssigner | AuxiliaryAssigner | QueryAssigner
"""Every assignment rule a recipe may name."""
