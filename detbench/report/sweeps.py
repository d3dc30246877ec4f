"""Figures of parameters: a metric over a parameter's values, over training at each of them, and over two as a map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from detbench.recipe_text import Point, Sweep, Value
from detbench.recipes import slug
from detbench.report.columns import Column, column_of, number_text
from detbench.report.gather import Collected, Entry
from detbench.report.plots import (
    DASHES,
    MARKERS,
    MUTED,
    ORDER,
    PAPER,
    Plot,
    Style,
    canvas,
    dress,
    evaluated,
    legend,
    note,
    seeds,
    styles,
)
from detbench.stats import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

# Of colours that stay as they are on light and dark paper: text on dark cells and on light ones.
_ON_DARK, _ON_LIGHT = "#fefefe", "#101010"
_CELL = 0.62  # inches: the height of a map's cell, which holds three lines and the seeds
_FIGURES = 3  # over training, in the page; a grid's further ones are shown on demand


def draw(collected: Collected, metric: str) -> list[Plot]:
    """Every figure of a recipe's sweeps that there are numbers for."""
    params = dict.fromkeys(sweep.param for sweep in collected.recipe.sweeps)
    over_values = [over_parameter(collected, param, metric) for param in params]
    training = [over_training(collected, sweep, metric) for sweep in collected.recipe.sweeps]
    shown = [plot for plot in training if plot is not None]
    return [
        *(heat_map(collected, grid, metric) for grid in grids(collected, metric)),
        *(plot for plot in over_values if plot is not None),
        *(replace(plot, detail=len(shown) > _FIGURES) for plot in shown),
    ]


def over_parameter(collected: Collected, param: str, metric: str) -> Plot | None:
    """A parameter's sweeps: measured on the left axis, reported on the right one, both of the same span.

    A band is the mean plus and minus the standard deviation over seeds. The levels of the two axes differ, as their
    scales do; slopes may be compared.
    """
    every = [sweep for sweep in collected.recipe.sweeps if sweep.param == param]
    measured = [sweep for sweep in every if any(collected.entry(p.label).values(metric) for p in sweep.point)]
    if not measured:
        return None
    place = _places([point.value for sweep in measured for point in sweep.point])
    figure, axes = canvas(param, f"{metric} measured")
    paper = axes.twinx()
    for style, sweep in zip(styles(), measured, strict=False):
        dots = [
            (place(point), list(collected.entry(point.label).values(metric).values()))
            for point in _ordered(sweep, place)
        ]
        dots = [(x, values) for x, values in dots if values]
        places, estimates = [x for x, _ in dots], [mean_interval(values) for _, values in dots]
        means = [estimate.mean for estimate in estimates]
        name = sweep.series or param
        axes.plot(places, means, label=f"{name}, measured", **style.line(marker=True))
        spreads = [estimate.sd for estimate in estimates if estimate.sd is not None]
        if len(spreads) == len(means):
            low = [mean - sd for mean, sd in zip(means, spreads, strict=True)]
            high = [mean + sd for mean, sd in zip(means, spreads, strict=True)]
            axes.fill_between(places, low, high, color=style.color, alpha=0.16, linewidth=0)
            note(axes, "Bands: mean ± sd over seeds; dots: seeds")
        for x, values in dots:
            if len(values) > 1:
                seeds(axes, x, values, style.color)
        told = [(place(p), collected.entry(p.label).row.reported.get(metric)) for p in _ordered(sweep, place)]
        told = [(x, value) for x, value in told if value is not None]
        if told:
            paper.plot(
                *zip(*told, strict=True), color=style.color, linestyle=(0, (2, 2)), linewidth=1.1,
                marker=style.marker, markersize=4.5, markerfacecolor=PAPER,
                label=f"{name}, reported (right axis)",
            )  # fmt: skip
    _ticks(axes, place)
    if paper.lines:
        _same_span(axes, paper)
        paper.set_ylabel(f"{metric} reported", color=MUTED)
        dress(paper)
    else:
        paper.set_axis_off()
    legend(figure, axes, paper)
    return Plot(f"sweep-{slug(param)}", f"{metric} over {param}", figure)


def over_training(collected: Collected, sweep: Sweep, metric: str) -> Plot | None:
    """A metric over epochs at each value of a parameter, darker to lighter as it grows; each seed a thin line."""
    place = _places([point.value for point in sweep.point])
    rows = [(point.value, collected.entry(point.label)) for point in _ordered(sweep, place)]
    series = [(value, entry, marks) for value, entry in rows if (marks := evaluated(entry, metric, "epoch"))]
    if len(series) < 2:
        return None
    figure, axes = canvas("epochs", metric)
    for style, (value, entry, marks) in zip(_ordered_styles(len(series)), series, strict=True):
        x = [mark.x for mark in marks]
        if len(entry.curves) > 1:
            for values in zip(*(mark.values for mark in marks), strict=True):
                axes.plot(x, values, color=style.color, linewidth=0.5, alpha=0.6)
            note(axes, "Thin lines: seeds")
        label = f"{sweep.param} = {value_text(value)}"
        axes.plot(x, [mark.mean for mark in marks], label=label, **style.line(marker=True))
    axes.set_xlim(left=0)
    legend(figure, axes)
    name = "-".join(filter(None, ("training", slug(sweep.param), slug(sweep.series))))
    series_text = f", {sweep.series}" if sweep.series else ""
    return Plot(name, f"{metric} over epochs at each {sweep.param}{series_text}", figure)


