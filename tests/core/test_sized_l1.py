"""Sized L1 by hand, what it promises of sizes and batches, and how it is rescaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detbench.core import distributed
from detbench.core.supervise import DenseSupervision, QuerySupervision, Supervision, supervise
from detbench.core.types import Anchors, DensePredictions, Matches, QueryPredictions, Targets
from detbench.parts.assigners import QueryHungarian
from detbench.parts.branches import Branch, DecoderOutput
from detbench.parts.losses import BoxL1, Rescale, SizedL1

SIZE = (100, 200)  # height, width of every image
Box = Sequence[float]  # cxcywh, normalised
Make = Callable[[Sequence[Box], Sequence[Box]], Supervision]


def pixels(boxes: Sequence[Box]) -> Tensor:
    """(N, 4) xyxy pixels."""
    height, width = SIZE
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes]
    return torch.tensor(corners, dtype=torch.float64).reshape(-1, 4) * torch.tensor([width, height] * 2)


def of_queries(pred: Sequence[Box], target: Sequence[Box], weights: Tensor | None = None) -> QuerySupervision:
    """An image whose n-th query answers for its n-th object."""
    index = torch.arange(len(target))
    targets = Targets.of([torch.zeros_like(index)], [pixels(target)], [SIZE])
    boxes = torch.tensor([pred], dtype=torch.float64).reshape(1, -1, 4)
    predictions = QueryPredictions(boxes.new_zeros(1, len(pred), 1), boxes)
    return QuerySupervision(
        predictions, targets, Matches(torch.zeros_like(index), index, index, None, weights)
    )


def of_points(pred: Sequence[Box], target: Sequence[Box]) -> DenseSupervision:
    """The same from a dense detector."""
    s = of_queries(pred, target)
    boxes = pixels(pred)
    anchors = Anchors(boxes, boxes[:, :2], torch.ones(len(boxes)), (len(boxes),))
    predictions = DensePredictions(s.predictions.pred_logits, boxes[None], anchors)
    return DenseSupervision(predictions, s.targets, s.matches)


def shifted(box: Box, by: Box) -> tuple[float, ...]:
    """The box with each coordinate off by a share of the object's side."""
    x, y, w, h = box
    return (x + by[0] * w, y + by[1] * h, w * (1 + by[2]), h * (1 + by[3]))


ERROR = (0.1, -0.2, 0.3, 0.05)  # of the side: .65 in all, .4 of it along x
SMALL, LARGE = (0.3, 0.4, 0.05, 0.1), (0.5, 0.5, 0.4, 0.8)
BOTH = ([shifted(SMALL, ERROR), shifted(LARGE, ERROR)], [SMALL, LARGE])


@pytest.mark.parametrize("make", [of_queries, of_points])
@pytest.mark.parametrize("box", [SMALL, LARGE])
def test_the_same_relative_error_costs_the_same_at_every_size(make: Make, box: Box) -> None:
    loss = SizedL1(rescale="none")
    assert loss(make([shifted(box, ERROR)], [box])).item() == pytest.approx(0.65, rel=1e-6)


@pytest.mark.parametrize(
    ("rescale", "expected"),
    [
        ("none", 1.3),
        # Mean width .225, mean height .45: each box .4 * .225 + .25 * .45.
        ("axis_mean", 2 * (0.4 * 0.225 + 0.25 * 0.45)),
        ("scalar_mean", 1.3 * (0.225 + 0.45) / 2),
        # Plain L1: .4 * .05 + .25 * .1 for the small box, eight times that for the large one.
        ("loss_preserving", 9 * 0.045),
        ("constant", 2 * (0.4 * 0.2 + 0.25 * 0.3)),
    ],
)
@pytest.mark.parametrize("make", [of_queries, of_points])
def test_every_way_of_rescaling_by_hand(make: Make, rescale: Rescale, expected: float) -> None:
    loss = SizedL1(rescale=rescale, mean_size=(0.2, 0.3) if rescale == "constant" else None)
    assert loss(make(*BOTH)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [of_queries, of_points])
