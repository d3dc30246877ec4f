"""Constants of the released code, each where it shows: parts as they are by default, on numbers done by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from query_scenes import some_objects, some_queries
from torch import Tensor, nn

from detbench.core.assign.hungarian import pair_cost
from detbench.core.assign.poto import poto_quality
from detbench.core.assign.query_hungarian import query_cost
from detbench.core.detectors.atss_head import AtssHead
from detbench.core.detectors.fpn import Fpn
from detbench.core.detectors.max_filter import MaxFilterModule
from detbench.core.detectors.rcnn import RcnnHead
from detbench.core.detectors.rpn import RpnHead
from detbench.core.supervise import DenseSupervision, QuerySupervision
from detbench.core.types import Anchors, DensePredictions, Matches, QueryPredictions, Targets
from detbench.parts.assigners import (
    Atss,
    Hungarian,
    LeastCost,
    Poto,
    QualityAtss,
    QueryHungarian,
    SampledIou,
    TaskAligned,
)
from detbench.parts.auxiliary import AtssPredictor, RcnnPredictor, RpnPredictor
from detbench.parts.branches import MaxFilter
from detbench.parts.losses import CenternessGiou, DivideBy, Focal, Giou, LogIou
from detbench.parts.teaching import CostMining

SIZE = (1000, 1000)
Box = tuple[float, float, float, float]  # xyxy pixels


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def anchors_around(boxes: Tensor) -> Anchors:
    """Locations of stride 8 in the middle of boxes."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return Anchors(boxes, middle, torch.full((len(boxes),), 8.0), (len(boxes),))


def pair(pred: Box, target: Box, logits: tuple[float, ...] = (0.0,)) -> DenseSupervision:
    """One prediction that answers for one object of class 0, its location in the object's middle."""
    targets = Targets.of([torch.tensor([0])], [tensor([target])], [SIZE])
    predictions = DensePredictions(tensor([[logits]]), tensor([[pred]]), anchors_around(targets.boxes))
    zero = torch.tensor([0])
    return DenseSupervision(predictions, targets, Matches(zero, zero, zero))


def square(side: float) -> Box:
    return (0.0, 0.0, side, side)


# ---- losses


def test_focal_loss_has_alpha_one_quarter_and_gamma_two() -> None:
    p, q = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(1.2))
    expected = -0.25 * (1 - p) ** 2 * math.log(p) - 0.75 * q**2 * math.log(1 - q)
    assert Focal()(pair(square(8), square(8), (0.3, -1.2))).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [Giou(), CenternessGiou()])
def test_areas_in_giou_losses_count_as_1e_7_at_least(loss: Giou | CenternessGiou) -> None:
    # Both are 9e-8 large: IoU .9, and nothing of the hull is left over.
    assert loss(pair(square(3e-4), square(3e-4))).item() == pytest.approx(0.1)


def test_the_union_in_the_logarithm_counts_as_1e_6_at_least_and_so_does_the_iou() -> None:
    assert LogIou()(pair(square(3e-4), square(3e-4))).item() == pytest.approx(-math.log(0.09))
    assert LogIou()(pair((5.0, 5.0, 6.0, 6.0), square(1))).item() == pytest.approx(-math.log(1e-6))


@pytest.mark.parametrize(
    "divide_by", ["positives", "objects", "copies", "pairs", "pairs_local", "pair_weights"]
)
def test_nothing_is_divided_by_less_than_one(divide_by: DivideBy) -> None:
    targets = some_objects((0, 0), 0)
    none = torch.zeros(0, dtype=torch.int64)
    s = QuerySupervision(some_queries(targets, 0, num_layers=1), targets, Matches(none, none, none))
    assert s.normaliser(divide_by).item() == 1


