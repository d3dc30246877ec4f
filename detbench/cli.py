"""The command line. A command parses, makes one call into the library, and prints.

Data goes to stdout, progress and messages to stderr. Imports of detbench stand inside the commands, so that
`--help` needs neither torch nor anything else that is slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from detbench import __version__
from detbench.errors import BatchFailed, BudgetRefused, DetbenchError, GateFailed, Interrupted, RunFailed

if TYPE_CHECKING:
    from detbench.recipe_text import Row
    from detbench.recipes import Context, Recipe
    from detbench.report import Collected
    from detbench.store import Store
    from detbench.workers import Outcome

app = typer.Typer(
    name="detbench",
    help="An experiment bench for object detection: recipes, ablations and honest tables for five papers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Draw, check, convert and split data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

bench_app = typer.Typer(help="Count and measure without training.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


class Scale(StrEnum):
    """The named overlays."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"
    paper = "paper"


class DataFormat(StrEnum):
    """The formats data can be converted between."""

    coco = "coco"
    voc = "voc"
    odgt = "odgt"


class Format(StrEnum):
    """What a table can be printed as."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    json = "json"
    latex = "latex"


Patterns = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE... [KEY=VALUE]...",
        help="Recipes or rows, globs allowed (date/table5, 'date/*', 'date/table5/DATE-F*', my/own.toml); "
        "key.path=value overrides settings.",
    ),
]
OptionalNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE...]", help="Recipes or rows, globs allowed; all by default."),
]
ScaleOption = Annotated[Scale, typer.Option(help="smoke, cpu (the default), gpu or paper.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="A folder of your own data, in COCO's or CrowdHuman's format."),
]
StoreOption = Annotated[
    Path, typer.Option("--runs", envvar="DETBENCH_RUNS", help="The folder that runs are kept in.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="Runs of each row, with seeds 0, 1, ...")]
JobsOption = Annotated[
    int, typer.Option(min=1, help="Runs side by side; the free cores are divided among them.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of each run; by default the free cores / jobs.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that load images, for each run.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Run again what is finished, from the start.")]
BudgetOption = Annotated[
    float | None, typer.Option(help="Refuse (exit 5) when the estimate exceeds so many minutes of one core.")
]
DEFAULT_RUNS = Path("runs")
DEFAULT_RECORDS = Path("results")


def main() -> None:
    """Runs the command line; turns every DetbenchError into one message and its exit code."""
    try:
        app()
    except DetbenchError as error:
        if "--json" in sys.argv:
            _print_json(_error_tree(error))
        _say(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"detbench {__version__}")
        raise typer.Exit


@app.command()
def ls(
    patterns: OptionalNames = None,
    rows: Annotated[bool, typer.Option("--rows", help="List every row.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List recipes, what runs in them and what is still needed."""
    from detbench import listing, recipes

    chosen = recipes.select(patterns or ["*"])
    if as_json:
        _print_json([listing.as_tree(recipe, some) for recipe, some in chosen])
    else:
        listing.show(chosen, rows=rows or bool(patterns))


