"""The figure of `bench matching`: what it costs to match, over the number of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detbench.report.plots import SERIES, Plot, canvas, legend

_MARKERS = ("o", "s", "^", "D", "v")


def plots(entries: Sequence[dict[str, Any]], names: Mapping[str, str]) -> list[Plot]:
    """A figure for each device, batch, number of layers and of objects: median and quartiles of every method.

    Args:
        entries: as `benching.matching_tree` makes them.
        names: of the methods, for people.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(_group(entry), []).append(entry)
    return [_plot(group, names) for group in groups.values()]


def _group(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return (entry["device"], entry["batch"], entry["layers"], entry["objects"])


def _plot(entries: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Plot:
    device, batch, layers, objects = _group(entries[0])
    figure, axes = canvas("queries", "ms of a training step")
    for (method, label), color, marker in zip(names.items(), SERIES, _MARKERS, strict=False):
        marks = sorted((e["queries"], *e["ms"][method]) for e in entries)
        queries, median, low, high = zip(*marks, strict=True)
        axes.plot(queries, median, color=color, marker=marker, markersize=4, label=label)
        axes.fill_between(queries, low, high, color=color, alpha=0.16, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = sorted({e["queries"] for e in entries})
    axes.set_xticks(shown, [str(number) for number in shown])
    axes.set_xticks([], minor=True)
    legend(figure, axes)
    kind = str(device).partition(":")[0]
    title = f"Matching on {kind}: {batch} images, {layers} layers, {objects} objects an image"
    return Plot(f"matching-{kind}-{batch}x{layers}x{objects}", title, figure)
