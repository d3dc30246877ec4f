"""Align-DETR's recipes: which rows are one run, what a component or a sweep changes, how `ablate` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbench import ablation, recipes
from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment
from detbench.parts.part import flatten
from detbench.recipes import SCALES, Context, Scale

FULL = "Cls Loss + Reg Loss + Matching"
TABLE5 = {
    "alpha": (0.0, 0.25, 0.5, 0.75),
    "k": (1, 2, 3, 4, 5),
    "tau": (1.5, 3.0, 6.0, 9.0),
}


def experiment(name: str, label: str, scale: Scale = "paper") -> Experiment:
    recipe = recipes.load(name)
    return recipes.resolve(recipe, recipe.rows[label], Context(scale=scale))


def digests(scale: Scale, *rows: tuple[str, str]) -> set[str]:
    return {experiment(f"align-detr/{table}", label, scale).digest("") for table, label in rows}


@pytest.mark.parametrize("scale", SCALES)
def test_the_default_setting_is_one_run_wherever_it_stands(scale: Scale) -> None:
    rows = [
        ("table1", "Align-DETR (Ours), 12 ep"),
        ("table3", "Align Loss (Ours)"),
        ("table4", FULL),
        ("table5", "alpha=0.25"),
        ("table5", "k=4"),
        ("table5", "tau=1.5"),
        ("figure1-right", "Align-DETR"),
    ]
    assert len(digests(scale, *rows)) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_dino_is_one_run_wherever_it_stands(scale: Scale) -> None:
    rows = [
        ("table1", "DINO, 12 ep"),
        ("table3", "Focal Loss"),
        ("figure1-left", "high confident samples"),
        ("figure1-left", "best regressed samples (oracle)"),
        ("figure1-right", "DINO"),
    ]
    assert len(digests(scale, *rows)) == 1


def test_table_4_without_matching_is_table_5_with_one_query_for_each_object() -> None:
    assert len(digests("paper", ("table4", "Cls Loss + Reg Loss"), ("table5", "k=1"))) == 1


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("label", "last_keys"),
    [
        ("Cls Loss + Reg Loss", {"copies"}),
        ("Cls Loss + Matching", {"weigh_by"}),
        ("Reg Loss + Matching", {"cls"}),
        ("Matching", {"weigh_by", "cls"}),
    ],
)
def test_a_component_of_table_4_changes_nothing_but_itself(
    label: str, last_keys: set[str], scale: Scale
) -> None:
    full, without = (experiment("align-detr/table4", row, scale) for row in (FULL, label))
    changes = recipes.changes(full, without)
    assert {key.rpartition(".")[2] for key in changes} == last_keys
    for key, (here, there) in changes.items():
        if key.endswith("cls"):
            assert (here["weight"], here["divide_by"]) == (there["weight"], there["divide_by"])


@pytest.mark.parametrize("scale", SCALES)
def test_rivals_of_table_3_differ_from_dino_in_class_loss_cost_or_quality_alone(scale: Scale) -> None:
    recipe = recipes.load("align-detr/table3")
    dino = experiment("align-detr/table3", "Focal Loss", scale)
    for label in list(recipe.rows)[1:-1]:
        changed = recipes.changes(dino, experiment("align-detr/table3", label, scale))
        last = {key.rpartition(".")[2] for key in changed}
        expected = {
            "IoU branch": {"quality_head", "iou", "quality"},
            "PSL + PMC": {"cls", "position_power"},
        }
        assert last == expected.get(label, {"cls"}), label


@pytest.mark.parametrize("param", TABLE5)
def test_a_sweep_of_table_5_takes_the_papers_values_in_every_place(param: str, tmp_path: Path) -> None:
    swept = recipes.load(
        str(ablation.make([param], values=[], recipe="align-detr/table5", row=None, folder=tmp_path).path)
    )
    assert [point.value for point in swept.sweeps[0].point] == list(TABLE5[param])
    places = {"alpha": "quality_alpha", "k": "copies", "tau": "tau"}
    for row, value in zip(swept.rows.values(), TABLE5[param], strict=True):
        resolved = recipes.resolve(swept, row, Context())
        # One query for each object in the last layer, whatever k.
        found = [
            setting
            for key, setting in flatten(recipes.settings(resolved)).items()
            if key.endswith(f".{places[param]}") and key != "branches.last.assigner.copies"
        ]
        assert len(found) == {"alpha": 6, "k": 2, "tau": 2}[param]
        assert set(found) == {value}


@pytest.mark.parametrize("param", ["k", "tau"])
def test_k_and_tau_are_found_without_naming_a_recipe(param: str, tmp_path: Path) -> None:
    file = ablation.make([param], values=[], recipe=None, row=None, folder=tmp_path).path
    assert "align-detr/table5" in file.read_text(encoding="utf-8")


def test_alpha_is_a_parameter_of_two_papers_and_the_message_says_how_to_choose(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        ablation.make(["alpha"], values=[], recipe=None, row=None, folder=tmp_path)
    assert "--recipe align-detr/table5" in str(caught.value)
    assert "--recipe match-free/table3" in str(caught.value)


def test_other_values_go_to_all_places_too(tmp_path: Path) -> None:
    file = ablation.make(["tau"], values=["2.0"], recipe=None, row=None, folder=tmp_path).path
    swept = recipes.load(str(file))
    (row,) = swept.rows.values()
    branches = recipes.resolve(swept, row, Context()).branches
    taus = [b.assigner.rank.tau for b in branches.values() if getattr(b.assigner, "rank", None)]
    assert taus == [2.0, 2.0]