def test_corners_are_measured_in_the_same_sides(make: Make) -> None:
    # Centre off by a tenth of the width, width right: both vertical edges are off by that much.
    s = make([shifted(SMALL, (0.1, 0, 0, 0))], [SMALL])
    assert SizedL1(rescale="none", box_format="xyxy")(s).item() == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("rescale", ["axis_mean", "loss_preserving", "constant"])
def test_objects_of_one_size_cost_what_they_do_in_plain_l1(rescale: Rescale) -> None:
    target = [(0.3, 0.3, 0.1, 0.3), (0.6, 0.5, 0.1, 0.3), (0.7, 0.4, 0.1, 0.3)]
    pred = [shifted(box, ERROR[i:] + ERROR[:i]) for i, box in enumerate(target)]
    loss = SizedL1(rescale=rescale, mean_size=(0.1, 0.3) if rescale == "constant" else None)
    s = of_queries(pred, target)
    assert loss(s).item() == pytest.approx(BoxL1()(s).item(), rel=1e-6)


def test_squares_of_one_size_cost_what_they_do_in_plain_l1_under_the_scalar_mean() -> None:
    target = [(0.3, 0.3, 0.1, 0.1), (0.6, 0.5, 0.1, 0.1)]
    s = of_queries([shifted(box, ERROR) for box in target], target)
    assert SizedL1(rescale="scalar_mean")(s).item() == pytest.approx(BoxL1()(s).item(), rel=1e-6)


def test_a_small_objects_error_counts_for_more_than_in_plain_l1_and_a_large_ones_for_less() -> None:
    for pred, more in (((shifted(SMALL, ERROR), LARGE), True), ((SMALL, shifted(LARGE, ERROR)), False)):
        s = of_queries(pred, (SMALL, LARGE))
        assert (SizedL1()(s) > BoxL1()(s)).item() is more


@pytest.mark.parametrize("rescale", get_args(Rescale))
@pytest.mark.parametrize("make", [of_queries, of_points])
def test_an_empty_object_counts_as_one_pixel_wide_and_high(make: Make, rescale: Rescale) -> None:
    # A pixel is .005 wide and .01 high here: .02 along x and .03 along y are 4 and 3 of them.
    mean_size = (0.005, 0.01) if rescale == "constant" else None
    s = make([(0.51, 0.52, 0.01, 0.01)], [(0.5, 0.5, 0.0, 0.0)])
    expected = {"none": 4 + 3, "scalar_mean": 7 * 0.0075}.get(rescale, 0.02 + 0.03)
    value = SizedL1(rescale=rescale, mean_size=mean_size)(s)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_least_side_is_a_choice() -> None:
    s = of_queries([(0.51, 0.52, 0.01, 0.01)], [(0.5, 0.5, 0.0, 0.0)])
    assert SizedL1(rescale="none", min_side=2.0)(s).item() == pytest.approx(3.5, rel=1e-6)


@pytest.mark.parametrize("rescale", get_args(Rescale))
def test_without_objects_the_loss_is_0_and_trains_nothing(rescale: Rescale) -> None:
    loss = SizedL1(rescale=rescale, mean_size=(0.1, 0.1) if rescale == "constant" else None)
    s = of_queries([SMALL], [])
    boxes = s.predictions.pred_boxes.requires_grad_()
    value = loss(s)
    (gradient,) = torch.autograd.grad(value, boxes)
    assert value.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("rescale", get_args(Rescale))
def test_a_perfect_prediction_costs_nothing(rescale: Rescale) -> None:
    loss = SizedL1(rescale=rescale, mean_size=(0.1, 0.1) if rescale == "constant" else None)
    assert loss(of_queries([SMALL, LARGE], [SMALL, LARGE])).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    s = of_queries(*BOTH)

    def value(boxes: Tensor) -> Tensor:
        return SizedL1()(
            QuerySupervision(QueryPredictions(boxes.new_zeros(1, 2, 1), boxes), s.targets, s.matches)
        )

    assert torch.autograd.gradcheck(value, s.predictions.pred_boxes.requires_grad_())


