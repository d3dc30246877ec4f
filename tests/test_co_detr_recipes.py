"""Co-DETR's rows: what they share, what tells them apart, and what their detector weighs (spec 7)."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from detbench import recipes, runs
from detbench.core.assign.query_hungarian import query_cost
from detbench.core.supervise import supervise
from detbench.core.types import Matches, QueryPredictions, Targets
from detbench.engine.cost import costs_untrained
from detbench.parts.assigners import QueryHungarian
from detbench.parts.experiment import Experiment
from detbench.recipe_text import Scale
from detbench.recipes import Context
from detbench.store import Store

TABLE4 = "sized-l1/table4"
HEADS = {"atss", "rpn", "rcnn"}
POSITIVES = {"atss_positives", "rcnn_positives"}


@cache
def experiment(label: str, name: str = TABLE4, scale: Scale = "paper") -> Experiment:
    recipe = recipes.load(name)
    return recipes.resolve(recipe, recipe.rows[label], Context(scale=scale))


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
@pytest.mark.parametrize(("name", "label"), [(TABLE4, "Co-DETR"), ("align-detr/table1", "Co-DETR, 12 ep")])
def test_losses_of_auxiliary_heads_count_twice_for_each_decoder_layer(
    name: str, label: str, scale: Scale
) -> None:
    of = experiment(label, name, scale)
    factor = 2 * of.detector.transformer.decoder_layers
    weights = {f"{b}.{n}": loss.weight for b in HEADS for n, loss in of.branches[b].losses.items()}
    assert weights == {
        "atss.cls": factor,
        "atss.giou": 2 * factor,
        "atss.centerness": factor,
        "rpn.cls": factor,
        "rpn.bbox": factor,
        "rcnn.cls": factor,
        "rcnn.giou": 10 * factor,
    }


def test_queries_of_positives_learn_as_the_main_head_does() -> None:
    of = experiment("Co-DETR")
    for name in POSITIVES:
        for key, loss in of.branches[name].losses.items():
            main = of.branches["decoder"].losses[key]
            assert (loss.kind, loss.weight) == (main.kind, main.weight)


@pytest.mark.parametrize("name", ["decoder", "encoder", "denoising", "atss_positives", "rcnn_positives"])
def test_an_object_of_four_pixels_overlaps_as_much_as_a_large_one(name: str) -> None:
    branch = experiment("Co-DETR").branches[name]
    targets = Targets.of([torch.tensor([0])], [torch.tensor([[398.0, 398.0, 402.0, 402.0]])], [(800, 800)])
    first = torch.zeros(1, dtype=torch.int64)
    predictions = QueryPredictions(
        torch.zeros(1, 1, 1),
        torch.tensor([[[402 / 800, 400 / 800, 4 / 800, 4 / 800]]]),
        pairs=Matches(first, first, first),
    )
    # Half of each is in the other: 8 of 24 square pixels, and their hull is no larger.
    losses = supervise(branch, predictions, targets)
    assert losses["giou"].item() == pytest.approx(2 * (1 - 1 / 3), rel=1e-5)
    assert losses["cls"].item() == pytest.approx((1 / 3 - 1 / 2) ** 2 * math.log(2), rel=1e-5)
    if isinstance(branch.assigner, QueryHungarian):
        cost = 2 * (0.75 - 0.25) * 0.25 * math.log(0.5) + 5 * 2 / 800 - 2 / 3
        assert query_cost(branch.assigner, predictions, targets).item() == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_sized_l1_touches_the_main_head_alone(scale: Scale) -> None:
    plain = experiment("Co-DETR", scale=scale)
    changed = {
        label: {key.split(".")[1] for key in recipes.changes(plain, experiment(label, scale=scale))}
        for label in (
            "Co-DETR + Sized L1 loss",
            "Co-DETR + Sized L1 loss, not for queries of positives",
        )
    }
    main = {"decoder", "encoder", "denoising"}
    assert list(changed.values()) == [main | POSITIVES, main]


def test_rows_with_and_without_suppression_share_their_training() -> None:
    for label, other in (
        ("Co-DETR", "Co-DETR without NMS"),
        ("Co-DETR + Sized L1 loss", "Co-DETR + Sized L1 loss, without NMS"),
    ):
        assert experiment(label).training_digest("") == experiment(other).training_digest("")
        assert experiment(label).digest("") != experiment(other).digest("")


def test_the_tested_detector_is_dino_on_five_levels() -> None:
    # DINO's paper gives its five-level ResNet-50 47 M parameters and 860 G; auxiliary heads are none of it.
    costs = costs_untrained(experiment("Co-DETR"), num_classes=80)
    assert costs.infer.parameters == pytest.approx(47e6, rel=0.02)
    assert costs.infer.macs == pytest.approx(860e9, rel=0.05)
    assert costs.train.parameters > 1.5 * costs.infer.parameters


def test_a_plan_expects_longer_steps_of_them_than_of_dino(tmp_path: Path) -> None:
    def seconds(row: str) -> float:
        store, settings = Store(tmp_path), ("training.evaluations=1", "schedule.length=1000")
        (cell,) = runs.plan(recipes.select([row]), Context("cpu", None, settings), seeds=[0], store=store)
        expected = runs.estimate(cell, store=store)
        assert expected is not None
        return expected.minutes * 60 - 16

    assert seconds("align-detr/table1/dino-12-ep") == pytest.approx(140)
    assert seconds("sized-l1/table4/co-detr") == pytest.approx(2.2 * 140)
