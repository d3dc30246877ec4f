"""Figures of parameters: a metric over their values, over training, and two of them as a map."""

import statistics

import matplotlib
import pytest
from matplotlib.colors import to_hex, to_rgb

from detbench import ablation, recipes
from detbench.report import plots, sweeps
from detbench.report.gather import Collected

VALUES = ["0.5,1,2", "1,2,4"]


@pytest.fixture(scope="module")
def ablated(tmp_path_factory, collect):
    """Two parameters of DATE's Table 10 together, with some combinations run and some not."""

    def make(seeds: int = 3, *, without: int = 0, zipped: bool = False) -> Collected:
        folder = tmp_path_factory.mktemp("ablations")
        ablation.make(
            ["lambda_o2o", "lambda_o2m"], values=VALUES, recipe="date/table10", row=None, folder=folder, zipped=zipped
        )  # fmt: skip
        (path,) = folder.iterdir()
        rows = list(recipes.load(str(path)).rows)
        return collect(str(path), {label: range(seeds) for label in rows[: len(rows) - without]})

    return make


def _the_map(collected: Collected) -> plots.Plot:
    (grid,) = sweeps.grids(collected, "AP")
    return sweeps.heat_map(collected, grid, "AP")


def _written(plot: plots.Plot) -> dict[tuple[int, int], list[str]]:
    """The texts in each cell, by column and line from the lower left, from top to bottom."""
    texts = sorted(plot.figure.axes[0].texts, key=lambda text: -text.get_position()[1])
    cells: dict[tuple[int, int], list[str]] = {}
    for text in texts:
        x, y = text.get_position()
        cells.setdefault((round(x), round(y)), []).append(text.get_text())
    return cells


