"""A claim is counted seed by seed, and never called more than that."""

from dataclasses import replace

import pytest

from detbench.recipes import Claim
from detbench.report.claims import observe
from detbench.report.gather import Collected

ROWS = ("Baseline (OneNet)", "DATE-R (Ours)", "DATE-F (Ours)")


@pytest.fixture
def measured(collect) -> Collected:
    """Three rows of three seeds with AP 30 31 32, 31 31 31, 33 30 34."""
    collected = collect("date/table5", dict.fromkeys(ROWS, (0, 1, 2)))
    for label, values in zip(ROWS, ((30, 31, 32), (31, 31, 31), (33, 30, 34)), strict=True):
        entry = collected.entry(label)
        for i, value in enumerate(values):
            entry.results[i] = replace(entry.results[i], metrics={"AP": float(value)})
    return collected


@pytest.mark.parametrize(
    ("kind", "rows", "margin", "holds"),
    [
        ("at_least", (ROWS[2], ROWS[0]), 0.0, 2),  # +3, -1, +2
        ("at_least", (ROWS[2], ROWS[0]), 2.5, 1),
        ("at_least", (ROWS[1], ROWS[0]), 0.0, 2),  # +1, 0, -1: a tie is at least 0
        ("best", (ROWS[2], ROWS[0], ROWS[1]), 0.0, 2),
        ("order", (ROWS[2], ROWS[1], ROWS[0]), 0.0, 1),  # 33 31 30; 30 31 31; 34 31 32
        ("monotone", ROWS, 0.0, 1),  # 30 31 33; 31 31 30; 32 31 34
    ],
)
def test_a_claim_is_counted_over_the_seeds(measured, kind, rows, margin, holds):
    seen = observe(measured, Claim(text="", place="", kind=kind, rows=rows, margin=margin))
    assert (seen.holds, seen.seeds) == (holds, 3)
    assert seen.text.endswith(f"As claimed on {holds} of 3 seeds.")
    assert seen.tone == "some"


def test_a_difference_is_shown_with_its_interval(measured):
    seen = observe(measured, Claim(text="", place="", kind="at_least", rows=(ROWS[2], ROWS[0])))
    assert seen.text.startswith("+1.3 AP [-3.8, +6.5]")  # sd 2.0817, t 4.3027, over the root of 3


def test_one_seed_decides_nothing(collect):
    collected = collect("date/table5", 1)
    for claim in collected.recipe.claims:
        seen = observe(collected, claim)
        assert seen.tone == "open"
        assert "decides nothing" in seen.text
        assert "supported" not in seen.text


def test_a_row_without_runs_leaves_a_claim_open(collect):
    collected = collect("date/table5", {"Baseline (OneNet)": (0,)})
    seen = observe(collected, collected.recipe.claims[0])
    assert seen.missing == ("Baseline (OneNet), POTO",)
    assert seen.text == "Not measured yet: Baseline (OneNet), POTO."
    assert seen.tone == "open"


def test_a_counted_column_needs_one_run(collect):
    collected = collect("date/table8", 1)
    by_text = {claim.text: observe(collected, claim) for claim in collected.recipe.claims}
    assert {seen.tone for seen in by_text.values()} == {"all"}
    assert all(seen.text.endswith(". As claimed.") for seen in by_text.values())


def test_fewer_parameters_come_first_in_an_order(collect):
    collected = collect("date/table8", 1)
    rows = ("DATE-F (Ours), infer", "DATE-F (Ours), train")
    assert observe(collected, Claim(text="", place="", metric="params_m", kind="order", rows=rows)).holds == 1
    assert (
        observe(collected, Claim(text="", place="", metric="params_m", kind="best", rows=rows[::-1])).holds
        == 0
    )
