"""Checkpoints in other people's names, written from ours by plain renaming: the way back that `weights import` takes.

Nothing here is shared with the tables in detbench/core/weights: names are spelled out once more, the other way.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def official_from_transformers(theirs: State) -> State:
    """What the authors of Deformable-DETR call the tensors of transformers' model (which has loaded them)."""
    named: State = {}
    for name, tensor in theirs.items():
        if re.search(r"self_attn\.[qkv]_proj", name):
            continue
        name = name.removeprefix("model.")
        name = re.sub(r"^backbone\.(conv_encoder\.)?model\.", "backbone.0.body.", name)
        name = hf_body_as_torchvision(name)
        if re.match(r"(encoder|decoder)\.", name):
            name = "transformer." + name
        name = name.replace("query_position_embeddings", "query_embed")
        name = re.sub(r"^(level_embed|reference_points|enc_output|pos_trans)", r"transformer.\1", name)
        name = (
            name.replace(".mlp.", ".")
            .replace("fc1", "linear1")
            .replace("fc2", "linear2")
            .replace("o_proj", "out_proj")
        )
        if ".encoder.layers." in name:
            name = name.replace("self_attn_layer_norm", "norm1").replace("final_layer_norm", "norm2")
        if ".decoder.layers." in name:
            name = name.replace("encoder_attn_layer_norm", "norm1").replace("self_attn_layer_norm", "norm2")
            name = name.replace("final_layer_norm", "norm3").replace("encoder_attn", "cross_attn")
        named[name] = tensor
    joint = {
        re.sub(r"[qkv]_proj\.(\w+)$", r"in_proj_\1", n)
        for n in theirs
        if re.search(r"self_attn\.[qkv]_proj", n)
    }
    for name in joint:
        parts = [theirs[re.sub(r"in_proj_(\w+)$", rf"{x}_proj.\1", name)] for x in "qkv"]
        named[f"transformer.{name.removeprefix('model.')}"] = torch.cat(parts)
    return named


def hf_body_as_torchvision(name: str) -> str:
    """Their own ResNet's names as torchvision's."""
    name = name.replace("embedder.embedder.convolution", "conv1").replace(
        "embedder.embedder.normalization", "bn1"
    )
    name = re.sub(r"encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", name)
    name = re.sub(r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}", name)
    name = re.sub(r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}", name)
    return name.replace("shortcut.convolution", "downsample.0").replace(
        "shortcut.normalization", "downsample.1"
    )


def detectron2_body(name: str) -> str:
    """A torchvision name as detectron2's."""
    name = re.sub(r"^conv1\.", "stem.conv1.", name)
    name = re.sub(r"^bn1\.", "stem.conv1.norm.", name)
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def caffe2_body(name: str) -> str:
    """A torchvision name as Caffe2's blobs have it."""
    if name.startswith(("conv1.", "bn1.")):
        place, kind = ("conv1" if name.startswith("conv") else "res_conv1_bn"), name.split(".")[1]
    else:
        found = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)
        assert found is not None, name
        stage, block, what, number, kind = found.groups()
        branch = "1" if what.startswith("down") else "2" + "abc"[int(number) - 1]
        norm = what == "bn" or (what.startswith("down") and number == "1")
        place = f"res{int(stage) + 1}_{block}_branch{branch}" + ("_bn" if norm else "")
    if place.endswith("_bn"):
        return f"{place}_{ {'weight': 'gamma', 'bias': 'beta'}.get(kind, kind) }"
    return f"{place}_{ {'weight': 'w', 'bias': 'b'}[kind] }"


def detrex_from_official(official: State, num_maps: int = 3) -> State:
    """The authors' names as detrex's."""
    named: State = {}
    for name, tensor in official.items():
        if name.startswith("backbone.0.body."):
            name = "backbone." + detectron2_body(name.removeprefix("backbone.0.body."))
        if found := re.fullmatch(r"input_proj\.(\d)\.([01])\.(\w+)", name):
            level, part = int(found[1]), ("conv", "norm")[int(found[2])]
            list_name = f"convs.{level}" if level < num_maps else f"extra_convs.{level - num_maps}"
            name = f"neck.{list_name}.{part}.{found[3]}"
        name = name.replace("transformer.level_embed", "transformer.level_embeds")
        name = name.replace("linear1", "ffns.0.layers.0.0").replace("linear2", "ffns.0.layers.1")
        if ".encoder.layers." in name:
            name = (
                name.replace("self_attn", "attentions.0")
                .replace("norm1", "norms.0")
                .replace("norm2", "norms.1")
            )
        if ".decoder.layers." in name:
            name = name.replace("self_attn", "attentions.0.attn").replace("cross_attn", "attentions.1")
            name = name.replace("norm2", "norms.0").replace("norm1", "norms.1").replace("norm3", "norms.2")
        name = name.replace("query_embed.weight", "query_embedding.weight")
        named[name] = tensor
    return named


