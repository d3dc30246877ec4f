"""What `bench` counts, measures and prints: the cost of rows and of matching beside the papers', without training."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from detbench.errors import RecipeError
from detbench.parts.data import Source
from detbench.parts.part import canonical, plain
from detbench.recipe_text import Row
from detbench.recipes import Context, Recipe, resolve

if TYPE_CHECKING:
    from detbench.engine.cost import Costs
    from detbench.parts.experiment import Experiment

COLUMNS = {
    "params_train": "parameters, training",
    "params_infer": "parameters, inference",
    "gmacs_train": "G, training",
    "gmacs_infer": "G, inference",
}

METHODS = {
    "hungarian_per_layer": "Hungarian, layer by layer",
    "hungarian": "Hungarian, all layers at once",
    "hungarian_with_losses": "the same with losses and backward",
    "match_free_forward": "Match-Free, forward only",
    "match_free": "Match-Free with losses and backward",
}
"""The ways to supervise queries that `bench matching` times."""

PAPERS_MS = {"hungarian_per_layer": 53.0, "match_free": 25.0}
"""Match-Free, Table 2: batch 32 on four GPUs; Hungarian is matching alone, the other includes the backward pass."""


def cost_tree(chosen: Sequence[tuple[Recipe, Sequence[Row]]], context: Context) -> list[dict[str, Any]]:
    """The cost of every row that can run: trainable parameters, and 1e9 multiply-accumulates of one image.

    "reported" holds the paper's numbers under the same names, its parameters in millions; "departs" names those
    that a count at `paper` scale doesn't confirm.

    Raises:
        RecipeError: none of the rows can run, or one can't be resolved.
    """
    counted: dict[str, Costs] = {}
    entries = []
    for recipe, rows in chosen:
        for row in rows:
            if row.quoted or recipe.needs(row):
                continue
            costs = _count(resolve(recipe, row, context), counted)
            numbers = {
                "params_train": costs.train.parameters,
                "params_infer": costs.infer.parameters,
                "gmacs_train": costs.train.macs / 1e9,
                "gmacs_infer": costs.infer.macs / 1e9,
            }
            reported = _reported(row)
            entries.append(
                {"recipe": recipe.name, "row": row.label, "scale": context.scale}
                | {"height": costs.height, "width": costs.width}
                | numbers
                | {"reported": reported, "note": row.note}
                | {"departs": _departures(numbers, reported) if context.scale == "paper" else []}
            )
    if not entries:
        raise RecipeError(
            f"{', '.join(recipe.name for recipe, _ in chosen)}: none of the chosen rows can run"
        )
    return entries


def show_cost(entries: Sequence[dict[str, Any]]) -> None:
    """The costs as a table, the paper's numbers in brackets, and what is known about those numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("row")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for entry in entries:
        cells = []
        for name in COLUMNS:
            ours = f"{entry[name]:,}" if name.startswith("params") else f"{entry[name]:.2f}"
            if name in entry["reported"]:
                papers = entry["reported"][name]
                ours += f" ({papers:.1f} M)" if name.startswith("params") else f" ({papers:g})"
            cells.append(ours)
        table.add_row(f"{entry['recipe']}: {entry['row']}", *cells)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
    sizes = ", ".join(dict.fromkeys(f"{entry['width']} x {entry['height']}" for entry in entries))
    print(
        f"\nTrainable parameters; 1e9 multiply-accumulates of one image of {sizes} pixels, without postprocessing. "
        "In brackets: the paper."
    )
    for entry in entries:
        for name in entry["departs"]:
            print(
                f"{entry['recipe']}: {entry['row']}: {COLUMNS[name]}: the paper has {entry['reported'][name]:g}. "
                f"{entry['note']}".rstrip()
            )


def counts(text: str, *, option: str) -> list[int]:
    """Whole numbers from 1, separated by commas.

    Raises:
        RecipeError: something else, with the option's name.
    """
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise RecipeError(f"{option} {text}: expected whole numbers from 1, separated by commas")
    return [int(number) for number in numbers]


def devices(name: str) -> list[str]:
    """A device by its name; "auto" for the processor and, where there is one, the first CUDA device."""
    from torch.cuda import is_available

    if name != "auto":
        return [name]
    return ["cpu", "cuda"] if is_available() else ["cpu"]


