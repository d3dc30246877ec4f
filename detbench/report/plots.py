"""Figures of a table: how its rows converged and how they fare by object size. Those of its sweeps are in sweeps.py.

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
# For what has an order: two thirds of plasma, 2.9:1 on white at least, and still in order in grey.
ORDER = ("#0d0887", "#3e049c", "#6300a7", "#8707a6", "#a62098", "#c13b82", "#d6556d", "#e87059")
VARIABLES = (
    {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
    | {color: f"series-{i}" for i, color in enumerate(SERIES)}
    | {color: f"order-{i}" for i, color in enumerate(ORDER)}
)

DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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
    from detbench.report import sweeps

    of_rows, of_sweeps = [plot for plot in plots if plot is not None], sweeps.draw(collected, metric)
    # An ablation is about its parameters, a paper's table about its rows.
    return of_sweeps + of_rows if collected.recipe.head.kind == "ablation" else of_rows + of_sweeps


def convergence(collected: Collected, metric: str, *, over: str) -> Plot | None:
    """A metric over "epoch" or over "seconds" of training: the seeds' mean and range, and at the end each of them."""
    series = [
        (style, entry, marks)
        for style, entry in measured_rows(collected)
        if (marks := evaluated(entry, metric, over))
    ]
    if not series:
        return None
    unit, scale = (
        ("epochs", 1.0) if over == "epoch" else _time_unit(mark.x for *_, marks in series for mark in marks)
    )
    figure, axes = canvas(f"{unit} of training" if over == "seconds" else unit, metric)
    for style, entry, marks in series:
        x = [mark.x / scale for mark in marks]
        axes.plot(x, [mark.mean for mark in marks], label=entry.row.label, **style.line(marker=True))
        if len(entry.curves) > 1:
            low, high = [min(mark.values) for mark in marks], [max(mark.values) for mark in marks]
            axes.fill_between(x, low, high, color=style.color, alpha=0.16, linewidth=0)
            seeds(axes, x[-1], marks[-1].values, style.color)
            note(axes, "Bands: lowest to highest seed; dots: seeds at the end")
    axes.set_xlim(left=0)
    _keep_above_zero(axes)
    legend(figure, axes)
    what = "epochs" if over == "epoch" else "training time"
    return Plot(f"convergence-{over}", f"{metric} over {what}", figure)


def losses(collected: Collected, name: str) -> Plot | None:
    """A loss ("total" or "branch.loss") over steps: the seeds' smoothed mean, where each ends, faintly one as is."""
    series = [
        (style, entry)
        for style, entry in measured_rows(collected)
        if any(name in step["losses"] for curve in entry.curves for step in curve.steps)
    ]
    if not series:
        return None
    figure, axes = canvas("steps", f"loss {name}" if name != "total" else "total loss")
    for style, entry in series:
        raw = [(s["step"], s["losses"][name]) for s in entry.curves[0].steps if name in s["losses"]]
        axes.plot(*zip(*_thinned(raw), strict=True), color=style.color, alpha=0.22, linewidth=0.5)
        marks = aligned(entry.curves, lambda c: [(s, s["losses"].get(name)) for s in c.steps], "step")
        smooth = zip((mark.x for mark in marks), _running_mean([mark.mean for mark in marks]), strict=True)
        axes.plot(
            *zip(*_thinned(list(smooth)), strict=True), label=entry.row.label, **style.line(marker=False)
        )
        if len(entry.curves) > 1:
            each = zip(*(mark.values for mark in marks), strict=True)
            seeds(axes, marks[-1].x, [_running_mean(values)[-1] for values in each], style.color)
    axes.set_xlim(left=0)
    if min(axes.dataLim.intervaly) > 0:
        _log_axis(axes)
    legend(figure, axes)
    title = "Total loss" if name == "total" else f"Loss {name}"
    return Plot(f"loss-{slug(name)}", title, figure, detail=name != "total")


