"""Commands that train and test: run, ablate."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from detbench.cli.console import fail, print_json, say
from detbench.cli.options import (
    DEFAULT_RUNS,
    BudgetOption,
    DataOption,
    DeviceOption,
    ForceOption,
    JobsOption,
    JsonOption,
    Patterns,
    ProcessesOption,
    Scale,
    ScaleOption,
    SeedsOption,
    StoreOption,
    ThreadsOption,
    WorkersOption,
    context_of,
    open_store,
    parse,
)
from detbench.errors import (
    BatchFailed,
    BudgetRefused,
    DataError,
    DetbenchError,
    Interrupted,
    RecipeError,
    RunFailed,
)

if TYPE_CHECKING:
    from detbench.recipe_text import Row
    from detbench.recipes import Context, Recipe
    from detbench.runs import Cell
    from detbench.stopping import Race
    from detbench.store import Store
    from detbench.workers import Outcome

P = ParamSpec("P")

_MISTAKES: dict[str, type[DetbenchError]] = {kind.__name__: kind for kind in (RecipeError, DataError)}
"""What a user may ask in vain and only a worker notices, by name."""


def _one_of_several(command: Callable[P, None]) -> Callable[P, None]:
    """Under torchrun the first process does what the command says; the others take part in its runs."""

    @functools.wraps(command)
    def started(*args: P.args, **options: P.kwargs) -> None:
        from detbench.workers import launched

        launch = launched()
        if launch is None:
            return command(*args, **options)
        from detbench.engine.processes import follow, leading

        if launch.index == 0:
            with leading(launch):
                return command(*args, **options)
        try:
            with _signals_interrupt():
                follow(launch)
        except KeyboardInterrupt:
            raise Interrupted("stopped, with the process that leads the runs") from None

    return started


@_one_of_several
def run(
    patterns: Patterns,
    scale: ScaleOption = Scale.cpu,
    data: DataOption = None,
    seeds: SeedsOption = 1,
    jobs: JobsOption = 1,
    nproc: ProcessesOption = None,
    threads: ThreadsOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    budget: BudgetOption = None,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Train and test what is missing, then print the table of the rows that were named."""
    chosen, context = parse(patterns, scale, data)
    store = open_store(runs)
    cells = _plan(chosen, context, seeds=seeds, store=store)
    _run(
        chosen, context, cells, store=store, jobs=jobs, nproc=nproc, threads=threads, workers=workers, device=device,
        force=force, budget=budget, as_json=as_json,
    )  # fmt: skip


@_one_of_several
def ablate(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of every run.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(help="The paper's name of a parameter, or a key path. Several make a grid."),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            help="Values between commas, ranges as FIRST..LAST/STEP (1..9/2, 0.1..0.9/0.2), one --values for each "
            "--param; the paper's own by default."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Where the name stands in several recipes, or for key paths.")
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(
            help="The row a key path starts from, the baseline by default; of a parameter with several series, "
            "those it stands in."
        ),
    ] = None,
    scale: ScaleOption = Scale.cpu,
    data: DataOption = None,
    seeds: SeedsOption = 1,
    jobs: JobsOption = 1,
    nproc: ProcessesOption = None,
    threads: ThreadsOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    budget: BudgetOption = None,
    zipped: Annotated[
        bool, typer.Option("--zip", help="Take the values of several --param side by side, not as a grid.")
    ] = False,
    stop_early: Annotated[
        bool,
        typer.Option(
            "--stop-early",
            help="Train values no further that have fallen too far behind the best at an evaluation. They are no "
            "results; the same command without it finishes them.",
        ),
    ] = False,
    stop_margin: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --stop-early: how far behind a value may be, in AP points; 5 by default."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Run one parameter over several values, and print the table and its sweep."""
    from detbench import ablation, listing, stopping
    from detbench.recipes import select

    if stop_margin is not None and not stop_early:
        raise RecipeError("ablate: --stop-margin says when --stop-early stops; give both")
    store = open_store(runs)
    context = context_of(scale, data, overrides)
    made = ablation.make(
        param or [],
        values=values or [],
        recipe=recipe,
        row=row,
        folder=store.ablations,
        zipped=zipped,
        context=context,
    )
    chosen = select([str(made.path)])
    say(chosen[0][0].head.note)
    try:
        cells = _plan(chosen, context, seeds=seeds, store=store)
        ablation.require_values(chosen[0][0], context)
    except RecipeError as error:  # of what the user asked for, not of a file that nobody has seen
        asked = f"ablate: {made.source.short_name}"
        raise RecipeError([problem.replace(chosen[0][0].name, asked) for problem in error.problems]) from None
    race = None
    if stop_early:
        margin = stopping.MARGIN if stop_margin is None else stop_margin
        race = stopping.race(chosen[0][0], cells, made.defaults(context), margin)
        say(race.text)
    if dry_run:
        tree = listing.plan_tree(cells, chosen, store)
        print_json(tree) if as_json else listing.show_plan(tree)
        return
    say(f"ablation written to {made.path}; `detbench report {made.path}` reports it again")
    _run(
        chosen, context, cells, store=store, jobs=jobs, nproc=nproc, threads=threads, workers=workers, device=device,
        force=force, budget=budget, as_json=as_json, race=race,
    )  # fmt: skip


