"""How one stream of predictions is made and supervised: its predictor, its assigner, its losses."""

from __future__ import annotations

from typing import Literal

from detbench.parts.assigners import Assigner
from detbench.parts.losses import Loss
from detbench.parts.part import Count, NonNegative, OneOf, Positive, part


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


Predictor = PointPredictor | FcosPredictor | AnchorPredictor | Unfiltered


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
