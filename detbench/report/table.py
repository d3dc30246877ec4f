"""One table of a report as typed values: measured beside reported, with everything a reader must know of it.

Its forms (forms.py, the page) take their numbers from here and compute none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from detbench.recipe_text import Row, Scale
from detbench.report.claims import Verdict, judge
from detbench.report.columns import Column, column_of, difference, number_text
from detbench.report.gather import Collected, Entry, State, hardware
from detbench.stats import Estimate, mean_interval, smallest_detectable_difference


@dataclass(frozen=True)
class TableCell:
    """One row's number in one column.

    Attributes:
        measured: over the seeds; None where nothing was measured.
        by_seed: seed to its number; runs in which it could not be measured are left out.
        reported: by the paper; None where it prints none.
        difference: measured minus the baseline row's, paired over the seeds both have; with one seed, over images.
        rank: 1 best, 2 second best of the measured rows at the digits shown; ties share a rank.
    """

    measured: Estimate | None
    by_seed: dict[int, float]
    reported: float | None
    difference: Estimate | None
    rank: int | None


@dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        label: the paper's words.
        state: measured, or why not.
        seeds: of its finished runs.
        steps: optimiser steps of a run; None where none is finished.
        remark: "" or what to know about the row: what it needs, where its number is from.
        changes: key to (baseline's value, this row's).
        cells: one for each column.
    """

    label: str
    state: State
    seeds: tuple[int, ...]
    steps: int | None
    remark: str
    changes: dict[str, tuple[Any, Any]]
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper, measured and reported.

    Attributes:
        name: the recipe's, such as "date/table5".
        title: what it is about.
        scale: the overlay its runs share.
        data: name of the data set they were trained and tested on; "" where nothing is measured.
        caption: scale, data, length and seeds in one line.
        hardware: machines the runs were made on.
        baseline: label of the row that differences are taken to; "" for none.
        columns: metrics in the paper's order.
        rows: in the paper's order.
        notes: what must be known to read the numbers.
        verdicts: on the paper's claims about it.
    """

    name: str
    title: str
    scale: Scale
    data: str
    caption: str
    hardware: tuple[str, ...]
    baseline: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def build(collected: Collected) -> Table:
    """The table of one recipe at one scale."""
    head = collected.recipe.head
    columns = tuple(column_of(metric) for metric in head.metrics)
    by_column = [_cells(collected, column) for column in columns]
    rows = tuple(
        TableRow(
            label=entry.row.label,
            state=entry.state,
            seeds=tuple(result.seed for result in entry.results),
            steps=entry.results[0].steps if entry.results else None,
            remark=_remark(entry, cells),
            changes=entry.changes,
            cells=cells,
        )
        for entry, cells in zip(collected.entries, zip(*by_column, strict=True), strict=True)
    )
    verdicts = judge(collected)
    return Table(
        name=collected.name,
        title=head.title,
        scale=collected.scale,
        data=collected.data_name,
        caption=_caption(collected),
        hardware=tuple(collected.distinct(hardware)),
        baseline=head.baseline,
        columns=columns,
        rows=rows,
        notes=(*_notes(collected, rows, columns), *_verdict_notes(verdicts, collected.scale)),
        verdicts=verdicts,
    )


def uncontrolled(entry: Entry, baseline: Row, scale: Scale) -> list[str]:
    """Keys in which a row differs from the baseline though neither of them sets it, at that scale or at all.

    Rows that use another variant than the baseline are compared as whole methods: there it is empty.
    """
    if entry.row.use != baseline.use:
        return []
    trees = [tree for row in (entry.row, baseline) for tree in (row.set, row.scale.get(scale, {}))]
    declared = [key for tree in trees for key in _leaves(tree)]
    return [key for key in entry.changes if not any(_touches(key, other) for other in declared)]


def _cells(collected: Collected, column: Column) -> list[TableCell]:
    baseline = collected.baseline
    estimates = [_estimate(entry, column) for entry in collected.entries]
    ranks = _ranks([None if e is None else round(e.mean, column.decimals) for e in estimates], column)
    return [
        TableCell(
            measured=estimate,
            by_seed=entry.values(column.metric),
            reported=entry.row.reported.get(column.metric),
            difference=None if baseline is None or entry is baseline else difference(entry, baseline, column),
            rank=rank,
        )
        for entry, estimate, rank in zip(collected.entries, estimates, ranks, strict=True)
    ]


def _estimate(entry: Entry, column: Column) -> Estimate | None:
    values = list(entry.values(column.metric).values())
    if not values:
        return None
    return mean_interval(values[:1] if column.counted else values)


def _ranks(shown: list[float | None], column: Column) -> list[int | None]:
    """1 for the best, 2 for the second best of at least two different numbers."""
    order = sorted({value for value in shown if value is not None}, reverse=not column.lower_is_better)
    if len(order) < 2:
        return [None] * len(shown)
    marks = {order[0]: 1} | ({order[1]: 2} if len(order) > 2 else {})
    return [None if value is None else marks.get(value) for value in shown]


def _remark(entry: Entry, cells: Sequence[TableCell]) -> str:
    remarks = []
    match entry.state:
        case "needs":
            remarks.append(f"needs: {', '.join(entry.needs)}")
        case "quoted":
            remarks.append("quoted from the paper, never run")
        case "not run":
            remarks.append("not run")
    remarks += dict.fromkeys(stop.text for stop in entry.stopped)
    remarks += [
        f"seed {seed}: {count} of {len(entry.digests)} folds finished"
        for seed, count in entry.partial.items()
    ]
    if any(cell.difference and cell.difference.over == "images" for cell in cells):
        remarks.append("interval over images only")
    if entry.row.note:
        remarks.append(entry.row.note)
    if entry.row.source == "ours":
        remarks.append("not in the paper")
    elif entry.row.source != "paper":
        remarks.append(f"source: {entry.row.source}")
    return "; ".join(remarks)


def _caption(collected: Collected) -> str:
    results = collected.results
    if not results:
        return f"Scale {collected.scale}, nothing measured yet."
    seeds = {len(entry.results) for entry in collected.entries if entry.results}
    steps = _range({result.steps for result in results})
    data = results[0].data
    training = f"{_range({result.data['num_train'] for result in results})} training"
    if unlabelled := {n for result in results if (n := result.data.get("num_unlabelled", 0))}:
        training += f", for teachers {_range(unlabelled)} unlabelled"
    sizes = f"{training}, {data['num_val']:,} validation images"
    return (
        f"Scale {collected.scale}: {steps} steps on {collected.data_name} ({sizes}, {data['num_classes']} "
        f"classes), {_range(seeds)} {'seed' if seeds == {1} else 'seeds'} a row{_folds(collected)}."
    )


def _folds(collected: Collected) -> str:
    """That seeds are means over folds, where they are."""
    folds = {len(entry.digests) for entry in collected.entries if entry.results} - {1}
    return f", each the mean over {_range(folds)} folds of labelled images" if folds else ""


def _notes(collected: Collected, rows: Sequence[TableRow], columns: Sequence[Column]) -> Iterable[str]:
    results = collected.results
    if collected.recipe.head.note:
        yield collected.recipe.head.note
    if not results:
        return
    yield from _spread_notes(collected)
    yield from _stopping_notes(collected)
    yield from _difference_notes(collected, rows, columns)
    if collected.scale != "paper":
        paper = f" on {collected.recipe.head.dataset}" if collected.recipe.head.dataset else ""
        yield (
            f"Scale {collected.scale} is not the paper's setting{paper}: absolute numbers are not comparable "
            "with the paper's. What can be compared is order and sign."
        )
    if any(result.experiment["test"]["metrics"].get("size_limits") == "relative" for result in results):
        yield "Size limits are relative: COCO's 32² and 96² pixels, scaled by an image's area over 640 x 480."
    if collected.overrides:
        yield f"Changed on the command line for all rows: {', '.join(collected.overrides)}."
    yield from _fairness_notes(collected)
    lengths = {result.steps for result in results}
    if len(lengths) > 1:
        yield f"Rows are trained for different lengths: {_range(lengths)} steps."
    for what, found in (
        ("hardware", collected.distinct(hardware)),
        ("commits", collected.distinct(lambda result: result.commit or "unknown")),
    ):
        if len(found) > 1:
            yield f"Runs of this table come from different {what}: {'; '.join(found)}."


def _spread_notes(collected: Collected) -> Iterable[str]:
    counts = {len(entry.results) for entry in collected.entries if entry.results}
    if max(counts) > 1:
        yield (
            "Measured: mean ± standard deviation over seeds. Differences are paired over seeds, with a 95 % "
            "Student interval: training noise only, on the same validation images."
        )
    if 1 in counts:
        yield "A single seed says nothing about the spread between seeds: small differences may be chance."


def _stopping_notes(collected: Collected) -> Iterable[str]:
    """What it means that rows were stopped early."""
    stopped = [entry for entry in collected.entries if entry.stopped]
    if not stopped:
        return
    margins = sorted({stop.margin for entry in stopped for stop in entry.stopped})
    yield (
        f"Stopped early, {len(stopped)} of {len(collected.entries)} rows: {'; '.join(e.row.label for e in stopped)}. "
        f"At an evaluation they were more than {' or '.join(f'{margin:g}' for margin in margins)} points behind the "
        "best row (or more than chance between seeds explains, where that is more). The best is chosen among those "
        "that ran to the end: a row that learns slowly at first may be missing from it. The same command without "
        "--stop-early finishes them."
    )


def _difference_notes(
    collected: Collected, rows: Sequence[TableRow], columns: Sequence[Column]
) -> Iterable[str]:
    """How sure the differences to the baseline are, and how small a one the seeds could have shown."""
    differences = [cell.difference for row in rows for cell in row.cells if cell.difference]
    if differences and collected.unlisted is not None:
        yield f"The baseline is '{collected.unlisted.row.label}', which was not asked for here."
    if any(found.over == "images" for found in differences):
        images = collected.results[0].data["num_val"]
        yield (
            "Of rows with one seed, the interval of the difference is a 95 % bootstrap over the "
            f"{images:,} validation images, the same resampled images for both rows. It holds the two trained "
            "models fixed: image sampling only, no training noise."
        )
    for i, column in enumerate(columns):
        detectable = [
            f"{row.label} {number_text(smallest, column)}"
            for row in rows
            if (smallest := _smallest_detectable(row.cells[i].difference, column)) is not None
        ]
        if detectable:
            yield (
                f"Smallest true difference to the baseline in {column.metric} that so many seeds would find "
                f"(80 % power, two-sided test at 5 %, spread as measured): {'; '.join(detectable)}."
            )
            return


def _verdict_notes(verdicts: Sequence[Verdict], scale: Scale) -> Iterable[str]:
    """How claims were tested, where any was, and what their margins are worth at this scale."""
    tested = sum(verdict.p_for is not None for verdict in verdicts)
    if tested:
        yield (
            "Verdicts on claims: one-sided t tests of the differences paired over seeds, at 5 %; p-values are "
            f"adjusted (Holm) for the {tested} claim{'s' if tested > 1 else ''} of this table that "
            f"{'were' if tested > 1 else 'was'} tested."
        )
    if scale != "paper" and any(
        verdict.claim.margin and verdict.ruling != "undecided" for verdict in verdicts
    ):
        yield (
            f"Margins of claims are meant for the paper's scale. Scale {scale} has other sizes and scores, so a "
            "verdict with a margin says less there than one on order or sign."
        )


def _smallest_detectable(found: Estimate | None, column: Column) -> float | None:
    """For a difference over two seeds at least that don't all agree, of a number that is measured."""
    if found is None or not found.sd or found.over == "images" or column.counted:
        return None
    return smallest_detectable_difference(found.sd, found.count)


def _fairness_notes(collected: Collected) -> Iterable[str]:
    baseline = collected.baseline
    if baseline is None:
        return
    compared = [entry for entry in collected.entries if entry.results and entry is not baseline]
    if not compared or not baseline.results:
        return
    others = {entry.row.label: uncontrolled(entry, baseline.row, collected.scale) for entry in compared}
    for label, keys in others.items():
        if keys:
            yield f"Not controlled: '{label}' also differs from the baseline in {', '.join(keys)}."
    methods = [entry.row.label for entry in compared if entry.row.use != baseline.row.use]
    if methods:
        rows = "all rows" if len(methods) == len(compared) else "; ".join(methods)
        yield f"Of another method than the baseline, compared as a whole: {rows}."
    controlled = [label for label, keys in others.items() if label not in methods and not keys]
    if controlled:
        yield f"Controlled, differing from the baseline only in what they set: {'; '.join(controlled)}."


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and "kind" not in value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _touches(key: str, declared: str) -> bool:
    """Whether one of two key paths lies at or under the other."""
    return f"{key}.".startswith(f"{declared}.") or f"{declared}.".startswith(f"{key}.")


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
