"""Ablations as recipes: values of every type, grids, series, and files that never stand for two things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detbench import ablation, recipes
from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment
from detbench.parts.training import Sgd
from detbench.recipes import Context, Recipe

OWN = """
[recipe]
paper = "none"
table = "own"
title = "rows with more than settings"
metrics = ["AP"]
base = "dense"
baseline = "plain"

[[row]]
label = "plain"
use = "onenet"
scale.cpu.schedule.length = 77

[[row]]
label = "of tomorrow"
use = "onenet"
needs = ["time machine"]

[[row]]
label = "of others"
quoted = true

[[sweep]]
param = "rate"
key = "optim.lr"
use = "fcos"
point = [{ value = 0.1, label = "rate 0.1", needs = ["courage"] }, { value = 0.2, label = "rate 0.2" }]
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    return str(path)


def made(folder: Path, *params: str, values: tuple[str, ...] = (), **where: Any) -> Recipe:
    chosen = {"recipe": "quickstart", "row": None} | where
    return recipes.load(str(ablation.make(params, values=values, folder=folder, **chosen).path))


def experiments(recipe: Recipe) -> dict[str, Experiment]:
    return {label: recipes.resolve(recipe, row, Context("cpu")) for label, row in recipe.rows.items()}


# ------------------------------------------------------------------ values


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    found = experiments(made(tmp_path, "training.batch", values=("8,16",)))
    assert {label: e.training.batch for label, e in found.items()} == {
        "training.batch=8": 8,
        "training.batch=16": 16,
    }


def test_lists_are_values(tmp_path: Path) -> None:
    recipe = made(tmp_path, "optim.betas", values=("[0.9,0.99],[0.8,0.9]",))
    assert [e.optim.betas for e in experiments(recipe).values()] == [(0.9, 0.99), (0.8, 0.9)]
    (sweep,) = recipe.sweeps
    assert [point.value for point in sweep.point] == ["[0.9,0.99]", "[0.8,0.9]"]


def test_tables_with_lists_in_them_are_values(tmp_path: Path) -> None:
    values = ('{ kind = "drops", at = [0.5, 0.75] }, { kind = "constant" }',)
    found = experiments(made(tmp_path, "schedule.decay", values=values)).values()
    assert [e.schedule.decay.kind for e in found] == ["drops", "constant"]


def test_a_value_that_no_recipe_can_spell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim\.clip_norm: 'unset' can't stand in a recipe"):
        made(tmp_path, "optim.clip_norm", values=("0.1,unset",))
    with pytest.raises(RecipeError, match=r"test\.branch: 2020-01-01 is a date"):
        made(tmp_path, "test.branch", values=("2020-01-01",))


def test_an_override_of_what_is_ablated_is_refused(tmp_path: Path) -> None:
    recipe = made(tmp_path, "optim.lr", values=("0.1,0.2",))
    ablation.require_values(recipe, Context("cpu", None, ("optim.weight_decay=0.1",)))
    with pytest.raises(RecipeError, match=r"with optim.lr=1, 'optim.lr=0.1' and 'optim.lr=0.2' are the same"):
        ablation.require_values(recipe, Context("cpu", None, ("optim.lr=1",)))


def test_two_values_never_share_a_row_however_close_they_are(tmp_path: Path) -> None:
    recipe = made(tmp_path, "optim.lr", values=("0.00012345678,0.00012345679",))
    assert {e.optim.lr for e in experiments(recipe).values()} == {0.00012345678, 0.00012345679}


# ------------------------------------------------------------------ files


def test_each_ablation_has_a_file_of_its_own_and_the_same_command_the_same_file(tmp_path: Path) -> None:
    rows = ["FCOS", "OneNet", "FCOS"]
    paths = [made(tmp_path, "optim.lr", values=("1e-3",), row=row).path for row in rows]
    assert paths[0] == paths[2]
    assert paths[0] != paths[1]


# ------------------------------------------------------------------ rows


