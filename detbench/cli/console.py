"""What a command says: data and JSON on stdout, messages on stderr, an error with what was found all the same."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import typer

from detbench.errors import DetbenchError


def say(message: str) -> None:
    """Prints a message to stderr."""
    print(message, file=sys.stderr)


def print_json(tree: Any) -> None:
    """Prints one JSON document to stdout."""
    print(json.dumps(tree, indent=1, ensure_ascii=False))


def error_tree(error: DetbenchError) -> dict[str, Any]:
    """What --json prints of an error."""
    return {"error": {"kind": type(error).__name__, "message": str(error)}}


def fail(error: DetbenchError, tree: dict[str, Any]) -> NoReturn:
    """Ends a command with an error and what it found all the same, in one JSON document."""
    print_json(error_tree(error) | tree)
    say(str(error))
    raise typer.Exit(error.exit_code)
