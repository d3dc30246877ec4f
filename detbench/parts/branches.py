"""How one stream of predictions is made and supervised: its predictor, its assigner, its losses."""

from __future__ import annotations

from typing import Literal

from detbench.parts.assigners import Assigner
from detbench.parts.losses import Loss
from detbench.parts.part import NonNegative, OneOf, part


@part
class PointPredictor:
    """OneNet's predictor: class logits and four distances relu(scale * raw) * stride at each location (spec 4.2).

    Attributes:
        start: the raw distances' bias at the start. 0 is the papers'; half of all distances then start at zero,
            without a gradient, which only a long training mends.
    """

    kind: Literal["point"] = "point"
    start: NonNegative = 0.0


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


Predictor = PointPredictor | FcosPredictor | AnchorPredictor


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
