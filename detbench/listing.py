"""What `ls`, `show`, `validate`, `plan`, `runs` and `data check` print, and the same as plain trees for --json."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from detbench.errors import DataError, RecipeError
from detbench.parts.part import flatten, plain
from detbench.recipe_text import Row
from detbench.recipes import Context, Recipe, changes, resolve, resolve_if_possible, settings, short, slug
from detbench.results import read_request, read_result
from detbench.runs import Cell, estimate, progress
from detbench.store import Store, state_of

if TYPE_CHECKING:
    from detbench.data.check import Report

# Of findings that have something in common so many are shown.
_OF_A_KIND = 10

Chosen = Sequence[tuple[Recipe, Sequence[Row]]]


def as_tree(recipe: Recipe, rows: Sequence[Row]) -> dict[str, Any]:
    """A recipe and some of its rows for `ls --json`."""
    return {
        "name": recipe.name,
        "paper": recipe.head.paper,
        "table": recipe.head.table,
        "kind": recipe.head.kind,
        "title": recipe.head.title,
        "metrics": list(recipe.head.metrics),
        "params": sorted({sweep.param for sweep in recipe.sweeps}),
        "rows": [
            {
                "label": row.label,
                "slug": slug(row.label),
                "state": _row_state(recipe, row),
                "needs": list(recipe.needs(row)),
                "reported": dict(row.reported),
            }
            for row in rows
        ],
    }


def show(chosen: Chosen, *, rows: bool) -> None:
    """The list of recipes; with `rows`, each row on a line of its own."""
    table = _table("recipe", "rows", "runs", "what it is", "state")
    for recipe, some in chosen:
        runnable = [row for row in some if _row_state(recipe, row) == "runs"]
        table.add_row(
            f"[bold]{recipe.short_name}[/]",
            str(len(some)),
            str(len(runnable)),
            recipe.head.title,
            _recipe_state(recipe, some),
        )
        if rows:
            for row in some:
                table.add_row(f"  {slug(row.label)}", "", "", row.label, _describe(recipe, row))
    _print(table)


def resolved_tree(recipe: Recipe, row: Row, context: Context) -> dict[str, Any]:
    """A row for `show --json`: resolved, if it can run."""
    state = _row_state(recipe, row)
    runs = state == "runs"
    changed = (_from_baseline(recipe, row, context) if runs else None) or {}
    return {
        "recipe": recipe.name,
        "row": row.label,
        "scale": context.scale,
        "state": state,
        "needs": list(recipe.needs(row)),
        "experiment": plain(resolve(recipe, row, context)) if runs else None,
        "changes": {key: list(pair) for key, pair in changed.items()},
    }


def show_row(recipe: Recipe, row: Row, context: Context, *, whole: bool) -> None:
    """A row's settings as override-ready lines (where `whole`), and what it changes from the baseline."""
    title = f"# {recipe.name}, row '{row.label}', scale {context.scale}"
    missing = recipe.needs(row)
    if row.quoted:
        print(f"{title}\n# quoted from the paper, never run\n")
        return
    if missing:
        print(f"{title}\n# can't run yet, needs: {', '.join(missing)}\n")
        return
    experiment = resolve(recipe, row, context)
    differing = _from_baseline(recipe, row, context)
    print(title)
    if whole:
        for key, value in flatten(settings(experiment)).items():
            print(f"{key} = {_toml(value)}")
        if experiment.init is not None:
            print(f"# starts from {experiment.init.row}, which is trained first with the same seed")
    if differing is not None:
        print(f"# changes from '{recipe.head.baseline}':")
        for key, (before, after) in differing.items():
            print(f"#   {key}: {_short(before)} -> {_short(after)}")
        if not differing:
            print("#   none: it is the baseline" if row.label == recipe.head.baseline else "#   none")
    elif recipe.head.baseline:
        print(f"# the baseline, '{recipe.head.baseline}', can't be run so: no changes to tell")
    print()


def validate(chosen: Chosen, scales: Sequence[Any]) -> dict[str, Any]:
    """Counts, after every row that can run was resolved at every scale.

    Raises:
        RecipeError: every mistake at once.
    """
    problems: list[str] = []
    counts = {"recipes": len(chosen), "rows": 0, "runnable": 0, "quoted": 0, "waiting": 0}
    for recipe, rows in chosen:
        for row in rows:
            counts["rows"] += 1
            if row.quoted:
                counts["quoted"] += 1
            elif recipe.needs(row):
                counts["waiting"] += 1
            else:
                counts["runnable"] += 1
                for scale in scales:
                    try:
                        resolve(recipe, row, Context(scale))
                    except RecipeError as error:
                        problems += [f"{problem} (scale {scale})" for problem in error.problems]
    if problems:
        raise RecipeError(problems)
    return counts


def plan_tree(cells: Sequence[Cell], chosen: Chosen, store: Store) -> dict[str, Any]:
    """What `run` would do, cell by cell, with estimates of the missing ones."""
    entries: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    for cell in cells:
        key = (cell.training_digest, cell.seed)
        trained = key in seen or store.trained(*key) is not None
        seen.add(key)
        state = cell.state
        expected = None
        if state != "finished" and not trained:
            expected = estimate(cell, store=store)
        entries.append(
            {
                "rows": [f"{short(name)}: {label}{cell.fold}" for name, label in cell.places],
                "asked": cell.asked,
                "starts_from": None if cell.experiment.init is None else cell.experiment.init.row,
                "seed": cell.seed,
                "digest": cell.digest,
                "state": "test only" if state == "missing" and trained else state,
                "folder": str(cell.folder),
                "estimate": None if expected is None else plain(expected),
                "trains": state != "finished" and not trained,
            }
        )
    known = [e["estimate"] for e in entries if e["trains"]]
    total: dict[str, float | None] = {
        "minutes": sum(k["minutes"] for k in known) if None not in known else None,
        "memory_mb": max((k["memory_mb"] for k in known), default=0.0) if None not in known else None,
        "disk_mb": sum(k["disk_mb"] for k in known) if None not in known else None,
    }
    waiting = [
        f"{recipe.short_name}: {row.label}: {_describe(recipe, row)}"
        for recipe, rows in chosen
        for row in rows
        if row.quoted or recipe.needs(row)
    ]
    return {"cells": entries, "total": total, "passed_over": waiting}


