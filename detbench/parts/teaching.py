"""Training with few labels: a teacher, what it labels, a first stage that matches otherwise (Semi-DETR; spec 8)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from detbench.parts.assigners import QueryHungarian
from detbench.parts.branches import Branch
from detbench.parts.part import Count, Fraction, NonNegative, OneOf, Positive, part
from detbench.parts.test import Postprocess


@part
class StrongView:
    """What an unlabelled image goes through before the student sees it, after resize and flip (spec 8.1).

    One colour operation and one geometric one in random order, then rectangles are erased. What geometry and erasing
    leave empty is filled with `fill`.

    Attributes:
        translate: greatest shift along x or along y, over the image's side.
        rotate: greatest angle, in degrees.
        shear: greatest shear, in degrees: sideways by tanh of its radians.
        erase: most rectangles erased; at least one is.
        erase_side: greatest share of height and width that a rectangle takes.
        fill: pixel value.
    """

    translate: Fraction = 0.1
    rotate: NonNegative = 30.0
    shear: NonNegative = 30.0
    erase: Count = 4
    erase_side: Fraction = 0.2
    fill: Annotated[int, Field(ge=0, le=255)] = 125


@part
class PseudoLabels:
    """Which of the teacher's detections on the weak view count as objects (spec 8.3).

    After class-wise suppression an image's candidates are those whose score reaches the mean plus the unbiased
    standard deviation of what is left. Classes, boxes and denoising learn from candidates above `threshold`.

    Attributes:
        nms_iou: of the suppression.
        min_score: detections must exceed it.
        keep: most detections of an image before candidates are chosen.
        threshold: least score of a candidate that becomes an object.
    """

    nms_iou: Positive = 0.6
    min_score: Fraction = 0.01
    keep: Count = 300
    threshold: Fraction = 0.4


@part
class CostMining:
    """Candidates that the student agrees with count, too: their matching cost is in the lower of two Gaussians (8.3).

    Attributes:
        cost: of the match between the student's last layer and the candidates.
        variance_floor: added to the variances of the mixture.
    """

    cost: QueryHungarian = QueryHungarian(focal_eps=1e-12)
    variance_floor: Positive = 1e-5


@part
class Consistency:
    """Queries of the teacher's features in a pseudo box decode alike in both views, in the first stage (spec 8.4).

    Attributes:
        weight: of the squared distance of the normalised states, before the teacher's own.
        groups: identical groups of these queries, hidden from each other and from the matching queries.
        roi_size: cells of the RoIAlign, each way.
        finest_side: boxes smaller than twice this, in pixels, are cut from the finest level.
        hidden_dim: of the projector.
        mining: which candidates below the threshold take part; None for none.
    """

    weight: NonNegative = 10.0
    groups: Count = 5
    roi_size: Count = 7
    finest_side: Positive = 56.0
    hidden_dim: Count = 1024
    mining: CostMining | None = None


@part
class Teacher:
    """A moving average of the student labels images that have no labels (Semi-DETR; spec 8.1, 8.3).

    Attributes:
        momentum: of the average once it has run in: min(momentum, 1 - 1 / (step + 1)), before each step.
        weight: of everything learnt from unlabelled images.
        labelled_share: chance of each place in a batch to hold a labelled image.
        group: images among which at least one is labelled and one is not; the papers' images of a GPU. Divides the
            batch.
        views: what the student sees of an unlabelled image; the teacher sees it resized and flipped alone.
        labels: which detections of the teacher count.
        consistency: None for none.
        burn_in: share of the schedule before anything is learnt from unlabelled images; no paper of Semi-DETR has
            one, and none starts from random weights either (Unbiased Teacher has, arXiv:2102.09480).
    """

    momentum: Fraction = 0.999
    weight: NonNegative = 4.0
    labelled_share: Fraction = 0.2
    group: Annotated[int, Field(ge=2)] = 5
    views: StrongView = StrongView()
    labels: PseudoLabels = PseudoLabels()
    consistency: Consistency | None = None
    burn_in: Fraction = 0.0


@part
class FirstStage:
    """How the model is supervised and tested up to some step; the experiment's own branches rule after it (spec 8.2).

    Attributes:
        until: share of the schedule.
        branches: by name, in place of the experiment's; with the same predictors. Those not named stay.
        silent_on_pseudo: branches that learn nothing from pseudo labels in this stage (denoising).
        postprocess: of evaluations in this stage.
    """

    until: Fraction = 0.5
    branches: dict[str, Branch]
    silent_on_pseudo: tuple[str, ...] = ()
    postprocess: OneOf[Postprocess]