@app.command()
def show(
    patterns: Patterns, scale: ScaleOption = Scale.cpu, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show the resolved experiment of rows, and what each changes from its table's baseline."""
    from detbench import listing

    chosen, context = _parse(patterns, scale, data)
    if as_json:
        _print_json([listing.resolved_tree(r, row, context) for r, some in chosen for row in some])
        return
    for recipe, some in chosen:
        for row in some:
            listing.show_row(recipe, row, context, whole=len(some) == 1)


@app.command()
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
        _print_json(report)
    else:
        print(
            f"{report['recipes']} recipes, {report['rows']} rows: {report['runnable']} run at every scale, "
            f"{report['quoted']} are quoted, {report['waiting']} need parts that don't exist yet"
        )


@app.command()
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

    chosen, context = _parse(patterns, scale, data)
    cells = make_plan(chosen, context, seeds=range(seeds), store=_store(runs))
    tree = listing.plan_tree(cells, chosen, _store(runs))
    if as_json:
        _print_json(tree)
    else:
        listing.show_plan(tree)


@app.command()
def run(
    patterns: Patterns,
    scale: ScaleOption = Scale.cpu,
    data: DataOption = None,
    seeds: SeedsOption = 1,
    jobs: JobsOption = 1,
    threads: ThreadsOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    budget: BudgetOption = None,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Train and test what is missing, then print the table."""
    chosen, context = _parse(patterns, scale, data)
    _run(
        chosen, context, store=_store(runs), seeds=seeds, jobs=jobs, threads=threads, workers=workers, device=device,
        force=force, budget=budget, as_json=as_json,
    )  # fmt: skip


@app.command()
def ablate(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of every run.")
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
    threads: ThreadsOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    budget: BudgetOption = None,
    zipped: Annotated[
        bool, typer.Option("--zip", help="Take the values of several --param side by side, not as a grid.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Run one parameter over several values, and print the table and its sweep."""
    from detbench import ablation, listing
    from detbench.runs import plan as make_plan

    store = _store(runs)
    path = ablation.make(
        param or [], values=values or [], recipe=recipe, row=row, folder=store.ablations, zipped=zipped
    )
    chosen, context = _parse([str(path), *(overrides or [])], scale, data)
    _say(chosen[0][0].head.note)
    if dry_run:
        tree = listing.plan_tree(make_plan(chosen, context, seeds=range(seeds), store=store), chosen, store)
        _print_json(tree) if as_json else listing.show_plan(tree)
        return
    _say(f"ablation written to {path}; `detbench report {path}` reports it again")
    _run(
        chosen, context, store=store, seeds=seeds, jobs=jobs, threads=threads, workers=workers, device=device,
        force=force, budget=budget, as_json=as_json,
    )  # fmt: skip


@app.command()
def report(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE... | RUN]", help="Recipes or rows, globs allowed, all by default; or a run."
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
    from detbench.report import collect, render, write_site

    if not gate and patterns and len(patterns) == 1 and (folder := _store(runs).find(patterns[0])):
        from detbench.report import run_page, run_report

        found = run_report.examine(folder)
        if output is not None:
            _say(f"report written to {run_page.write(found, output)}")
        else:
            print(run_report.render(found, "json" if as_json else format.value), end="")
        return
    collected = collect(_store(runs), patterns or None, scale=scale.value if scale else None)
    if not collected:
        _say(f"{runs}: no finished run to report; `detbench run quickstart` makes some")
    missed = _missed(collected, records) if gate else None
    if output is not None:
        page = write_site(collected, output)
        _say(f"report written to {page}")
    elif missed is not None and as_json:
        _fail(missed, {"tables": json.loads(render(collected, "json"))})
    else:
        print(render(collected, "json" if as_json else format.value), end="")
    if missed is not None:
        raise missed


@app.command("runs")
def list_runs(runs: StoreOption = DEFAULT_RUNS, as_json: JsonOption = False) -> None:
    """List the runs there are: finished, running, resumable, failed."""
    from detbench import listing

    tree = listing.runs_tree(_store(runs))
    if as_json:
        _print_json(tree)
    else:
        listing.show_runs(tree)


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(help="A row, a recipe, or a run: its folder or the start of its digest.")
    ],
    b: Annotated[str, typer.Argument(help="Another.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of rows and recipes.")
    ] = None,
    scale: ScaleOption = Scale.cpu,
    data: DataOption = None,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """List every key in which two rows, runs or recipes differ, and say whether the comparison is controlled."""
    from detbench.parts.part import plain
    from detbench.recipes import Context
    from detbench.report import diff as differences

    context = Context(scale.value, None if data is None else str(data), tuple(overrides or ()))
    found = differences.diff(a, b, _store(runs), context)
    if as_json:
        _print_json(plain(found))
    else:
        print(differences.text(found), end="")


@app.command()
def verify(
    run: Annotated[
        str, typer.Argument(help="A finished run: its folder, or the start of its digest and /SEED.")
    ],
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Work out every number of a run again from its raw detections; exit 1 if anything differs."""
    from detbench.engine.verify import verify as check_run
    from detbench.errors import StoreError, VerifyFailed
    from detbench.parts.part import plain

    folder = _store(runs).find(run)
    if folder is None:
        raise StoreError(f"{run}: no such run; `detbench runs` lists those there are")
    found = check_run(folder)
    error = (
        VerifyFailed("\n".join(f"{found.run}: {line}" for line in found.problems)) if found.problems else None
    )
    if error is not None and as_json:
        _fail(error, plain(found))
    if error is not None:
        raise error
    if as_json:
        _print_json(plain(found))
    else:
        files = f"{found.files} files as recorded" if found.files else "no checksums recorded"
        print(f"{found.run}: {found.numbers} numbers agree; {files}")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, threads, devices, and the traps that slow training down."""
    from detbench import listing
    from detbench.engine.doctor import examine

    tree = examine()
    if as_json:
        _print_json(tree)
    else:
        listing.show_pairs(tree)


@data_app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="A folder that doesn't exist yet.")],
    preset: Annotated[str, typer.Option(help="shapes or crowd.")] = "shapes",
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 128,
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 3000,
    val: Annotated[int, typer.Option(min=1, help="Validation images.")] = 2000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
) -> None:
    """Draw a data set and write it in COCO's form, and the crowd in CrowdHuman's as well."""
    from detbench.data.drawn import write
    from detbench.parts.data import Drawn
    from detbench.parts.part import read_part

    tree = {"preset": preset, "size": size, "num_train": train, "num_val": val, "seed": seed}
    write(read_part(Drawn, tree, where="data make"), folder)
    _say(f"{train} training and {val} validation images written to {folder}")


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder of data in COCO's or CrowdHuman's format.")],
    as_json: JsonOption = False,
) -> None:
    """List everything that is wrong or odd about a data set; exit 2 if it can't be used."""
    from detbench import listing
    from detbench.data.check import check as examine
    from detbench.parts.part import plain

    found = examine(folder)
    error = listing.check_error(found, folder)
    if as_json and error is not None:
        _fail(error, plain(found))
    if as_json:
        _print_json(plain(found))
    else:
        listing.show_check(found)
    if error is not None:
        raise error


