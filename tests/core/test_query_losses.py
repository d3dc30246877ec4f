"""What every loss of query detectors promises, the boxes' losses by hand, and the normalisers over layers."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from query_scenes import (
    NUM_CLASSES,
    NUM_LAYERS,
    NUM_QUERIES,
    alone,
    as_type,
    some_objects,
    some_queries,
)
from torch import Tensor

from detbench.core import distributed
from detbench.core.supervise import QuerySupervision, supervise
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.parts.assigners import Known, QueryHungarian
from detbench.parts.branches import Branch, DecoderOutput, DenoisingOutput, EncoderOutput
from detbench.parts.losses import BoxL1, Focal, QueryGiou, QueryLoss, SizedL1

# The default of sized_l1 asks for the mean size of a batch's objects: an image alone has another.
CONTRACT: dict[type, QueryLoss] = {SizedL1: SizedL1(rescale="none")}
LOSSES = [pytest.param(CONTRACT.get(loss, loss()), id=loss().kind) for loss in get_args(QueryLoss)]
# What a loss teaches, where that isn't the class logits.
TEACHES = {
    "box_l1": "pred_boxes",
    "sized_l1": "pred_boxes",
    "query_giou": "pred_boxes",
    "iou_quality": "pred_quality",
    "correspondence": "correspondence",
}
LEAVES = ("pred_logits", "pred_boxes", "pred_quality", "correspondence")
COUNTS = (3, 0, 2)


def supervision(
    counts: tuple[int, ...] = COUNTS,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    *,
    num_layers: int = NUM_LAYERS,
) -> QuerySupervision:
    """Each object answered for by two queries of each layer, one of which overlaps it, with weights."""
    targets = some_objects(counts, seed)
    predictions = some_queries(targets, seed, num_layers=num_layers)
    targets = targets.repeat(num_layers)
    matches = two_queries_each(targets)
    boxes = predictions.pred_boxes.clone()
    near = targets.cxcywh[matches.target_idx] * torch.tensor([1.02, 0.97, 1.1, 0.9])
    boxes[matches.image_idx, matches.pred_idx] = near.to(boxes.dtype)
    return QuerySupervision(as_type(replace(predictions, pred_boxes=boxes), dtype), targets, matches)


def two_queries_each(targets: Targets) -> Matches:
    nth = torch.cat([torch.arange(count) for count in targets.counts])
    return Matches(
        targets.image_idx.repeat_interleave(2),
        torch.stack([2 * nth, 2 * nth + 1], 1).flatten(),
        torch.arange(len(nth)).repeat_interleave(2),
        weights=torch.tensor([1.0, 0.5]).repeat(len(nth)),
        copies=2,
    )


def with_leaves(s: QuerySupervision, **values: Tensor) -> tuple[QuerySupervision, dict[str, Tensor]]:
    """The same with every number a leaf that wants a gradient; `values` are taken instead where given."""
    leaves = {name: getattr(s.predictions, name).clone() for name in LEAVES} | values
    for leaf in leaves.values():
        leaf.requires_grad_()
    return replace(s, predictions=replace(s.predictions, **leaves)), leaves


# --- every loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_finite_differences(loss: QueryLoss) -> None:
    s = supervision(counts=(2, 1), num_layers=1)
    name = TEACHES.get(loss.kind, "pred_logits")
    if hasattr(loss, "quality_alpha"):  # else the target would follow the scores, without a gradient
        loss = replace(loss, quality_alpha=0.0)

    def value(x: Tensor) -> Tensor:
        return loss(replace(s, predictions=replace(s.predictions, **{name: x})))

    assert torch.autograd.gradcheck(value, getattr(s.predictions, name).requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_moves_only_what_it_teaches(loss: QueryLoss) -> None:
    s, leaves = with_leaves(supervision())
    loss(s).backward()
    moved = {name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()}
    assert moved == {TEACHES.get(loss.kind, "pred_logits")}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_objects_has_a_finite_loss_and_gradient(loss: QueryLoss) -> None:
    s, leaves = with_leaves(supervision(counts=(0, 0)))
    value = loss(s)
    value.backward()
    assert value.isfinite()
    for leaf in leaves.values():
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", LOSSES)
def test_all_layers_of_a_batch_cost_what_each_image_of_each_layer_costs_alone(
    loss: QueryLoss, seed: int
) -> None:
    s = supervision(seed=seed)
    expected = 0.0
    for row in range(len(s.targets.counts)):
        one, own = alone(s.predictions, s.targets, row)
        expected += loss(QuerySupervision(one, own, two_queries_each(own))).item()
    assert loss(s).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_queries_doesnt_matter(loss: QueryLoss) -> None:
    s = supervision()
    order = torch.randperm(NUM_QUERIES, generator=torch.Generator().manual_seed(0))
    shuffled = {name: getattr(s.predictions, name)[:, order] for name in LEAVES}
    matches = replace(s.matches, pred_idx=order.argsort()[s.matches.pred_idx])
    other = QuerySupervision(replace(s.predictions, **shuffled), s.targets, matches)
    assert loss(other).item() == pytest.approx(loss(s).item(), rel=1e-12)


@pytest.mark.parametrize("size", [200.0, 1e4])
@pytest.mark.parametrize("loss", LOSSES)
def test_saturated_logits_have_a_finite_loss_and_gradient(loss: QueryLoss, size: float) -> None:
    s = supervision(dtype=torch.float32)
    quality = torch.full((len(s.targets.counts), NUM_QUERIES), size)
    quality[:, 1::2] *= -1
    logits = quality[..., None].repeat(1, 1, NUM_CLASSES)
    s, leaves = with_leaves(s, pred_logits=logits, pred_quality=quality)
    value = loss(s)
    value.backward()
    assert value.isfinite()
    for leaf in leaves.values():
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_predictions_cost_next_to_nothing(loss: QueryLoss) -> None:
    s = supervision()
    row, pred, target = s.matches.image_idx, s.matches.pred_idx, s.matches.target_idx
    logits = torch.full_like(s.predictions.pred_logits, -20.0)
    logits[row, pred, s.target_labels] = 20.0
    boxes = s.predictions.pred_boxes.clone()
    boxes[row, pred] = s.targets.cxcywh[target].double()
    assert s.predictions.correspondence is not None
    correspondence = torch.zeros_like(s.predictions.correspondence)
    correspondence[target, pred] = 0.5
    perfect = QuerySupervision(
        replace(
            s.predictions,
            pred_logits=logits,
            pred_boxes=boxes,
            pred_quality=torch.full_like(logits[..., 0], 20.0),
            correspondence=correspondence,
        ),
        s.targets,
        replace(s.matches, weights=None),
    )
    assert loss(perfect).item() < 0.01 * loss(s).item()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_keep_the_precision_of_the_predictions(loss: QueryLoss) -> None:
    assert loss(supervision()).dtype == torch.float64
    assert loss(supervision(dtype=torch.float32)).dtype == torch.float32


# --- boxes ------------------------------------------------------------------------------------------


def one_pair(pred: tuple[float, ...], target: tuple[float, ...], size: tuple[int, int]) -> QuerySupervision:
    """One query with a normalised cxcywh box, one object with an xyxy box in pixels."""
    targets = Targets.of([torch.zeros(1, dtype=torch.int64)], [torch.tensor([target])], [size])
    predictions = QueryPredictions(
        torch.zeros(1, 1, 1, dtype=torch.float64), torch.tensor([[pred]], dtype=torch.float64)
    )
    zero = torch.zeros(1, dtype=torch.int64)
    return QuerySupervision(predictions, targets, Matches(zero, zero, zero))


def test_box_losses_by_hand() -> None:
    # An image 100 wide and 50 high; prediction (0,0,20,10), object (10,0,30,10) in pixels.
    # Normalised centres lie .1 apart, corners .1 twice; IoU 100/300, nothing between the boxes.
    s = one_pair((0.1, 0.1, 0.2, 0.2), (10, 0, 30, 10), (50, 100))
    assert BoxL1()(s).item() == pytest.approx(0.1, abs=1e-6)
    assert BoxL1(box_format="xyxy")(s).item() == pytest.approx(0.2, abs=1e-6)
    assert QueryGiou()(s).item() == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize(("eps", "giou"), [(0.0, 1 / 7 - 2 / 9), (1e-6, 1e-4 / 7.01e-4 - 2e-4 / 9.01e-4)])
def test_the_giou_of_a_small_pair_by_hand(eps: float, giou: float) -> None:
    # Sides of .02, centres .01 apart along both axes: intersection 1e-4, union 7e-4, hull 9e-4.
    s = one_pair((0.5, 0.5, 0.02, 0.02), (50, 50, 52, 52), (100, 100))
    assert QueryGiou(eps=eps)(s).item() == pytest.approx(1 - giou, abs=1e-6)


@pytest.mark.parametrize("loss", [BoxL1(), QueryGiou()], ids=lambda loss: loss.kind)
def test_pairs_count_as_their_match_says_where_the_loss_asks_for_it(loss: BoxL1 | QueryGiou) -> None:
    s = supervision()
    each = [
        loss(QuerySupervision(s.predictions, s.targets, Matches(row[None], pred[None], target[None]))).item()
        for row, pred, target in zip(
            s.matches.image_idx, s.matches.pred_idx, s.matches.target_idx, strict=True
        )
    ]
    assert loss(s).item() == pytest.approx(sum(each), rel=1e-9)
    weighed = replace(loss, weigh_by="match")
    halved = sum(value * (1.0, 0.5)[i % 2] for i, value in enumerate(each))
    assert weighed(s).item() == pytest.approx(halved, rel=1e-9)


# --- normalisers and branches -----------------------------------------------------------------------


def test_normalisers_count_the_objects_of_one_layer() -> None:
    s = supervision()  # 3 + 0 + 2 objects in each of two layers, offered twice
    assert s.normaliser("objects").item() == 5
    assert s.normaliser("copies").item() == 10


def test_normalisers_are_one_without_objects() -> None:
    s = supervision(counts=(0, 0))
    assert s.normaliser("objects").item() == 1
    assert s.normaliser("copies").item() == 1


def test_normalisers_count_the_objects_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A second process that holds thirty times as much.
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: x.mul_(31))
    s = supervision()
    assert s.normaliser("objects").item() == pytest.approx(155)
    assert s.normaliser("copies").item() == pytest.approx(310)


def test_copies_multiply_the_objects_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A second process with 15 objects.
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: x.add_(15))
    s = supervision()
    assert s.normaliser("copies").item() == 2 * 20
    many = replace(s, matches=replace(s.matches, copies=50))
    assert many.normaliser("copies").item() == 50 * 20


def branch(**changes: object) -> Branch:
    settings: dict[str, object] = {
        "predictor": DecoderOutput(),
        "assigner": QueryHungarian(),
        "losses": {
            "cls": Focal(weight=2.0, divide_by="objects"),
            "bbox": BoxL1(divide_by="objects"),
            "giou": QueryGiou(),
        },
    }
    return Branch(**(settings | changes))  # type: ignore[arg-type]


def test_a_branchs_losses_are_the_sums_of_its_layers_over_the_number_of_objects() -> None:
    targets = some_objects(COUNTS, 0)
    predictions = some_queries(targets, 0)
    losses = supervise(branch(weight=3.0), predictions, targets)
    rows = targets.repeat(NUM_LAYERS)
    expected = {"cls": 0.0, "bbox": 0.0, "giou": 0.0}
    for row in range(len(rows.counts)):
        one, own = alone(predictions, rows, row)
        for name, loss in branch().losses.items():
            s = QuerySupervision(one, own, QueryHungarian()(one, own))
            expected[name] += 3.0 * loss.weight * loss(s).item() / sum(COUNTS)  # type: ignore[arg-type]
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-6)


def test_a_loss_can_be_divided_by_the_objects_or_by_their_copies() -> None:
    targets = some_objects(COUNTS, 0)
    predictions = some_queries(targets, 0)

    def value(divide_by: str) -> float:
        loss = {"l1": BoxL1(divide_by=divide_by)}  # type: ignore[arg-type]
        return supervise(branch(assigner=QueryHungarian(copies=3), losses=loss), predictions, targets)[
            "l1"
        ].item()

    assert value("objects") == pytest.approx(3 * value("copies"), rel=1e-6)


def test_an_encoder_with_binary_labels_sees_every_object_as_class_0() -> None:
    targets = some_objects((4,), 0)
    predictions = some_queries(targets, 0, num_layers=1)
    relabelled = replace(targets, labels=torch.zeros_like(targets.labels))
    assert targets.labels.any()
    binary = supervise(branch(predictor=EncoderOutput(labels="binary")), predictions, targets)
    true = supervise(branch(predictor=EncoderOutput(labels="true")), predictions, targets)
    expected = supervise(branch(), predictions, relabelled)
    assert {k: v.item() for k, v in binary.items()} == {k: v.item() for k, v in expected.items()}
    assert binary["cls"] != true["cls"]


def test_denoising_queries_answer_for_the_objects_they_were_made_from() -> None:
    targets = some_objects(COUNTS, 0)
    predictions = some_queries(targets, 0)
    assert predictions.pairs is not None
    # Boxes that fit exactly, but in the places of the known pairs only.
    boxes = predictions.pred_boxes.clone()
    rows = targets.repeat(NUM_LAYERS)
    boxes[predictions.pairs.image_idx, predictions.pairs.pred_idx] = rows.cxcywh.to(boxes.dtype)
    predictions = replace(predictions, pred_boxes=boxes)
    losses = supervise(branch(predictor=DenoisingOutput(), assigner=Known()), predictions, targets)
    assert losses["bbox"].item() == 0
    assert losses["giou"].item() == pytest.approx(0, abs=1e-6)


def test_a_batch_without_objects_trains_every_output() -> None:
    # Data-parallel training waits for a gradient of every parameter, be it zero.
    targets = some_objects((0, 0), 0)
    predictions = some_queries(targets, 0)
    logits = predictions.pred_logits.clone().requires_grad_()
    boxes = predictions.pred_boxes.clone().requires_grad_()
    leaves = replace(predictions, pred_logits=logits, pred_boxes=boxes)
    losses = supervise(branch(), leaves, targets)
    sum(losses.values(), torch.zeros(())).backward()
    assert losses["bbox"].item() == losses["giou"].item() == 0
    assert logits.grad is not None
    assert logits.grad.all()
    assert boxes.grad is not None
    assert not boxes.grad.any()


def test_focal_loss_over_all_layers_equals_the_definition() -> None:
    s = supervision()
    target = torch.zeros(len(s.targets.counts), NUM_QUERIES, NUM_CLASSES, dtype=torch.float64)
    target[s.matches.image_idx, s.matches.pred_idx, s.target_labels] = 1
    prob = s.predictions.pred_logits.sigmoid()
    hit = -0.25 * (1 - prob) ** 2 * prob.log()
    miss = -0.75 * prob**2 * (1 - prob).log()
    assert Focal()(s).item() == pytest.approx((target * hit + (1 - target) * miss).sum().item(), rel=1e-9)
