"""What a report says of rows that an ablation stopped early: everything but a result."""

from __future__ import annotations

from dataclasses import replace

from conftest import Collect

from detbench.report import Collected, build, render
from detbench.results import Stopped


def with_stopped(collect: Collect) -> Collected:
    """date/table5 with two rows measured over three seeds and one stopped early."""
    measured = ("Baseline (OneNet)", "DATE-F (Ours)")
    collected = collect("date/table5", dict.fromkeys(measured, (0, 1, 2)))
    record = Stopped(
        seed=0, step=2000, of=5000, metric="AP", score=20.3, best_row="DATE-F (Ours)", best=28.4, allowed=5.0,
        margin=5.0, seeds=2,
    )  # fmt: skip
    entries = [
        replace(entry, stopped=[record, replace(record, seed=1)])
        if entry.row.label == "DATE-R (Ours)"
        else entry
        for entry in collected.entries
    ]
    return replace(collected, entries=entries)


def test_a_stopped_row_has_no_numbers_and_says_where_it_stopped(collect: Collect) -> None:
    table = build(with_stopped(collect))
    row = next(row for row in table.rows if row.label == "DATE-R (Ours)")
    assert row.state == "stopped early"
    assert all(cell.measured is None and cell.difference is None and cell.rank is None for cell in row.cells)
    assert row.remark == (
        "stopped early at step 2,000 of 5,000: mean AP of 2 seeds 20.3 there, 8.1 behind 'DATE-F (Ours)'; allowed "
        "were 5.0"
    )


def test_the_table_says_what_stopping_early_means(collect: Collect) -> None:
    (note,) = [note for note in build(with_stopped(collect)).notes if note.startswith("Stopped early")]
    assert note.startswith("Stopped early, 1 of 6 rows: DATE-R (Ours). ")
    assert "more than 5 points behind the best row" in note
    assert "a row that learns slowly at first may be missing" in note
    assert "Stopped early" not in "".join(build(collect("date/table5")).notes)


def test_a_claim_about_a_stopped_row_is_undecided(collect: Collect) -> None:
    verdicts = [v for v in build(with_stopped(collect)).verdicts if "DATE-R (Ours)" in v.claim.rows]
    assert verdicts
    assert {verdict.ruling for verdict in verdicts} == {"undecided"}
    assert any("DATE-R (Ours) (stopped early)" in v.reason for v in verdicts)
    assert any("without --stop-early finishes them" in v.decided_by for v in verdicts)


def test_every_form_shows_a_stopped_row(collect: Collect) -> None:
    collected = with_stopped(collect)
    for form in ("terminal", "markdown", "csv", "json", "latex"):
        assert "stopped early" in " ".join(render([collected], form).split())