@data_app.command("convert")
def convert_data(
    folder: Annotated[
        Path, typer.Argument(help="A data set in COCO's, Pascal VOC's or CrowdHuman's format.")
    ],
    target: Annotated[Path, typer.Argument(help="A folder that doesn't exist yet.")],
    to: Annotated[DataFormat, typer.Option(help="The format to write; odgt is CrowdHuman's.")],
    link: Annotated[bool, typer.Option("--link", help="Hard links to the images instead of copies.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a data set in another format, and list what that format can't say."""
    from detbench.data.convert import convert
    from detbench.parts.part import plain

    done = convert(folder, target, to=to.value, link=link)
    if as_json:
        _print_json(plain(done))
    else:
        for note in done.notes:
            print(note)
    _say(f"{sum(done.images.values())} images with {sum(done.boxes.values())} boxes written to {target}")


@data_app.command("split")
def split_data(
    folder: Annotated[Path, typer.Argument(help="A folder of data in COCO's format.")],
    labelled: Annotated[float, typer.Option(help="Percent of the training images that are labelled.")],
    folds: Annotated[int, typer.Option(min=1, help="How often to draw them, with seeds 1, 2, ...")] = 5,
    offset: Annotated[
        int, typer.Option(min=0, max=2**31, help="Added to the seeds; another one draws others.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a file into this folder instead of printing.")
    ] = None,
) -> None:
    """Draw which training images are labelled where only some are (COCO-partial), as JSON with their ids."""
    from detbench.data.labelled import draw_folds, write

    drawn = draw_folds(folder, percent=labelled, folds=folds, offset=offset)
    if out is None:
        _print_json(drawn.tree())
    else:
        path = write(drawn, out)
        _say(f"{len(drawn.labelled[0])} of {drawn.num_images} images drawn {folds} times, written to {path}")


@bench_app.command()
def cost(
    patterns: Patterns,
    scale: Annotated[Scale, typer.Option(help="smoke, cpu, gpu or paper (the default).")] = Scale.paper,
    as_json: JsonOption = False,
) -> None:
    """Count parameters and multiply-accumulates of rows, in training and at inference, beside the paper's."""
    from detbench import benching

    chosen, context = _parse(patterns, scale, None)
    entries = benching.cost_tree(chosen, context)
    if as_json:
        _print_json(entries)
    else:
        benching.show_cost(entries)


@bench_app.command()
def matching(
    queries: Annotated[
        str, typer.Option(help="Queries of an image, several separated by commas.")
    ] = "100,300,900,2000",
    objects: Annotated[str, typer.Option(help="Mean number of an image's objects, likewise.")] = "7",
    batch: Annotated[str, typer.Option(help="Images, likewise.")] = "8",
    layers: Annotated[str, typer.Option(help="Decoder layers, likewise.")] = "6",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: both where there is CUDA.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.")] = 1,
    repeats: Annotated[int, typer.Option(min=2, help="Timed steps of each way.")] = 50,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a plot of cost over queries.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time Hungarian matching and Match-Free on the same synthetic batch (Match-Free, Table 2)."""
    from detbench import benching

    numbers = {"queries": queries, "objects": objects, "batch": batch, "layers": layers}
    entries = benching.matching_tree(
        **{name: benching.counts(text, option=f"--{name}") for name, text in numbers.items()},
        devices=benching.devices(device),
        threads=threads,
        repeats=repeats,
    )
    if out is not None:
        from detbench.report import latency, plots

        for plot in latency.plots(entries, benching.METHODS):
            for path in plots.save(plot, out):
                _say(f"{path} written")
    if as_json:
        _print_json(entries)
    else:
        benching.show_matching(entries)


def _parse(
    patterns: Sequence[str], scale: Scale, data: Path | None
) -> tuple[list[tuple[Recipe, list[Row]]], Context]:
    """Positional arguments as recipes and overrides: what has a `=` before any `/` is an override."""
    from detbench.errors import RecipeError
    from detbench.recipes import Context, select

    overrides = [text for text in patterns if "=" in text.partition("/")[0]]
    names = [text for text in patterns if text not in overrides]
    if not names:
        raise RecipeError("name at least one recipe; `detbench ls` lists them")
    context = Context(scale.value, None if data is None else str(data), tuple(overrides))
    return select(names), context


def _run(
    chosen: list[tuple[Recipe, list[Row]]], context: Context, *, store: Store, seeds: int, jobs: int,
    threads: int | None, workers: int, device: str, force: bool, budget: float | None, as_json: bool,
) -> None:  # fmt: skip
    from detbench import listing
    from detbench.live import watching
    from detbench.report import collect, render
    from detbench.runs import plan as make_plan
    from detbench.workers import execute

    cells = make_plan(chosen, context, seeds=range(seeds), store=store)
    for recipe, rows in chosen:
        _mention_waiting(recipe, rows)
    if budget is not None:
        _hold_to_budget(listing.plan_tree(cells, chosen, store), budget)
    try:
        with _signals_interrupt(), watching(cells) as watch:
            outcomes = execute(
                cells, store=store, jobs=jobs, threads=threads, workers=workers, device=device, force=force,
                watch=watch,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; finished runs and checkpoints are kept. The same command goes on where it stopped"
        ) from None
    tables = collect(store, [recipe.name for recipe, _ in chosen], context=context)
    error = _failure(outcomes)
    if error is not None and as_json:
        _fail(error, {"tables": json.loads(render(tables, "json"))})
    print(render(tables, "json" if as_json else "terminal"), end="")
    if error is not None:
        raise error


def _failure(outcomes: Sequence[Outcome]) -> DetbenchError | None:
    """What is to be said of runs that failed."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return None
    lines = [f"{outcome.cell.label}, seed {outcome.cell.seed}: {outcome.message}" for outcome in failed]
    kind = RunFailed if len(outcomes) == len(failed) else BatchFailed
    return kind(f"{len(failed)} of {len(outcomes)} runs failed:\n" + "\n".join(lines))


def _missed(collected: Sequence[Collected], records: Path) -> GateFailed | None:
    """What the gate stops. Of no run at all it stops everything: nothing was held to anything."""
    from detbench.report import misses

    found = misses(collected, records) if collected else ["no finished run to hold to the records"]
    if not found:
        _say(f"gate passed: {len(collected)} table{'s' if len(collected) != 1 else ''} held to {records}")
        return None
    return GateFailed("\n".join(["the gate failed:", *found]))


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
            _say(f"{recipe.name}, row '{row.label}': passed over, needs: {', '.join(recipe.needs(row))}")


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


def _store(root: Path) -> Store:
    from detbench.store import Store

    return Store(root)


def _error_tree(error: DetbenchError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, "message": str(error)}}


def _fail(error: DetbenchError, tree: dict[str, Any]) -> NoReturn:
    """Ends a command with an error and what it found all the same, in one JSON document."""
    _print_json(_error_tree(error) | tree)
    _say(str(error))
    raise typer.Exit(error.exit_code)


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, indent=1, ensure_ascii=False))


def _say(message: str) -> None:
    print(message, file=sys.stderr)
