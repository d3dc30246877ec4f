"""Cross-entropy of classes, each by itself or one out of all, against torch's (spec 7)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scenes import points, some_predictions, some_targets
from torch import Tensor

from detbench.core.supervise import DenseSupervision, RegionSupervision
from detbench.core.types import Matches, RegionPredictions, Targets
from detbench.parts.losses import BinaryCrossEntropy, CrossEntropy, Giou

TARGETS = some_targets((2, 0, 1), 0)
MATCHES = Matches(
    torch.tensor([0, 0, 0, 2]),
    torch.tensor([1, 4, 5, 0]),
    torch.tensor([0, 0, 1, 2]),
    ignored=torch.zeros(3, 6, dtype=torch.bool).index_fill(1, torch.tensor([3]), True),
)


def regions(logits: Tensor) -> RegionPredictions:
    boxes = 50 * torch.rand(3, 6, 2, dtype=logits.dtype, generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([boxes, boxes + 20], -1)
    return RegionPredictions(logits, boxes, boxes, MATCHES)


def some_logits() -> Tensor:
    return torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_region_without_object_is_of_the_last_class() -> None:
    logits = some_logits()
    labels = torch.full((3, 6), 3)
    for i, q, m in zip(MATCHES.image_idx, MATCHES.pred_idx, MATCHES.target_idx, strict=True):
        labels[i, q] = TARGETS.labels[m]
    labels[:, 3] = -100  # which torch leaves out
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    supervision = RegionSupervision(regions(logits), TARGETS, MATCHES)
    assert CrossEntropy()(supervision).item() == pytest.approx(expected.item(), rel=1e-12)
    assert supervision.normaliser("sampled").item() == 15


def test_regions_have_box_losses_of_their_pairs() -> None:
    supervision = RegionSupervision(regions(some_logits()), TARGETS, MATCHES)
    assert supervision.pred_boxes.shape == supervision.target_boxes.shape == (4, 4)
    assert Giou()(supervision) > 0


def test_cross_entropy_has_the_gradient_of_finite_differences() -> None:
    def loss(logits: Tensor) -> Tensor:
        return CrossEntropy()(RegionSupervision(regions(logits), TARGETS, MATCHES))

    assert torch.autograd.gradcheck(loss, some_logits().requires_grad_())


def test_without_objects_every_region_is_background() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    nobody = Targets.of([none] * 3, [torch.zeros(0, 4)] * 3, [(96, 128)] * 3)
    logits = some_logits()
    supervision = RegionSupervision(regions(logits), nobody, Matches(none, none, none))
    expected = -logits.log_softmax(-1)[..., 3].sum()
    assert CrossEntropy()(supervision).item() == pytest.approx(expected.item(), rel=1e-12)


def test_binary_cross_entropy_is_torchs_of_all_that_isnt_ignored() -> None:
    predictions = some_predictions(points(torch.float64), 3, 0)
    ignored = torch.rand(predictions.pred_logits.shape[:2]) < 0.5
    ignored[MATCHES.image_idx, MATCHES.pred_idx] = False
    matches = Matches(MATCHES.image_idx, MATCHES.pred_idx, MATCHES.target_idx, ignored)
    target = torch.zeros_like(predictions.pred_logits)
    target[matches.image_idx, matches.pred_idx, TARGETS.labels[matches.target_idx]] = 1
    each = F.binary_cross_entropy_with_logits(predictions.pred_logits, target, reduction="none")
    found = BinaryCrossEntropy()(DenseSupervision(predictions, TARGETS, matches))
    assert found.item() == pytest.approx(each[~ignored].sum().item(), rel=1e-12)
