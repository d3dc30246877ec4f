"""What every loss promises, each loss by hand, and the normalisers."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from scenes import image_of, points, some_predictions, some_targets, targets_of
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from detbench.core import distributed
from detbench.core.losses.boxes import giou_loss, log_iou_loss
from detbench.core.losses.centerness import centerness_target
from detbench.core.losses.focal import background_focal, foreground_focal
from detbench.core.supervise import DenseSupervision, supervise
from detbench.core.types import Anchors, DensePredictions, Matches, Targets
from detbench.parts.assigners import FcosRule, LeastCost, Poto
from detbench.parts.branches import Branch, FcosPredictor, PointPredictor
from detbench.parts.losses import (
    BoxL1,
    Centerness,
    CenternessGiou,
    DenseLoss,
    DivideBy,
    Focal,
    Giou,
    LogIou,
    SizedL1,
)

# The default of sized_l1 asks for the mean size of a batch's objects: an image alone has another.
CONTRACT: dict[type, DenseLoss] = {SizedL1: SizedL1(rescale="none")}
LOSSES = [pytest.param(CONTRACT.get(loss, loss()), id=loss().kind) for loss in get_args(DenseLoss)]
COUNTS = (3, 0, 2)


def supervision(
    counts: tuple[int, ...] = COUNTS, seed: int = 0, dtype: torch.dtype = torch.float64
) -> DenseSupervision:
    """Each object answered for by two locations inside of it, or near; some predictions ignored."""
    predictions = some_predictions(points(dtype), len(counts), seed)
    targets = some_targets(counts, seed)
    middle = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
    nearest = torch.cdist(middle, predictions.anchors.centers.float()).argsort(1)[:, :2]
    ignored = torch.zeros(predictions.pred_logits.shape[:2], dtype=torch.bool)
    ignored[:, -1] = True
    return DenseSupervision(
        predictions,
        targets,
        Matches(
            targets.image_idx.repeat_interleave(2),
            nearest.flatten(),
            torch.arange(sum(counts)).repeat_interleave(2),
            ignored,
        ),
    )


def with_leaves(
    s: DenseSupervision, logits: Tensor, boxes: Tensor, deltas: Tensor, center: Tensor
) -> DenseSupervision:
    predictions = DensePredictions(logits, boxes, s.predictions.anchors, deltas, center)
    return DenseSupervision(predictions, s.targets, s.matches)


def leaves(s: DenseSupervision) -> tuple[Tensor, ...]:
    p = s.predictions
    assert p.pred_deltas is not None
    assert p.pred_centerness is not None
    tensors = (p.pred_logits, p.pred_boxes, p.pred_deltas, p.pred_centerness)
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_finite_differences(loss: DenseLoss) -> None:
    s = supervision(counts=(1, 0))
    # Only a handful of predictions enter; the rest would make 2,000 columns of the Jacobian.
    keep = torch.cat([s.matches.pred_idx, torch.tensor([0, 5])]).unique()
    p = s.predictions
    anchors = dataclasses.replace(
        p.anchors,
        boxes=p.anchors.boxes[keep],
        centers=p.anchors.centers[keep],
        strides=p.anchors.strides[keep],
        level_sizes=(len(keep),),
    )
    assert p.pred_deltas is not None
    assert p.pred_centerness is not None
    few = DensePredictions(
        p.pred_logits[:, keep],
        p.pred_boxes[:, keep],
        anchors,
        p.pred_deltas[:, keep],
        p.pred_centerness[:, keep],
    )
    matches = Matches(s.matches.image_idx, torch.searchsorted(keep, s.matches.pred_idx), s.matches.target_idx)
    s = DenseSupervision(few, s.targets, matches)
    assert torch.autograd.gradcheck(lambda *x: loss(with_leaves(s, *x)), leaves(s))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_objects_has_a_finite_loss_and_gradient(loss: DenseLoss) -> None:
    s = supervision(counts=(0, 0))
    tensors = leaves(s)
    value = loss(with_leaves(s, *tensors))
    value.backward()
    assert value.isfinite()
    assert value.item() == 0 or loss.kind in ("focal", "bce")
    for tensor in tensors:
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_costs_what_its_images_cost_alone(loss: DenseLoss) -> None:
    s = supervision()
    assert s.matches.ignored is not None
    alone = 0.0
    for i in range(len(COUNTS)):
        mine = s.matches.image_idx == i
        first = sum(COUNTS[:i])
        matches = Matches(
            torch.zeros_like(s.matches.image_idx[mine]),
            s.matches.pred_idx[mine],
            s.matches.target_idx[mine] - first,
            s.matches.ignored[i : i + 1],
        )
        alone += loss(DenseSupervision(image_of(s.predictions, i), targets_of(s.targets, i), matches)).item()
    assert loss(s).item() == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_ignored_predictions_say_costs_nothing(loss: DenseLoss) -> None:
    s = supervision()
    tensors = leaves(s)
    loss(with_leaves(s, *tensors)).backward()
    for tensor in tensors:
        assert tensor.grad is None or not tensor.grad[s.matches.ignored].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_perfect_prediction_costs_least(loss: DenseLoss) -> None:
    s = supervision()
    image, pred = s.matches.image_idx, s.matches.pred_idx
    logits, boxes, deltas, center = (t.detach().clone() for t in leaves(s))
    logits[:] = -20.0
    logits[image, pred, s.target_labels] = 20.0
    boxes[image, pred] = s.target_boxes.double()
    anchor, box = s.anchor_boxes, s.target_boxes
    size = anchor[:, 2:] - anchor[:, :2]
    shift = ((box[:, :2] + box[:, 2:]) - (anchor[:, :2] + anchor[:, 2:])) / 2 / size
    deltas[image, pred] = torch.cat([shift, ((box[:, 2:] - box[:, :2]) / size).log()], 1)
    center[image, pred] = s.centerness_targets.logit(eps=1e-6)
    assert loss(with_leaves(s, logits, boxes, deltas, center)) < loss(s)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_keep_the_precision_of_the_predictions(loss: DenseLoss) -> None:
    assert loss(supervision()).dtype == torch.float64
    assert loss(supervision(dtype=torch.float32)).dtype == torch.float32


# --- focal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_focal_loss_without_a_one_hot_target_equals_the_definition(alpha: float, gamma: float) -> None:
    s = supervision()
    assert s.matches.ignored is not None
    target = torch.zeros_like(s.predictions.pred_logits)
    target[s.matches.image_idx, s.matches.pred_idx, s.target_labels] = 1
    logits = s.predictions.pred_logits.clone().requires_grad_()
    prob = logits.sigmoid()
    miss = (1 - prob) * target + prob * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    plain = balance * miss**gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    plain = plain[~s.matches.ignored].sum()
    (plain_grad,) = torch.autograd.grad(plain, logits)

    ours = Focal(alpha=alpha, gamma=gamma)(with_leaves(s, logits, *leaves(s)[1:]))
    (grad,) = torch.autograd.grad(ours, logits)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-12)
    assert torch.allclose(grad, plain_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_both_sides_of_focal_loss_agree_with_torchvision(target: float) -> None:
    x = torch.linspace(-30, 30, 101)
    ours = (foreground_focal if target else background_focal)(x, alpha=0.25, gamma=2.0)
    theirs = sigmoid_focal_loss(x, torch.full_like(x, target), alpha=0.25, gamma=2.0)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)


def test_focal_loss_by_hand() -> None:
    # p = 1/2: background costs .75 * .25 * ln 2 = .1299651, a positive .25 * .25 * ln 2 = .0433217.
    x = torch.zeros(1)
    assert background_focal(x, alpha=0.25, gamma=2.0).item() == pytest.approx(0.1299651, abs=1e-7)
    assert foreground_focal(x, alpha=0.25, gamma=2.0).item() == pytest.approx(0.0433217, abs=1e-7)


def test_a_prediction_shared_by_two_objects_is_positive_for_the_later_ones_class() -> None:
    s = supervision(counts=(2,))
    targets = dataclasses.replace(s.targets, labels=torch.tensor([0, 2]))
    both = Matches(torch.tensor([0, 0]), torch.tensor([4, 4]), torch.tensor([0, 1]))
    later = Matches(torch.tensor([0]), torch.tensor([4]), torch.tensor([1]))
    losses = [Focal()(DenseSupervision(s.predictions, targets, m)).item() for m in (both, later)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# --- boxes --------------------------------------------------------------------------------------------


def test_box_losses_by_hand() -> None:
    # (0,0,20,10) for (10,0,30,10): intersection 100, union 300, IoU 1/3; nothing between them, GIoU 1/3.
    pred, target = torch.tensor([[0.0, 0, 20, 10]]), torch.tensor([[10.0, 0, 30, 10]])
    assert log_iou_loss(pred, target, eps=1e-6).item() == pytest.approx(math.log(3), abs=1e-6)
    assert giou_loss(pred, target, eps=1e-7).item() == pytest.approx(2 / 3, abs=1e-6)
    # Corners move by 10 of 100 twice; the centre moves by 10 of 100 and the size not at all.
    targets = Targets.of([torch.zeros(1, dtype=torch.int64)], [target], [(50, 100)])
    anchors = Anchors(pred, pred[:, :2], pred[:, 0], (1,))
    one = Matches(*(torch.zeros(1, dtype=torch.int64) for _ in range(3)))
    s = DenseSupervision(DensePredictions(torch.zeros(1, 1, 1), pred[None], anchors), targets, one)
    assert BoxL1(box_format="xyxy")(s).item() == pytest.approx(0.2, abs=1e-7)
    assert BoxL1(box_format="cxcywh")(s).item() == pytest.approx(0.1, abs=1e-7)


def test_boxes_that_dont_meet_cost_a_bounded_logarithm() -> None:
    apart = log_iou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[5.0, 5, 6, 6]]), eps=1e-6)
    assert apart.item() == pytest.approx(-math.log(1e-6), rel=1e-6)


def test_giou_loss_agrees_with_torchvision() -> None:
    s = supervision()
    theirs = generalized_box_iou_loss(s.pred_boxes, s.target_boxes, reduction="sum")
    assert Giou()(s).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_centerness_by_hand() -> None:
    # 2 from the left, 8 from the right, 5 from top and bottom: sqrt(2/8 * 1) = 1/2. Outside it is 0.
    target = centerness_target(torch.tensor([[2.0, 5.0], [-1.0, 5.0]]), torch.tensor([[0.0, 0, 10, 10]] * 2))
    assert target.tolist() == pytest.approx([0.5, 0.0])


def test_log_iou_is_weighed_by_centerness() -> None:
    s = supervision()
    each = log_iou_loss(s.pred_boxes, s.target_boxes, eps=1e-6)
    assert LogIou()(s).item() == pytest.approx((each * s.centerness_targets).sum().item(), rel=1e-9)
    assert LogIou(weigh_by="one")(s).item() == pytest.approx(each.sum().item(), rel=1e-9)


def test_giou_is_weighed_by_centerness() -> None:
    s = supervision()
    each = giou_loss(s.pred_boxes, s.target_boxes, eps=1e-7)
    assert CenternessGiou()(s).item() == pytest.approx((each * s.centerness_targets).sum().item(), rel=1e-9)


# --- normalisers and branches ---------------------------------------------------------------------------


def test_normalisers_by_hand() -> None:
    # Two pairs for each of 3 + 0 + 2 objects: ten; this process alone: max(6,1) + max(0,1) + max(4,1) = 11.
    s = supervision()
    assert s.normaliser("positives").item() == 10
    assert s.normaliser("positives_raw").item() == 10
    assert s.normaliser("positives_local").item() == 11
    assert s.normaliser("positives_image").item() == 11
    assert s.normaliser("centerness").item() == pytest.approx(s.centerness_targets.sum().item())
    assert s.normaliser("centerness_or_one").item() == max(1.0, s.normaliser("centerness").item())
    # The last location of each of three images is ignored.
    assert s.normaliser("sampled").item() == 3 * (s.predictions.pred_logits.shape[1] - 1)


def test_normalisers_without_objects() -> None:
    s = supervision(counts=(0, 0))
    wanted: dict[DivideBy, float] = {
        "positives": 1.0,
        "positives_raw": 0.0,
        "positives_local": 2.0,
        "positives_image": 2.0,
        "centerness": 1e-6,
        "centerness_or_one": 1.0,
    }
    for name, value in wanted.items():
        assert s.normaliser(name).item() == pytest.approx(value)


def test_all_normalisers_but_the_local_are_of_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A second process that holds thirty times as much.
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: x.mul_(31))
    s = supervision()
    assert s.normaliser("positives").item() == 310
    assert s.normaliser("positives_raw").item() == 310
    assert (
        s.normaliser("positives_local").item() == 2 * 11
    )  # each process's part is averaged with the other's
    assert s.normaliser("positives_image").item() == 341
    assert s.normaliser("centerness").item() == pytest.approx(31 * s.centerness_targets.sum().item())
    assert s.normaliser("sampled").item() == 31 * 3 * (s.predictions.pred_logits.shape[1] - 1)


def branch(weight: float = 1.0) -> Branch:
    return Branch(
        predictor=FcosPredictor(),
        assigner=FcosRule(),
        losses={"class": Focal(weight=2.0), "box": LogIou(), "center": Centerness()},
        weight=weight,
    )


def test_a_branchs_losses_are_weighed_and_normalised() -> None:
    s = supervision(dtype=torch.float32)
    losses = supervise(branch(weight=3.0), s.predictions, s.targets)
    matched = DenseSupervision(s.predictions, s.targets, FcosRule()(s.predictions, s.targets))
    eps = 1.1920929e-07
    assert losses.keys() == {"class", "box", "center"}
    num = len(matched.matches.pred_idx)
    assert losses["class"].item() == pytest.approx(3 * 2 * Focal()(matched).item() / (num + eps))
    denominator = matched.centerness_targets.sum().item() + eps
    assert losses["box"].item() == pytest.approx(3 * LogIou()(matched).item() / denominator)
    assert losses["center"].item() == pytest.approx(3 * Centerness()(matched).item() / (num + eps))


@pytest.mark.parametrize("assigner", [Poto(), LeastCost()], ids=lambda a: a.kind)
def test_a_batch_without_objects_trains_every_output(assigner: Poto | LeastCost) -> None:
    # Data-parallel training waits for a gradient of every parameter, be it zero.
    o2o = Branch(
        predictor=PointPredictor(),
        assigner=assigner,
        losses={"class": Focal(), "l1": BoxL1(), "giou": Giou()},
    )
    s = supervision(counts=(0, 0), dtype=torch.float32)
    logits, boxes, *_ = leaves(s)
    predictions = DensePredictions(logits, boxes, s.predictions.anchors)
    losses = supervise(o2o, predictions, s.targets)
    sum(losses.values(), torch.zeros(())).backward()
    assert losses["l1"].item() == losses["giou"].item() == 0
    assert logits.grad is not None
    assert logits.grad.any()
    assert boxes.grad is not None
    assert not boxes.grad.any()


def test_targets_know_their_images_sizes() -> None:
    targets = Targets.of([torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 4)], [(30, 40)])
    assert targets.whwh.tolist() == [[40, 30, 40, 30]]