def show_plan(tree: dict[str, Any]) -> None:
    """A plan as a table with its sum."""
    table = _table("row", "seed", "state", "minutes", "digest")
    for entry in tree["cells"]:
        expected = entry["estimate"]
        minutes = "" if not entry["trains"] else "?" if expected is None else f"{expected['minutes']:.1f}"
        rows = list(entry["rows"])
        if not entry["asked"]:
            rows.append("  (others start from it)")
        if entry["starts_from"]:
            rows.append(f"  (starts from {entry['starts_from']})")
        table.add_row("\n".join(rows), str(entry["seed"]), entry["state"], minutes, entry["digest"])
    _print(table)
    total, trains = tree["total"], sum(entry["trains"] for entry in tree["cells"])
    if total["minutes"] is None:
        print(f"{trains} to train; no measurement to estimate their time by")
    elif trains:
        sources = {e["estimate"]["source"] for e in tree["cells"] if e["estimate"]}
        print(
            f"{trains} to train: about {total['minutes']:.0f} minutes of one core, {total['memory_mb']:.0f} MB of "
            f"memory for each at a time, {total['disk_mb']:.0f} MB of disk (after {'; '.join(sorted(sources))})"
        )
    else:
        print("nothing to train")
    for line in tree["passed_over"]:
        print(f"passed over: {line}")


def runs_tree(store: Store) -> list[dict[str, Any]]:
    """Every run of a store."""
    out = []
    for folder in store.folders():
        asked, state = read_request(folder), state_of(folder)
        now = progress(folder)
        result = read_result(folder) if state == "finished" else None
        out.append(
            {
                "folder": str(folder),
                "recipe": asked["places"][0][0],
                "row": asked["places"][0][1],
                "seed": asked["seed"],
                "scale": asked["scale"],
                "state": state,
                "step": None if now is None else now.step,
                "of": None if now is None else now.of,
                "AP": None if result is None else result.metrics.get("AP"),
            }
        )
    return out


def show_runs(tree: Sequence[dict[str, Any]]) -> None:
    """The runs as a table."""
    table = _table("recipe", "row", "seed", "scale", "state", "step", "AP", "folder")
    for entry in tree:
        step = "" if entry["step"] is None else f"{entry['step']}/{entry['of']}"
        ap = "" if entry["AP"] is None else f"{entry['AP']:.1f}"
        table.add_row(
            short(entry["recipe"]),
            entry["row"],
            str(entry["seed"]),
            entry["scale"],
            entry["state"],
            step,
            ap,
            entry["folder"],
        )
    _print(table)


def show_pairs(tree: dict[str, Any]) -> None:
    """Names and values, a line each."""
    width = max(len(name) for name in tree)
    for name, value in tree.items():
        print(f"{name:<{width}}  {value}")


def show_check(found: Report) -> None:
    """What a check of a data folder found; of many findings of a kind the first ones and their number."""
    shown: Counter[str] = Counter()
    number = Counter(finding.kind for finding in found.findings)
    for finding in found.findings:
        shown[finding.kind] += 1
        if not finding.kind or shown[finding.kind] <= _OF_A_KIND:
            print(f"{finding.severity}: {finding.where}: {finding.what}. {finding.advice}".rstrip())
        elif shown[finding.kind] == number[finding.kind]:
            left = number[finding.kind] - _OF_A_KIND
            print(f"{finding.severity}: {finding.kind}: {left} more; --json lists all.")
    for line in found.summary_lines():
        print(line)


def check_error(found: Report, folder: Path) -> DataError | None:
    """Why the data of a checked folder can't be used as it is; None where it can."""
    errors = sum(finding.severity == "error" for finding in found.findings)
    return (
        DataError(f"{folder}: the data can't be used until its errors are mended ({errors} found)")
        if errors
        else None
    )


def _row_state(recipe: Recipe, row: Row) -> str:
    if row.quoted:
        return "quoted"
    return "needs parts" if recipe.needs(row) else "runs"


def _describe(recipe: Recipe, row: Row) -> str:
    state = _row_state(recipe, row)
    return f"needs: {', '.join(recipe.needs(row))}" if state == "needs parts" else state


def _recipe_state(recipe: Recipe, rows: Sequence[Row]) -> str:
    missing = sorted({need for row in rows if not row.quoted for need in recipe.needs(row)})
    if missing:
        return f"needs: {', '.join(missing)}"
    quoted = sum(row.quoted for row in rows)
    return f"{quoted} quoted" if quoted else ""


def _from_baseline(recipe: Recipe, row: Row, context: Context) -> dict[str, tuple[Any, Any]] | None:
    """What a row changes from its table's baseline; None without one, or where it doesn't go with the context."""
    baseline = recipe.rows.get(recipe.head.baseline)
    under = None if baseline is None else resolve_if_possible(recipe, baseline, context)
    return None if under is None else changes(under, resolve(recipe, row, context))


def _toml(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        if "kind" in value:
            return str(value["kind"])
        return "{" + ", ".join(f"{key} = {_short(below)}" for key, below in value.items()) + "}"
    return "(absent)" if value is None else json.dumps(value, ensure_ascii=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    # Piped output isn't wrapped to a terminal that isn't there.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    console.print(table)
