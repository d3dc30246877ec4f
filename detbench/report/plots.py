"""Figures of a table: how its rows converged, what its sweeps found, how they fare by object size.

Drawn with matplotlib's object interface, which keeps no global state; it is imported inside the functions.
Files are drawn for white paper. On the page the same drawing follows the reader's colours: page_svg turns
every colour of the drawing into a CSS variable.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbench.recipe_text import Point, Sweep
from detbench.recipes import slug
from detbench.report.gather import Collected, Entry
from detbench.results import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours ("Color Universal Design", 2008), the light ones darkened to 3:1 on white. No two
# are equal, so that page_svg can tell them apart.
INK, MUTED, GRID, PAPER = "#1f2328", "#646b74", "#d9dce1", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#008a66", "#b8578c", "#9a7400", "#2a93c9", "#6a51a3", "#7a7a7a")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{i}" for i, color in enumerate(SERIES)
}

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_WIDTH, _HEIGHT = 4.7, 3.0  # inches; 338 points: a phone shows it at its own size
_SIZES = ("APs", "APm", "APl")
_POINTS = 200  # of a line: more would make a page of megabytes
_SMOOTHED = 0.04  # of a curve's length: the width of its running mean


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: of its file, such as "convergence-epochs".
        title: what it shows.
        figure: ready to be written.
        detail: one of many of its kind, shown on demand.
    """

    name: str
    title: str
    figure: Figure
    detail: bool = False


def draw(collected: Collected) -> list[Plot]:
    """Every figure that a recipe asks for and that there are numbers for."""
    metric = _main_metric(collected)
    plots = []
    for wanted in collected.recipe.head.plots:
        match wanted.partition(":"):
            case ("convergence", _, _):
                plots += [
                    convergence(collected, metric, over="epoch"),
                    convergence(collected, metric, over="seconds"),
                ]
            case ("sizes", _, _):
                plots.append(sizes(collected))
            case ("losses", _, _):
                plots += [losses(collected, name) for name in _loss_names(collected)]
            case ("loss", _, name):
                plots.append(losses(collected, name))
            case ("alignment", _, _):
                from detbench.report.alignment import histograms

                plots += histograms(collected)
    params = dict.fromkeys(sweep.param for sweep in collected.recipe.sweeps)
    plots += [sweeps(collected, param, metric) for param in params]
    return [plot for plot in plots if plot is not None]


def convergence(collected: Collected, metric: str, *, over: str) -> Plot | None:
    """A metric over "epoch" or over "seconds" of training: the mean of the seeds and their range."""
    series = []
    for style, entry in _measured(collected):
        marks = _aligned(entry.curves, lambda c: [(e, e["metrics"].get(metric)) for e in c.evaluations], over)
        if marks:
            series.append((style, entry, marks))
    if not series:
        return None
    unit, scale = (
        ("epochs", 1.0) if over == "epoch" else _time_unit(x for *_, marks in series for x, *_ in marks)
    )
    figure, axes = canvas(f"{unit} of training" if over == "seconds" else unit, metric)
    for style, entry, marks in series:
        x = [x / scale for x, *_ in marks]
        axes.plot(x, [mean for _, mean, *_ in marks], label=entry.row.label, **style.line(marker=True))
        if len(entry.curves) > 1:
            low, high = [m[2] for m in marks], [m[3] for m in marks]
            axes.fill_between(x, low, high, color=style.color, alpha=0.16, linewidth=0)
    axes.set_xlim(left=0)
    legend(figure, axes)
    what = "epochs" if over == "epoch" else "training time"
    return Plot(f"convergence-{over}", f"{metric} over {what}", figure)


def losses(collected: Collected, name: str) -> Plot | None:
    """A loss ("total" or "branch.loss") over steps: the seeds' smoothed mean, and faintly one seed as is."""
    series = [
        (style, entry)
        for style, entry in _measured(collected)
        if any(name in step["losses"] for curve in entry.curves for step in curve.steps)
    ]
    if not series:
        return None
    figure, axes = canvas("steps", f"loss {name}" if name != "total" else "total loss")
    for style, entry in series:
        raw = [(s["step"], s["losses"][name]) for s in entry.curves[0].steps if name in s["losses"]]
        axes.plot(*zip(*_thinned(raw), strict=True), color=style.color, alpha=0.22, linewidth=0.5)
        marks = _aligned(entry.curves, lambda c: [(s, s["losses"].get(name)) for s in c.steps], "step")
        smooth = zip((x for x, *_ in marks), _running_mean([mean for _, mean, *_ in marks]), strict=True)
        axes.plot(
            *zip(*_thinned(list(smooth)), strict=True), label=entry.row.label, **style.line(marker=False)
        )
    axes.set_xlim(left=0)
    if min(axes.dataLim.intervaly) > 0:
        _log_axis(axes)
    legend(figure, axes)
    title = "Total loss" if name == "total" else f"Loss {name}"
    return Plot(f"loss-{slug(name)}", title, figure, detail=name != "total")


