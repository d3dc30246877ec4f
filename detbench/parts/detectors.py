"""Whole detectors, put together from a backbone, a neck and heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from detbench.parts.backbones import Backbones
from detbench.parts.part import Count, OneOf, Positive, part

if TYPE_CHECKING:
    from detbench.core.detectors.dense import DenseDetector
    from detbench.parts.branches import Branch


@part
class Fpn:
    """Feature pyramid (arXiv:1612.03144) on C3 to C5: 1x1 laterals, nearest top-down sums, 3x3 outputs.

    Attributes:
        channels: of every output level.
        num_levels: 3 (strides 8, 16, 32) to 5; levels beyond the third are 3x3 stride-2 convolutions,
            the first on the last output, the next on its ReLU (spec 1.1).
    """

    kind: Literal["fpn"] = "fpn"
    channels: Count = 256
    num_levels: Literal[3, 4, 5] = 5


@part
class Subnets:
    """The two convolution towers in front of the predictors (RetinaNet; spec 1.2), shared by all levels.

    Attributes:
        num_convs: 3x3 convolutions (no bias, GroupNorm, ReLU) in each tower.
        groups: groups of each GroupNorm.
        shared: True: one pair of towers serves every branch; False: a pair for each branch (DATE, Table 9).
        shared_scales: the same for the learned factors of the levels' boxes, of which papers don't speak; the
            released head shares them, whether or not it shares the towers (spec 1.2, 4.1).
        init_std: standard deviation of all head convolutions' weights.
        class_prior: initial probability that the classification bias stands for.
    """

    num_convs: Count = 4
    groups: Count = 32
    shared: bool = True
    shared_scales: bool = True
    init_std: Positive = 0.01
    class_prior: Positive = 0.01


@part
class Dense:
    """A fully convolutional detector: backbone, FPN, two towers, and a predictor for each branch (DATE)."""

    kind: Literal["dense"] = "dense"
    backbone: OneOf[Backbones]
    neck: Fpn = Fpn()
    subnets: Subnets = Subnets()

    def build(self, *, branches: Mapping[str, Branch], num_classes: int) -> DenseDetector:
        """The module with one predictor for each branch that says one.

        Args:
            branches: the experiment's branches; their `predictor` names what to build.
            num_classes: without background.
        """
        from detbench.core.detectors.dense import build_dense

        return build_dense(self, branches=branches, num_classes=num_classes)


Detector = Dense
"""Every detector a recipe may name."""