@dataclass(frozen=True)
class Grid:
    """Rows in which two parameters take several values each, all further ones of the sweeps fixed.

    Attributes:
        across: the parameter of the columns.
        up: the parameter of the rows.
        fixed: other parameters of the sweeps with their value.
        cells: value of `across` and of `up` to the row; a combination that no row has is missing.
    """

    across: str
    up: str
    fixed: tuple[tuple[str, Value], ...]
    cells: dict[tuple[Value, Value], Entry]


def grids(collected: Collected, metric: str) -> list[Grid]:
    """The grids that the rows of a recipe's sweeps make up, such as of `ablate` with two parameters, if measured.

    Two sweeps that share a row are none, and neither are two parameters that change side by side.
    """
    found: dict[tuple[Any, ...], list[tuple[tuple[Value, Value], Entry]]] = defaultdict(list)
    coordinates = collected.recipe.coordinates()
    for entry in collected.entries:
        match list(coordinates.get(entry.row.label, {}).items()):
            case [(across, x), (up, y), *fixed]:
                found[across, up, tuple(fixed)].append(((x, y), entry))
    return [
        Grid(across, up, fixed, dict(places))
        for (across, up, fixed), places in found.items()
        if _is_grid([place for place, _ in places]) and any(entry.values(metric) for _, entry in places)
    ]


def heat_map(collected: Collected, grid: Grid, metric: str) -> Plot:
    """A metric over two parameters: in each cell mean and spread, the paper's number, and every seed as a dot.

    The width of a cell is the range of all seeds on the map: a dot further right is a larger number.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    column = column_of(metric)
    columns, lines = (_in_order([place[axis] for place in grid.cells]) for axis in (0, 1))
    numbers = {place: list(entry.values(metric).values()) for place, entry in grid.cells.items()}
    measured = [values for values in numbers.values() if values]
    shades = _Range.of(sum(values) / len(values) for values in measured)
    reach = _Range.of(number for values in measured for number in values)
    figure, axes = canvas(grid.across, grid.up)
    figure.set_size_inches(figure.get_figwidth(), _CELL * len(lines) + 1.3)
    axes.grid(visible=False)
    size = min(10.0, 76 / len(columns))  # points: a number is no wider than its cell
    for i, x in enumerate(columns):
        for j, y in enumerate(lines):
            entry, values = grid.cells.get((x, y)), numbers.get((x, y), [])
            if values:
                _filled(axes, i, j, values, shades, reach, column, size=size)
            else:
                _empty(axes, i, j, "no row" if entry is None else entry.state, size=size)
            told = None if entry is None else entry.row.reported.get(metric)
            if told is not None:
                ink = _ink(shades.place(sum(values) / len(values))) if values else MUTED
                text = f"paper {number_text(told, column)}"
                _write(axes, i, j - 0.19, text, color=ink, size=0.75 * size, style="italic")
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.set_xticks(range(len(columns)), [value_text(value) for value in columns])
    axes.set_yticks(range(len(lines)), [value_text(value) for value in lines])
    scale = ScalarMappable(Normalize(shades.low, shades.high), _colors())
    bar = figure.colorbar(scale, ax=axes, label=f"mean {metric}", fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.label.set_color(MUTED)
    dress(bar.ax)
    note(axes, _read_as(collected, grid, metric))
    name = "-".join(["map", slug(grid.across), slug(grid.up), *(slug(f"{p}={v}") for p, v in grid.fixed)])
    return Plot(name, f"{metric} over {grid.across} and {grid.up}", figure)


@dataclass(frozen=True)
class _Range:
    """What numbers reach from and to."""

    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> _Range:
        every = list(numbers)
        return cls(min(every), max(every))

    def place(self, number: float) -> float:
        """From 0 for the lowest to 1 for the highest; in the middle where all are equal."""
        return (number - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def _colors() -> Colormap:
    """Cividis, which keeps its order in grey and for the colour-blind (Nuñez, Anderton and Renslow, 2018)."""
    import matplotlib

    return matplotlib.colormaps["cividis"].resampled(48)


def _ink(shade: float) -> str:
    """What is written with on a colour of the map, 0 darkest: 4:1 at least."""
    return _ON_DARK if shade < 0.47 else _ON_LIGHT


def _filled(
    axes: Axes, i: int, j: int, values: Sequence[float], shades: _Range, reach: _Range, column: Column,
    *, size: float,
) -> None:  # fmt: skip
    """A cell of a map: its mean, coloured by where it lies among the means, its spread, and its seeds."""
    from matplotlib.patches import Rectangle

    estimate = mean_interval(values)
    shade = shades.place(estimate.mean)
    ink, face = _ink(shade), _colors()(shade)
    axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=face, edgecolor=PAPER, linewidth=1.2))
    _write(axes, i, j + 0.26, number_text(estimate.mean, column), color=ink, size=size)
    if estimate.sd is not None:
        _write(axes, i, j + 0.03, f"± {number_text(estimate.sd, column)}", color=ink, size=0.75 * size)
        x = [i - 0.4 + 0.8 * reach.place(value) for value in values]
        axes.plot(x, [j - 0.38] * len(x), "o", color=ink, markersize=2.2, markeredgewidth=0)


def _empty(axes: Axes, i: int, j: int, why: str, *, size: float) -> None:
    """A cell of a map that nothing was measured for."""
    from matplotlib.patches import Rectangle

    corner = (i - 0.5, j - 0.5)
    axes.add_patch(
        Rectangle(corner, 1, 1, facecolor="none", edgecolor=MUTED, hatch="////", linewidth=0, alpha=0.5)
    )
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    _write(axes, i, j + 0.1, why, color=MUTED, size=0.75 * size, bbox=box)


def _write(axes: Axes, x: float, y: float, text: str, **look: Any) -> None:
    axes.text(x, y, text, ha="center", va="center", **look)


def _read_as(collected: Collected, grid: Grid, metric: str) -> str:
    """What a map's cells say, above it: the metric, the scale, how many seeds, and what else is fixed."""
    counts = {count for entry in grid.cells.values() if (count := len(entry.values(metric)))}
    low, high = min(counts), max(counts)
    how_many = f"{low}" if low == high else f"{low} to {high}"
    of = f"mean ± sd over {how_many} seeds" if high > 1 else "one seed"
    fixed = "".join(f", {param} = {value_text(value)}" for param, value in grid.fixed)
    first = f"{metric}, {of}, scale {collected.scale}{fixed}"
    return f"{first}\nDots: seeds, larger to the right" if high > 1 else first