def official_from_ours(ours: State, *, num_layers: int) -> State:
    """Our names as those of the authors of Deformable-DETR, H-DETR, DETA; of DINO with its own few."""
    named: State = {}
    for name, tensor in ours.items():
        if ".query_key." in name or ".self_attention.value." in name:
            continue
        name = re.sub(r"^backbone\.", "backbone.0.body.", name)
        name = re.sub(r"^neck\.maps\.", "input_proj.", name)
        name = re.sub(r"^neck\.extra\.(\d)", lambda m: f"input_proj.{int(m[1]) + 3}", name)
        name = name.replace("transformer.encoder.level_embed", "transformer.level_embed")
        name = name.replace("feed_forward.linear", "linear").replace(
            "self_attention.output", "self_attn.out_proj"
        )
        if ".encoder.layers." in name:
            name = (
                name.replace("feed_forward.norm", "norm2")
                .replace(".attention.", ".self_attn.")
                .replace(".norm.", ".norm1.")
            )
        if ".decoder.layers." in name:
            name = (
                name.replace("feed_forward.norm", "norm3")
                .replace("self_norm", "norm2")
                .replace("cross_norm", "norm1")
            )
            name = name.replace("cross_attention", "cross_attn")
        name = name.replace("heads.class_heads", "class_embed").replace("heads.box_heads", "bbox_embed")
        name = name.replace("heads.encoder_class", f"class_embed.{num_layers}")
        name = name.replace("heads.encoder_box", f"bbox_embed.{num_layers}")
        for mine, theirs in (
            ("token.0", "enc_output"),
            ("token.1", "enc_output_norm"),
            ("box.0", "pos_trans"),
            ("box.1", "pos_trans_norm"),
            ("token_content.0", "pix_trans"),
            ("token_content.1", "pix_trans_norm"),
            ("box_position", "decoder.ref_point_head"),
            ("reference_points", "reference_points"),
        ):
            name = name.replace(f"queries.one_to_one.{mine}.", f"transformer.{theirs}.")
        named[name] = tensor
    for layer in range(num_layers):
        here, there = (
            f"transformer.decoder.layers.{layer}.self_attention",
            f"transformer.decoder.layers.{layer}.self_attn",
        )
        for kind in ("weight", "bias"):
            named[f"{there}.in_proj_{kind}"] = torch.cat(
                [ours[f"{here}.query_key.{kind}"], ours[f"{here}.value.{kind}"]]
            )
    for head in ("class_embed", "bbox_embed"):  # the decoder has them a second time
        named |= {f"transformer.decoder.{n}": t for n, t in named.items() if n.startswith(head)}
    return named


def in_coco_ids(tensor: Tensor, *, num_rows: int = 91) -> Tensor:
    """Eighty rows spread over the ids of their classes; the others hold a number that would be seen."""
    spread = torch.full((num_rows, *tensor.shape[1:]), 1e3)
    spread[COCO_IDS] = tensor
    return spread


def mmdet_from_ours(ours: State, *, heads: dict[str, str]) -> State:
    """Our dense names as mmdetection 2's; `heads` says what our branches' predictors are called there."""
    named: State = {}
    for name, tensor in ours.items():
        if name.startswith("scales."):
            named |= {f"bbox_head.scales.{level}.scale": value for level, value in enumerate(tensor)}
            continue
        name = re.sub(r"^neck\.laterals\.(\d)", r"neck.lateral_convs.\1.conv", name)
        name = re.sub(r"^neck\.outputs\.(\d)", r"neck.fpn_convs.\1.conv", name)
        name = re.sub(r"^neck\.extra\.(\d)", lambda m: f"neck.fpn_convs.{int(m[1]) + 3}.conv", name)
        if found := re.fullmatch(r"towers\.(\w+)\.for_(class|box)\.(\d+)\.(\w+)", name):
            owner, tower, place, kind = (
                found[1],
                {"class": "cls", "box": "reg"}[found[2]],
                int(found[3]),
                found[4],
            )
            number = "" if owner == "shared" else f"{('o2o', 'o2m').index(owner)}."
            name = f"bbox_head.{tower}_convs.{number}{place // 3}.{('conv', 'gn')[place % 3]}.{kind}"
        for mine, theirs in heads.items():
            name = name.replace(mine, f"bbox_head.{theirs}")
        named[name] = tensor
    return named
