"""What an experiment's detector costs, in training and at inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from detbench.core.cost import Cost, count
from detbench.core.detectors import Detector
from detbench.parts.data import Drawn
from detbench.parts.detectors import untrained
from detbench.parts.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Costs:
    """The two costs of an experiment, both for one image.

    Attributes:
        train: of all branches.
        infer: of the tested one.
        height: of the image.
        width: of the image.
    """

    train: Cost
    infer: Cost
    height: int
    width: int


def costs_of(experiment: Experiment, detector: Detector) -> Costs:
    """The costs of a built detector.

    Counted at the test transform's short side by 1.6 times that (800 x 1280 in the paper), square for drawn images.
    """
    height = experiment.data.test.short
    width = height if isinstance(experiment.data.source, Drawn) else height * 8 // 5
    return Costs(
        train=count(detector, height=height, width=width, branches=tuple(experiment.branches)),
        infer=count(detector, height=height, width=width, branches=(experiment.test.branch,)),
        height=height,
        width=width,
    )


def costs_untrained(experiment: Experiment, *, num_classes: int) -> Costs:
    """The costs of an experiment of which nothing is there, neither data nor weights."""
    part = untrained(experiment.detector)
    with torch.device("meta"):
        detector = part.build(branches=experiment.branches, num_classes=num_classes)
    return costs_of(experiment, detector)
