"""Fully convolutional detectors, RetinaNet to DATE: backbone, pyramid, towers and predictors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.backbones import Backbone
from detbench.core.detectors.fpn import Fpn
from detbench.core.detectors.predictors import FILTER, DensePredictor, Tower, build_predictor
from detbench.core.types import DensePredictions, Targets

if TYPE_CHECKING:
    from detbench.parts.branches import Branch
    from detbench.parts.branches import DensePredictor as DensePredictorPart
    from detbench.parts.detectors import Dense

SHARED = "shared"
"""The key of what serves every branch: towers, scales; otherwise each branch has its own under its name."""


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

    Parameter names start with `backbone.`, `neck.`, `towers.`, `scales.`, `predictors.<branch>.`.

    Args:
        backbone: images to C2 to C5.
        neck: these to the pyramid's levels.
        towers: one pair under `SHARED`, or a pair for each branch under its name.
        scales: (L,) learned factors of each level's boxes, under `SHARED` or by branch.
        predictors: by branch.
        unfiltered: branches that are another's predictions before its max filter, and that other branch.
        strides: of the pyramid's levels.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Fpn,
        towers: Mapping[str, Towers],
        scales: Mapping[str, nn.Parameter],
        predictors: Mapping[str, DensePredictor],
        unfiltered: Mapping[str, str],
        strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.strides = backbone, neck, strides
        self.towers = nn.ModuleDict(towers)
        self.scales = nn.ParameterDict(scales)
        self.predictors = nn.ModuleDict(predictors)
        self.unfiltered = dict(unfiltered)

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]] = (),
        targets: Targets | None = None,
        branches: Sequence[str] | None = None,
    ) -> dict[str, DensePredictions]:
        """(B, 3, H, W) padded images to predictions by branch.

        Args:
            images: normalised; padding is at the bottom and right.
            sizes: height and width without padding, which convolutions don't ask for.
            targets: the objects, which no dense head asks for.
            branches: those wanted; None for all. What only others need isn't computed.
        """
        features = self.neck(self.backbone(images))
        level_sizes = tuple((x.shape[-2], x.shape[-1]) for x in features)
        wanted = self._wanted(branches)
        owners = self._owners(wanted)
        raw: dict[str, dict[str, list[Tensor]]] = {name: {} for name in owners}
        for pair, users in self._users(owners).items():
            tops_of: dict[Tower, list[Tensor]] = self.towers[pair](features)
            for tower, tops in tops_of.items():
                convs = {
                    (name, output): conv
                    for name in users
                    for output, conv in self._predictor(name).convs_on(tower).items()
                }
                for (name, output), levels in zip(convs, convolve(tops, list(convs.values())), strict=True):
                    raw[name][output] = levels
            for name in users:
                max_filter = self._predictor(name).max_filter
                if name in wanted and max_filter is not None:
                    raw[name][FILTER] = [by_location(x) for x in max_filter(tops_of["box"])]
        predictions = {}
        for name in wanted:
            owner = self.unfiltered.get(name, name)
            seen = {k: v for k, v in raw[owner].items() if name == owner or k != FILTER}
            predictions[name] = self._predictor(owner).decode(
                seen, self._scales(owner), level_sizes, self.strides
            )
        return predictions

    def parameters_of(self, branches: Sequence[str] | None = None) -> Iterator[nn.Parameter]:
        """The parameters that take part in predicting these branches; None for all."""
        owners = self._owners(self._wanted(branches))
        yield from self.backbone.parameters()
        yield from self.neck.parameters()
        for pair in self._users(owners):
            yield from self.towers[pair].parameters()
        yield from {id(scales): scales for scales in map(self._scales, owners)}.values()
        for name in owners:
            yield from self.predictors[name].parameters()

    def _predictor(self, branch: str) -> DensePredictor:
        return cast(DensePredictor, self.predictors[branch])

    def _wanted(self, branches: Sequence[str] | None) -> list[str]:
        return [*self.predictors, *self.unfiltered] if branches is None else list(branches)

    def _owners(self, branches: Sequence[str]) -> list[str]:
        """The branches whose predictors these need, each once."""
        return list(dict.fromkeys(self.unfiltered.get(name, name) for name in branches))

    def _scales(self, branch: str) -> nn.Parameter:
        return cast(nn.Parameter, self.scales[SHARED if SHARED in self.scales else branch])

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
    neck = Fpn(backbone.out_channels[1:], channels=part.neck.channels, num_levels=part.neck.num_levels)
    subnets, channels = part.subnets, part.neck.channels
    predictors, unfiltered = {}, {}
    # By name: random weights are drawn in the order of building, and the order of branches is no part of a recipe.
    for name, branch in sorted(branches.items()):
        predictor = cast("DensePredictorPart", branch.predictor)  # Experiment refuses any other
        if predictor.kind == "unfiltered":
            unfiltered[name] = predictor.branch
        else:
            predictors[name] = build_predictor(
                predictor,
                channels,
                num_classes,
                groups=subnets.groups,
                init_std=subnets.init_std,
                class_prior=subnets.class_prior,
            )
    towers = {
        owner: Towers(channels, subnets.num_convs, groups=subnets.groups, init_std=subnets.init_std)
        for owner in ([SHARED] if subnets.shared else predictors)
    }
    strides = tuple(backbone.strides[1] << level for level in range(part.neck.num_levels))
    scales = {
        owner: nn.Parameter(torch.ones(len(strides)))
        for owner in ([SHARED] if subnets.shared_scales else predictors)
    }
    return DenseDetector(
        backbone=backbone,
        neck=neck,
        towers=towers,
        scales=scales,
        predictors=predictors,
        unfiltered=unfiltered,
        strides=strides,
    )


def _tower(channels: int, num_convs: int, *, groups: int, init_std: float) -> nn.Sequential:
    """3x3 convolutions without bias, each with GroupNorm and ReLU (spec 1.2)."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=init_std)
        layers += [conv, nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def convolve(features: Sequence[Tensor], convs: Sequence[nn.Conv2d]) -> list[list[Tensor]]:
    """Each convolution's output on each level, (B, h * w, channels) in at least float32.

    All convolutions read the same maps, so they run as one: a few wide ones cost less than many narrow ones.
    """
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([cast(Tensor, conv.bias) for conv in convs])
    widths = [conv.out_channels for conv in convs]
    levels = [by_location(F.conv2d(x, weight, bias, padding=1)) for x in features]
    split = [torch.split(level, widths, -1) for level in levels]
    return [list(outputs) for outputs in zip(*split, strict=True)]


def by_location(x: Tensor) -> Tensor:
    """(B, channels, h, w) to (B, h * w, channels) in at least float32.

    Boxes and losses under mixed precision are computed in full: bfloat16 resolves a pixel up to 256 only.
    """
    return x.flatten(2).transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))
