"""How a trained model is put to the test: which branch predicts, what is kept of it, how that is measured.

Two experiments that differ here only share one training (DATE, Tables 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from detbench.parts.part import Count, Fraction, OneOf, Positive, part

if TYPE_CHECKING:
    from detbench.core.types import Detections, Predictions


@part
class TopK:
    """Keep the best (prediction, class) pairs; no NMS (OneNet, DATE; spec 4.5).

    Attributes:
        score_threshold: pairs must exceed it.
        per_level: pairs kept of each pyramid level before levels are joined; None for all.
        keep: detections of an image.
        clip: cut boxes at the image's edge (mmdetection, detrex); the authors of Deformable-DETR, H-DETR and DETA
            don't (spec 1.11).
        quality: how a query detector's quality head enters the score: not at all, as the "sqrt" of its product with
            the class probability, or as the "product" itself (spec 5.2).
    """

    kind: Literal["top_k"] = "top_k"
    score_threshold: Fraction = 0.01
    per_level: Count | None = 100
    keep: Count = 100
    clip: bool = True
    quality: Literal["none", "sqrt", "product"] = "none"

    def __call__(self, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """What is kept of each image of `sizes` (height, width, unpadded)."""
        from detbench.core.postprocess import detect_top_k

        return detect_top_k(self, predictions, sizes)


@part
class Nms:
    """Class-wise non-maximum suppression (FCOS, RetinaNet; spec 1.4, 1.5).

    Attributes:
        score_threshold: class probabilities, before centre-ness, must exceed it.
        per_level: pairs kept of each pyramid level.
        iou_threshold: of the suppression.
        keep: detections of an image.
        clip: cut boxes at the image's edge, before the suppression; see `TopK`.
    """

    kind: Literal["nms"] = "nms"
    score_threshold: Fraction = 0.05
    per_level: Count | None = 1000
    iou_threshold: Positive = 0.5
    keep: Count = 100
    clip: bool = True

    def __call__(self, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """What is kept of each image of `sizes` (height, width, unpadded)."""
        from detbench.core.postprocess import detect_nms

        return detect_nms(self, predictions, sizes)


@part
class SoftNms:
    """Class-wise suppression that lowers scores: linear soft-NMS (arXiv:1704.04503; spec 7 beside Sized L1's).

    The best detection left is taken; the scores of its class's others that overlap it by `iou_threshold` or more are
    multiplied by 1 - IoU.

    Attributes:
        score_threshold: class probabilities, and what scores have come down to, must exceed it.
        per_level: pairs kept of each pyramid level; a query detector has one.
        iou_threshold: least IoU that lowers a score.
        keep: detections of an image.
        clip: cut boxes at the image's edge, before the suppression; see `TopK`.
    """

    kind: Literal["soft_nms"] = "soft_nms"
    score_threshold: Fraction = 0.001
    per_level: Count | None = 900
    iou_threshold: Fraction = 0.8
    keep: Count = 300
    clip: bool = True

    def __call__(self, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """What is kept of each image of `sizes` (height, width, unpadded)."""
        from detbench.core.postprocess import detect_soft_nms

        return detect_soft_nms(self, predictions, sizes)


Postprocess = TopK | Nms | SoftNms
"""Predictions to detections: every way a recipe may name."""


@part
class CocoMetrics:
    """COCO's box metrics.

    Attributes:
        backend: our vectorised form, or pycocotools; both give the same numbers.
        size_limits: "coco": small, medium and large split at 32^2 and 96^2 square pixels; "relative": the
            limits scale with each image's area against 640 x 480, to mean something on small images.
    """

    kind: Literal["coco"] = "coco"
    backend: Literal["detbench", "pycocotools"] = "detbench"
    size_limits: Literal["coco", "relative"] = "coco"


@part
class CrowdMetrics:
    """CrowdHuman's metrics of one class: AP50, log-average miss rate mMR, recall, Jaccard index (5.2)."""

    kind: Literal["crowd"] = "crowd"


@part
class Test:
    """How the trained model is tested.

    Attributes:
        branch: the branch that predicts; the others are dropped.
        postprocess: predictions to detections.
        metrics: how detections are measured.
        batch: images at a time; does not change results.
        student: test the student rather than its teacher.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    branch: str
    postprocess: OneOf[Postprocess]
    metrics: OneOf[CocoMetrics | CrowdMetrics] = CocoMetrics()
    batch: Count = 8
    student: bool = False
