"""The plot of the most confident against the best boxes (Align-DETR, Figure 1 left)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detbench.metrics.alignment import Alignment
from detbench.report import plots
from detbench.report.alignment import histogram, joined
from detbench.report.plots import Plot


def alignment(seed: int, found: int = 400) -> Alignment:
    random = np.random.default_rng(seed)
    best = random.beta(8, 2, found)
    return Alignment(best * random.beta(20, 1, found), best, found + 25)


def titles(drawn: list[Plot]) -> list[str]:
    return [plot.title for plot in drawn if plot.name.startswith("alignment")]


def test_the_plot_says_what_it_counts_and_how_far_apart_the_two_are(tmp_path) -> None:
    found = joined([alignment(0), alignment(1)])
    plot = histogram(found, label="")
    (axes,) = plot.figure.axes
    assert f"Mean gap {np.mean(found.best - found.confident):.3f}" in axes.get_title("left")
    assert "kept detections" in axes.get_title("left")
    assert "800 of 850 objects" in axes.get_title("left")
    names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert names == [
        f"most confident: highest score for its class, mean {found.confident.mean():.3f}",
        f"best regressed: highest IoU, of any class, mean {found.best.mean():.3f}",
    ]
    assert all(path.is_file() for path in plots.save(plot, tmp_path))


def test_the_bars_of_each_set_sum_to_one_over_20_bins() -> None:
    (axes,) = histogram(alignment(0), label="").figure.axes
    for patch in axes.patches:
        values, edges, _ = patch.get_data()
        assert len(values) == 20
        assert (edges[0], edges[-1]) == (0, 1)
        assert values.sum() == pytest.approx(1)


def test_nothing_sticks_out_of_the_figure() -> None:
    figure = histogram(alignment(0), label="").figure
    figure.draw_without_rendering()
    boxes = [figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_rows_that_are_one_run_have_one_figure_and_runs_that_found_nothing_none(collect) -> None:
    collected = collect("quickstart", 2)
    collected = replace(
        collected, recipe=replace(collected.recipe, head=replace(collected.recipe.head, plots=("alignment",)))
    )
    assert titles(plots.draw(collected)) == []

    first, second, third = collected.entries
    nothing = Alignment(np.zeros(0), np.zeros(0), 25)
    entries = [
        replace(first, alignments=[alignment(0), alignment(1)]),
        replace(second, digests=first.digests, alignments=[alignment(0), alignment(1)]),
        replace(third, alignments=[nothing, nothing]),
    ]
    assert titles(plots.draw(replace(collected, entries=entries))) == [
        "IoU of the most confident and of the best boxes"
    ]
    entries[2] = replace(third, alignments=[alignment(2), nothing])
    assert len(titles(plots.draw(replace(collected, entries=entries)))) == 2
