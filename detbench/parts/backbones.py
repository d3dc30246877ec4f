"""Images to features: which body, with which weights, how much of it trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from detbench.parts.part import Count, part

if TYPE_CHECKING:
    from detbench.core.backbones import Backbone


@part
class ResNet:
    """A ResNet of torchvision's layout, C3 to C5 (strides 8, 16, 32).

    Attributes:
        depth: 18, 34, 50 or 101 layers.
        stride_in: the bottleneck convolution that halves the resolution: "1x1" is the caffe style of DATE
            (spec 1.1), "3x3" torchvision's.
        weights: "none" (random), "torchvision" (ImageNet, downloaded by torchvision) or the path of a
            checkpoint with torchvision's, mmdetection's or detectron2's names (.pth, .pkl or .safetensors).
        norm: "frozen" keeps every BatchNorm's statistics and affine parameters fixed; "batch" trains them.
        frozen_stages: 0 trains all, 1 freezes the stem, 2 the stem and layer1, and so on.
    """

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101] = 50
    stride_in: Literal["1x1", "3x3"] = "3x3"
    weights: str = "none"
    norm: Literal["frozen", "batch"] = "frozen"
    frozen_stages: Literal[0, 1, 2, 3, 4, 5] = 2

    def __post_init__(self) -> None:
        if self.depth < 50 and self.stride_in == "1x1":
            raise ValueError(f"stride_in must be '3x3' at depth {self.depth}: its blocks have no 1x1 one")

    def build(self) -> Backbone:
        """The module. Raises DataError when a weights file is missing or doesn't fit."""
        from detbench.core.backbones import build_resnet

        return build_resnet(
            depth=self.depth,
            stride_in=self.stride_in,
            weights=self.weights,
            norm=self.norm,
            frozen_stages=self.frozen_stages,
        )


@part
class SmallResNet:
    """A four-stage residual body for small images, trained from scratch with BatchNorm: strides 8, 16, 32.

    Attributes:
        width: channels of the stem; the stages have 2, 3, 4 and 6 times as many.
    """

    kind: Literal["small_resnet"] = "small_resnet"
    width: Count = 24

    def build(self) -> Backbone:
        """The module, randomly initialised."""
        from detbench.core.backbones import SmallResNet as Module

        return Module(width=self.width)


Backbones = ResNet | SmallResNet
