"""Figures show the numbers that were measured, and nothing covers them."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from detbench import recipes
from detbench.report import plots
from detbench.results import Curve


def _lines(figure, axes=0):
    return {line.get_label(): line for line in figure.axes[axes].lines}


def test_a_recipe_gets_the_plots_it_asks_for(collect):
    names = [plot.name for plot in plots.draw(collect("date/table5", 2))]
    assert names[:3] == ["convergence-epoch", "convergence-seconds", "loss-total"]
    assert {"loss-o2o.cls", "sizes", "sweep-poto", "sweep-o2m"} <= set(names)
    assert [plot.name for plot in plots.draw(collect("date/figure4", 1))][:1] == ["loss-o2o.cls"]


def test_nothing_is_drawn_where_nothing_was_measured(collect):
    assert plots.draw(collect("date/table5", 0)) == []


def test_convergence_is_the_mean_over_seeds(collect):
    collected = collect("date/table5", 3)
    entry = collected.entry("DATE-F (Ours)")
    line = _lines(plots.convergence(collected, "AP", over="epoch").figure)["DATE-F (Ours)"]
    last = [curve.evaluations[-1]["metrics"]["AP"] for curve in entry.curves]
    assert line.get_ydata()[-1] == pytest.approx(sum(last) / 3)
    assert list(line.get_xdata()) == pytest.approx([e["epoch"] for e in entry.curves[0].evaluations])


def test_a_seed_that_stopped_early_does_not_bend_the_mean(collect):
    collected = collect("date/table5", 3)
    entry = collected.entry("DATE-F (Ours)")
    entry.curves[0] = Curve(entry.curves[0].steps, entry.curves[0].evaluations[:3])
    line = _lines(plots.convergence(collected, "AP", over="epoch").figure)["DATE-F (Ours)"]
    assert len(line.get_xdata()) == 3


def test_every_seed_is_a_dot_where_a_curve_ends_and_on_each_bar(collect):
    collected = collect("date/table5", 3)
    entry = collected.entry("DATE-F (Ours)")
    for plot, x, values in (
        (plots.convergence(collected, "AP", over="epoch"), 8.0, entry.values("AP")),
        (plots.sizes(collected), None, entry.values("APs")),
    ):
        dots = [line for line in plot.figure.axes[0].lines if line.get_linestyle() == "None"]
        shown = [sorted(line.get_ydata()) for line in dots if x is None or set(line.get_xdata()) == {x}]
        assert sorted(values.values()) in shown
    alone = plots.convergence(collect("date/table5", 1), "AP", over="epoch").figure.axes[0]
    assert all(line.get_linestyle() != "None" for line in alone.lines)


def test_an_axis_of_zeros_alone_does_not_reach_below_zero(collect):
    collected = collect("date/table5", 1)
    for entry in collected.entries:
        entry.results[:] = [
            replace(result, metrics=dict.fromkeys(result.metrics, 0.0)) for result in entry.results
        ]
        for curve in entry.curves:
            for evaluation in curve.evaluations:
                evaluation["metrics"] = dict.fromkeys(evaluation["metrics"], 0.0)
    for plot in (plots.convergence(collected, "AP", over="epoch"), plots.sizes(collected)):
        assert plot.figure.axes[0].get_ylim() == (0, 1)


def test_a_loss_curve_ends_in_a_dot_for_each_seed(collect):
    figure = plots.losses(collect("date/table5", 3), "total").figure
    dots = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    rows = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert len(dots) == len(rows)
    for dot, row in zip(dots, rows, strict=True):
        assert len(dot.get_ydata()) == 3
        assert sum(dot.get_ydata()) / 3 == pytest.approx(row.get_ydata()[-1])
        assert set(dot.get_xdata()) == {row.get_xdata()[-1]}


def test_a_row_has_one_colour_in_all_figures(collect):
    collected = collect("date/table5", 1)
    figures = [
        plots.convergence(collected, "AP", over="epoch"),
        plots.convergence(collected, "AP", over="seconds"),
        plots.losses(collected, "o2o.cls"),
    ]
    assert len({_lines(plot.figure)["DATE-F (Ours)"].get_color() for plot in figures}) == 1


def test_bars_leave_out_a_size_that_no_image_has(special):
    figure = plots.sizes(special).figure
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [
        "small\nAPs",
        "medium\nAPm",
        "large\nAPl",
    ]
    assert len(figure.axes[0].patches) == 5  # the second row has no APs
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "a, b & c",
        "x_y=1† {50 %} <b>#1</b>",
    ]


@pytest.mark.parametrize("recipe", ["date/table5", "date/table10"])
def test_legend_and_axes_do_not_touch(collect, recipe):
    for plot in plots.draw(collect(recipe, 2)):
        figure = plot.figure
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x1 <= figure.bbox.x1
        for axes in figure.axes:
            assert box.y1 <= axes.get_tightbbox().y0 + 1


def test_tick_labels_do_not_overlap(collect):
    for plot in plots.draw(collect("date/table10", 1)):
        plot.figure.draw_without_rendering()
        axes = plot.figure.axes[0]
        for labels, low, high in ((axes.get_xticklabels(), "x0", "x1"), (axes.get_yticklabels(), "y0", "y1")):
            boxes = sorted(
                (label.get_window_extent() for label in labels if label.get_text() and label.get_visible()),
                key=lambda box: getattr(box, low),
            )
            assert all(getattr(a, high) <= getattr(b, low) for a, b in pairwise(boxes)), plot.name


def test_a_label_is_drawn_as_it_is(collect):
    collected = collect("quickstart", 1)
    entry = collected.entries[0]
    collected.entries[0] = replace(entry, row=replace(entry.row, label="$a_1$ & <b>"))
    text = plots.svg(plots.sizes(collected).figure)
    assert ">$a_1$ &amp; &lt;b&gt;</text>" in text


def test_colours_on_the_page_follow_the_reader(collect):
    plot = plots.sizes(collect("quickstart", 1))
    text = plots.page_svg(plot.figure, prefix="p", title="t")
    assert "var(--series-0, #0072b2)" in text
    assert "var(--ink, #1f2328)" in text
    assert text.startswith("<svg")


def test_numbers_and_colours_in_the_words_of_a_figure_stay_as_they_are_on_the_page(collect):
    collected = collect("quickstart", 1)
    entry = collected.entries[0]
    collected.entries[0] = replace(entry, row=replace(entry.row, label="lr=0.0001, #0072b2"))
    text = plots.page_svg(plots.sizes(collected).figure, prefix="p", title="t")
    assert ">lr=0.0001, #0072b2</text>" in text
    assert not re.findall(r"<(?!!)[^>]*\.\d{3}", text)


def test_the_same_figure_is_the_same_file(collect):
    one, two = (plots.svg(plots.sizes(collect("quickstart", 1)).figure) for _ in range(2))
    assert one == two


def test_every_recipe_asks_for_plots_that_exist():
    known = {"alignment", "convergence", "losses", "sizes"}
    for name in recipes.names():
        for plot in recipes.load(name).head.plots:
            assert plot in known or plot.startswith("loss:"), (name, plot)


def test_the_room_imports_nothing_heavy():
    heavy = ("torch", "matplotlib", "scipy", "jinja2", "rich")
    code = f"import sys, detbench.report; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
