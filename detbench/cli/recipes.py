"""Commands that only read recipes: ls, show, validate, plan."""

from __future__ import annotations

from typing import Annotated

import typer

from detbench.cli.console import print_json
from detbench.cli.options import (
    DEFAULT_RUNS,
    DataOption,
    JsonOption,
    OptionalNames,
    Patterns,
    Scale,
    ScaleOption,
    SeedsOption,
    StoreOption,
    open_store,
    parse,
)


def ls(
    patterns: OptionalNames = None,
    rows: Annotated[bool, typer.Option("--rows", help="List every row.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List recipes, what runs in them and what is still needed."""
    from detbench import listing, recipes

    chosen = recipes.select(patterns or ["*"])
    if as_json:
        print_json([listing.as_tree(recipe, some) for recipe, some in chosen])
    else:
        listing.show(chosen, rows=rows or bool(patterns))


def show(
    patterns: Patterns, scale: ScaleOption = Scale.cpu, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show the resolved experiment of rows, and what each changes from its table's baseline."""
    from detbench import listing
    from detbench.runs import resolve_rows

    chosen, context = parse(patterns, scale, data)
    resolve_rows(chosen, context)  # all mistakes at once, before a first row is shown
    if as_json:
        print_json([listing.resolved_tree(r, row, context) for r, some in chosen for row in some])
        return
    for recipe, some in chosen:
        for row in some:
            listing.show_row(recipe, row, context, whole=len(some) == 1)


def validate(
    patterns: OptionalNames = None,
    scale: Annotated[Scale | None, typer.Option(help="One scale; all by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Resolve every row of recipes at every scale; list all mistakes at once."""
    from detbench import listing
    from detbench.recipe_text import SCALES
    from detbench.recipes import select

    report = listing.validate(select(patterns or ["*"]), [scale.value] if scale else list(SCALES))
    if as_json:
        print_json(report)
    else:
        print(
            f"{report['recipes']} recipes, {report['rows']} rows: {report['runnable']} run at every scale, "
            f"{report['quoted']} are quoted, {report['waiting']} need parts that don't exist yet"
        )


def plan(
    patterns: Patterns,
    scale: ScaleOption = Scale.cpu,
    data: DataOption = None,
    seeds: SeedsOption = 1,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Say what `run` would do: what is cached, what would train, for how long, in how much memory and disk."""
    from detbench import listing
    from detbench.runs import plan as make_plan

    chosen, context = parse(patterns, scale, data)
    cells = make_plan(chosen, context, seeds=range(seeds), store=open_store(runs))
    tree = listing.plan_tree(cells, chosen, open_store(runs))
    if as_json:
        print_json(tree)
    else:
        listing.show_plan(tree)
