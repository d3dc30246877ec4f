"""Whole detectors as their authors, detrex, transformers and mmdetection name them.

Facts, repository by repository: fundamentalvision/Deformable-DETR, HDETR/H-Deformable-DETR and jozhang97/DETA, in
each models/deformable_detr.py and deformable_transformer.py; IDEA-Research/DINO, models/dino, util/misc.py and
config/DINO/DINO_4scale.py; IDEA-Research/detrex, detrex/layers, detrex/utils/misc.py and projects/dino, deta,
h_deformable_detr, align_detr; huggingface/transformers, deformable_detr's conversion script and what save_pretrained
writes; open-mmlab/mmdetection 2.x, configs/fcos; YiqunChen1999/date, date/models and configs.
"""

from __future__ import annotations

from detbench.core.weights.layout import Layout, Mark, Rule, Tied, prefixed
from detbench.core.weights.resnets import CONV_BIASES, DETECTRON2, TORCHVISION

_Settings = dict[str, tuple[object, ...]]
_RGB: _Settings = {
    "detector.backbone.stride_in": ("3x3",),
    "data.pixels.order": ("rgb",),
    "data.pixels.mean": ((123.675, 116.28, 103.53),),
    "data.pixels.std": ((58.395, 57.12, 57.375),),
}
_CAFFE: _Settings = {
    "detector.backbone.stride_in": ("1x1",),
    "data.pixels.order": ("bgr",),
    "data.pixels.mean": ((102.9801, 115.9465, 122.7717),),
    "data.pixels.std": ((1.0, 1.0, 1.0),),
}
_DETR_POSITION: _Settings = {"detector.position.temperature": (10000.0,), "detector.position.offset": (-0.5,)}
_BY_FIRST_CLASS: _Settings = {"detector.queries.select_by": ("first_class",)}
_BY_BEST_CLASS: _Settings = {"detector.queries.select_by": ("best_class",)}