def test_labels_have_the_end_of_a_key_path_that_tells_it_from_others(tmp_path: Path) -> None:
    def labels(*params: str) -> list[str]:
        return list(made(tmp_path, *params, values=("1",) * len(params), recipe="date/table5").rows)

    o2o, o2m = "branches.o2o.losses.iou.weight", "branches.o2m.losses.iou.weight"
    assert labels(o2m) == ["iou.weight=1"]
    assert labels("optim.lr") == ["optim.lr=1"]
    assert labels(o2o, o2m) == ["o2o.losses.iou.weight=1, o2m.losses.iou.weight=1"]
    assert labels(o2m, "optim.lr") == ["iou.weight=1, optim.lr=1"]


def test_a_key_path_keeps_what_its_row_says_of_a_scale_and_needs(tmp_path: Path, own: str) -> None:
    recipe = made(tmp_path, "optim.lr", values=("0.1",), recipe=own)
    (changed,) = experiments(recipe).values()
    assert (changed.schedule.length, changed.optim.lr) == (77, 0.1)
    waiting = made(tmp_path, "optim.lr", values=("0.1",), recipe=own, row="of tomorrow")
    assert [waiting.needs(row) for row in waiting.rows.values()] == [("time machine",)]


def test_a_key_path_has_no_quoted_row_to_start_from(tmp_path: Path, own: str) -> None:
    with pytest.raises(RecipeError, match="row 'of others': is quoted from the paper, never run"):
        made(tmp_path, "optim.lr", values=("0.1",), recipe=own, row="of others")


def test_a_grid_of_key_paths_keeps_scale_and_needs_too(tmp_path: Path, own: str) -> None:
    where = {"recipe": own, "values": ("0.1,0.2", '"sgd"')}
    found = experiments(made(tmp_path, "optim.lr", "optim.kind", **where))
    assert [e.optim for e in found.values()] == [Sgd(lr=0.1), Sgd(lr=0.2)]
    assert {e.schedule.length for e in found.values()} == {77}


def test_a_grid_gathers_the_needs_of_its_values(tmp_path: Path, own: str) -> None:
    recipe = made(tmp_path, "rate", "training.batch", values=("0.1,0.2,0.3", "8"), recipe=own)
    needs = {label: recipe.needs(row) for label, row in recipe.rows.items()}
    assert needs == {
        "rate=0.1, training.batch=8": ("courage",),
        "rate=0.2, training.batch=8": (),
        "rate=0.3, training.batch=8": (),
    }
    assert {row.use for row in recipe.rows.values()} == {"fcos"}, "the baseline, OneNet, has no part in it"


# ------------------------------------------------------------------ what the values are compared with


def test_differences_are_taken_to_the_papers_baseline_where_it_is_a_value(tmp_path: Path) -> None:
    assert made(tmp_path, "alpha", recipe="align-detr/table5").head.baseline == "alpha=0.25"


def test_differences_are_taken_to_the_value_that_changes_nothing(tmp_path: Path) -> None:
    lr = recipes.resolve(
        recipes.load("quickstart"), recipes.load("quickstart").rows["FCOS"], Context("cpu")
    ).optim.lr
    recipe = made(tmp_path, "optim.lr", values=(f"0.5,{lr},0.25",), row="FCOS")
    assert recipe.head.baseline == f"optim.lr={lr}"
    grid = made(tmp_path, "optim.lr", "training.batch", values=(f"0.5,{lr}", "2,4,8,16,32"), row="FCOS")
    batch = experiments(recipe)[f"optim.lr={lr}"].training.batch
    assert grid.head.baseline == f"optim.lr={lr}, training.batch={batch}"
    assert made(tmp_path, "optim.lr", values=("0.5,0.25",)).head.baseline == ""


def test_what_changes_nothing_depends_on_scale_and_overrides(tmp_path: Path) -> None:
    values = ("3,1200",)
    found = {
        context: made(tmp_path, "schedule.length", values=values, context=context).head.baseline
        for context in (Context("cpu"), Context("smoke"), Context("smoke", None, ("schedule.length=3",)))
    }
    assert list(found.values()) == ["schedule.length=1200", "", "schedule.length=3"]