def matching_tree(
    *,
    queries: Sequence[int],
    objects: Sequence[int],
    batch: Sequence[int],
    layers: Sequence[int],
    devices: Sequence[str],
    threads: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """The time of one training step's matching, for every combination of the numbers given (Match-Free, Table 2).

    "ms" holds median, lower and upper quartile of each of `METHODS`.

    Args:
        queries: of an image.
        objects: mean of an image.
        batch: images.
        layers: of the decoder.
        devices: "cpu", "cuda" or "cuda:1".
        threads: of the processor.
        repeats: steps that are timed.

    Raises:
        RecipeError: there is no such device.
    """
    from detbench.engine.machine import prepare
    from detbench.engine.matching import Shape, time_matching

    entries = []
    for name in devices:
        device = prepare(threads=threads, device=name)
        for numbers in itertools.product(batch, layers, objects, queries):
            shape = Shape(**dict(zip(("batch", "layers", "objects", "queries"), numbers, strict=True)))
            timed = time_matching(shape, device=device, repeats=repeats)
            entries.append(
                {"device": name, "threads": threads, "repeats": repeats}
                | dataclasses.asdict(shape)
                | {"ms": {method: dataclasses.astuple(timing) for method, timing in timed.items()}}
            )
    return entries


def show_matching(entries: Sequence[dict[str, Any]]) -> None:
    """The times as a table beside the paper's, and in words which of the two ways costs less."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("device", "batch", "layers", "objects", "queries"):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for heading in METHODS.values():
        table.add_column(heading, justify="right", max_width=19)
    for entry in entries:
        spread = [_milliseconds(*entry["ms"][method]) for method in METHODS]
        table.add_row(
            *(str(entry[key]) for key in ("device", "batch", "layers", "objects", "queries")), *spread
        )
    told = [f"{PAPERS_MS[method]:g}" if method in PAPERS_MS else "" for method in METHODS]
    table.add_row("the paper", "32", "", "", "", *told)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
    first = entries[0]
    print(
        f"\nms of one training step: median of {first['repeats']} (quartiles); CPU threads: {first['threads']}. "
        "The same random batch for all; the paper's is spread over four GPUs."
    )
    for entry in entries:
        print(verdict(entry))


def verdict(entry: Mapping[str, Any]) -> str:
    """Which way is faster, in words: Match-Free with its backward pass against both forms of Hungarian matching."""
    ours = entry["ms"]["match_free"][0]
    against = {
        "Hungarian matching layer by layer": entry["ms"]["hungarian_per_layer"][0],
        "all layers at once": entry["ms"]["hungarian"][0],
        "that with losses and backward": entry["ms"]["hungarian_with_losses"][0],
    }
    compared = ", ".join(
        f"{max(ours, other) / min(ours, other):.1f} times {'faster' if ours < other else 'slower'} than {name}"
        for name, other in against.items()
    )
    return f"{entry['device']}, {entry['queries']} queries: Match-Free, losses and backward included, is {compared}."


def _milliseconds(median: float, low: float, high: float) -> str:
    digits = 0 if median >= 100 else 1
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _count(experiment: Experiment, counted: dict[str, Costs]) -> Costs:
    """The costs of an experiment; those of one that is built alike are counted once."""
    from detbench.engine.cost import costs_untrained

    parts = (experiment.detector, experiment.branches, experiment.data.source, experiment.data.test)
    key = canonical([plain(part) for part in (*parts, experiment.test.branch)])
    if key not in counted:
        counted[key] = costs_untrained(experiment, num_classes=_num_classes(experiment.data.source))
    return counted[key]


def _num_classes(source: Source) -> int:
    """How many classes the data has that papers measure on: COCO's 80, CrowdHuman's one, the drawn presets' own."""
    from detbench.data.drawn import class_names

    match source.kind:
        case "coco":
            return 80
        case "crowdhuman":
            return 1
        case "drawn":
            return len(class_names(source))


def _reported(row: Row) -> dict[str, float]:
    """The paper's costs of a row: in millions of parameters and 1e9 multiply-accumulates."""
    named = {
        "params_m": f"params_{row.cost}",
        "params_train_m": "params_train",
        "params_infer_m": "params_infer",
        "gflops": f"gmacs_{row.cost}",
        "gflops_train": "gmacs_train",
        "gflops_infer": "gmacs_infer",
    }
    return {named[metric]: number for metric, number in row.reported.items() if metric in named}


def _departures(numbers: Mapping[str, float], reported: Mapping[str, float]) -> list[str]:
    """The paper's numbers that are off by more than 1 %, which no rounding or counting convention explains."""
    counted = {name: n / 1e6 if name.startswith("params") else n for name, n in numbers.items()}
    return [name for name, number in reported.items() if abs(counted[name] / number - 1) > 0.01]
