"""From the part that describes a query detector to its module: what is built, in which order, with which widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import nn

from detbench.core.detectors.atss_head import AtssHead
from detbench.core.detectors.auxiliary import AuxiliaryHeads
from detbench.core.detectors.channel_mapper import ChannelMapper
from detbench.core.detectors.gt_probe import ProbeModule
from detbench.core.detectors.heads import Heads, box_head, class_head, copies, start_small
from detbench.core.detectors.query import Queries, QueryDetector, layers_of
from detbench.core.detectors.rcnn import RcnnHead
from detbench.core.detectors.rpn import RpnHead
from detbench.core.layers.tokens import Layout
from detbench.core.layers.transformer import Transformer
from detbench.core.queries.denoising import DenoisingQueries
from detbench.core.queries.learned import LearnedQueries
from detbench.core.queries.positives import PositiveQueries
from detbench.core.queries.proposals import ProposalQueries
from detbench.parts.auxiliary import AuxiliaryPredictor

if TYPE_CHECKING:
    from detbench.parts.assigners import Atss, SampledIou
    from detbench.parts.branches import Branch, DenoisingOutput, OneToManyOutput, QueryPredictor
    from detbench.parts.detectors import Query


def build_query(part: Query, *, branches: Mapping[str, Branch], num_classes: int) -> QueryDetector:
    """The detector that a recipe describes.

    Args:
        part: backbone, neck, transformer, queries and heads.
        branches: by name; the `predictor` of each says what it needs.
        num_classes: without background.

    Raises:
        DataError: when the backbone's weights can't be had or don't fit.
    """
    # Experiment refuses any other predictor.
    outputs = {
        name: cast("QueryPredictor", branch.predictor)
        for name, branch in branches.items()
        if not isinstance(branch.predictor, AuxiliaryPredictor)
    }
    by_kind = {output.kind: output for output in outputs.values()}
    hidden_dim, num_layers = part.neck.channels, part.transformer.decoder_layers
    two_stage = part.queries.kind == "proposals"
    num_heads = num_layers if part.heads == "per_layer" else 1

    # Random weights are drawn in the order of building. What only some rows of a comparison have comes last, so that
    # all rows share the rest.
    backbone = part.backbone.build()
    first = 0 if part.neck.kind == "channel_mapper_c2" else 1
    neck = ChannelMapper(
        backbone.out_channels[first:],
        channels=hidden_dim,
        num_levels=part.neck.num_levels,
        groups=part.neck.groups,
        bias=part.neck.kind == "channel_mapper",
    )
    transformer = Transformer(part.transformer, hidden_dim=hidden_dim, num_levels=part.neck.num_levels)
    class_heads = copies(
        class_head(hidden_dim, num_classes, class_prior=part.class_prior), num_heads + two_stage
    )
    box_heads = copies(box_head(hidden_dim), num_heads + two_stage)
    encoder_class, encoder_box = (class_heads.pop(), box_heads.pop()) if two_stage else (None, None)
    if not two_stage:
        start_small(box_heads[0])
    one_to_one = (
        ProposalQueries(part.queries, hidden_dim)
        if part.queries.kind == "proposals"
        else LearnedQueries(part.queries.num, hidden_dim)
    )
    denoising, one_to_many = None, None
    if (output := by_kind.get("denoising")) is not None:
        denoising = DenoisingQueries(
            cast("DenoisingOutput", output),
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            logit_eps=part.logit_eps,
        )
    if (
        (output := by_kind.get("one_to_many")) is not None
        and isinstance(one_to_one, ProposalQueries)
        and one_to_one.content is not None
    ):
        one_to_many = one_to_one.learned_content(cast("OneToManyOutput", output).num_queries)
    quality_heads = copies(nn.Linear(hidden_dim, 1), num_heads) if part.quality_head else None
    probes = {
        name: ProbeModule(
            output.probe,
            num_classes=num_classes,
            state_dim=hidden_dim,
            num_layers=len(layers_of(output, num_layers)),
        )
        for name, output in sorted(outputs.items())
        if output.kind == "decoder" and output.probe is not None
    }
    positives = {
        name: PositiveQueries(
            output,
            hidden_dim,
            with_position=part.queries.kind == "proposals" and part.queries.position == "proposal",
            logit_eps=part.logit_eps,
        )
        for name, output in sorted(outputs.items())
        if output.kind == "positives"
    }
    strides = tuple(backbone.strides[first] << level for level in range(part.neck.num_levels + 1))
    auxiliary = _auxiliary_heads(part, branches, num_classes=num_classes, strides=strides)
    return QueryDetector(
        backbone=backbone,
        neck=neck,
        transformer=transformer,
        heads=Heads(
            class_heads=class_heads,
            box_heads=box_heads,
            encoder_class=encoder_class,
            encoder_box=encoder_box,
            quality_heads=quality_heads,
        ),
        queries=Queries(one_to_one, denoising=denoising, one_to_many=one_to_many, positives=positives),
        probes=probes,
        auxiliary=auxiliary,
        outputs=outputs,
        layout=Layout(hidden_dim, part.position.temperature, part.position.offset),
        refinement=part.refinement,
        logit_eps=part.logit_eps,
    )


def _auxiliary_heads(
    part: Query, branches: Mapping[str, Branch], *, num_classes: int, strides: tuple[int, ...]
) -> AuxiliaryHeads | None:
    """Those that the branches name, on levels of these strides, the last of them their own; None for none."""
    channels = part.neck.channels
    dense: dict[str, AtssHead | RpnHead] = {}
    second_stages: dict[str, RcnnHead] = {}
    for name, branch in sorted(branches.items()):
        match branch.predictor.kind:
            case "atss":
                dense[name] = AtssHead(
                    branch.predictor,
                    channels,
                    num_classes,
                    strides=strides,
                    groups=part.neck.groups,
                    class_prior=part.class_prior,
                )
            case "rpn":
                dense[name] = RpnHead(branch.predictor, channels, strides=strides)
            case "rcnn":
                sampler = cast("SampledIou", branch.assigner)  # Experiment refuses any other
                second_stages[name] = RcnnHead(
                    branch.predictor, sampler, channels, num_classes, strides=strides[:-1]
                )
    if not dense:
        return None
    return AuxiliaryHeads(
        channels,
        groups=part.neck.groups,
        dense=dense,
        assigners={name: cast("Atss | SampledIou", branches[name].assigner) for name in dense},
        second_stages=second_stages,
    )
