"""What a table says, before any form is given to it."""

from dataclasses import replace

import pytest

from detbench import recipes
from detbench.report.gather import Collected, Entry
from detbench.report.table import Table, build, uncontrolled


def _row(table: Table, label: str):
    return next(row for row in table.rows if row.label == label)


def test_a_cell_holds_mean_and_sample_deviation_of_the_seeds(collect):
    collected = collect("date/table5")
    values = [result.metrics["AP"] for result in collected.entry("DATE-F (Ours)").results]
    mean = sum(values) / 3
    sd = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    cell = _row(build(collected), "DATE-F (Ours)").cells[0]
    assert cell.measured.mean == pytest.approx(mean)
    assert cell.measured.sd == pytest.approx(sd)
    # Student's t for 2 degrees of freedom at 97.5 %: 4.30265.
    assert cell.measured.high - mean == pytest.approx(4.30265 * sd / 3**0.5, rel=1e-5)
    assert cell.reported == 36.8


def test_a_difference_is_paired_over_the_seeds_both_rows_have(collect):
    collected = collect("date/table5", {"Baseline (OneNet)": (0, 1, 2), "DATE-F (Ours)": (1, 2, 3)})
    own, base = collected.entry("DATE-F (Ours)"), collected.entry("Baseline (OneNet)")
    expected = [own.values("AP")[seed] - base.values("AP")[seed] for seed in (1, 2)]
    difference = _row(build(collected), "DATE-F (Ours)").cells[0].difference
    assert difference.count == 2
    assert difference.mean == pytest.approx(sum(expected) / 2)
    assert difference.low < difference.mean < difference.high


def test_rows_without_a_common_seed_have_no_difference(collect):
    collected = collect("date/table5", {"Baseline (OneNet)": (0,), "DATE-F (Ours)": (1,)})
    assert _row(build(collected), "DATE-F (Ours)").cells[0].difference is None


def test_the_baseline_is_not_compared_with_itself(collect):
    assert all(
        cell.difference is None for cell in _row(build(collect("date/table5")), "Baseline (OneNet)").cells
    )


def test_one_seed_has_a_mean_and_no_spread(collect):
    table = build(collect("date/table5", 1))
    cell = _row(table, "DATE-F (Ours)").cells[0]
    assert (cell.measured.sd, cell.measured.low, cell.difference.low) == (None, None, None)
    assert "1 seed a row" in table.caption
    assert any("single seed" in note for note in table.notes)
    assert not any("standard deviation" in note for note in table.notes)


def test_rows_of_few_labels_say_how_many_images_each_kind_has(collect):
    collected = collect("date/table5", 1)
    entries = collected.entries[:2]
    for entry, few in zip(
        entries, ({"num_train": 300}, {"num_train": 30, "num_unlabelled": 2970}), strict=True
    ):
        entry.results[0] = replace(entry.results[0], data=entry.results[0].data | few)
    assert (
        "(30 to 3,000 training, for teachers 2,970 unlabelled, 2,000 validation images"
        in build(collected).caption
    )


def test_best_and_second_are_marked_in_every_column_and_ties_share_a_mark(collect):
    collected = collect("date/table5", 1)
    for entry, value in zip(collected.entries, (30.0, 41.04, 40.96, 35.5, 39.0, 38.0), strict=True):
        entry.results[0] = replace(entry.results[0], metrics=entry.results[0].metrics | {"AP": value})
    ranks = [row.cells[0].rank for row in build(collected).rows]
    assert ranks == [None, 1, 1, None, 2, None]


def test_equal_numbers_are_not_marked(collect):
    table = build(collect("quickstart", 1))
    params = [column.metric for column in table.columns].index("params_m")
    assert [row.cells[params].rank for row in table.rows] == [None, None, None]


