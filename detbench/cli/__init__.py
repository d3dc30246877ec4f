"""The command line: the list of all commands and where each is. `main` turns errors into exit codes.

A command parses, makes one call into the library, and prints: data to stdout, progress and messages to stderr.
Imports of detbench stand inside the commands, so that `--help` needs neither torch nor anything else that is slow.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from detbench import __version__
from detbench.cli import bench, checking, data, recipes, reporting, running, using, weights
from detbench.cli.console import error_tree, print_json, say
from detbench.errors import DetbenchError, StoreError

# click's, which has no name that holds for all versions of typer: newer ones bring a click of their own.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Runs a command; of a mistyped command line, --json prints the error too."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if "--json" in sys.argv:
                print_json({"error": {"kind": "UsageError", "message": error.format_message()}})  # type: ignore[attr-defined]
            raise


def _examples(*lines: str) -> str:
    """Command lines to stand below a command's options."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


app = typer.Typer(
    name="detbench",
    cls=_Commands,
    help="An experiment bench for object detection: recipes, ablations and honest tables for five papers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(recipes.ls)
app.command()(recipes.show)
app.command()(recipes.validate)
app.command()(recipes.plan)
app.command(
    epilog=_examples(
        "detbench run quickstart",
        "detbench run date/table5 --seeds 3 --jobs 2",
        "detbench run 'date/table5/DATE-F*' --data FOLDER schedule.length=2000",
    )
)(running.run)
app.command(
    epilog=_examples(
        "detbench ablate --param lambda_o2m --seeds 3",
        "detbench ablate --recipe date/table5 --param optim.lr --values 5e-4,1e-3,2e-3",
        "detbench ablate --recipe date/table5 --param training.batch --values 2..8/2",
    )
)(running.ablate)
app.command(
    epilog=_examples(
        "detbench report date/table5",
        "detbench report 'date/*' -o site",
        "detbench report date/table5 --format csv",
    )
)(reporting.report)
app.command("runs")(reporting.list_runs)
app.command()(reporting.diff)
app.command()(checking.verify)
app.command("eval")(using.evaluate)
app.command()(using.predict)
app.command()(checking.doctor)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(bench.app, name="bench")


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


def main() -> None:
    """Runs the command line; turns every DetbenchError, and what files refuse, into one message and its exit code."""
    try:
        app()
    except DetbenchError as error:
        _fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.strerror is None:  # not the system's, but a bug of ours
            raise
        _fail(
            StoreError(
                f"{error.filename or 'a file'}: can't be read or written ({error.strerror}); see that it is yours "
                "and has room, or name another"
            )
        )


def _fail(error: DetbenchError) -> NoReturn:
    if "--json" in sys.argv:
        print_json(error_tree(error))
    say(str(error))
    sys.exit(error.exit_code)