def _plan(
    chosen: list[tuple[Recipe, list[Row]]], context: Context, *, seeds: int, store: Store
) -> list[Cell]:
    from detbench.runs import plan as make_plan

    return make_plan(chosen, context, seeds=range(seeds), store=store)


def _run(
    chosen: list[tuple[Recipe, list[Row]]], context: Context, cells: list[Cell], *, store: Store, jobs: int,
    nproc: int | None, threads: int | None, workers: int, device: str, force: bool, budget: float | None,
    as_json: bool, race: Race | None = None,
) -> None:  # fmt: skip
    from detbench import listing
    from detbench.live import watching
    from detbench.report import collect, render
    from detbench.workers import execute

    work = partial(
        execute, store=store, jobs=jobs, processes=nproc, threads=threads, workers=workers, device=device
    )
    for recipe, rows in chosen:
        _mention_waiting(recipe, rows)
    if budget is not None:
        _hold_to_budget(listing.plan_tree(cells, chosen, store), budget)
    try:
        with _signals_interrupt(), watching(cells) as watch:
            if race is None:
                outcomes = work(cells, force=force, watch=watch)
            else:
                outcomes = race.run(work, force=force, watch=watch)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; finished runs and checkpoints are kept. The same command goes on where it stopped"
        ) from None
    error = _failure(outcomes)
    if error is not None and error.exit_code == DetbenchError.exit_code:
        raise error
    tables = collect(store, chosen, context=context)
    if error is not None and as_json:
        fail(error, {"tables": json.loads(render(tables, "json"))})
    print(render(tables, "json" if as_json else "terminal"), end="")
    if error is not None:
        raise error


def _failure(outcomes: Sequence[Outcome]) -> DetbenchError | None:
    """What is to be said of runs that failed; where none could go on for what was asked of them, that mistake."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return None
    lines = [f"{outcome.cell.label}, seed {outcome.cell.seed}: {outcome.message}" for outcome in failed]
    if len(failed) == len(outcomes) and all(outcome.kind in _MISTAKES for outcome in failed):
        same = len({outcome.message for outcome in failed}) == 1
        return _MISTAKES[failed[0].kind](failed[0].message if same else "\n".join(lines))
    kind = RunFailed if len(outcomes) == len(failed) else BatchFailed
    return kind(f"{len(failed)} of {len(outcomes)} runs failed:\n" + "\n".join(lines))


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP stop the work as Ctrl-C does: workers, in sessions of their own, would not hear of them."""
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: object) -> None:
        for other in before:  # a second one must not cut off the saving
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mention_waiting(recipe: Recipe, rows: Sequence[Row]) -> None:
    for row in rows:
        if recipe.needs(row):
            say(f"{recipe.name}, row '{row.label}': passed over, needs: {', '.join(recipe.needs(row))}")


def _hold_to_budget(tree: dict[str, Any], budget: float) -> None:
    minutes = tree["total"]["minutes"]
    if minutes is None:
        raise BudgetRefused(
            "the time can't be estimated, so it can't be held to a budget; leave --budget out"
        )
    if minutes > budget:
        raise BudgetRefused(
            f"about {minutes:.0f} minutes of one core, over the budget of {budget:g}; nothing started"
        )
