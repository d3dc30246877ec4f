"""How one stream of predictions is made and supervised: its predictor, its assigner, its losses."""

from __future__ import annotations

from typing import Literal

from detbench.parts.assigners import Assigner
from detbench.parts.auxiliary import AuxiliaryPredictor, PositivesOutput
from detbench.parts.losses import Loss
from detbench.parts.part import Count, Fraction, NonNegative, OneOf, Positive, part


@part
class MaxFilter:
    """3D max filtering: a second logit that keeps only peaks in space and scale (DeFCN; spec 3.3).

    The fused score is sigmoid(class) * sigmoid(filter).

    Attributes:
        levels: pyramid levels to either side that a location is held against (the paper's tau is twice that).
        window: side of the square of cells it is held against; odd.
        logit_eps: the fused probability q enters matching, loss and test as the logit
            log(max(q, eps) / max(1 - q, eps)), without a gradient where eps takes hold (DATE: 1e-5); None for
            the exact logit (DeFCN, which keeps q itself).
    """

    levels: Count = 1
    window: Count = 3
    logit_eps: Positive | None = None

    def __post_init__(self) -> None:
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, found {self.window}")


@part
class PointPredictor:
    """OneNet's predictor: class logits and distances relu(scale * raw) * stride at each location (spec 4.2).

    Attributes:
        max_filter: 3D max filtering on the box tower; None for none.
    """

    kind: Literal["point"] = "point"
    max_filter: MaxFilter | None = None


@part
class FcosPredictor:
    """FCOS's predictor: class logits, four distances exp(scale * raw), centre-ness (spec 1.4).

    Attributes:
        unit: of the distances: "pixels" in DATE; with "strides" boxes start at their level's size, not at 2 pixels.
        centerness_from: which tower feeds the centre-ness.
    """

    kind: Literal["fcos"] = "fcos"
    unit: Literal["pixels", "strides"] = "pixels"
    centerness_from: Literal["class", "box"] = "class"


@part
class AnchorPredictor:
    """RetinaNet's predictor: class logits and box deltas of nine anchors at each location (spec 1.5).

    Attributes:
        octave_scale: anchor side over stride at scale 0.
        scales_per_octave: sizes octave_scale * 2^(k / scales_per_octave).
        ratios: height over width.
        scale_deltas: multiply the raw deltas by the level's shared scale, as the released code does.
    """

    kind: Literal["anchor"] = "anchor"
    octave_scale: float = 4.0
    scales_per_octave: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scale_deltas: bool = True


@part
class Unfiltered:
    """Another branch's predictions before its 3D max filter, supervised once more; no weights of its own.

    DeFCN's auxiliary loss stands on it (spec 3.2).

    Attributes:
        branch: the other branch, whose point predictor has a `max_filter`.
    """

    kind: Literal["unfiltered"] = "unfiltered"
    branch: str


@part
class GtProbe:
    """Objects attend to queries: the weights are a soft correspondence (Match-Free, section 3.2; spec 7.1, 7.2).

    Training only.

    Attributes:
        dim: width of the two perceptrons (two layers, ReLU) and of the attention.
        reads: of a query: its decoder "state", or its "prediction" (class probabilities and box).
        layers: one probe "shared" by all decoder layers, each with a correspondence of its own; a "separate" probe
            for each; or that of the "last_only" layer serving all.
        detach_queries: what it reads gets no gradient from it.
    """

    dim: Count = 256
    reads: Literal["state", "prediction"] = "state"
    layers: Literal["shared", "separate", "last_only"] = "shared"
    detach_queries: bool = False


@part
class DecoderOutput:
    """The decoder's predictions of the one-to-one queries.

    Attributes:
        layers: "all", "last", or "intermediate" for all but the last.
        probe: says in training how much each query answers for each object; None for none.
    """

    kind: Literal["decoder"] = "decoder"
    layers: Literal["all", "last", "intermediate"] = "all"
    probe: GtProbe | None = None


@part
class EncoderOutput:
    """The encoder's proposals of a two-stage detector (spec 1.7, 2.7).

    Attributes:
        tokens: "all", or those "selected" as queries only (DINO).
        labels: the objects' "true" classes, or "binary": every object counts as class 0.
    """

    kind: Literal["encoder"] = "encoder"
    tokens: Literal["all", "selected"] = "all"
    labels: Literal["true", "binary"] = "binary"


@part
class DenoisingOutput:
    """The decoder's predictions of queries made from noisy objects: contrastive denoising (DINO; spec 2.8).

    Training only. Each object has a positive and a negative query in each of max(1, num_queries // most objects of an
    image) groups; groups and the other queries don't see each other.

    Attributes:
        num_queries: which sets the number of groups.
        label_noise: each label is redrawn with half this probability.
        box_noise: corners move by up to this many half sides (positives), by one to two times that (negatives).
    """

    kind: Literal["denoising"] = "denoising"
    num_queries: Count = 100
    label_noise: Fraction = 0.5
    box_noise: NonNegative = 1.0


@part
class OneToManyOutput:
    """The decoder's predictions of further queries that see only each other (H-DETR; spec 3). Training only.

    Attributes:
        num_queries: how many; the proposals ranked behind the one-to-one queries'.
    """

    kind: Literal["one_to_many"] = "one_to_many"
    num_queries: Count = 1500


DensePredictor = PointPredictor | FcosPredictor | AnchorPredictor | Unfiltered
QueryPredictor = DecoderOutput | EncoderOutput | DenoisingOutput | OneToManyOutput | PositivesOutput
Predictor = DensePredictor | QueryPredictor | AuxiliaryPredictor


@part
class Branch:
    """One stream of predictions and all that supervises it.

    Attributes:
        predictor: what makes the predictions from the towers' features.
        assigner: which predictions answer for which objects.
        losses: by the name they have in logs and curves; the branch's total is their weighted sum.
        weight: of the whole branch in the training loss (DATE, Eq. 1: lambda).
    """

    predictor: OneOf[Predictor]
    assigner: OneOf[Assigner]
    losses: dict[str, OneOf[Loss]]
    weight: NonNegative = 1.0