def test_a_sum_of_pair_weights_below_one_counts_as_one() -> None:
    targets = some_objects((1,), 0)
    zero = torch.tensor([0])
    for weight, divisor in ((0.4, 1.0), (1.4, 1.4)):
        pairs = Matches(zero, zero, zero, weights=tensor([weight]))
        s = QuerySupervision(some_queries(targets, 0, num_layers=1), targets, pairs)
        assert s.normaliser("pair_weights").item() == pytest.approx(divisor)


# ---- costs and qualities


def cost_of(rule: Hungarian | LeastCost, pred: Box, target: Box, logit: float) -> float:
    settings = {key: value for key, value in dataclasses.asdict(rule).items() if key != "kind"}
    s = pair(pred, target)
    cost = pair_cost(
        tensor([[[logit]]]), s.predictions.pred_boxes, s.targets.labels, s.targets.boxes,
        s.targets.image_idx, s.targets.whwh, **settings,
    )  # fmt: skip
    return cost.item()


# (logit, cost) where the sigmoid saturates: 2 (-.25 ln eps) and 2 (.75 ln eps).
SATURATED = [(-60.0, -0.5), (60.0, 1.5)]


@pytest.mark.parametrize(("rule", "eps", "l1"), [(Hungarian(), 1e-12, 0.1), (LeastCost(), 1e-8, 0.2)])
@pytest.mark.parametrize(("logit", "factor"), SATURATED)
def test_the_cost_matchers_weights_and_epsilons(
    rule: Hungarian | LeastCost, eps: float, l1: float, logit: float, factor: float
) -> None:
    of_class = factor * math.log(eps)
    # Half of either overlaps the other: IoU and GIoU 1/3; edges or centre are off by a tenth of the image.
    half = cost_of(rule, (100, 100, 300, 300), (200, 100, 400, 300), logit)
    assert half == pytest.approx(of_class + 5 * l1 - 2 / 3)
    # Areas of 4.9e-7 count as 1e-6 where GIoU divides by them.
    assert cost_of(rule, square(7e-4), square(7e-4), logit) == pytest.approx(of_class - 2 * 0.49)


@pytest.mark.parametrize(("rule", "eps"), [(QueryHungarian(), 1e-8), (CostMining().cost, 1e-12)])
@pytest.mark.parametrize(("logit", "factor"), SATURATED)
def test_the_costs_of_queries(rule: QueryHungarian, eps: float, logit: float, factor: float) -> None:
    targets = Targets.of([torch.tensor([0])], [tensor([[200.0, 100.0, 400.0, 300.0]])], [SIZE])
    predictions = QueryPredictions(tensor([[[logit]]]), tensor([[[0.2, 0.2, 0.2, 0.2]]]))
    expected = factor * math.log(eps) + 5 * 0.1 - 2 / 3
    assert query_cost(rule, predictions, targets).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("off", "inside"), [((11.9, 0.0), True), ((0.0, -11.9), True), ((12.0, 0.0), False), ((0.0, 12.1), False)]
)
def test_potos_prior_reaches_one_and_a_half_strides_and_localisation_counts_for_four_fifths(
    off: tuple[float, float], inside: bool
) -> None:
    s = pair((100, 100, 300, 300), (200, 100, 400, 300))
    settings = {key: value for key, value in dataclasses.asdict(Poto()).items() if key != "kind"}
    quality = poto_quality(
        s.predictions.pred_logits, s.predictions.pred_boxes, tensor([[300 + off[0], 200 + off[1]]]),
        tensor([8.0]), s.targets.labels, s.targets.boxes, s.targets.image_idx, **settings,
    )  # fmt: skip
    assert quality.item() == pytest.approx(0.5**0.2 * (1 / 3) ** 0.8 if inside else 0.0)


def test_the_union_in_potos_quality_counts_as_1e_6_at_least() -> None:
    s = pair(square(7e-4), square(7e-4))
    quality = poto_quality(
        s.predictions.pred_logits, s.predictions.pred_boxes, s.predictions.anchors.centers, tensor([8.0]),
        s.targets.labels, s.targets.boxes, s.targets.image_idx,
        quality_alpha=1.0, center_radius=0.0, outside_quality=0.0,
    )  # fmt: skip
    assert quality.item() == pytest.approx(0.49)


