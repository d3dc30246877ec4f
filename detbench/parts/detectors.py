"""Whole detectors, put together from a backbone, a neck and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from detbench.parts.backbones import Backbones
from detbench.parts.part import Count, Fraction, OneOf, Positive, part

if TYPE_CHECKING:
    from detbench.core.detectors.dense import DenseDetector
    from detbench.core.detectors.query import QueryDetector
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


@part
class ChannelMapper:
    """A 1x1 convolution with GroupNorm on each of C3 to C5, further levels by 3x3 stride-2 ones (spec 1.1).

    Attributes:
        channels: of every level; the transformer's width.
        num_levels: 3 (strides 8, 16, 32) to 5. The fourth reads the raw C5, the fifth the fourth.
        groups: of each GroupNorm.
    """

    kind: Literal["channel_mapper"] = "channel_mapper"
    channels: Count = 256
    num_levels: Literal[3, 4, 5] = 4
    groups: Count = 32


@part
class ChannelMapperC2:
    """`ChannelMapper` from C2 on, its convolutions without biases (Co-DETR's DINO; spec 7 beside Sized L1's).

    Attributes:
        channels: of every level; the transformer's width.
        num_levels: 4 (strides 4, 8, 16, 32) to 6. The fifth reads the raw C5, the sixth the fifth.
        groups: of each GroupNorm.
    """

    kind: Literal["channel_mapper_c2"] = "channel_mapper_c2"
    channels: Count = 256
    num_levels: Literal[4, 5, 6] = 5
    groups: Count = 32


@part
class SinePosition:
    """Where a token stands, as sines and cosines of the running count of unpadded cells (spec 1.2).

    Attributes:
        temperature: ratio of the slowest to the fastest wave.
        offset: added to the count, which starts at 1.
    """

    temperature: Positive = 10000.0
    offset: float = -0.5


@part
class Transformer:
    """Layers of deformable encoder and decoder, post-norm (arXiv:2010.04159; spec 1.3 to 1.5).

    Attributes:
        encoder_layers: 0 hands the neck's features to the decoder as they are.
        decoder_layers: each with heads of its own or all with one, as `Query.heads` says.
        num_heads: of every attention.
        num_points: sampled by each head on each level.
        dim_feedforward: hidden width of the feed-forward blocks.
        dropout: of attention probabilities, after every block, inside feed-forward blocks.
        self_attention: let the queries see each other (DETA's ablation turns it off).
        final_norm: LayerNorm on each decoder layer's output in front of the heads (DINO; spec 2.4).
    """

    encoder_layers: Annotated[int, Field(ge=0)] = 6
    decoder_layers: Count = 6
    num_heads: Count = 8
    num_points: Count = 4
    dim_feedforward: Count = 1024
    dropout: Fraction = 0.1
    self_attention: bool = True
    final_norm: bool = False


@part
class LearnedQueries:
    """One-stage queries: learned content and position, the reference point read off the position (spec 1.5).

    Attributes:
        num: how many.
    """

    kind: Literal["learned"] = "learned"
    num: Count = 300


@part
class ProposalNms:
    """Proposals thinned out before the best are taken (DETA; spec 6.4).

    Attributes:
        per_level: tokens of each level that take part.
        iou_threshold: of the suppression, done level by level.
    """

    per_level: Count = 1000
    iou_threshold: Fraction = 0.9


@part
class ProposalQueries:
    """Two-stage queries: the encoder's best tokens, their boxes as references (spec 1.7).

    Attributes:
        num: of the one-to-one queries; a one-to-many branch adds its own.
        select_by: the logit by which tokens are ranked: that of class 0, or the greatest of all classes (DINO).
        content: "proposal": second half of the embedded proposal box; "proposal_and_token": plus the normed
            projection of the detached token (DETA; spec 6.1); "learned": an embedding (H-DETR, DINO);
            "token": the normed projection of the token alone, with its gradient (for small scales).
        content_init: of learned content: "normal" (H-DETR), "xavier" (DINO; spec 1.6).
        position: "proposal": first half of the embedded proposal box, the same for all layers; "reference":
            computed again in every layer from its reference box (DINO; spec 2.3).
        anchor_side: of a token's initial box on the finest level, over the image's side; doubles by level.
        nms: None for none.
    """

    kind: Literal["proposals"] = "proposals"
    num: Count = 300
    select_by: Literal["first_class", "best_class"] = "first_class"
    content: Literal["proposal", "proposal_and_token", "learned", "token"] = "proposal"
    content_init: Literal["normal", "xavier"] = "normal"
    position: Literal["proposal", "reference"] = "proposal"
    anchor_side: Annotated[float, Field(gt=0, lt=1)] = 0.05
    nms: ProposalNms | None = None


@part
class Query:
    """A detector of the DETR family: backbone, neck, deformable transformer, queries and heads.

    Attributes:
        backbone: images to C2 to C5.
        neck: these to the transformer's levels; its channels are the transformer's width.
        position: encoding of the tokens' places.
        transformer: encoder and decoder.
        queries: what the decoder starts from.
        refinement: "none": every layer's boxes start from the initial reference; "detached": from the last layer's
            boxes without their gradient (spec 1.6); "twice": with it for the loss alone (DINO; spec 2.5).
        heads: "shared": one class and one box head for all decoder layers; "per_layer": one for each. A two-stage
            encoder has its own in either case.
        quality_head: a logit for each query's IoU on every decoder layer (the "IoU branch"; spec 5.2).
        class_prior: initial probability that the classification bias stands for.
        logit_eps: clamp of the inverse sigmoid (1e-5 Deformable-DETR, 1e-3 DINO).
    """

    kind: Literal["query"] = "query"
    backbone: OneOf[Backbones]
    neck: OneOf[ChannelMapper | ChannelMapperC2] = ChannelMapper()
    position: SinePosition = SinePosition()
    transformer: Transformer = Transformer()
    queries: OneOf[LearnedQueries | ProposalQueries] = LearnedQueries()
    refinement: Literal["none", "detached", "twice"] = "none"
    heads: Literal["shared", "per_layer"] = "shared"
    quality_head: bool = False
    class_prior: Positive = 0.01
    logit_eps: Positive = 1e-5

    def build(self, *, branches: Mapping[str, Branch], num_classes: int) -> QueryDetector:
        """The module that feeds these branches.

        Args:
            branches: the experiment's branches; their `predictor` says which output each reads, and what that needs.
            num_classes: without background.
        """
        from detbench.core.detectors.build_query import build_query

        return build_query(self, branches=branches, num_classes=num_classes)


Detector = Dense | Query
"""Every detector a recipe may name."""


def untrained(detector: Detector) -> Detector:
    """The same without its backbone's weights, for who brings all weights or needs none."""
    if detector.backbone.kind != "resnet":
        return detector
    return replace(detector, backbone=replace(detector.backbone, weights="none"))
