"""`bench cost`: what it counts without training, and what it says of the paper's numbers."""

from __future__ import annotations

import json

import pytest

from detbench import benching, recipes
from detbench.errors import RecipeError
from detbench.recipes import Context

# Spec 1.3: trainable parameters and 1e9 multiply-accumulates, in training and at inference.
PAPER = {
    "date/table1/retinanet-12-ep": (33_566_457, 33_566_457, 233.54, 233.54),
    "date/table1/fcos-12-ep": (32_019_802, 32_019_802, 200.55, 200.55),
    "date/table1/onenet-12-ep": (32_017_497, 32_017_497, 200.50, 200.50),
    "date/table8/date-f-ours-train": (32_213_422, 32_017_497, 204.68, 200.50),
    "date/table9/date-r-shared-subnets": (33_760_077, 32_017_497, 237.67, 200.50),
    "date/table9/date-r-separate-subnets": (38_482_765, 32_017_497, 338.44, 200.50),
    "date/table2/date-f-ours-1x-3dmf": (32_806_319, 32_610_394, 217.34, 213.16),
}


@pytest.mark.slow
def test_the_costs_of_recipes_are_those_counted_on_the_released_code() -> None:
    for pattern, (train, infer, g_train, g_infer) in PAPER.items():
        (entry,) = benching.cost_tree(recipes.select([pattern]), Context("paper"))
        assert (entry["params_train"], entry["params_infer"]) == (train, infer), pattern
        assert entry["gmacs_train"] == pytest.approx(g_train, rel=1e-3), pattern
        assert entry["gmacs_infer"] == pytest.approx(g_infer, rel=1e-3), pattern
        assert (entry["height"], entry["width"]) == (800, 1280)
    (r101,) = benching.cost_tree(recipes.select(["date/table3/date-f"]), Context("paper"))
    assert r101["params_infer"] == 50_957_401
    assert r101["gmacs_infer"] == pytest.approx(276.57, rel=1e-3)


@pytest.mark.slow
def test_only_the_papers_misprint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    entries = benching.cost_tree(recipes.select(["date/table[189]"]), Context("paper"))
    departs = {f"{e['recipe']}: {e['row']}": e["departs"] for e in entries if e["departs"]}
    assert departs == {"date/table9: DATE-R, separate subnets": ["gmacs_train"]}
    benching.show_cost(entries)
    out = capsys.readouterr().out
    assert "38,482,765 (38.5 M)" in out
    assert "the paper has 388" in out
    assert "the text says 338" in out


def test_costs_are_counted_at_any_scale_and_are_json() -> None:
    entries = benching.cost_tree(recipes.select(["date/table8", "date/table4"]), Context("smoke"))
    assert len(entries) == 3 + 5
    assert json.loads(json.dumps(entries)) == entries
    infer, date_f, train = entries[:3]
    assert date_f["params_infer"] == infer["params_infer"]
    assert date_f["params_train"] > date_f["params_infer"]
    assert infer["reported"] == {"params_infer": 32.0, "gmacs_infer": 201}
    assert train["reported"] == {"params_train": 32.2, "gmacs_train": 205}
    assert not any(entry["departs"] for entry in entries)  # the paper's numbers aren't of this scale


def test_one_class_costs_less_than_eighty() -> None:
    chosen = recipes.select(["date/table8/onenet-infer", "date/table4/onenet"])
    eighty, one = benching.cost_tree(chosen, Context("paper"))
    # 79 classes fewer of a 3x3 convolution on 256 channels, with bias.
    assert eighty["params_infer"] - one["params_infer"] == 79 * (256 * 9 + 1)


def test_rows_that_cannot_run_have_no_cost() -> None:
    with pytest.raises(RecipeError, match="none of the chosen rows can run"):
        benching.cost_tree(recipes.select(["date/table4/annotations"]), Context("paper"))