def sizes(collected: Collected) -> Plot | None:
    """AP of small, medium and large objects: a bar for the mean of each row, a dot for each seed."""
    rows = [
        (style, entry) for style, entry in measured_rows(collected) if any(entry.values(m) for m in _SIZES)
    ]
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
                seeds(axes, x, values, INK)
    names = {"APs": "small\nAPs", "APm": "medium\nAPm", "APl": "large\nAPl"}
    axes.set_xticks(range(len(groups)), [names[metric] for metric in groups])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    _keep_above_zero(axes)
    legend(figure, axes)
    return Plot("sizes", "AP by object size", figure)


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
    # Within tags alone: what stands between them is to be read, such as the 0.001 of a tick.
    text = re.sub(r"<[^>]+>", lambda tag: _page_tag(tag[0], prefix), text)
    width, height = (float(side) for side in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    head = (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {width:g} {height:g}" style="--width: {width:g}"'
    )
    return re.sub(r"<svg[^>]*", head, text, count=1)


def _page_tag(tag: str, prefix: str) -> str:
    """A tag of a drawing as the page has it."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)  # hundredths of a point are enough, and half the size
    return re.sub(r"#[0-9a-f]{6}\b", lambda hit: _variable(hit[0]), tag)


def save(plot: Plot, folder: Path) -> list[Path]:
    """Writes a figure as SVG and as PNG on white paper; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    vector, pixels = folder / f"{plot.name}.svg", folder / f"{plot.name}.png"
    vector.write_text(svg(plot.figure), encoding="utf-8")
    plot.figure.savefig(pixels, dpi=200, facecolor=PAPER)
    return [vector, pixels]


@dataclass(frozen=True)
class Style:
    """How one row looks in every figure of its table."""

    color: str
    dashes: Any
    marker: str
    hatch: str

    def line(self, *, marker: bool) -> dict[str, Any]:
        """Arguments of Axes.plot."""
        drawn = {"marker": self.marker, "markersize": 4} if marker else {}
        return {"color": self.color, "linestyle": self.dashes, "linewidth": 1.5} | drawn


def styles() -> Iterator[Style]:
    """Endless: all colours with full lines, then dashed, then dotted."""
    number = 0
    while True:
        turn, i = divmod(number, len(SERIES))
        yield Style(
            SERIES[i], DASHES[turn % len(DASHES)], MARKERS[i], ("", "////", "....")[turn % len(DASHES)]
        )
        number += 1


def measured_rows(collected: Collected) -> list[tuple[Style, Entry]]:
    """The rows with runs, each with its style."""
    return list(zip(styles(), (entry for entry in collected.entries if entry.results), strict=False))


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


@dataclass(frozen=True)
class Mark:
    """What the seeds of a row logged at one step.

    Attributes:
        x: step, epoch or seconds, on average over the seeds.
        values: one for each seed, in their order.
    """

    x: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)


def evaluated(entry: Entry, metric: str, over: str) -> list[Mark]:
    """A row's evaluations over "epoch", "step" or "seconds"."""
    return aligned(entry.curves, lambda c: [(e, e["metrics"].get(metric)) for e in c.evaluations], over)


def aligned(curves: Sequence[Curve], read: Callable[[Curve], Pairs], over: str) -> list[Mark]:
    """The seeds' values at each step that all of them logged."""
    by_step: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for curve in curves:
        for entry, value in read(curve):
            if value is not None:
                by_step[entry["step"]].append((entry[over], value))
    return [
        Mark(sum(x for x, _ in points) / len(points), tuple(value for _, value in points))
        for _, points in sorted(by_step.items())
        if len(points) == len(curves)
    ]


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


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _keep_above_zero(axes: Axes) -> None:
    """Gives an axis of nothing but zeros a top of 1; by itself it would reach below zero, where no AP can be."""
    if axes.dataLim.y1 == 0:
        axes.set_ylim(0, 1)


def canvas(x: str, y: str) -> tuple[Figure, Axes]:
    """Empty axes in this room's style, with the names of what stands on them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    dress(axes)
    return figure, axes


def note(axes: Axes, text: str) -> None:
    """Writes above the axes how they are to be read."""
    axes.set_title(text, fontsize=9, color=INK, loc="left")


def seeds(axes: Axes, x: float, values: Sequence[float], color: str) -> None:
    """Each seed's number as a dot, where their mean is drawn."""
    axes.plot(
        [x] * len(values), values, "o", markersize=3.2, markerfacecolor=PAPER, markeredgecolor=color,
        markeredgewidth=0.8,
    )  # fmt: skip


def dress(axes: Axes) -> None:
    """Gives axes this room's colours and lines."""
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
