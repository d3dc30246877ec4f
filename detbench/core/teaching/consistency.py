"""Queries from the teacher's features must decode alike in both views of an image (Semi-DETR; spec 8.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.distributed import sum_over_processes
from detbench.core.layers.norm import BatchNorm2d, batch_norm
from detbench.core.layers.roi import roi_features
from detbench.core.queries.boxes import BoxQueries
from detbench.core.teaching.mining import agreed

if TYPE_CHECKING:
    from detbench.core.detectors.query import Encoded, QueryDetector
    from detbench.core.teaching.labels import Candidates
    from detbench.core.types import AnyPredictions, QueryPredictions
    from detbench.parts.teaching import Consistency


@dataclass(frozen=True, slots=True)
class Views:
    """Unlabelled images as teacher and student see them.

    Attributes:
        weak: encoded by the teacher, without a graph.
        strong: encoded by the student.
        on_weak: the teacher's candidates.
        on_strong: the same, moved to the strong views.
    """

    weak: Encoded
    strong: Encoded
    on_weak: Candidates
    on_strong: Candidates


class ConsistencyModule(nn.Module):
    """Chooses candidates, makes their queries and compares what they become. Its projector learns with the student.

    Args:
        part: sizes, weight and choice of candidates.
        channels: D of the detector.
        strides: of its neck's levels, in pixels.
    """

    def __init__(self, part: Consistency, *, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.part, self.strides = part, tuple(strides)
        self.projector = Projector(channels, roi_size=part.roi_size, hidden_dim=part.hidden_dim)

    def forward(
        self,
        student: QueryDetector,
        teacher: QueryDetector,
        views: Views,
        *,
        threshold: float,
        tested: str,
        branches: Sequence[str],
    ) -> tuple[dict[str, AnyPredictions], Tensor]:
        """The student's predictions on the strong views, and the loss that is left to add (spec 8.3, 8.4).

        Args:
            student: in training mode.
            teacher: in evaluation mode.
            views: unlabelled images.
            threshold: candidates of at least this score are objects, and take part here in any case.
            tested: the branch whose predictions candidates are matched with.
            branches: those of the student that are wanted.
        """
        taking_part = views.on_strong.scores >= threshold
        if self.part.mining is not None:
            with torch.no_grad():
                found, _ = student.decode(views.strong, branches=[tested])
            # Under autocast, older versions of torch keep copies of the weights, and these have no graph.
            torch.clear_autocast_cache()
            taking_part = taking_part | agreed(
                self.part.mining, cast("QueryPredictions", found[tested]), views.on_strong
            )
        weak, strong = views.on_weak.where(taking_part), views.on_strong.where(taking_part)
        content = self.contents(views.weak.levels, weak)
        with torch.no_grad():
            _, theirs = teacher.decode(views.weak, branches=[tested], beside=self._queries(content, weak))
        predictions, ours = student.decode(
            views.strong, views.on_strong.above(threshold), branches, self._queries(content, strong)
        )
        assert ours is not None
        assert theirs is not None
        return predictions, self.loss(ours, theirs, strong.counts)

    def contents(self, levels: Sequence[Tensor], weak: Candidates) -> Tensor:
        """(M, D) of each candidate's query, from the teacher's features in its box.

        Args:
            levels: (B, D, h, w) of each level of the teacher's neck, on the weak views.
            weak: candidates on these views.
        """
        features = roi_features(
            levels,
            weak.boxes,
            weak.image_idx,
            strides=self.strides,
            size=self.part.roi_size,
            finest_side=self.part.finest_side,
        )
        content: Tensor = self.projector(features)
        return content.to(features.dtype)

    def _queries(self, content: Tensor, candidates: Candidates) -> BoxQueries:
        targets = candidates.targets
        reference = targets.cxcywh.to(content)
        return BoxQueries(
            targets.by_image(content, fill=0.0), targets.by_image(reference, fill=0.5), self.part.groups
        )

    def loss(self, student: Tensor, teacher: Tensor, counts: Sequence[int]) -> Tensor:
        """The weighed mean squared distance of normalised states, layers added up; 0 where no candidate takes part.

        In the mean an image without candidates counts as one that agrees: the dummy of the released code (spec 8.4).

        Args:
            student: (layers, B, groups * K, D).
            teacher: the same of the teacher; gets no gradient.
            counts: candidates of each image; the slots behind them don't count.
        """
        groups = self.part.groups
        slots = torch.arange(student.shape[2] // groups, device=student.device).repeat(groups)
        taken = slots < torch.tensor(counts, device=student.device)[:, None]
        distance = (F.normalize(student, dim=-1) - F.normalize(teacher.detach(), dim=-1)).square().mean(-1)
        num_queries = distance.new_tensor(float(groups * sum(max(count, 1) for count in counts)))
        mean_of_layers = distance[:, taken].sum(1) / sum_over_processes(num_queries)
        return self.part.weight * mean_of_layers.sum()


class Projector(nn.Module):
    """Two 3x3 convolutions and two linear layers: what is in a box to a query's content.

    Args:
        channels: of the features and of the content.
        roi_size: cells of the features, each way.
        hidden_dim: between the linear layers.
    """

    def __init__(self, channels: int, *, roi_size: int, hidden_dim: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_conv(channels) for _ in range(2)))
        self.hidden = nn.Linear(channels * roi_size**2, hidden_dim, bias=False)
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.content = nn.Linear(hidden_dim, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(K, D, s, s) to (K, D)."""
        num_boxes = int(sum_over_processes(torch.tensor(len(features))))
        if not num_boxes:
            return features.new_zeros(0, features.shape[1])
        hidden = self.hidden(self.convs(features).flatten(1))
        # One box has no spread to normalise by.
        normed = batch_norm(
            hidden,
            self.norm.running_mean,
            self.norm.running_var,
            self.norm.weight,
            self.norm.bias,
            training=self.training and num_boxes > 1,
        )
        content: Tensor = self.content(normed.relu()).relu()
        return content


def _conv(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), BatchNorm2d(channels), nn.ReLU()
    )