def test_several_series_have_no_baseline_in_common(tmp_path: Path) -> None:
    assert made(tmp_path, "lambda_o2m", recipe="date/table10").head.baseline == ""


def test_claims_come_along_as_far_as_their_rows_do(tmp_path: Path) -> None:
    source = recipes.load("align-detr/table5")
    recipe = made(tmp_path, "alpha", recipe="align-detr/table5")
    kept = [claim for claim in source.claims if all("alpha" in label for label in claim.rows)]
    assert kept
    assert list(recipe.claims) == kept
    assert made(tmp_path, "alpha", values=("0.1,0.2",), recipe="align-detr/table5").claims == ()


# ------------------------------------------------------------------ series

GRID = {"recipe": "date/table10", "values": ("1,3", "2")}


def test_a_grid_says_which_series_it_takes(tmp_path: Path) -> None:
    recipe = made(tmp_path, "lambda_o2m", "lambda_o2o", **GRID)
    assert {row.use for row in recipe.rows.values()} == {"date-f"}
    assert "Of lambda_o2m this is the series 'DATE-F'; a --row of 'DATE-R' gives another." in recipe.head.note


def test_a_grid_takes_the_series_of_the_row_that_is_named(tmp_path: Path) -> None:
    row = "DATE-R, lambda_o2o=1, lambda_o2m=0.5"
    recipe = made(tmp_path, "lambda_o2m", "lambda_o2o", row=row, **GRID)
    assert recipe.head.note.endswith("from date/table10.")
    weights = {
        label: (e.branches["o2m"].predictor.kind, e.branches["o2m"].weight, e.branches["o2o"].weight)
        for label, e in experiments(recipe).items()
    }
    assert weights == {
        "lambda_o2m=1, lambda_o2o=2": ("anchor", 1.0, 2.0),
        "lambda_o2m=3, lambda_o2o=2": ("anchor", 3.0, 2.0),
    }


def test_a_row_of_another_parameter_chooses_no_series(tmp_path: Path, own: str) -> None:
    with pytest.raises(RecipeError, match=r"'plain' is no row of 'rate'; its rows are rate-0\.1, rate-0\.2"):
        made(tmp_path, "rate", recipe=own, row="plain")


def test_values_that_nothing_can_be_trained_with_are_refused_once(tmp_path: Path) -> None:
    for text, words in [
        ("", "no value in --values ''"),
        (",", "no value"),
        ("1e-3,inf,nan", "inf is no value"),
    ]:
        with pytest.raises(RecipeError, match=words) as refused:
            made(tmp_path, "optim.lr", values=(text,))
        assert len(refused.value.problems) == 1


def test_a_parameter_makes_no_grid_with_itself(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--param optim\.lr is given twice"):
        made(tmp_path, "optim.lr", "optim.lr", values=("1,2", "3,4"))


# ------------------------------------------------------------------ ranges, and parameters side by side


@pytest.mark.parametrize(
    "text, values",
    [
        ("1..9/2", [1, 3, 5, 7, 9]),
        ("1..4", [1, 2, 3, 4]),
        ("1..8/3", [1, 4, 7]),
        ("0.1..0.3/0.1", [0.1, 0.2, 0.3]),
        ("1..2/0.5", [1.0, 1.5, 2.0]),
        ("-1..1", [-1, 0, 1]),
        ("7,1..3,20", [7, 1, 2, 3, 20]),
        ("1e-4..3e-4/1e-4", [1e-4, 2e-4, 3e-4]),
        ("1..3,2,1", [1, 2, 3]),
    ],
)
def test_a_range_stands_for_its_values_ends_included(text: str, values: list[float], tmp_path: Path) -> None:
    points = made(tmp_path, "optim.lr", values=(text,)).sweeps[0].point
    assert [point.value for point in points] == values
    assert [type(point.value) for point in points] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text, words", [("9..1", "upwards"), ("1..9/0", "upwards"), ("0..1/0.0001", "at most 1000")]
)
def test_a_range_that_leads_nowhere_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        made(tmp_path, "optim.lr", values=(text,))