def test_fewer_parameters_are_better(collect):
    collected = collect("quickstart", 1)
    entry = collected.entries[2]
    entry.results[0] = replace(entry.results[0], cost=entry.results[0].cost | {"params_infer_m": 1.1})
    table = build(collected)
    params = [column.metric for column in table.columns].index("params_m")
    assert [row.cells[params].rank for row in table.rows] == [None, None, 1]


def test_cost_columns_mean_inference_or_training_as_the_row_says(collect):
    table = build(collect("date/table8", 2))
    shown = {row.label: [cell.measured.mean for cell in row.cells] for row in table.rows}
    assert shown["DATE-F (Ours), infer"] == [1.2, 0.8]
    assert shown["DATE-F (Ours), train"] == [1.3, 0.9]
    assert all(cell.measured.sd is None for row in table.rows for cell in row.cells)


def test_every_state_of_a_row_is_named(special: Collected):
    rows = build(special).rows
    assert [row.state for row in rows] == ["measured", "measured", "quoted", "needs", "not run"]
    assert rows[3].remark == "needs: time machine"
    assert rows[4].remark == "not run"
    assert [row.cells[0].reported for row in rows] == [35.4, 36.1, 40.0, 50.0, None]


def test_a_metric_that_could_not_be_measured_is_empty_and_never_best(special: Collected):
    cell = build(special).rows[1].cells[1]
    assert (cell.measured, cell.difference, cell.rank) == (None, None, None)


def test_a_small_scale_says_that_absolute_numbers_are_not_the_papers(collect):
    notes = " ".join(build(collect("date/table5")).notes)
    assert "absolute numbers are not comparable with the paper's" in notes
    assert "relative" in notes


def test_overrides_in_force_are_named(collect):
    table = build(collect("date/table5", 1, overrides=("optim.lr=5e-4",)))
    assert any("optim.lr=5e-4" in note for note in table.notes)


def test_a_table_without_runs_claims_nothing(collect):
    table = build(collect("date/table5", 0))
    assert "nothing measured" in table.caption
    assert {row.state for row in table.rows} == {"not run"}
    assert table.notes == ()


def test_a_row_that_differs_only_in_what_it_sets_is_controlled(collect):
    collected = collect("date/table5", 1)
    baseline = collected.recipe.rows["Baseline (OneNet)"]
    assert uncontrolled(collected.entry("Baseline (OneNet), POTO"), baseline, "cpu") == []
    assert any("Controlled" in note and note.endswith("POTO.") for note in build(collected).notes)


def test_the_values_of_a_sweep_are_what_its_rows_set(collect):
    (note,) = [note for note in build(collect("align-detr/table5", 1)).notes if "ontrolled" in note]
    assert note.startswith("Controlled, differing from the baseline only in what they set: alpha=0;")


def test_a_difference_that_no_row_sets_is_named(collect):
    collected = collect("date/table5", 1)
    entry = collected.entry("Baseline (OneNet), POTO")
    entry.changes["optim.lr"] = (1e-3, 2e-3)
    assert uncontrolled(entry, collected.recipe.rows["Baseline (OneNet)"], "cpu") == ["optim.lr"]
    assert any("also differs from the baseline in optim.lr" in note for note in build(collected).notes)


def test_runs_of_different_machines_are_named(collect):
    collected = collect("date/table5", 1)
    entry = collected.entries[0]
    entry.results[0] = replace(entry.results[0], environment={"device": "NVIDIA H200"})
    table = build(collected)
    assert table.hardware == ("NVIDIA H200", "AMD EPYC 9354, 1 thread")
    assert any("different hardware" in note for note in table.notes)


def test_every_recipe_makes_a_table_before_anything_is_run():
    for name in recipes.names():
        recipe = recipes.load(name)
        entries = [Entry(row, (), recipe.needs(row), {}, [], []) for row in recipe.rows.values()]
        table = build(Collected(recipe, "cpu", "", (), entries))
        assert [row.label for row in table.rows] == list(recipe.rows)
