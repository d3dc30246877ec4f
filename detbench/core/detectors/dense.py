"""Fully convolutional detectors, RetinaNet to DATE: backbone, pyramid, towers and predictors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.backbones import Backbone
from detbench.core.detectors.fpn import Fpn
from detbench.core.detectors.predictors import DensePredictor, Tower, build_predictor
from detbench.core.types import DensePredictions

if TYPE_CHECKING:
    from detbench.parts.branches import Branch
    from detbench.parts.detectors import Dense

SHARED = "shared"
"""The key of the one pair of towers that serves every branch; otherwise each pair has its branch's name."""


class Towers(nn.Module):
    """The two stacks of convolutions in front of the predictors, the same for all levels (spec 1.2)."""

    def __init__(self, channels: int, num_convs: int, *, groups: int, init_std: float) -> None:
        super().__init__()
        self.for_class = _tower(channels, num_convs, groups=groups, init_std=init_std)
        self.for_box = _tower(channels, num_convs, groups=groups, init_std=init_std)

    def forward(self, features: Sequence[Tensor]) -> dict[Tower, list[Tensor]]:
        """The pyramid's levels as each tower sees them."""
        return {"class": [self.for_class(x) for x in features], "box": [self.for_box(x) for x in features]}


class DenseDetector(nn.Module):
    """Backbone, neck, towers and predictors. Computes no loss.

    Parameter names start with `backbone.`, `neck.`, `towers.`, `predictors.<branch>.`; `scales` stands alone.

    Args:
        backbone: images to C3, C4, C5.
        neck: these to the pyramid's levels.
        towers: one pair under `SHARED`, or a pair for each branch under its name.
        predictors: by branch.
        strides: of the pyramid's levels.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Fpn,
        towers: Mapping[str, Towers],
        predictors: Mapping[str, DensePredictor],
        strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.strides = backbone, neck, strides
        self.towers = nn.ModuleDict(towers)
        self.predictors = nn.ModuleDict(predictors)
        # One factor a level for all branches: the released head has it so (spec 1.2).
        self.scales = nn.Parameter(torch.ones(len(strides)))

    def forward(self, images: Tensor, branches: Sequence[str] | None = None) -> dict[str, DensePredictions]:
        """(B, 3, H, W) padded images to predictions by branch.

        Args:
            images: normalised; padding is at the bottom and right.
            branches: those wanted; None for all. What only others need isn't computed.
        """
        features = self.neck(self.backbone(images))
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in features)
        wanted = self._wanted(branches)
        raw: dict[str, dict[str, list[Tensor]]] = {name: {} for name in wanted}
        for pair, users in self._users(wanted).items():
            for tower, tops in self.towers[pair](features).items():
                convs = {
                    (name, output): conv
                    for name in users
                    for output, conv in self._predictor(name).convs_on(tower).items()
                }
                for (name, output), levels in zip(convs, _convolve(tops, list(convs.values())), strict=True):
                    raw[name][output] = levels
        return {
            name: self._predictor(name).decode(raw[name], self.scales, sizes, self.strides) for name in wanted
        }

    def parameters_of(self, branches: Sequence[str] | None = None) -> Iterator[nn.Parameter]:
        """The parameters that take part in predicting these branches; None for all."""
        wanted = self._wanted(branches)
        yield from self.backbone.parameters()
        yield from self.neck.parameters()
        yield self.scales
        for pair in self._users(wanted):
            yield from self.towers[pair].parameters()
        for name in wanted:
            yield from self.predictors[name].parameters()

    def _predictor(self, branch: str) -> DensePredictor:
        return cast(DensePredictor, self.predictors[branch])

    def _wanted(self, branches: Sequence[str] | None) -> list[str]:
        return list(self.predictors) if branches is None else list(branches)

    def _users(self, branches: Sequence[str]) -> dict[str, list[str]]:
        """The branches that stand on each pair of towers; pairs without any are left out."""
        if SHARED in self.towers:
            return {SHARED: list(branches)}
        return {name: [name] for name in branches}


def build_dense(part: Dense, *, branches: Mapping[str, Branch], num_classes: int) -> DenseDetector:
    """The detector that a recipe describes.

    Args:
        part: backbone, neck and towers.
        branches: by name; the `predictor` of each is built.
        num_classes: without background.

    Raises:
        DataError: when the backbone's weights can't be had or don't fit.
    """
    backbone = part.backbone.build()
    neck = Fpn(backbone.out_channels, channels=part.neck.channels, num_levels=part.neck.num_levels)
    subnets, channels = part.subnets, part.neck.channels
    owners = [SHARED] if subnets.shared else list(branches)
    towers = {
        owner: Towers(channels, subnets.num_convs, groups=subnets.groups, init_std=subnets.init_std)
        for owner in owners
    }
    predictors = {
        name: build_predictor(
            branch.predictor,
            channels,
            num_classes,
            init_std=subnets.init_std,
            class_prior=subnets.class_prior,
        )
        for name, branch in branches.items()
    }
    strides = tuple(backbone.strides[0] << level for level in range(part.neck.num_levels))
    return DenseDetector(backbone=backbone, neck=neck, towers=towers, predictors=predictors, strides=strides)


def _tower(channels: int, num_convs: int, *, groups: int, init_std: float) -> nn.Sequential:
    """3x3 convolutions without bias, each with GroupNorm and ReLU (spec 1.2)."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=init_std)
        layers += [conv, nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _convolve(features: Sequence[Tensor], convs: Sequence[nn.Conv2d]) -> list[list[Tensor]]:
    """Each convolution's output on each level, (B, h * w, channels) in at least float32.

    All convolutions read the same maps, so they run as one: a few wide ones cost less than many narrow ones.
    """
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([cast(Tensor, conv.bias) for conv in convs])
    widths = [conv.out_channels for conv in convs]
    levels = [F.conv2d(x, weight, bias, padding=1).flatten(2).transpose(1, 2) for x in features]
    # Boxes and losses under mixed precision are computed in full: bfloat16 resolves a pixel up to 256 only.
    full = torch.promote_types(levels[0].dtype, torch.float32)
    split = [torch.split(level.to(full), widths, -1) for level in levels]
    return [list(outputs) for outputs in zip(*split, strict=True)]
