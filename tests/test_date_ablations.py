"""`ablate` with the parameters DATE names: the paper's own values, without being told them."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbench import ablation, recipes
from detbench.recipes import Context

# Parameter -> the key that takes its values, and these in each series.
PAPER = {
    "lambda_o2m": ("branches.o2m.weight", {"DATE-F": [0.5, 1, 2, 4], "DATE-R": [0.5, 1, 2, 4]}),
    "lambda_o2o": ("branches.o2o.weight", {"DATE-F": [0.5, 1, 2, 4], "DATE-R": [0.5, 1, 2, 4]}),
    "share_subnets": ("detector.subnets.shared", {"DATE-R": [True, False]}),
}


def made(param: str, folder: Path) -> recipes.Recipe:
    path = ablation.make([param], values=[], recipe=None, row=None, folder=folder).path
    return recipes.load(str(path))


@pytest.mark.parametrize("param", PAPER)
def test_a_number_is_swept_over_the_papers_values(param: str, tmp_path: Path) -> None:
    key, series = PAPER[param]
    recipe = made(param, tmp_path)
    assert {sweep.series: [point.value for point in sweep.point] for sweep in recipe.sweeps} == series
    for sweep in recipe.sweeps:
        for point in sweep.point:
            value = recipes.resolve(recipe, recipe.rows[point.label], Context("cpu"))
            for step in key.split("."):
                value = value[step] if isinstance(value, dict) else getattr(value, step)
            assert value == point.value


def test_poto_is_switched_off_and_on_with_each_second_branch(tmp_path: Path) -> None:
    recipe = made("poto", tmp_path)
    assert [sweep.series for sweep in recipe.sweeps] == ["OneNet", "DATE-R", "DATE-F"]
    for sweep in recipe.sweeps:
        rules = [
            recipes.resolve(recipe, recipe.rows[point.label], Context("cpu")).branches["o2o"].assigner.kind
            for point in sweep.point
        ]
        assert rules == ["hungarian", "poto"]


def test_the_second_branch_is_none_retinanets_or_fcoss(tmp_path: Path) -> None:
    recipe = made("o2m", tmp_path)
    (sweep,) = recipe.sweeps
    kinds = {}
    for point in sweep.point:
        branches = recipes.resolve(recipe, recipe.rows[point.label], Context("cpu")).branches
        kinds[point.value] = [branch.predictor.kind for branch in branches.values()]
    assert kinds == {"none": ["point"], "retinanet": ["point", "anchor"], "fcos": ["point", "fcos"]}
