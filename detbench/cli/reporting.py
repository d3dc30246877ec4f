"""Commands that read what was run: report, runs, diff."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detbench.cli.console import fail, print_json, say
from detbench.cli.options import (
    DEFAULT_RUNS,
    DataOption,
    JsonOption,
    Scale,
    ScaleOption,
    StoreOption,
    context_of,
    open_store,
)
from detbench.errors import GateFailed

if TYPE_CHECKING:
    from detbench.report import Collected
    from detbench.store import Store

DEFAULT_RECORDS = Path("results")


class Format(StrEnum):
    """What a table can be printed as."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    json = "json"
    latex = "latex"
    html = "html"


def report(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|RUN", help="Recipes or rows, globs allowed, all by default; or a run."
        ),
    ] = None,
    scale: Annotated[Scale | None, typer.Option(help="Only this scale.")] = None,
    format: Annotated[Format, typer.Option("--format", help="Of what is printed.")] = Format.terminal,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write page, tables and plots into this folder.")
    ] = None,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Exit 3 when a claim that the records call supported no longer is, or a number measured at paper "
            "scale misses the reported one by more than its tolerance.",
        ),
    ] = False,
    records: Annotated[
        Path, typer.Option(help="The folder of records that --gate goes by.")
    ] = DEFAULT_RECORDS,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Print tables of what was run, measured beside reported; with -o write the page, tables and plots.

    Of a single run (its folder, or the start of its digest and /SEED): what it gets wrong.
    """
    from detbench.recipes import select
    from detbench.report import collect, render, write_site

    if not gate and patterns and len(patterns) == 1 and (folder := open_store(runs).find(patterns[0])):
        from detbench.report import run_page, run_report

        found = run_report.examine(folder)
        if output is not None:
            say(f"report written to {run_page.write(found, output)}")
        else:
            print(run_report.render(found, "json" if as_json else format.value), end="")
        return
    store = open_store(runs)
    collected = collect(store, select(patterns) if patterns else None, scale=scale.value if scale else None)
    if not collected:
        say(f"{runs}: {_why_nothing(store)}")
    missed = _missed(collected, records) if gate else None
    if output is not None:
        page = write_site(collected, output)
        say(f"report written to {page}")
    elif missed is not None and as_json:
        fail(missed, {"tables": json.loads(render(collected, "json"))})
    else:
        print(render(collected, "json" if as_json else format.value), end="")
    if missed is not None:
        raise missed


def list_runs(runs: StoreOption = DEFAULT_RUNS, as_json: JsonOption = False) -> None:
    """List the runs there are: finished, running, resumable, stopped early, failed."""
    from detbench import listing

    tree = listing.runs_tree(open_store(runs))
    if as_json:
        print_json(tree)
    else:
        listing.show_runs(tree)


def diff(
    a: Annotated[
        str, typer.Argument(help="A row, a recipe, or a run: its folder or the start of its digest.")
    ],
    b: Annotated[str, typer.Argument(help="Another.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of rows and recipes.")
    ] = None,
    scale: ScaleOption = Scale.cpu,
    data: DataOption = None,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """List every key in which two rows, runs or recipes differ, and say whether the comparison is controlled."""
    from detbench.parts.part import plain
    from detbench.report import diff as differences

    found = differences.diff(a, b, open_store(runs), context_of(scale, data, overrides))
    if as_json:
        print_json(plain(found))
    else:
        print(differences.text(found), end="")


def _why_nothing(store: Store) -> str:
    """Why there is no table, and what to do."""
    if any(store.results()):
        return "none of its finished runs is in a table that was asked for; `detbench runs` lists them"
    return "no finished run to report; `detbench run quickstart` makes some"


def _missed(collected: Sequence[Collected], records: Path) -> GateFailed | None:
    """What the gate stops. Of no run at all it stops everything: nothing was held to anything."""
    from detbench.report import hold

    if not collected:
        return GateFailed("the gate failed:\nno finished run to hold to the records")
    held = hold(collected, records)
    if held.misses:
        return GateFailed("\n".join(["the gate failed:", *held.misses]))
    say(f"gate passed: {held.text}")
    return None