def sizes(collected: Collected) -> Plot | None:
    """AP of small, medium and large objects: a bar for the mean of each row, a dot for each seed."""
    rows = [(style, entry) for style, entry in _measured(collected) if any(entry.values(m) for m in _SIZES)]
    groups = [metric for metric in _SIZES if any(entry.values(metric) for _, entry in rows)]
    if not rows:
        return None
    figure, axes = canvas("", "AP")
    width = 0.8 / len(rows)
    for i, (style, entry) in enumerate(rows):
        label: str | None = entry.row.label
        for g, metric in enumerate(groups):
            values = list(entry.values(metric).values())
            if not values:
                continue
            x = g - 0.4 + (i + 0.5) * width
            axes.bar(
                x, sum(values) / len(values), width * 0.86, color=style.color, alpha=0.75, hatch=style.hatch,
                edgecolor=PAPER, linewidth=0, label=label,
            )  # fmt: skip
            label = None  # one bar of a row stands in the legend
            if len(values) > 1:
                axes.plot([x] * len(values), values, ".", color=INK, markersize=2.5)
    names = {"APs": "small\nAPs", "APm": "medium\nAPm", "APl": "large\nAPl"}
    axes.set_xticks(range(len(groups)), [names[metric] for metric in groups])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    legend(figure, axes)
    return Plot("sizes", "AP by object size", figure)


def sweeps(collected: Collected, param: str, metric: str) -> Plot | None:
    """A parameter's sweeps: measured on the left axis, reported on the right one, both of the same span.

    The levels of the two axes differ, as their scales do; slopes may be compared.
    """
    every = [sweep for sweep in collected.recipe.sweeps if sweep.param == param]
    measured = [sweep for sweep in every if any(collected.entry(p.label).values(metric) for p in sweep.point)]
    if not measured:
        return None
    place = _places([point.value for sweep in measured for point in sweep.point])
    figure, axes = canvas(param, f"{metric} measured")
    paper = axes.twinx()
    for style, sweep in zip(_styles(), measured, strict=False):
        dots = [
            (place(point), list(collected.entry(point.label).values(metric).values()))
            for point in _ordered(sweep, place)
        ]
        dots = [(x, values) for x, values in dots if values]
        for x, values in dots:
            axes.plot([x] * len(values), values, ".", color=style.color, alpha=0.55, markersize=4)
        means = [sum(values) / len(values) for _, values in dots]
        name = sweep.series or param
        axes.plot([x for x, _ in dots], means, label=f"{name}, measured", **style.line(marker=True))
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
        _dress(paper)
    else:
        paper.set_axis_off()
    legend(figure, axes, paper)
    return Plot(f"sweep-{slug(param)}", f"{metric} over {param}", figure)


