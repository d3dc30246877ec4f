"""GT-Probe: objects that look at queries, and how much each query answers for them (Match-Free, section 3.2; spec 7).

Training only; it has weights of its own, but no say in what the detector predicts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.layers.transformer import xavier_

if TYPE_CHECKING:
    from detbench.core.types import QueryPredictions, Targets
    from detbench.parts.branches import GtProbe


class ProbeModule(nn.Module):
    """The probe of one decoder output: one attention for all its layers, or one for each.

    The paper doesn't say how its weights start; here all matrices are Xavier-uniform, as the transformer's.
    """

    def __init__(self, part: GtProbe, *, num_classes: int, state_dim: int, num_layers: int) -> None:
        """
        Args:
            part: the probe's settings.
            num_classes: without background.
            state_dim: channels of the decoder's states.
            num_layers: of the output it looks at.
        """
        super().__init__()
        self.part = part
        query_dim = state_dim if part.reads == "state" else num_classes + 4
        self.attentions = nn.ModuleList(
            ProbeAttention(num_classes=num_classes, query_dim=query_dim, dim=part.dim)
            for _ in range(num_layers if part.layers == "separate" else 1)
        )
        xavier_(self)

    def forward(self, predictions: QueryPredictions, targets: Targets) -> Tensor:
        """The correspondence of each object with the queries of its image, layer after layer.

        Args:
            predictions: of all layers, with `states` where the probe reads them.
            targets: of the batch, without repetition.

        Returns:
            (M, Q), M counting objects times layers; rows sum to 1.
        """
        num_layers = predictions.num_layers
        queries = self._queries(predictions)
        if self.part.layers == "shared":
            return self._attend(0, queries, targets.repeat(num_layers))
        of_layers = queries.chunk(num_layers)
        if self.part.layers == "last_only":
            return self._attend(0, of_layers[-1], targets).repeat(num_layers, 1)
        return torch.cat([self._attend(i, layer, targets) for i, layer in enumerate(of_layers)])

    def _queries(self, predictions: QueryPredictions) -> Tensor:
        if self.part.reads == "state":
            assert predictions.states is not None  # the detector keeps them where it has a probe
            queries = predictions.states
        else:
            queries = torch.cat([predictions.pred_logits.sigmoid(), predictions.pred_boxes], -1)
        return queries.detach() if self.part.detach_queries else queries

    def _attend(self, i: int, queries: Tensor, targets: Targets) -> Tensor:
        attention: Tensor = self.attentions[i](queries, targets)
        return attention


class ProbeAttention(nn.Module):
    """softmax((MLP_gt(objects) W_Q) (MLP_q(queries) W_K)^T / sqrt(dim)) over each image's queries (spec 7.1)."""

    def __init__(self, *, num_classes: int, query_dim: int, dim: int) -> None:
        """
        Args:
            num_classes: without background.
            query_dim: channels of what is known of a query.
            dim: width of both perceptrons, of their hidden layers and of the attention.
        """
        super().__init__()
        self.num_classes = num_classes
        self.object_mlp = nn.Sequential(nn.Linear(num_classes + 4, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.query_mlp = nn.Sequential(nn.Linear(query_dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.object_proj = nn.Linear(dim, dim, bias=False)
        self.query_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, targets: Targets) -> Tensor:
        """(B, Q, D) queries and the objects of these B images to (M, Q); rows sum to 1."""
        classes = F.one_hot(targets.labels, self.num_classes)
        objects = torch.cat([classes, targets.cxcywh], -1).to(queries.dtype)
        rows = self.object_proj(self.object_mlp(objects))
        keys = self.query_proj(self.query_mlp(queries))
        # One product for the whole batch: each image's objects on a page of its own, the rest of the page empty.
        pages = targets.by_image(rows, fill=0.0)
        affinity: Tensor = pages @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
        return affinity[targets.image_idx, targets.rank].softmax(-1)
