"""Heads on a query detector's encoder that only train it: what they are fed and what they hand on (Co-DETR)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from detbench.core.detectors.atss_head import AtssHead
from detbench.core.detectors.channel_mapper import conv_norm
from detbench.core.detectors.rcnn import RcnnHead
from detbench.core.detectors.rpn import RpnHead, propose
from detbench.core.types import DensePredictions, Matches, RegionPredictions, Targets

if TYPE_CHECKING:
    from detbench.parts.assigners import Atss, SampledIou


class AuxiliaryHeads(nn.Module):
    """Dense heads on the encoder's maps and a coarser one, and second stages on their proposals.

    They assign objects as they predict: second stages and the decoder's further queries start from what is positive.

    Args:
        channels: of the maps.
        groups: of the coarser map's GroupNorm.
        dense: by branch.
        assigners: of these branches.
        second_stages: by branch.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        dense: Mapping[str, AtssHead | RpnHead],
        assigners: Mapping[str, Atss | SampledIou],
        second_stages: Mapping[str, RcnnHead],
    ) -> None:
        super().__init__()
        self.coarser = conv_norm(nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), groups)
        self.dense = nn.ModuleDict(dense)
        self.assigners = dict(assigners)
        self.second_stages = nn.ModuleDict(second_stages)

    def forward(
        self, maps: Sequence[Tensor], targets: Targets
    ) -> dict[str, DensePredictions | RegionPredictions]:
        """Every head's predictions with their pairs, by branch.

        Args:
            maps: (B, D, h, w) from fine to coarse.
            targets: the batch's objects.
        """
        levels = [*maps, self.coarser(maps[-1])]
        found: dict[str, DensePredictions] = {}
        for name, head in self.dense.items():
            predictions = head(levels)
            found[name] = replace(predictions, pairs=self.assigners[name](predictions, targets))
        regions: dict[str, RegionPredictions] = {}
        for name, module in self.second_stages.items():
            rcnn = cast(RcnnHead, module)
            rpn = rcnn.part.proposals
            proposals, present = propose(cast(RpnHead, self.dense[rpn]).part, found[rpn], targets.whwh)
            regions[name] = rcnn(maps, proposals, present, targets)
        return {**found, **regions}

    @property
    def branches(self) -> list[str]:
        """Those that it predicts for."""
        return [*self.dense, *self.second_stages]

    def parameters_of(self, branches: Sequence[str]) -> Iterator[nn.Parameter]:
        """Those of these branches' heads and of what is under them."""
        second = [cast(RcnnHead, self.second_stages[name]) for name in branches if name in self.second_stages]
        names = {name for name in branches if name in self.dense} | {head.part.proposals for head in second}
        for module in [*[self.coarser] * bool(names), *(self.dense[name] for name in sorted(names)), *second]:
            yield from module.parameters()


def boxes_of(predictions: DensePredictions | RegionPredictions) -> tuple[Tensor, Matches]:
    """(B, Q, 4) xyxy pixels of the anchors or regions, and which of them answer for which objects."""
    if isinstance(predictions, RegionPredictions):
        return predictions.regions, predictions.pairs
    assert predictions.pairs is not None
    return predictions.anchors.boxes.expand(len(predictions.pred_boxes), -1, -1), predictions.pairs
