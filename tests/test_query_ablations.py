"""DETA's and Match-Free's rows: what `ablate` finds in them, and that each of them trains and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from detbench import ablation, recipes
from detbench.core.supervise import supervise
from detbench.core.types import Targets
from detbench.parts.experiment import Experiment
from detbench.recipes import Context

# Parameter -> the recipe it is asked of, the key that takes its values, and these.
SWEPT = {
    "alpha": ("match-free/table3", "branches.decoder.losses.correspondence.weight", [0.5, 1.0, 2.0]),
    "normalization": (None, "branches.decoder.assigner.normalization", ["none", "sum", "max"]),
    "rho": (None, "branches.decoder.assigner.rho", [0.25, 0.5, 0.75, 0.9]),
    "test_nms": (None, "test.postprocess.iou_threshold", [0.5, 0.6, 0.7, 0.8, 0.9]),
}


def at(experiment: Experiment, key: str) -> Any:
    value: Any = experiment
    for step in key.split("."):
        value = value[step] if isinstance(value, dict) else getattr(value, step)
    return value


@pytest.mark.parametrize("param", SWEPT)
def test_ablate_finds_a_parameter_by_its_name_with_its_values(param: str, tmp_path: Path) -> None:
    source, key, values = SWEPT[param]
    recipe = recipes.load(
        str(ablation.make([param], values=[], recipe=source, row=None, folder=tmp_path).path)
    )
    (sweep,) = recipe.sweeps
    assert [point.value for point in sweep.point] == values
    for point in sweep.point:
        assert at(recipes.resolve(recipe, recipe.rows[point.label], Context("cpu")), key) == point.value


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "paper"])
def test_each_stage_has_its_own_rule_and_its_own_suppression(
    scale: Literal["smoke", "cpu", "gpu", "paper"],
) -> None:
    recipe = recipes.load("deta/ablations")
    sweep = next(sweep for sweep in recipe.sweeps if sweep.param == "assignment")
    found = {}
    for point in sweep.point:
        row = recipes.resolve(recipe, recipe.rows[point.label], Context(scale))
        rules = [row.branches[name].assigner.kind for name in ("encoder", "decoder")]
        assert (at(row, "detector.queries.nms") is not None) == (rules[0] == "query_iou")
        assert row.test.postprocess.kind == ("nms" if rules[1] == "query_iou" else "top_k")
        found[point.value] = rules
    hungarian, iou = "query_hungarian", "query_iou"
    assert found == {
        "hungarian": [hungarian, hungarian],
        "first": [iou, hungarian],
        "second": [hungarian, iou],
        "both": [iou, iou],
    }


def test_the_bound_of_balancing_is_that_of_both_stages() -> None:
    recipe = recipes.load("deta/ablations")
    sweep = next(sweep for sweep in recipe.sweeps if sweep.param == "balance")
    for point in sweep.point:
        row = recipes.resolve(recipe, recipe.rows[point.label], Context("cpu"))
        assert {at(row, f"branches.{stage}.assigner.balance") for stage in ("encoder", "decoder")} == {
            point.value
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deta/ablations", "match-free/table4", "match-free/ablations"])
def test_every_row_has_losses_gradients_and_detections(name: str) -> None:
    """One step of each row on two images, one of them without objects."""
    recipe = recipes.load(name)
    targets = Targets.of(
        [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)],
        [torch.tensor([[4.0, 5, 30, 40], [10, 10, 60, 50]]), torch.zeros(0, 4)],
        [(64, 80), (64, 72)],
    )
    images = torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    for row in recipe.runnable():
        experiment = recipes.resolve(recipe, row, Context("smoke"))
        torch.manual_seed(0)
        model = experiment.detector.build(branches=experiment.branches, num_classes=3).train()
        outputs = model(images, targets.sizes, targets)
        losses = {
            f"{branch}.{loss}": value
            for branch, part in experiment.branches.items()
            for loss, value in supervise(part, outputs[branch], targets).items()
        }
        total = torch.stack(list(losses.values())).sum()
        torch.autograd.backward(total)
        assert total.isfinite(), row.label
        assert all(loss > 0 for loss in losses.values()), (row.label, losses)
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == [], row.label
        with torch.no_grad():
            tested = model.eval()(images, targets.sizes, branches=(experiment.test.branch,))
        found = experiment.test.postprocess(tested[experiment.test.branch], targets.sizes)
        assert [len(detections.scores) > 0 for detections in found] == [True, True], row.label
