"""Align-DETR's Figure 1, left, of any run: how good boxes with the best scores are, and how good the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detbench.data.sources import read_splits
from detbench.data.truth import ground_truth
from detbench.metrics.alignment import Alignment, measure
from detbench.parts.test import CocoMetrics
from detbench.recipes import slug
from detbench.report.gather import Collected
from detbench.report.plots import INK, SERIES, Plot, canvas, legend
from detbench.results import DETECTIONS, read_detections, read_result
from detbench.store import Store

_BINS = 20


def of_run(folder: Path) -> Alignment:
    """What the kept detections of a finished run come to.

    Raises:
        StoreError: the run isn't finished, or its files are damaged.
        DataError: its data is not where it was.
    """
    result = read_result(folder)
    splits = read_splits(result.data_part.source, Store.around(folder).cache)
    return measure(ground_truth(splits.val, CocoMetrics()), read_detections(folder / DETECTIONS))


def histograms(collected: Collected) -> list[Plot]:
    """One figure for each experiment of a recipe that found anything, all its seeds together."""
    found = {
        entry.digests: entry for entry in collected.entries if any(len(a.best) for a in entry.alignments)
    }
    return [
        histogram(joined(entry.alignments), label=entry.row.label if len(found) > 1 else "")
        for entry in found.values()
    ]


def joined(seeds: Sequence[Alignment]) -> Alignment:
    """Several runs as one."""
    return Alignment(
        np.concatenate([seed.confident for seed in seeds]),
        np.concatenate([seed.best for seed in seeds]),
        sum(seed.objects for seed in seeds),
    )


def histogram(found: Alignment, *, label: str) -> Plot:
    """The share of objects over the IoU of their most confident and of their best detection, 20 bins.

    Args:
        found: with one object at least.
        label: what tells this figure from others of the recipe; "" for nothing.
    """
    figure, axes = canvas("IoU with the object", "share of objects")
    for color, values, name in (
        (SERIES[1], found.confident, "most confident: highest score for its class"),
        (SERIES[0], found.best, "best regressed: highest IoU, of any class"),
    ):
        counts, edges = np.histogram(values, bins=_BINS, range=(0, 1))
        shares = counts / len(values)
        axes.stairs(shares, edges, color=color, fill=True, alpha=0.25)
        axes.stairs(shares, edges, color=color, linewidth=1.5, label=f"{name}, mean {values.mean():.3f}")
    axes.set_xlim(0, 1)
    axes.set_title(
        f"Mean gap {found.gap:.3f}, among the run's kept detections;\n"
        f"{len(found.best)} of {found.objects} objects overlap one of their class",
        fontsize=9,
        color=INK,
        loc="left",
    )
    legend(figure, axes)
    name = f"alignment-{slug(label)}" if label else "alignment"
    title = "IoU of the most confident and of the best boxes"
    return Plot(name, f"{title}: {label}" if label else title, figure)
