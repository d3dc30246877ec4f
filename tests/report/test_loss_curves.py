"""Loss columns: what a figure of training losses has in its table."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import collected

from detbench import recipes
from detbench.report.plots import losses
from detbench.report.table import build
from detbench.results import Curve


def curve(*values: float) -> Curve:
    """A loss logged every ten steps."""
    return Curve([{"step": 10 * i, "losses": {"o2o.cls": value}} for i, value in enumerate(values, 1)], [])


def test_a_loss_column_is_the_mean_over_the_last_tenth_of_training() -> None:
    table = collected(recipes.load("date/figure4"), 1)
    onenet, date = table.entries
    # Twenty entries up to step 200: those after step 180 are the last two.
    table.entries[0] = dataclasses.replace(onenet, curves=[curve(*[9.0] * 18, 0.5, 0.7)])
    table.entries[1] = dataclasses.replace(date, curves=[curve(*[9.0] * 18, 0.3, 0.5)])
    assert [entry.values("loss_cls_o2o") for entry in table.entries] == [
        {0: pytest.approx(0.6)},
        {0: pytest.approx(0.4)},
    ]
    first, second = build(table).rows
    assert second.cells[0].rank == 1  # the smaller loss wins
    assert first.cells[0].measured is not None


def test_a_loss_that_no_branch_has_is_not_measured() -> None:
    table = collected(recipes.load("date/table1"), 1)
    assert table.entry("FCOS, 12 ep").values("loss_cls_o2o") == {}


def test_figure_4_draws_the_one_to_one_branchs_classification_loss() -> None:
    plot = losses(collected(recipes.load("date/figure4"), 2), "o2o.cls")
    assert plot is not None
    (axes,) = plot.figure.axes
    assert {"OneNet", "DATE"} <= {line.get_label() for line in axes.get_lines()}