def test_zipped_parameters_take_their_values_side_by_side(tmp_path: Path) -> None:
    recipe = made(
        tmp_path, "optim.lr", "optim.weight_decay", values=("0.1..0.3/0.1", "0.01,0.02,0.03"), zipped=True
    )
    found = [(e.optim.lr, e.optim.weight_decay) for e in experiments(recipe).values()]
    assert found == [(0.1, 0.01), (0.2, 0.02), (0.3, 0.03)]


def test_each_value_of_a_grid_can_be_read_from_its_sweeps(tmp_path: Path) -> None:
    recipe = made(tmp_path, "optim.lr", "training.batch", values=("0.1,0.2", "8,16,32"))
    assert recipe.coordinates() == {
        f"optim.lr={lr}, training.batch={batch}": {"optim.lr": lr, "training.batch": batch}
        for lr in (0.1, 0.2)
        for batch in (8, 16, 32)
    }
    assert [(sweep.param, sweep.series, len(sweep.point)) for sweep in recipe.sweeps] == [
        ("optim.lr", "training.batch=8", 2),
        ("optim.lr", "training.batch=16", 2),
        ("optim.lr", "training.batch=32", 2),
        ("training.batch", "optim.lr=0.1", 3),
        ("training.batch", "optim.lr=0.2", 3),
    ]


def test_three_parameters_make_a_grid_whose_series_name_both_others(tmp_path: Path) -> None:
    names = ("optim.lr", "training.batch", "optim.weight_decay")
    recipe = made(tmp_path, *names, values=("0.1,0.2", "8,16", "0.01,0.02"))
    assert len(recipe.rows) == len(recipe.coordinates()) == 8
    assert [sweep.series for sweep in recipe.sweeps if sweep.param == "optim.lr"] == [
        "training.batch=8, optim.weight_decay=0.01",
        "training.batch=8, optim.weight_decay=0.02",
        "training.batch=16, optim.weight_decay=0.01",
        "training.batch=16, optim.weight_decay=0.02",
    ]


def test_parameters_side_by_side_make_a_diagonal_of_one_sweep_each(tmp_path: Path) -> None:
    recipe = made(tmp_path, "optim.lr", "training.batch", values=("0.1,0.2", "8,16"), zipped=True)
    assert list(recipe.coordinates().values()) == [
        {"optim.lr": 0.1, "training.batch": 8},
        {"optim.lr": 0.2, "training.batch": 16},
    ]
    assert [(sweep.param, sweep.series) for sweep in recipe.sweeps] == [
        ("optim.lr", "training.batch side by side"),
        ("training.batch", "optim.lr side by side"),
    ]


def test_the_recipe_of_an_ablation_takes_no_value_that_its_rows_do_not_spell_out(tmp_path: Path) -> None:
    first = made(tmp_path, "optim.lr", values=("0.1,0.2",), row="FCOS")
    again = made(tmp_path, "optim.lr", values=("0.2",), recipe=str(first.path))
    assert [row.use for row in again.rows.values()] == ["fcos"]
    with pytest.raises(RecipeError, match=r"'optim\.lr' has no value '0\.3'; it is one of 0\.1, 0\.2"):
        made(tmp_path, "optim.lr", values=("0.3",), recipe=str(first.path))


def test_zipped_parameters_need_equally_many_values(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim.lr has 3, optim.weight_decay has 2"):
        made(tmp_path, "optim.lr", "optim.weight_decay", values=("0.1,0.2,0.3", "0.01,0.02"), zipped=True)
    with pytest.raises(RecipeError, match="give two or more"):
        made(tmp_path, "optim.lr", values=("0.1,0.2",), zipped=True)
