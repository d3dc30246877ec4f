"""What a command is told: options and arguments that several commands share, and what is read from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from detbench.recipe_text import Row
    from detbench.recipes import Context, Recipe
    from detbench.store import Store


class Scale(StrEnum):
    """The named overlays."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"
    paper = "paper"


Patterns = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="Recipes or rows, globs allowed (date/table5, 'date/*', 'date/table5/DATE-F*', my/own.toml); "
        "key.path=value overrides settings.",
    ),
]
OptionalNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE", help="Recipes or rows, globs allowed; all by default."),
]
ScaleOption = Annotated[Scale, typer.Option(help="smoke, cpu (the default), gpu or paper.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="A folder of your own data, in COCO's or CrowdHuman's format (layouts: docs/data.md).",
    ),
]
StoreOption = Annotated[
    Path, typer.Option("--runs", envvar="DETBENCH_RUNS", help="The folder that runs are kept in.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="Runs of each row, with seeds 0, 1, ...")]
JobsOption = Annotated[int, typer.Option(min=1, help="Runs side by side; the cores are divided among them.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads of each process; by default OMP_NUM_THREADS, else cores / (jobs x nproc). On a machine that is "
        "busy already, say how many are free: more are much slower.",
    ),
]

ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        min=1,
        help="Processes that train each run together, with a GPU each on CUDA; 1 by default, under torchrun those it "
        "started. They share the batch evenly.",
    ),
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that load images, for each run.")]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise typer.BadParameter(f"{name}: no such device; it is one of auto, cpu, cuda, cuda:N")
    return name


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", callback=_device)]
ForceOption = Annotated[bool, typer.Option("--force", help="Run again what is finished, from the start.")]
BudgetOption = Annotated[
    float | None, typer.Option(help="Refuse (exit 5) when the estimate exceeds so many minutes of one core.")
]
DEFAULT_RUNS = Path("runs")


def parse(
    patterns: Sequence[str], scale: Scale, data: Path | None
) -> tuple[list[tuple[Recipe, list[Row]]], Context]:
    """Positional arguments as recipes and overrides: what has a `=` before any `/` is an override."""
    from detbench.errors import RecipeError
    from detbench.recipes import select

    overrides = [text for text in patterns if "=" in text.partition("/")[0]]
    names = [text for text in patterns if text not in overrides]
    if not names:
        raise RecipeError("name at least one recipe; `detbench ls` lists them")
    return select(names), context_of(scale, data, overrides)


def context_of(scale: Scale, data: Path | None, overrides: Sequence[str] | None) -> Context:
    """What is laid over every row of a command."""
    from detbench.recipes import Context

    return Context(scale.value, None if data is None else str(data), tuple(overrides or ()))


def open_store(root: Path) -> Store:
    """The runs of a folder; imported late, as all that `--help` can do without."""
    from detbench.store import Store

    return Store(root)