def _self_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Of `nn.MultiheadAttention`, which projects queries, keys and values in one product; ours leaves values out."""
    return (
        Rule(f"{ours}.query_key.*", f"{theirs}.in_proj_*", "query_key"),
        Rule(f"{ours}.value.*", f"{theirs}.in_proj_*", "value"),
        Rule(f"{ours}.output.*", f"{theirs}.out_proj.*"),
    )


def _refinement(box_heads: str) -> Mark:
    """The decoder has box heads of its own where it refines boxes with them."""
    key = "detector.refinement"
    return Mark(box_heads, present={key: ("detached", "twice")}, absent={key: ("none",)})


# ------------------------------------------------------------------ the authors of Deformable-DETR and their heirs

_AUTHORS = (
    *prefixed(TORCHVISION, ours="backbone.", theirs="backbone.0.body."),
    Rule("neck.maps.[i].*", "input_proj.[i].*"),
    Rule("neck.extra.[i].*", "input_proj.[i+3].*"),
    Rule("transformer.encoder.level_embed", "transformer.level_embed"),
    Rule("transformer.encoder.layers.[i].attention.*", "transformer.encoder.layers.[i].self_attn.*"),
    Rule("transformer.encoder.layers.[i].norm.*", "transformer.encoder.layers.[i].norm1.*"),
    Rule("transformer.encoder.layers.[i].feed_forward.norm.*", "transformer.encoder.layers.[i].norm2.*"),
    Rule("transformer.encoder.layers.[i].feed_forward.*", "transformer.encoder.layers.[i].*"),
    *_self_attention(
        "transformer.decoder.layers.[i].self_attention", "transformer.decoder.layers.[i].self_attn"
    ),
    # The first norm is that behind the cross-attention, which comes second.
    Rule("transformer.decoder.layers.[i].cross_attention.*", "transformer.decoder.layers.[i].cross_attn.*"),
    Rule("transformer.decoder.layers.[i].cross_norm.*", "transformer.decoder.layers.[i].norm1.*"),
    Rule("transformer.decoder.layers.[i].self_norm.*", "transformer.decoder.layers.[i].norm2.*"),
    Rule("transformer.decoder.layers.[i].feed_forward.norm.*", "transformer.decoder.layers.[i].norm3.*"),
    Rule("transformer.decoder.layers.[i].feed_forward.*", "transformer.decoder.layers.[i].*"),
    Rule("heads.class_heads.[i].*", "class_embed.[i].*", "classes"),
    Rule("heads.box_heads.[i].*", "bbox_embed.[i].*"),
    Rule("queries.one_to_one.token.0.*", "transformer.enc_output.*"),
    Rule("queries.one_to_one.token.1.*", "transformer.enc_output_norm.*"),
)

DEFORMABLE_DETR = Layout(
    name="deformable-detr",
    title="the authors' Deformable-DETR, H-DETR or DETA",
    rules=(
        *_AUTHORS,
        Rule("heads.encoder_class.*", "class_embed.[layers].*", "encoder_classes"),
        Rule("heads.encoder_box.*", "bbox_embed.[layers].*"),
        Rule("queries.one_to_one.embedding.weight", "query_embed.weight"),
        Rule("queries.one_to_one.reference_points.*", "transformer.reference_points.*"),
        Rule("queries.one_to_one.box.0.*", "transformer.pos_trans.*"),
        Rule("queries.one_to_one.box.1.*", "transformer.pos_trans_norm.*"),
        Rule("queries.one_to_one.token_content.0.*", "transformer.pix_trans.*"),
        Rule("queries.one_to_one.token_content.1.*", "transformer.pix_trans_norm.*"),
        Rule("queries.one_to_one.content.weight", "query_embed.weight", "first"),
        Rule("queries.one_to_many.weight", "query_embed.weight", "last"),
    ),
    class_bias=("class_embed.0.bias",),
    tied=(
        Tied("transformer.decoder.class_embed.*", "class_embed.*"),
        Tied("transformer.decoder.bbox_embed.*", "bbox_embed.*"),
        # Without refinement one head serves all layers, and the file has it once for each.
        Tied("class_embed.[i].*", "class_embed.0.*"),
        Tied("bbox_embed.[i].*", "bbox_embed.0.*"),
    ),
    settings=_RGB | _DETR_POSITION | _BY_FIRST_CLASS | {"detector.logit_eps": (1e-5,)},
    marks=(_refinement("transformer.decoder.bbox_embed.*"),),
)

DINO = Layout(
    name="dino",
    title="the authors' DINO",
    rules=(
        *_AUTHORS,
        Rule("transformer.decoder.norm.*", "transformer.decoder.norm.*"),
        Rule("heads.encoder_class.*", "transformer.enc_out_class_embed.*", "encoder_classes"),
        Rule("heads.encoder_box.*", "transformer.enc_out_bbox_embed.*"),
        Rule("queries.one_to_one.box_position.*", "transformer.decoder.ref_point_head.*"),
        Rule("queries.one_to_one.content.weight", "transformer.tgt_embed.weight"),
        Rule("queries.denoising.label_embed.weight", "label_enc.weight", "labels"),
    ),
    class_bias=("class_embed.0.bias",),
    tied=(
        Tied("transformer.decoder.class_embed.*", "class_embed.*"),
        Tied("transformer.decoder.bbox_embed.*", "bbox_embed.*"),
    ),
    settings=_RGB
    | _BY_BEST_CLASS
    | {
        "detector.position.temperature": (20.0,),
        "detector.position.offset": (0.0,),
        "detector.logit_eps": (1e-3,),
        "detector.refinement": ("detached", "twice"),
    },
    requires="transformer.enc_out_bbox_embed.*",
)

# ------------------------------------------------------------------ detrex

DETREX = Layout(
    name="detrex",
    title="detrex's DINO, Align-DETR, H-DETR, DETA or Deformable-DETR",
    rules=(
        *prefixed(DETECTRON2, ours="backbone.", theirs="backbone."),
        Rule("neck.maps.[i].0.*", "neck.convs.[i].conv.*"),
        Rule("neck.maps.[i].1.*", "neck.convs.[i].norm.*"),
        Rule("neck.extra.[i].0.*", "neck.extra_convs.[i].conv.*"),
        Rule("neck.extra.[i].1.*", "neck.extra_convs.[i].norm.*"),
        Rule("transformer.encoder.level_embed", "transformer.level_embeds"),
        Rule("transformer.encoder.layers.[i].attention.*", "transformer.encoder.layers.[i].attentions.0.*"),
        Rule("transformer.encoder.layers.[i].norm.*", "transformer.encoder.layers.[i].norms.0.*"),
        Rule(
            "transformer.encoder.layers.[i].feed_forward.norm.*", "transformer.encoder.layers.[i].norms.1.*"
        ),
        *_self_attention(
            "transformer.decoder.layers.[i].self_attention",
            "transformer.decoder.layers.[i].attentions.0.attn",
        ),
        Rule("transformer.decoder.layers.[i].self_norm.*", "transformer.decoder.layers.[i].norms.0.*"),
        Rule(
            "transformer.decoder.layers.[i].cross_attention.*",
            "transformer.decoder.layers.[i].attentions.1.*",
        ),
        Rule("transformer.decoder.layers.[i].cross_norm.*", "transformer.decoder.layers.[i].norms.1.*"),
        Rule(
            "transformer.decoder.layers.[i].feed_forward.norm.*", "transformer.decoder.layers.[i].norms.2.*"
        ),
        *(
            Rule(
                f"transformer.{half}.layers.[i].feed_forward.linear{place}.*",
                f"transformer.{half}.layers.[i].ffns.0.layers.{theirs}.*",
            )
            for half in ("encoder", "decoder")
            for place, theirs in ((1, "0.0"), (2, "1"))
        ),
        Rule("transformer.decoder.norm.*", "transformer.decoder.norm.*"),
        Rule("heads.class_heads.[i].*", "class_embed.[i].*", "classes"),
        Rule("heads.box_heads.[i].*", "bbox_embed.[i].*"),
        Rule("heads.encoder_class.*", "class_embed.[layers].*", "encoder_classes"),
        Rule("heads.encoder_box.*", "bbox_embed.[layers].*"),
        Rule("queries.one_to_one.embedding.weight", "query_embedding.weight"),
        Rule("queries.one_to_one.reference_points.*", "transformer.reference_points.*"),
        Rule("queries.one_to_one.token.0.*", "transformer.enc_output.*"),
        Rule("queries.one_to_one.token.1.*", "transformer.enc_output_norm.*"),
        Rule("queries.one_to_one.box.0.*", "transformer.pos_trans.*"),
        Rule("queries.one_to_one.box.1.*", "transformer.pos_trans_norm.*"),
        Rule("queries.one_to_one.token_content.0.*", "transformer.pix_trans.*"),
        Rule("queries.one_to_one.token_content.1.*", "transformer.pix_trans_norm.*"),
        Rule("queries.one_to_one.box_position.*", "transformer.decoder.ref_point_head.*"),
        Rule("queries.one_to_one.content.weight", "transformer.tgt_embed.weight"),
        Rule("queries.one_to_one.content.weight", "query_embedding.weight", "first"),
        Rule("queries.one_to_many.weight", "query_embedding.weight", "last"),
        Rule("queries.denoising.label_embed.weight", "label_enc.weight", "labels"),
    ),
    class_bias=("class_embed.0.bias",),
    tied=(
        Tied("transformer.decoder.class_embed.*", "class_embed.*"),
        Tied("transformer.decoder.bbox_embed.*", "bbox_embed.*"),
        Tied("class_embed.[i].*", "class_embed.0.*"),
        Tied("bbox_embed.[i].*", "bbox_embed.0.*"),
    ),
    settings=_RGB | _DETR_POSITION | {"detector.logit_eps": (1e-3,)},
    marks=(
        _refinement("transformer.decoder.bbox_embed.*"),
        Mark("transformer.tgt_embed.weight", present=_BY_BEST_CLASS, absent=_BY_FIRST_CLASS),
    ),
)

# ------------------------------------------------------------------ transformers

_HF_BODY = "model.backbone.conv_encoder.model."
_HF_STAGES = f"{_HF_BODY}encoder.stages.[i-1].layers.[j]."

TRANSFORMERS = Layout(
    name="transformers",
    title="transformers' Deformable-DETR",
    rules=(
        *prefixed(TORCHVISION, ours="backbone.", theirs=_HF_BODY),  # with a body of timm's
        Rule("backbone.conv1.*", f"{_HF_BODY}embedder.embedder.convolution.*"),
        Rule("backbone.bn1.*", f"{_HF_BODY}embedder.embedder.normalization.*"),
        Rule("backbone.layer[i].[j].downsample.0.*", f"{_HF_STAGES}shortcut.convolution.*"),
        Rule("backbone.layer[i].[j].downsample.1.*", f"{_HF_STAGES}shortcut.normalization.*"),
        Rule("backbone.layer[i].[j].conv[k].*", f"{_HF_STAGES}layer.[k-1].convolution.*"),
        Rule("backbone.layer[i].[j].bn[k].*", f"{_HF_STAGES}layer.[k-1].normalization.*"),
        Rule("neck.maps.[i].*", "model.input_proj.[i].*"),
        Rule("neck.extra.[i].*", "model.input_proj.[i+3].*"),
        Rule("transformer.encoder.level_embed", "model.level_embed"),
        Rule("transformer.encoder.layers.[i].attention.*", "model.encoder.layers.[i].self_attn.*"),
        Rule("transformer.encoder.layers.[i].norm.*", "model.encoder.layers.[i].self_attn_layer_norm.*"),
        *(
            Rule(
                f"transformer.decoder.layers.[i].self_attention.{part}.*",
                tuple(f"model.decoder.layers.[i].self_attn.{x}_proj.*" for x in projections),
            )
            for part, projections in (("query_key", ("q", "k")), ("value", ("v",)), ("output", ("out",)))
        ),
        Rule("transformer.decoder.layers.[i].self_norm.*", "model.decoder.layers.[i].self_attn_layer_norm.*"),
        Rule("transformer.decoder.layers.[i].cross_attention.*", "model.decoder.layers.[i].encoder_attn.*"),
        Rule(
            "transformer.decoder.layers.[i].cross_norm.*",
            "model.decoder.layers.[i].encoder_attn_layer_norm.*",
        ),
        *(
            Rule(
                f"transformer.{half}.layers.[i].feed_forward.{ours}.*", f"model.{half}.layers.[i].{theirs}.*"
            )
            for half in ("encoder", "decoder")
            for ours, theirs in (("norm", "final_layer_norm"), ("linear1", "fc1"), ("linear2", "fc2"))
        ),
        # Of tensors that it has twice, save_pretrained writes one; which one depends on the version.
        Rule("heads.class_heads.[i].*", "class_embed.[i].*", "classes"),
        Rule("heads.class_heads.[i].*", "model.decoder.class_embed.[i].*", "classes"),
        Rule("heads.class_heads.[i].*", "class_embed.0.*", "classes", unless="class_embed.1.*"),
        Rule("heads.box_heads.[i].*", "bbox_embed.[i].*"),
        Rule("heads.box_heads.[i].*", "model.decoder.bbox_embed.[i].*"),
        Rule("heads.encoder_class.*", "class_embed.[layers].*", "encoder_classes"),
        Rule("heads.encoder_class.*", "model.decoder.class_embed.[layers].*", "encoder_classes"),
        Rule("heads.encoder_box.*", "bbox_embed.[layers].*"),
        Rule("heads.encoder_box.*", "model.decoder.bbox_embed.[layers].*"),
        Rule("queries.one_to_one.embedding.*", "model.query_position_embeddings.*"),
        Rule("queries.one_to_one.reference_points.*", "model.reference_points.*"),
        Rule("queries.one_to_one.token.0.*", "model.enc_output.*"),
        Rule("queries.one_to_one.token.1.*", "model.enc_output_norm.*"),
        Rule("queries.one_to_one.box.0.*", "model.pos_trans.*"),
        Rule("queries.one_to_one.box.1.*", "model.pos_trans_norm.*"),
    ),
    class_bias=("class_embed.0.bias", "model.decoder.class_embed.0.bias"),
    tied=(
        Tied("model.decoder.class_embed.*", "class_embed.*"),
        Tied("model.decoder.bbox_embed.*", "bbox_embed.*"),
        Tied("class_embed.[i].*", "class_embed.0.*"),
        Tied("bbox_embed.[i].*", "bbox_embed.0.*"),
    ),
    settings=_RGB | _DETR_POSITION | _BY_FIRST_CLASS | {"detector.logit_eps": (1e-5,)},
    marks=(_refinement("model.decoder.bbox_embed.*"),),
)

# ------------------------------------------------------------------ mmdetection 2.x

_MMDET = (
    *prefixed(TORCHVISION, ours="backbone.", theirs="backbone."),
    Rule("neck.laterals.[i].*", "neck.lateral_convs.[i].conv.*"),
    Rule("neck.outputs.[i].*", "neck.fpn_convs.[i].conv.*"),
    Rule("neck.extra.[i].*", "neck.fpn_convs.[i+3].conv.*"),
)
_FCOS_SETTINGS: _Settings = {
    "branches.o2m.predictor.unit": ("pixels",),
    "branches.o2m.predictor.centerness_from": ("class",),
}
_MMDET_IGNORED = tuple((f"backbone.{pattern}", why) for pattern, why in CONV_BIASES)


def _scales(name: str) -> Rule:
    """One number for each of the five levels there, all in one tensor here."""
    return Rule(f"scales.{name}", tuple(f"bbox_head.scales.{level}.scale" for level in range(5)))


def _towers(name: str, their_tower: str) -> tuple[Rule, ...]:
    """Convolution, GroupNorm and ReLU follow each other in our towers: places 0, 1 and 2, 3, 4 and 5, ..."""
    return tuple(
        Rule(
            f"towers.{name}.for_{ours}.{3 * conv + place}.*",
            f"bbox_head.{theirs}{their_tower}.{conv}.{kind}.*",
        )
        for ours, theirs in (("class", "cls_convs"), ("box", "reg_convs"))
        for conv in range(4)
        for place, kind in enumerate(("conv", "gn"))
    )


FCOS = Layout(
    name="mmdet-fcos",
    title="mmdetection's FCOS (caffe, gn-head)",
    rules=(
        *_MMDET,
        *_towers("shared", ""),
        _scales("shared"),
        Rule("predictors.o2m.convs.logits.*", "bbox_head.conv_cls.*"),
        Rule("predictors.o2m.convs.distances.*", "bbox_head.conv_reg.*"),
        Rule("predictors.o2m.convs.centerness.*", "bbox_head.conv_centerness.*"),
    ),
    class_bias=("bbox_head.conv_cls.bias",),
    ignored=_MMDET_IGNORED,
    settings=_CAFFE | _FCOS_SETTINGS,
)

_DATE_PREDICTORS = tuple(
    rule
    for index, branch in enumerate(("o2o", "o2m"))
    for rule in (
        Rule(f"predictors.{branch}.convs.logits.*", f"bbox_head.predictors.{index}.conv_cls.*"),
        Rule(f"predictors.{branch}.convs.distances.*", f"bbox_head.predictors.{index}.conv_reg.*"),
        Rule(f"predictors.{branch}.convs.deltas.*", f"bbox_head.predictors.{index}.conv_reg.*"),
        Rule(f"predictors.{branch}.convs.centerness.*", f"bbox_head.predictors.{index}.conv_ctr.*"),
    )
)
DATE = Layout(
    name="date",
    title="the authors' DATE, and OneNet with its head",
    rules=(
        *_MMDET,
        *_towers("shared", ""),
        *_towers("o2o", ".0"),
        *_towers("o2m", ".1"),
        _scales("shared"),
        *_DATE_PREDICTORS,
        Rule("predictors.o2o.max_filter.predict.*", "bbox_head.predictors.0.filter.*"),
        Rule("predictors.o2o.max_filter.*", "bbox_head.predictors.0.max3d.*"),
    ),
    class_bias=("bbox_head.predictors.0.conv_cls.bias",),
    ignored=_MMDET_IGNORED,
    settings=_CAFFE | _FCOS_SETTINGS | {"branches.o2m.predictor.scale_deltas": (True,)},
    marks=(
        Mark(
            "bbox_head.predictors.0.filter.*",
            present={"branches.o2o.predictor.max_filter.logit_eps": (1e-5,)},
        ),
    ),
)

LAYOUTS = (DINO, DEFORMABLE_DETR, DETREX, TRANSFORMERS, FCOS, DATE)