# ---- rules


def test_task_aligned_takes_thirteen_queries_by_the_sixth_power_of_iou() -> None:
    # Query n covers a share of the object that falls with n: IoU 1, .95, .9, ...
    shares = tensor([1 - 0.05 * n for n in range(16)])
    whole = torch.ones_like(shares)
    boxes = torch.stack([0.5 * whole, 0.1 + 0.4 * shares, 0.4 * whole, 0.8 * shares], 1)
    targets = Targets.of([torch.tensor([0])], [tensor([[300.0, 100.0, 700.0, 900.0]])], [SIZE])
    # Unlikely, so that the 1e-7 beside the best quality shows.
    logits = torch.full((1, 16, 1), math.log(1e-6 / (1 - 1e-6)), dtype=torch.float64)
    matches = TaskAligned()(QueryPredictions(logits, boxes[None]), targets)
    assert matches.pred_idx.tolist() == list(range(13))
    assert matches.weights is not None
    expected = [1e-6 * share**6 / (1e-6 + 1e-7) for share in shares[:13].tolist()]
    assert matches.weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_how_many_take_part_where_small_examples_dont_show_it() -> None:
    assert QualityAtss().per_level == Atss().per_level == 9
    assert (SampledIou().sample, SampledIou().most_positive) == (512, 0.25)
    assert (RpnPredictor().per_level, RpnPredictor().iou_threshold, RpnPredictor().num_proposals) == (
        4000,
        0.7,
        1000,
    )


# ---- initial weights


def deviation(module: nn.Module, name: str) -> float:
    parameter = module.get_parameter(name)
    return float(parameter.detach().std())


def test_initial_weights_of_the_auxiliary_heads_and_of_the_filter() -> None:
    torch.manual_seed(0)
    rpn = RpnHead(RpnPredictor(), 64, strides=(8,))
    rcnn = RcnnHead(RcnnPredictor(proposals="rpn"), SampledIou(), 16, 20, strides=(8,))
    atss = AtssHead(AtssPredictor(), 64, 20, strides=(8,), groups=8, class_prior=0.01)
    max_filter = MaxFilterModule(MaxFilter(), 64, groups=8, init_std=0.01)
    for module, name, expected in (
        (rpn, "conv.weight", 0.01),
        (rpn, "logits.weight", 0.01),
        (rpn, "deltas.weight", 0.01),
        (rcnn, "logits.weight", 0.01),
        (rcnn, "deltas.weight", 0.001),
        (atss, "predictor.convs.logits.weight", 0.01),
        (atss, "towers.for_box.0.weight", 0.01),
        (max_filter, "conv.weight", 0.01),
        (max_filter, "predict.weight", 0.01),
    ):
        assert deviation(module, name) == pytest.approx(expected, rel=0.1), name
    for module in (rpn, rcnn, max_filter):
        assert not any(
            p.any() for n, p in module.named_parameters() if n.endswith("bias") and "norm" not in n
        )
    assert torch.allclose(atss.predictor.convs["logits"].bias.sigmoid(), torch.tensor(0.01))


def test_the_pyramids_weights_are_xavier_uniform_and_its_last_level_reads_a_relu() -> None:
    torch.manual_seed(0)
    fpn = Fpn((32, 64, 128), channels=64, num_levels=5)
    for conv in [*fpn.laterals, *fpn.outputs, *fpn.extra]:
        fan_in = conv.in_channels * conv.kernel_size[0] ** 2
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert not conv.bias.any()
    features = [torch.randn(1, 32 * 2**i, 16 >> i, 16 >> i) for i in range(3)]
    levels = fpn(features)
    assert levels[2].min() < 0
    assert levels[3].min() < 0
    assert torch.allclose(levels[3], fpn.extra[0](levels[2]))
    assert torch.allclose(levels[4], fpn.extra[1](levels[3].relu()))
