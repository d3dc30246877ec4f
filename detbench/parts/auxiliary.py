"""Heads that only train a query detector: other detectors on its encoder's output (Co-DETR, arXiv:2211.12860).

Whatever they call positive can become queries of the decoder, too. "spec 7" is that of Co-DETR beside Sized L1's.
"""

from __future__ import annotations

from typing import Literal

from detbench.parts.part import Count, Fraction, Positive, part

DeltaStds = tuple[Positive, Positive, Positive, Positive]


@part
class AtssPredictor:
    """ATSS's predictor: class logits, box deltas and centre-ness of a square anchor at each location (spec 7).

    Attributes:
        octave_scale: anchor side over stride.
        num_convs: 3x3 convolutions (no bias, GroupNorm, ReLU) in front of each output.
        delta_stds: what raw deltas are multiplied by, after each level's learned scale.
    """

    kind: Literal["atss"] = "atss"
    octave_scale: Positive = 8.0
    num_convs: Count = 1
    delta_stds: DeltaStds = (0.1, 0.1, 0.2, 0.2)


@part
class RpnPredictor:
    """Faster R-CNN's first stage: whether an anchor holds an object, and its box deltas (arXiv:1506.01497; spec 7).

    Attributes:
        octave_scale: anchor side over stride at scale 0.
        scales_per_octave: sizes octave_scale * 2^(k / scales_per_octave).
        ratios: height over width.
        per_level: best anchors of each level that take part in the suppression.
        iou_threshold: of the suppression, done level by level.
        num_proposals: kept of an image, for the second stage.
    """

    kind: Literal["rpn"] = "rpn"
    octave_scale: Positive = 4.0
    scales_per_octave: Count = 3
    ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    per_level: Count = 4000
    iou_threshold: Fraction = 0.7
    num_proposals: Count = 1000


@part
class RcnnPredictor:
    """Faster R-CNN's second stage: classes, background among them, and a box for each, of sampled regions (spec 7).

    Regions are the proposals and the objects themselves; its assigner samples them.

    Attributes:
        proposals: the branch with the rpn predictor.
        roi_size: cells of the RoIAlign, each way.
        finest_side: regions of less than twice this side, in pixels, are read from the finest level; those of less
            than four times this side from the next, and so on.
        hidden_dim: of the two fully connected layers.
        delta_stds: what raw deltas are multiplied by.
    """

    kind: Literal["rcnn"] = "rcnn"
    proposals: str
    roi_size: Count = 7
    finest_side: Positive = 56.0
    hidden_dim: Count = 1024
    delta_stds: DeltaStds = (0.1, 0.1, 0.2, 0.2)


@part
class PositivesOutput:
    """The decoder's predictions of queries made from an auxiliary head's positives (Co-DETR, section 3.3; spec 7).

    Training only. Each starts at the box of its anchor or region, and answers for that one's object. Every image has
    as many as the one with most positives: further positives are left out at random, lacking ones are random
    negatives. These queries have a pass of their own through the decoder.

    Attributes:
        of: the branch with the atss or rcnn predictor.
        fewest: of an image.
        most: of an image.
    """

    kind: Literal["positives"] = "positives"
    of: str
    fewest: Count = 9
    most: Count = 300

    def __post_init__(self) -> None:
        if self.fewest > self.most:
            raise ValueError(f"fewest must be at most {self.most}, as many as most; found {self.fewest}")


AuxiliaryPredictor = AtssPredictor | RpnPredictor | RcnnPredictor
"""Heads on the encoder's output, in training alone."""
