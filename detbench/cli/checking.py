"""Commands that hold a run and this machine to what they should be: verify, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from detbench.cli.console import fail, print_json
from detbench.cli.options import DEFAULT_RUNS, JsonOption, StoreOption, open_store


def verify(
    run: Annotated[
        str, typer.Argument(help="A finished run: its folder, or the start of its digest and /SEED.")
    ],
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Work out every number of a run again from its raw detections; exit 1 if anything differs."""
    from detbench.engine.verify import verify as check_run
    from detbench.errors import VerifyFailed
    from detbench.parts.part import plain

    found = check_run(open_store(runs).get(run))
    if found.problems:
        error = VerifyFailed("\n".join(f"{found.run}: {line}" for line in found.problems))
        if as_json:
            fail(error, plain(found))
        raise error
    if as_json:
        print_json(plain(found))
    else:
        print(
            f"{found.run}: {found.numbers} numbers agree; all files but the log are as they were when it finished"
        )


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, threads, devices, and the traps that slow training down."""
    from detbench import listing
    from detbench.engine.doctor import examine

    tree = examine()
    if as_json:
        print_json(tree)
    else:
        listing.show_pairs(tree)
