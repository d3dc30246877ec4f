"""Deformable-DETR of HuggingFace transformers beside ours: the same configuration, the same weights.

Used by benchmarks/query_step.py and by tests/core/test_hf_parity.py, which lists where the two differ.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from detbench.core.detectors.query import QueryDetector
from detbench.core.types import Targets
from detbench.parts.assigners import QueryHungarian
from detbench.parts.backbones import ResNet
from detbench.parts.branches import Branch, DecoderOutput, EncoderOutput
from detbench.parts.detectors import ChannelMapper, LearnedQueries, ProposalQueries, Query, Transformer
from detbench.parts.losses import BoxL1, Focal, Loss, QueryGiou

Form = Literal["plain", "refined", "two_stage"]

LOSSES: dict[str, Loss] = {
    "cls": Focal(weight=1.0, divide_by="objects"),
    "bbox": BoxL1(weight=5.0, divide_by="objects"),
    "giou": QueryGiou(weight=2.0),
}
"""Weighed as their `loss` is, which takes 1 for the class loss (official code: 2)."""


def our_part(
    form: Form,
    *,
    depth: Literal[18, 50],
    channels: int,
    num_layers: int,
    num_heads: int,
    dim_feedforward: int,
    num_queries: int,
    dropout: float,
) -> Query:
    """Our detector of this form, all else as in Deformable-DETR."""
    return Query(
        backbone=ResNet(depth=depth),
        neck=ChannelMapper(channels=channels),
        transformer=Transformer(
            encoder_layers=num_layers,
            decoder_layers=num_layers,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
        ),
        queries=ProposalQueries(num=num_queries) if form == "two_stage" else LearnedQueries(num=num_queries),
        refinement="none" if form == "plain" else "detached",
        heads="shared" if form == "plain" else "per_layer",
    )


def our_branches(form: Form) -> dict[str, Branch]:
    """The outputs that their model has too."""
    branches = {"decoder": Branch(predictor=DecoderOutput(), assigner=QueryHungarian(), losses=LOSSES)}
    if form == "two_stage":
        branches["encoder"] = Branch(predictor=EncoderOutput(), assigner=QueryHungarian(), losses=LOSSES)
    return branches


def their_model(part: Query, *, num_classes: int) -> DeformableDetrForObjectDetection:
    """Their detector of our configuration, with random weights and frozen norms that do something."""
    backbone, transformer = part.backbone, part.transformer
    assert backbone.kind == "resnet"
    bottleneck = backbone.depth == 50
    config = DeformableDetrConfig(
        backbone_config=ResNetConfig(
            depths=[3, 4, 6, 3] if bottleneck else [2, 2, 2, 2],
            hidden_sizes=[256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
            layer_type="bottleneck" if bottleneck else "basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        num_labels=num_classes,
        d_model=part.neck.channels,
        encoder_layers=transformer.encoder_layers,
        decoder_layers=transformer.decoder_layers,
        encoder_attention_heads=transformer.num_heads,
        decoder_attention_heads=transformer.num_heads,
        encoder_ffn_dim=transformer.dim_feedforward,
        decoder_ffn_dim=transformer.dim_feedforward,
        dropout=transformer.dropout,
        attention_dropout=transformer.dropout,
        activation_dropout=transformer.dropout,
        num_queries=part.queries.num,
        two_stage_num_proposals=part.queries.num,
        with_box_refine=part.refinement != "none",
        two_stage=part.queries.kind == "proposals",
        class_cost=2,
        auxiliary_loss=True,
    )
    model = DeformableDetrForObjectDetection(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:  # where weights start at zero, which would hide what they do
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "normalization.bias")):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif name.endswith(("running_var", "normalization.weight")):
                buffer *= 0.75 + 0.5 * torch.rand(buffer.shape, generator=generator)
    # They mean to train the last three stages, but look for "stage.1" in names that have "stages.1".
    for name, parameter in model.model.backbone.named_parameters():
        parameter.requires_grad_("stages.0." not in name and "embedder" not in name)
    return model


_RENAMED = (
    (r"^model\.backbone\.model\.embedder\.embedder\.convolution\.", "backbone.conv1."),
    (r"^model\.backbone\.model\.embedder\.embedder\.normalization\.", "backbone.bn1."),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.", r"backbone.layer+\1.\2."),
    (r"\.layer\.(\d)\.convolution\.", r".conv+\1."),
    (r"\.layer\.(\d)\.normalization\.", r".bn+\1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^model\.input_proj\.([012])\.", r"neck.maps.\1."),
    (r"^model\.input_proj\.3\.", "neck.extra.0."),
    (r"^model\.level_embed$", "transformer.encoder.level_embed"),
    (r"^model\.(encoder|decoder)\.layers\.", r"transformer.\1.layers."),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm."),
    (r"\.self_attn\.v_proj\.", ".self_attention.value."),
    (r"\.self_attn\.o_proj\.", ".self_attention.output."),
    (r"\.self_attn_layer_norm\.", ".self_norm."),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"\.encoder_attn_layer_norm\.", ".cross_norm."),
    (r"\.mlp\.fc(\d)\.", r".feed_forward.linear\1."),
    (r"\.final_layer_norm\.", ".feed_forward.norm."),
    (r"^class_embed\.", "heads.class_heads."),
    (r"^bbox_embed\.", "heads.box_heads."),
    (r"^model\.query_position_embeddings\.", "queries.one_to_one.embedding."),
    (r"^model\.reference_points\.", "queries.one_to_one.reference_points."),
    (r"^model\.enc_output\.", "queries.one_to_one.token.0."),
    (r"^model\.enc_output_norm\.", "queries.one_to_one.token.1."),
    (r"^model\.pos_trans\.", "queries.one_to_one.box.0."),
    (r"^model\.pos_trans_norm\.", "queries.one_to_one.box.1."),
)


def copy_weights(theirs: DeformableDetrForObjectDetection, ours: QueryDetector) -> None:
    """Gives our detector their weights, every one of them."""
    ours.load_state_dict(renamed(dict(theirs.state_dict()), ours))


def renamed(theirs: dict[str, Tensor], ours: QueryDetector) -> dict[str, Tensor]:
    """Their tensors (weights, or gradients) under our names."""
    num_layers = len(ours.transformer.decoder.layers)
    named: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if re.search(r"\.self_attn\.[qk]_proj\.", name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"\+(\d)", lambda match: str(int(match[1]) + 1), name)
        name = re.sub(rf"^heads\.(class|box)_heads\.{num_layers}\.", r"heads.encoder_\1.", name)
        named[name] = tensor
    for layer in range(num_layers):
        for kind in ("weight", "bias"):
            projections = [f"model.decoder.layers.{layer}.self_attn.{x}_proj.{kind}" for x in "qk"]
            joined = torch.cat([theirs[name] for name in projections])
            named[f"transformer.decoder.layers.{layer}.self_attention.query_key.{kind}"] = joined
    # Theirs has a head for each layer even where all are one, and the decoder's a second time.
    wanted = ours.state_dict().keys()
    return {name: tensor for name, tensor in named.items() if name in wanted}


def their_labels(targets: Targets) -> list[dict[str, Any]]:
    """Objects as their loss takes them."""
    labels, boxes = targets.labels.split(targets.counts), targets.cxcywh.split(targets.counts)
    return [{"class_labels": x, "boxes": y} for x, y in zip(labels, boxes, strict=True)]


def pixel_mask(sizes: tuple[tuple[int, int], ...], padded: tuple[int, int]) -> Tensor:
    """(B, H, W) 1 inside each image."""
    mask = torch.zeros(len(sizes), *padded, dtype=torch.int64)
    for image, (height, width) in enumerate(sizes):
        mask[image, :height, :width] = 1
    return mask