def test_what_preserves_the_loss_changes_the_gradients_size_alone() -> None:
    gradients: list[Tensor] = []
    for loss in (SizedL1(rescale="none"), SizedL1(rescale="loss_preserving")):
        s = of_queries(*BOTH)
        boxes = s.predictions.pred_boxes.requires_grad_()
        gradients += torch.autograd.grad(loss(s), boxes)
    # The plain L1 is .405 where the sized one is 1.3.
    assert torch.allclose(gradients[1], gradients[0] * (0.405 / 1.3))


def test_pairs_count_as_their_match_says_while_means_are_of_the_objects() -> None:
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    s = of_queries(*BOTH, weights)
    each = 0.4 * 0.225 + 0.25 * 0.45
    assert SizedL1(weigh_by="match")(s).item() == pytest.approx(2.5 * each, rel=1e-6)
    assert SizedL1()(s).item() == pytest.approx(2 * each, rel=1e-6)
    preserving = SizedL1(weigh_by="match", rescale="loss_preserving")
    assert preserving(s).item() == pytest.approx(BoxL1(weigh_by="match")(s).item(), rel=1e-6)


def test_objects_sizes_dont_change_what_the_loss_is_divided_by() -> None:
    s = of_queries(*BOTH)
    branch = Branch(
        predictor=DecoderOutput(),
        assigner=QueryHungarian(),
        losses={"sized": SizedL1(rescale="none", weight=3.0, divide_by="objects")},
    )
    losses = supervise(branch, s.predictions, s.targets)
    assert losses["sized"].item() == pytest.approx(3.0 * 1.3 / 2, rel=1e-6)


@pytest.mark.parametrize("rescale", ["axis_mean", "scalar_mean", "loss_preserving"])
def test_each_layer_is_rescaled_by_its_own_pairs(rescale: Rescale) -> None:
    # One query: the first layer gives it to the small object, the second to the large one (spec 6.2).
    targets = of_queries(*BOTH).targets.repeat(2)
    boxes = torch.tensor(BOTH[0], dtype=torch.float64)[:, None].requires_grad_()
    predictions = QueryPredictions(boxes.new_zeros(2, 1, 1), boxes, num_layers=2)
    matches = Matches(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 3]))
    value = SizedL1(rescale=rescale)(QuerySupervision(predictions, targets, matches))
    (gradient,) = torch.autograd.grad(value, boxes)
    for layer in range(2):
        s = of_queries([BOTH[0][layer]], [BOTH[1][layer]])
        own = s.predictions.pred_boxes.requires_grad_()
        alone = SizedL1(rescale=rescale)(s)
        assert torch.allclose(torch.autograd.grad(alone, own)[0][0], gradient[layer])
        value = value - alone
    assert value.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("mean_over", "means"), [("all_processes", (0.425, 0.65)), ("this_process", (0.225, 0.45))]
)
def test_means_are_over_the_objects_of_all_processes_or_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
    mean_over: Literal["all_processes", "this_process"],
    means: tuple[float, float],
) -> None:
    # Another process with two objects of 1.25 by 1.7 in all: widths sum to 1.7 and heights to 2.6.
    def with_the_other(x: Tensor) -> None:
        x.add_(torch.tensor([1.25, 1.7]) if x.numel() == 2 else 2.0)

    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", with_the_other)
    expected = 2 * (0.4 * means[0] + 0.25 * means[1])
    assert SizedL1(mean_over=mean_over)(of_queries(*BOTH)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"rescale": "constant"}, {"mean_size": (0.1, 0.1)}, {"rescale": "none", "mean_size": (1.0, 1.0)}],
)
def test_a_mean_size_goes_with_the_constant_rescaling_alone(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="mean_size goes with rescale = 'constant'"):
        SizedL1(**settings)  # type: ignore[arg-type]