def _is_grid(places: Sequence[tuple[Value, Value]]) -> bool:
    """Whether places spread over both axes, each taken once, and are more than a diagonal."""
    columns, lines = ({place[axis] for place in places} for axis in (0, 1))
    return (
        min(len(columns), len(lines)) > 1
        and len(set(places)) == len(places)
        and len(places) > max(len(columns), len(lines))
    )


def value_text(value: Value) -> str:
    """A parameter's value on a plot."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:g}"


def _in_order(values: Iterable[Value]) -> list[Value]:
    """Each value once: numbers by size, names as they come."""
    place = _places(list(values))
    return sorted(place.values, key=float) if place.numeric else list(place.values)


def _ordered_styles(count: int) -> list[Style]:
    """From dark to light; where there are more than colours, full and dashed lines in turn."""
    last = len(ORDER) - 1
    return [
        Style(
            ORDER[round(i * last / max(count - 1, 1))],
            DASHES[i % 2 if count > len(ORDER) else 0],
            MARKERS[i % len(MARKERS)],
            hatch="",
        )
        for i in range(count)
    ]


@dataclass(frozen=True)
class _Place:
    """Where a sweep's values stand on the x axis: numbers where they belong, names in a row."""

    values: tuple[Value, ...]
    numeric: bool
    log: bool

    def __call__(self, point: Point) -> float:
        return float(point.value) if self.numeric else float(self.values.index(point.value))


def _places(values: Sequence[Value]) -> _Place:
    distinct = tuple(dict.fromkeys(values))
    numbers = [float(v) for v in distinct if not isinstance(v, bool | str)]
    numeric = len(numbers) == len(distinct)
    return _Place(distinct, numeric, numeric and min(numbers) > 0 and max(numbers) / min(numbers) >= 6)


def _ordered(sweep: Sweep, place: _Place) -> list[Point]:
    return sorted(sweep.point, key=place)


def _ticks(axes: Axes, place: _Place) -> None:
    """Ticks at the values that were tried and nowhere else."""
    from matplotlib.ticker import NullLocator

    if place.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if place.numeric:
        ticks = sorted(float(v) for v in place.values)
        axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
    else:
        names = [value_text(value) for value in place.values]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.4, len(names) - 0.6)


def _same_span(left: Axes, right: Axes) -> None:
    """Gives both axes the same height in the metric's unit, each around its own curve."""
    limits = [axes.get_ylim() for axes in (left, right)]
    span = max(high - low for low, high in limits)
    for axes, (low, high) in zip((left, right), limits, strict=True):
        middle = (low + high) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)
