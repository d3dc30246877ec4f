"""Images to features C2 to C5: bodies, their frozen parts, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal, cast

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detbench.core.layers.norm import BatchNorm2d
from detbench.core.weights.files import read_checkpoint
from detbench.core.weights.resnets import read_body
from detbench.errors import DataError

Features = tuple[Tensor, Tensor, Tensor, Tensor]

# With fewer input channels than this, oneDNN (3.x, on AVX-512) writes beyond a buffer in the backward pass of a 1x1
# convolution with a stride on channels-last input: crashes, or silently damaged memory
# (https://github.com/uxlfoundation/oneDNN/issues/6035).
_SAFE_STRIDED_CHANNELS = 16


class Backbone(nn.Module):
    """What every body offers. Most necks leave C2 alone.

    Attributes:
        out_channels: of C2 to C5.
        strides: pixels per cell of C2 to C5.
    """

    out_channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int] = (4, 8, 16, 32)

    def forward(self, images: Tensor) -> Features:
        """(B, 3, H, W) images to C2, C3, C4 and C5."""
        raise NotImplementedError


class ResNet(Backbone):
    """A ResNet of torchvision's layout, without its classifier; parameters keep torchvision's names.

    Args:
        net: the classifier to take the body of.
        frozen_stages: how many of stem, layer1, ..., layer4 aren't trained; their norms stay in eval mode.
    """

    def __init__(self, net: torchvision.models.ResNet, *, frozen_stages: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        c5: int = net.fc.in_features
        self.out_channels = (c5 // 8, c5 // 4, c5 // 2, c5)
        stages = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        self._frozen = [module for stage in stages[:frozen_stages] for module in stage]
        for module in self._frozen:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Features:
        """(B, 3, H, W) images to C2, C3, C4 and C5."""
        c2 = self.layer1(self.maxpool(self.relu(_conv_norm(self.conv1, self.bn1, images))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def train(self, mode: bool = True) -> ResNet:
        """As of any module, except that frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class SmallResNet(Backbone):
    """A small residual body, to be trained from scratch: a stem and a basic block for each stride 4 to 32."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        channels = [width, 2 * width, 3 * width, 4 * width, 6 * width]
        self.out_channels = (channels[1], channels[2], channels[3], channels[4])
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(_halving_block(before, after) for before, after in pairwise(channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:
        """(B, 3, H, W) images to C2, C3, C4 and C5."""
        c2, c3, c4, c5 = self.stages
        x2 = c2(self.stem(images))
        x3 = c3(x2)
        x4 = c4(x3)
        return x2, x3, x4, c5(x4)


def build_resnet(
    *,
    depth: Literal[18, 34, 50, 101],
    stride_in: Literal["1x1", "3x3"],
    weights: str,
    norm: Literal["frozen", "batch"],
    frozen_stages: int,
) -> ResNet:
    """The body that `detbench.parts.backbones.ResNet` describes.

    Raises:
        DataError: when the weights can't be had or don't fit.
    """
    block, layers = {
        18: (_BasicBlock, [2, 2, 2, 2]),
        34: (_BasicBlock, [3, 4, 6, 3]),
        50: (_CaffeBottleneck if stride_in == "1x1" else _Bottleneck, [3, 4, 6, 3]),
        101: (_CaffeBottleneck if stride_in == "1x1" else _Bottleneck, [3, 4, 23, 3]),
    }[depth]
    net = torchvision.models.ResNet(block, layers, norm_layer=FoldedNorm if norm == "frozen" else BatchNorm2d)
    body = ResNet(net, frozen_stages=frozen_stages)
    if weights != "none":
        where, state = _weights_of(weights, depth)
        _load(body, state, where=where)
    return body


class _BasicBlock(BasicBlock):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's block, with frozen norms folded into the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(_conv_norm(self.conv1, self.bn1, x))
        y = _conv_norm(self.conv2, self.bn2, y).add_(_shortcut(self.downsample, x))
        return cast(Tensor, self.relu(y))


class _Bottleneck(Bottleneck):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's block (stride in the 3x3 convolution), with frozen norms folded into the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(_conv_norm(self.conv1, self.bn1, x))
        y = self.relu(_conv_norm(self.conv2, self.bn2, y))
        y = _conv_norm(self.conv3, self.bn3, y).add_(_shortcut(self.downsample, x))
        return cast(Tensor, self.relu(y))


class _CaffeBottleneck(_Bottleneck):
    """The original block: the stride sits in the first 1x1 convolution (spec 1.1)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


class FoldedNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision ships no types
    """A BatchNorm whose statistics and affine parameters are fixed, folded into the convolution before it."""

    def forward(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """norm(conv(x)), with one pass less over the feature map."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return F.conv2d(x, conv.weight * scale[:, None, None, None], shift, conv.stride, conv.padding)


def _conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = norm(x, conv) if isinstance(norm, FoldedNorm) else norm(conv(x))
    return y


def _shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    return x if downsample is None else _conv_norm(downsample[0], downsample[1], x)  # type: ignore[arg-type]


class _SlicedConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride, as one without of the cells that it would look at."""

    def forward(self, input: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(input[..., ::down, ::across], self.weight, self.bias)


def _halving_block(before: int, after: int) -> nn.Module:
    """A basic block with BatchNorm that halves the resolution."""
    kind = nn.Conv2d if before >= _SAFE_STRIDED_CHANNELS else _SlicedConv2d
    shortcut = nn.Sequential(kind(before, after, 1, stride=2, bias=False), BatchNorm2d(after))
    block: nn.Module = BasicBlock(before, after, stride=2, downsample=shortcut, norm_layer=BatchNorm2d)
    return block


def _weights_of(weights: str, depth: int) -> tuple[str, Mapping[str, Tensor]]:
    """Where weights come from, as a message should call it, and the tensors themselves."""
    if weights != "torchvision":
        if not Path(weights).is_file():
            raise DataError(
                f"{weights}: no such file. detector.backbone.weights must be 'none', 'torchvision' or the path "
                "of a .pth, .pkl or .safetensors checkpoint."
            )
        return weights, read_checkpoint(Path(weights)).tensors
    where = f"torchvision's ResNet-{depth} weights"
    try:
        # Version 1 throughout: it is what the papers started from, and all depths have it.
        state = torchvision.models.get_weight(f"ResNet{depth}_Weights.IMAGENET1K_V1").get_state_dict(
            progress=False, check_hash=True
        )
    except OSError as error:
        raise DataError(
            f"{where}: couldn't be downloaded ({error}). Give the path of a checkpoint in "
            "detector.backbone.weights, or 'none' to start from random weights."
        ) from None
    return where, state


def _load(body: ResNet, state: Mapping[str, Tensor], *, where: str) -> None:
    """Copies a checkpoint's tensors in.

    Raises:
        DataError: names every kind of misfit.
    """
    read = read_body(state, {name: tensor.shape for name, tensor in body.state_dict().items()})
    if not read.fits:
        problems = read.problems(left_over="not part of this backbone")
        raise DataError(f"{where}: doesn't fit detector.backbone; {problems}. Check detector.backbone.depth.")
    body.load_state_dict(read.tensors)