def _luminance(color: str) -> float:
    """Relative luminance (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted([_luminance(one), _luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_a_sweep_shows_the_papers_curve_on_an_axis_of_the_same_span(collect):
    collected = collect("date/table10", 2)
    figure = sweeps.over_parameter(collected, "lambda_o2m", "AP").figure
    told = next(line for line in figure.axes[1].lines if line.get_label() == "DATE-F, reported (right axis)")
    assert list(told.get_xdata()) == [0.5, 1.0, 2.0, 4.0]
    assert list(told.get_ydata()) == [37.2, 37.3, 37.2, 36.8]
    spans = [high - low for low, high in (axes.get_ylim() for axes in figure.axes)]
    assert spans[0] == pytest.approx(spans[1])
    assert figure.axes[0].get_ylabel() == "AP measured"
    assert figure.axes[1].get_ylabel() == "AP reported"


def test_a_sweep_has_a_band_of_mean_plus_and_minus_the_standard_deviation(collect):
    collected = collect("date/table10", 3)
    axes = sweeps.over_parameter(collected, "lambda_o2m", "AP").figure.axes[0]
    edges = {
        tuple(round(float(v), 6) for v in point) for point in axes.collections[0].get_paths()[0].vertices
    }
    for value in (0.5, 1, 2, 4):
        numbers = collected.entry(f"DATE-F, lambda_o2o=1, lambda_o2m={value}").values("AP").values()
        mean, sd = statistics.mean(numbers), statistics.stdev(numbers)
        assert {(value, round(mean - sd, 6)), (value, round(mean + sd, 6))} <= edges
    assert axes.get_title("left") == "Bands: mean ± sd over seeds; dots: seeds"
    alone = sweeps.over_parameter(collect("date/table10", 1), "lambda_o2m", "AP").figure.axes[0]
    assert (len(alone.collections), alone.get_title("left")) == (0, "")


def test_a_sweep_over_names_has_a_tick_for_each(collect):
    figure = sweeps.over_parameter(collect("date/table5", 1), "o2m", "AP").figure
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["none", "retinanet", "fcos"]


def test_a_map_has_the_mean_and_spread_of_every_combination_and_the_papers_number_where_it_has_one(ablated):
    collected = ablated()
    written = _written(_the_map(collected))
    assert len(written) == 9
    table10 = recipes.load("date/table10").rows
    for i, o2o in enumerate(("0.5", "1", "2")):
        for j, o2m in enumerate(("1", "2", "4")):
            values = collected.entry(f"lambda_o2o={o2o}, lambda_o2m={o2m}").values("AP").values()
            expected = [f"{statistics.mean(values):.1f}", f"± {statistics.stdev(values):.1f}"]
            paper = table10.get(f"DATE-F, lambda_o2o={o2o}, lambda_o2m={o2m}")
            assert (paper is not None) == ("1" in (o2o, o2m))
            assert written[i, j] == expected + ([f"paper {paper.reported['AP']}"] if paper else [])


def test_a_map_says_which_metric_at_which_scale_over_how_many_seeds(ablated):
    assert "AP, mean ± sd over 3 seeds, scale cpu" in _the_map(ablated()).figure.axes[0].get_title("left")
    assert _the_map(ablated(1)).figure.axes[0].get_title("left") == "AP, one seed, scale cpu"
    assert _the_map(ablated()).figure.axes[1].get_ylabel() == "mean AP"


def test_every_seed_is_a_dot_on_the_map_further_right_the_larger_it_is(ablated):
    collected = ablated()
    dots = [line for line in _the_map(collected).figure.axes[0].lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == 27
    shown = sorted(x - round(x) for line in dots for x in line.get_xdata())
    every = sorted(value for entry in collected.entries for value in entry.values("AP").values())
    assert (shown[0], shown[-1]) == (pytest.approx(-0.4), pytest.approx(0.4))
    low, high = every[0], every[-1]
    assert shown == pytest.approx([-0.4 + 0.8 * (value - low) / (high - low) for value in every])


def test_what_was_not_run_is_marked_on_the_map(ablated):
    written = _written(_the_map(ablated(without=2)))
    assert written[2, 1] == ["not run"]
    assert written[2, 2] == ["not run"]
    assert "not run" not in str(_written(_the_map(ablated())))


def test_of_three_parameters_there_is_a_map_of_two_for_each_value_of_the_third(collect, tmp_path):
    ablation.make(
        ["lambda_o2o", "lambda_o2m", "optim.lr"], values=["1,2", "1,2", "0.001,0.002,0.004"], recipe="date/table10",
        row=None, folder=tmp_path,
    )  # fmt: skip
    (path,) = tmp_path.iterdir()
    collected = collect(str(path), 2)
    maps = [sweeps.heat_map(collected, grid, "AP") for grid in sweeps.grids(collected, "AP")]
    assert len({plot.name for plot in maps}) == 3
    heads = [plot.figure.axes[0].get_title("left").splitlines()[0] for plot in maps]
    assert heads == [
        f"AP, mean ± sd over 2 seeds, scale cpu, optim.lr = {lr}" for lr in ("0.001", "0.002", "0.004")
    ]
    assert all(len(_written(plot)) == 4 for plot in maps)


def test_two_sweeps_that_share_a_row_and_parameters_side_by_side_make_no_map(ablated, collect):
    assert sweeps.grids(ablated(zipped=True), "AP") == []
    for name in ("date/table5", "date/table10", "align-detr/table4"):
        assert sweeps.grids(collect(name, 1), "AP") == []


def test_a_map_can_be_read_in_grey_and_its_numbers_on_every_colour():
    colors = matplotlib.colormaps["cividis"]
    shades = [i / 47 for i in range(48)]
    lightness = [_luminance(to_hex(colors(shade))) for shade in shades]
    assert lightness == sorted(lightness)
    assert all(_contrast(to_hex(colors(s)), sweeps._ink(s)) > 4 for s in shades)


def test_a_map_on_the_page_has_no_picture_and_keeps_its_colours_on_dark_paper(ablated):
    text = plots.page_svg(_the_map(ablated()).figure, prefix="p", title="t")
    assert "<image" not in text
    assert "data:" not in text
    assert to_hex(matplotlib.colormaps["cividis"](1.0)) in text
    assert "var(--paper" in text


def test_curves_over_training_go_from_dark_to_light_with_the_value_and_show_each_seed(collect):
    collected = collect("date/table10", 3)
    sweep = next(s for s in collected.recipe.sweeps if (s.param, s.series) == ("lambda_o2m", "DATE-F"))
    axes = sweeps.over_training(collected, sweep, "AP").figure.axes[0]
    rows = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in rows] == [
        f"lambda_o2m = {value}" for value in ("0.5", "1", "2", "4")
    ]
    lightness = [_luminance(line.get_color()) for line in rows]
    assert lightness == sorted(set(lightness))
    entry = collected.entry("DATE-F, lambda_o2o=1, lambda_o2m=4")
    thin = [line for line in axes.lines if line.get_label().startswith("_")]
    assert len(thin) == 4 * 3
    for line, curve in zip(thin[-3:], entry.curves, strict=True):
        assert list(line.get_ydata()) == [e["metrics"]["AP"] for e in curve.evaluations]


def test_one_value_alone_has_no_curves_to_compare(collect):
    collected = collect("date/table10", {"DATE-F, lambda_o2o=1, lambda_o2m=4": range(2)})
    assert all(sweeps.over_training(collected, s, "AP") is None for s in collected.recipe.sweeps)


def test_many_figures_over_training_are_shown_on_demand(collect, ablated):
    def training(collected: Collected) -> list[plots.Plot]:
        return [plot for plot in sweeps.draw(collected, "AP") if plot.name.startswith("training-")]

    assert [plot.detail for plot in training(collect("align-detr/table5", 1))] == [False] * 3
    many = training(ablated())
    assert [plot.detail for plot in many] == [True] * 6
    assert len({plot.name for plot in many}) == 6
