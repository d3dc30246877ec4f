"""ResNets as torchvision, mmdetection and detectron2 name them. Ours have torchvision's names.

Facts: detectron2/checkpoint/c2_model_loading.py; tools/convert-torchvision-to-d2.py; the keys of ImageNetPretrained/
MSRA/R-50.pkl (detectron2, issue 1688) and of mmdetection's converted Caffe files (mmdetection, issue 3340).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detbench.core.weights.layout import Layout, Rule, Translation, source_of, translate

TORCHVISION = (Rule("*", "*"),)
DETECTRON2 = (
    Rule("conv1.*", "stem.conv1.*"),
    Rule("bn1.*", "stem.conv1.norm.*"),
    Rule("layer[i].[j].downsample.0.*", "res[i+1].[j].shortcut.*"),
    Rule("layer[i].[j].downsample.1.*", "res[i+1].[j].shortcut.norm.*"),
    Rule("layer[i].[j].conv[k].*", "res[i+1].[j].conv[k].*"),
    Rule("layer[i].[j].bn[k].*", "res[i+1].[j].conv[k].norm.*"),
)
_CAFFE2_PLACES = (
    ("conv1", "bn1", "conv1_w", "res_conv1_bn"),
    (
        "layer[i].[j].downsample.0",
        "layer[i].[j].downsample.1",
        "res[i+1]_[j]_branch1_w",
        "res[i+1]_[j]_branch1_bn",
    ),
    *(
        (
            f"layer[i].[j].conv{k}",
            f"layer[i].[j].bn{k}",
            f"res[i+1]_[j]_branch2{c}_w",
            f"res[i+1]_[j]_branch2{c}_bn",
        )
        for k, c in enumerate("abc", 1)
    ),
)
CAFFE2 = tuple(
    rule
    for conv, norm, their_conv, their_norm in _CAFFE2_PLACES
    for rule in (
        Rule(f"{conv}.weight", their_conv),
        Rule(f"{norm}.weight", f"{their_norm}_gamma"),
        Rule(f"{norm}.bias", f"{their_norm}_beta"),
        Rule(f"{norm}.running_mean", f"{their_norm}_running_mean"),
        Rule(f"{norm}.running_var", f"{their_norm}_running_var"),
    )
)

# Neither mmdetection nor detectron2 has a place for them, so no detector was ever trained with them.
_BIAS = "biases of convolutions in front of norms, which mmdetection and detectron2 leave out too"
CONV_BIASES = (("*conv[k].bias", _BIAS), ("*downsample.0.bias", _BIAS))
_CLASSIFIER = "the classifier"

_CAFFE = {"detector.backbone.stride_in": ("1x1",), "data.pixels.order": ("bgr",)}
_PYTORCH = {"detector.backbone.stride_in": ("3x3",), "data.pixels.order": ("rgb",)}

LAYOUTS = (
    Layout(
        name="mmdet-caffe",
        title="a Caffe ResNet as mmdetection converted it",
        rules=TORCHVISION,
        ignored=CONV_BIASES,
        settings=_CAFFE,
        requires="conv1.bias",
    ),
    Layout(
        name="torchvision",
        title="torchvision's ResNet",
        rules=TORCHVISION,
        ignored=(("fc.*", _CLASSIFIER),),
        settings=_PYTORCH,
    ),
    Layout(
        name="detectron2-caffe",
        title="a Caffe ResNet as detectron2 keeps it (MSRA)",
        rules=CAFFE2,
        ignored=(("conv1_b", _BIAS), ("fc1000_*", _CLASSIFIER)),
        settings=_CAFFE,
    ),
    Layout(
        name="detectron2-torchvision",
        title="torchvision's ResNet as detectron2 converts it",
        rules=DETECTRON2,
        ignored=(("stem.fc.*", _CLASSIFIER),),
        settings=_PYTORCH,
    ),
)
"""Of bodies alone. The first two have the same names; only Caffe's have biases beside their norms."""


def read_body(theirs: Mapping[str, Tensor], ours: Mapping[str, torch.Size]) -> Translation:
    """The body in a checkpoint, under whatever prefix its names have: the layout that fits, or comes closest.

    Args:
        theirs: the checkpoint's tensors; those outside the body don't count.
        ours: shapes of the body's.
    """
    bodies = [(layout, _body_in(layout, theirs)) for layout in LAYOUTS]
    readings = [translate(layout, body, ours) for layout, body in bodies if layout.applies_to(body)]
    return max(readings, key=lambda reading: reading.closeness)


def _body_in(layout: Layout, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ResNet by their names without a prefix; all where there is none."""
    probe = source_of(layout, "layer1.0.conv1.weight")
    prefix = min((name.removesuffix(probe) for name in theirs if name.endswith(probe)), key=len, default="")
    return {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
