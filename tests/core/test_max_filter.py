"""3D max filtering: the neighbourhood's greatest value, the fused score, and the branch that sees neither."""

from __future__ import annotations

import math

import pytest
import torch
from scenes import some_targets
from torch import Tensor

from detbench.core.detectors.dense import DenseDetector
from detbench.core.detectors.max_filter import MaxFilterModule, fuse, max_of_surroundings
from detbench.core.losses.focal import focal_of
from detbench.core.supervise import DenseSupervision, supervise
from detbench.core.types import DensePredictions
from detbench.parts.assigners import Poto, QualityAtss
from detbench.parts.backbones import SmallResNet
from detbench.parts.branches import Branch, MaxFilter, PointPredictor, Unfiltered
from detbench.parts.detectors import Dense, Fpn, Subnets
from detbench.parts.losses import Focal, Giou

O2O = Branch(
    predictor=PointPredictor(max_filter=MaxFilter(logit_eps=None)),
    assigner=Poto(outside_quality=-1.0),
    losses={"cls": Focal(), "iou": Giou(divide_by="positives")},
)
AUX = Branch(predictor=Unfiltered(branch="o2o"), assigner=QualityAtss(), losses={"cls": Focal()})
DEFCN = {"o2o": O2O, "aux": AUX}
IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def small(branches: dict[str, Branch], *, shared: bool = True) -> DenseDetector:
    torch.manual_seed(0)
    part = Dense(
        backbone=SmallResNet(width=8),
        neck=Fpn(channels=16, num_levels=3),
        subnets=Subnets(num_convs=1, groups=4, shared=shared),
    )
    return part.build(branches=branches, num_classes=3)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing of one channel written as loops: the middles of the pixels are aligned."""
    out = torch.empty(height, width)
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * x.shape[0] / height - 0.5, 0), x.shape[0] - 1)
            u = min(max((column + 0.5) * x.shape[1] / width - 0.5, 0), x.shape[1] - 1)
            top, left = int(y), int(u)
            below, right = min(top + 1, x.shape[0] - 1), min(left + 1, x.shape[1] - 1)
            fy, fx = y - top, u - left
            upper = x[top, left] * (1 - fx) + x[top, right] * fx
            lower = x[below, left] * (1 - fx) + x[below, right] * fx
            out[row, column] = upper * (1 - fy) + lower * fy
    return out


@pytest.mark.parametrize(("levels", "window"), [(1, 3), (2, 3), (1, 5)])
def test_the_greatest_neighbour_written_as_loops(levels: int, window: int) -> None:
    generator = torch.Generator().manual_seed(1)
    # Odd sizes too: a level is not always half of the finer one.
    maps = [torch.randn(h, w, generator=generator) for h, w in ((9, 12), (5, 6), (3, 3), (2, 2))]
    got = max_of_surroundings([x[None, None] for x in maps], levels=levels, window=window)
    reach = window // 2
    for i, own in enumerate(maps):
        height, width = own.shape
        near = [resized(maps[k], height, width) for k in range(4) if abs(k - i) <= levels]
        for row in range(height):
            for column in range(width):
                expected = max(
                    float(x[r, c])
                    for x in near
                    for r in range(max(0, row - reach), min(height, row + reach + 1))
                    for c in range(max(0, column - reach), min(width, column + reach + 1))
                )
                assert got[i][0, 0, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_the_greatest_neighbour_by_hand() -> None:
    # All negative: padding must not win. The coarse level's one value -3 spreads over the fine level; the fine
    # level's mean at half size is what bilinear resizing takes: (-1 -2 -5 -6) / 4 = -3.5.
    fine = torch.tensor([[-1.0, -2.0, -9.0, -9.0], [-5.0, -6.0, -9.0, -9.0]])[None, None]
    coarse = torch.tensor([[-3.0, -20.0]])[None, None]
    got = max_of_surroundings([fine, coarse], levels=1, window=3)
    assert got[0][0, 0, :, :3].tolist() == [[-1, -1, -2], [-1, -1, -2]]
    # Resized to four columns the coarse row is -3, -7.25, -15.75, -20: of the last two columns' neighbours in the
    # fine map itself -9 is greater.
    assert got[0][0, 0, :, 3].tolist() == [-9, -9]
    assert got[1].flatten().tolist() == [-3, -3]


def test_the_filter_adds_its_input_not_what_it_convolved() -> None:
    torch.manual_seed(0)
    module = MaxFilterModule(MaxFilter(), 8, groups=4, init_std=0.3)
    levels = [torch.randn(2, 8, 6, 8), torch.randn(2, 8, 3, 4)]
    peaks = max_of_surroundings([module.conv(x) for x in levels], levels=1, window=3)
    for got, peak, x in zip(module(levels), peaks, levels, strict=True):
        assert got.shape == (2, 1, *x.shape[-2:])
        assert torch.allclose(got, module.predict(module.norm(peak + x).relu()))


def test_a_new_filter_has_no_class_prior() -> None:
    module = MaxFilterModule(MaxFilter(), 256, groups=32, init_std=0.01)
    for conv in (module.conv, module.predict):
        assert conv.bias is not None
        assert not conv.bias.any()
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("eps", [1e-5, None])
def test_the_fused_probability_is_the_product(eps: float | None) -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    keep = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(1))
    fused = fuse(logits, keep, eps=eps)
    assert torch.allclose(fused.sigmoid(), logits.sigmoid() * keep.sigmoid(), atol=1e-6)


def test_the_fused_logit_by_hand() -> None:
    # 0.5 * 0.5 = 0.25, whose logit is ln(0.25 / 0.75) = -ln 3.
    zero = torch.zeros(1, 1, 1)
    for eps in (1e-5, None):
        assert fuse(zero, zero, eps=eps).item() == pytest.approx(-math.log(3), abs=1e-6)


def test_dates_clamp_bounds_the_logit_and_stops_its_gradient_and_defcns_form_does_neither() -> None:
    logits = torch.tensor([[[-30.0], [0.0], [30.0]]], requires_grad=True)
    keep = torch.tensor([[[0.0], [0.0], [30.0]]])
    clamped = fuse(logits, keep, eps=1e-5)
    # q = 0: ln(1e-5 / 1); q = 1: ln(1 / 1e-5).
    assert clamped.flatten().tolist() == pytest.approx([-11.5129, -1.0986, 11.5129], abs=1e-3)
    (slope,) = torch.autograd.grad(clamped.sum(), logits)
    assert slope.flatten().tolist()[::2] == pytest.approx([0, 0], abs=1e-6)
    exact = fuse(logits, keep, eps=None)
    # ln(e^-30 / 2) and -ln(2 e^-30 + e^-60).
    assert exact.flatten().tolist() == pytest.approx([-30.6931, -1.0986, 29.3069], abs=1e-3)
    (slope,) = torch.autograd.grad(exact.sum(), logits)
    assert slope[0, 0].item() == pytest.approx(1, abs=1e-4)


def test_focal_of_the_exact_logit_is_focal_of_the_fused_probability() -> None:
    predictions = small(DEFCN).eval()(IMAGES)["o2o"]
    targets = some_targets((3, 2), 0)
    matches = Poto()(predictions, targets)
    got = focal_of(DenseSupervision(predictions, targets, matches), alpha=0.25, gamma=2.0)
    prob = predictions.pred_logits.sigmoid().double()
    wanted = torch.zeros_like(prob)
    wanted[matches.image_idx, matches.pred_idx, targets.labels[matches.target_idx]] = 1
    cross_entropy = torch.nn.functional.binary_cross_entropy(prob, wanted, reduction="none")
    miss = (1 - prob) * wanted + prob * (1 - wanted)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    assert got.item() == pytest.approx((weight * miss**2 * cross_entropy).sum().item(), rel=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_an_unfiltered_branch_sees_the_same_boxes_and_the_plain_class_scores(shared: bool) -> None:
    detector = small(DEFCN, shared=shared).eval()
    predictions: dict[str, DensePredictions] = detector(IMAGES)
    filtered, plain = predictions["o2o"], predictions["aux"]
    assert torch.equal(filtered.pred_boxes, plain.pred_boxes)
    assert (
        filtered.pred_logits < plain.pred_logits
    ).all()  # a product of two probabilities is less than either
    alone = detector(IMAGES, branches=("aux",))["aux"]
    assert torch.allclose(alone.pred_logits, plain.pred_logits, atol=1e-5)


def test_an_unfiltered_branch_adds_no_weight_and_asks_for_no_filter() -> None:
    with_aux, without = small(DEFCN), small({"o2o": O2O})
    assert with_aux.state_dict().keys() == without.state_dict().keys()
    called: list[object] = []
    with_aux.predictors["o2o"].max_filter.register_forward_hook(lambda *_: called.append(1))  # type: ignore[union-attr, operator]
    with_aux(IMAGES, branches=("aux",))
    assert not called


def test_defcns_losses_reach_every_parameter_and_the_auxiliary_one_never_the_filter() -> None:
    targets = some_targets((3, 2), 0)
    detector = small(DEFCN)
    predictions = detector(IMAGES)
    aux = supervise(AUX, predictions["aux"], targets)
    assert list(aux) == ["cls"]
    sum(aux.values(), torch.zeros(())).backward(retain_graph=True)
    assert all(p.grad is None for name, p in detector.named_parameters() if "max_filter" in name)
    sum(supervise(O2O, predictions["o2o"], targets).values(), torch.zeros(())).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_filter_runs_in_mixed_precision() -> None:
    detector = small(DEFCN).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = detector(IMAGES)["o2o"].pred_logits
    assert low.dtype == torch.float32
    assert torch.allclose(low, detector(IMAGES)["o2o"].pred_logits, atol=0.05)