def svg(figure: Figure) -> str:
    """A figure as an SVG file's text, equal for equal figures."""
    import matplotlib

    stream = io.StringIO()
    # Text stays text: small, searchable, and in the reader's font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "detbench"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def page_svg(figure: Figure, *, prefix: str, title: str) -> str:
    """A figure to stand within HTML: its colours are CSS variables, its ids unique, its title read aloud."""
    text = svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"(\.\d\d)\d+", r"\1", text)  # hundredths of a point are enough, and half the size
    text = re.sub(r"#[0-9a-f]{6}\b", lambda hit: _variable(hit[0]), text)
    width, height = (float(side) for side in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    head = (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {width:g} {height:g}" style="--width: {width:g}"'
    )
    return re.sub(r"<svg[^>]*", head, text, count=1)


def save(plot: Plot, folder: Path) -> list[Path]:
    """Writes a figure as SVG and as PNG on white paper; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    vector, pixels = folder / f"{plot.name}.svg", folder / f"{plot.name}.png"
    vector.write_text(svg(plot.figure), encoding="utf-8")
    plot.figure.savefig(pixels, dpi=200, facecolor=PAPER)
    return [vector, pixels]


@dataclass(frozen=True)
class _Style:
    """How one row looks in every figure of its table."""

    color: str
    dashes: Any
    marker: str
    hatch: str

    def line(self, *, marker: bool) -> dict[str, Any]:
        """Arguments of Axes.plot."""
        drawn = {"marker": self.marker, "markersize": 4} if marker else {}
        return {"color": self.color, "linestyle": self.dashes, "linewidth": 1.5} | drawn


def _styles() -> Iterator[_Style]:
    """Endless: all colours with full lines, then dashed, then dotted."""
    number = 0
    while True:
        turn, i = divmod(number, len(SERIES))
        yield _Style(
            SERIES[i], _DASHES[turn % len(_DASHES)], _MARKERS[i], ("", "////", "....")[turn % len(_DASHES)]
        )
        number += 1


def _measured(collected: Collected) -> list[tuple[_Style, Entry]]:
    return list(zip(_styles(), (entry for entry in collected.entries if entry.results), strict=False))


def _main_metric(collected: Collected) -> str:
    """The column that figures are about: AP where there is one."""
    metrics = collected.recipe.head.metrics
    return "AP" if "AP" in metrics else metrics[0]


def _loss_names(collected: Collected) -> list[str]:
    names = {
        name: None
        for entry in collected.entries
        for curve in entry.curves
        for step in curve.steps[:1]
        for name in step["losses"]
    }
    return sorted(names, key=lambda name: name != "total")


Pairs = Iterable[tuple[dict[str, Any], float | None]]


def _aligned(
    curves: Sequence[Curve], read: Callable[[Curve], Pairs], over: str
) -> list[tuple[float, float, float, float]]:
    """Mean x, mean, lowest and highest value over the seeds at each step that all of them logged."""
    by_step: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for curve in curves:
        for entry, value in read(curve):
            if value is not None:
                by_step[entry["step"]].append((entry[over], value))
    marks = []
    for _, points in sorted(by_step.items()):
        if len(points) == len(curves):
            values = [value for _, value in points]
            mean_x = sum(x for x, _ in points) / len(points)
            marks.append((mean_x, sum(values) / len(values), min(values), max(values)))
    return marks


def _running_mean(values: Sequence[float]) -> list[float]:
    """Centred; at the ends over what there is."""
    half = round(len(values) * _SMOOTHED / 2)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """About as many points as a phone can show, the last one always among them."""
    stride = -(-len(points) // _POINTS)
    return points[::-1][::stride][::-1]


def _time_unit(seconds: Iterable[float]) -> tuple[str, float]:
    longest = max(seconds)
    if longest < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if longest < 3 * 3600 else ("hours", 3600.0)


@dataclass(frozen=True)
class _Place:
    """Where a sweep's values stand on the x axis: numbers where they belong, names in a row."""

    values: tuple[float | str | bool, ...]
    numeric: bool
    log: bool

    def __call__(self, point: Point) -> float:
        return float(point.value) if self.numeric else float(self.values.index(point.value))


def _places(values: Sequence[float | str | bool]) -> _Place:
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
        names = [
            {True: "yes", False: "no"}.get(v, str(v)) if isinstance(v, bool) else str(v) for v in place.values
        ]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.4, len(names) - 0.6)


def _same_span(left: Axes, right: Axes) -> None:
    """Gives both axes the same height in the metric's unit, each around its own curve."""
    limits = [axes.get_ylim() for axes in (left, right)]
    span = max(high - low for low, high in limits)
    for axes, (low, high) in zip((left, right), limits, strict=True):
        middle = (low + high) / 2
        axes.set_ylim(middle - span / 2, middle + span / 2)


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def canvas(x: str, y: str) -> tuple[Figure, Axes]:
    """Empty axes in this room's style, with the names of what stands on them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9.5, length=3, width=0.8, which="both")
    axes.tick_params(axis="y", length=0, which="both")
    axes.xaxis.label.set_fontsize(9.5)
    axes.yaxis.label.set_fontsize(9.5)


def legend(figure: Figure, *every: Axes) -> None:
    """Names everything that has a label, below the axes, so that it hides nothing; the figure grows by its height."""
    handles, labels = [], []
    for axes in every:
        more_handles, more_labels = axes.get_legend_handles_labels()
        handles += more_handles
        labels += more_labels
    columns = 2 if max(len(label) for label in labels) <= 26 else 1
    lines = -(-len(labels) // columns)
    figure.set_size_inches(_WIDTH, _HEIGHT + 0.19 * lines)
    legend = figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=9, labelcolor=INK,
        handlelength=2.2, columnspacing=1.2, borderaxespad=0.2, labelspacing=0.35,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a label is no formula


def _variable(color: str) -> str:
    name = VARIABLES.get(color)
    return color if name is None else f"var(--{name}, {color})"
