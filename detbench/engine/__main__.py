"""The worker process: `python -m detbench.engine FOLDER` does the run that a folder's request asks for."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from detbench.errors import DetbenchError, Interrupted, StoreError
from detbench.parts.experiment import read_experiment
from detbench.results import RESULT, read_request
from detbench.store import ERROR, HELD, PAUSED, hold, write_json
from detbench.workers import launched


def main() -> int:
    """Exit codes are those of the command line. A failure stands in error.json, for the process that waits."""
    parser = argparse.ArgumentParser(prog="python -m detbench.engine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--weights-from", type=Path)
    parser.add_argument("--init-from", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--peer", type=json.loads, help="a seat beside the process that leads the run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--fresh", action="store_true", help="forget what the folder holds")
    parser.add_argument("--evaluations", type=int, help="pause when it has been evaluated so often")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.peer is not None:
        return _work(arguments)
    try:
        with hold(folder):
            return 0 if (folder / RESULT).is_file() and not arguments.fresh else _work(arguments)
    except StoreError as error:
        print(error, file=sys.stderr)
        return HELD


def _work(arguments: argparse.Namespace) -> int:
    """Does the run, or a peer's part of it."""
    folder: Path = arguments.folder
    try:
        request = read_request(folder)
        from detbench.engine.run import run_experiment

        # Not before: out of the middle of an import an interrupt may come as any error.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with _seated(arguments) as device:
            result = run_experiment(
                read_experiment(request["experiment"], where=str(folder)),
                seed=request["seed"],
                fingerprint=request["fingerprint"],
                scale=request["scale"],
                folder=folder,
                cache=arguments.cache,
                weights_from=arguments.weights_from,
                init_from=arguments.init_from,
                device=device,
                threads=arguments.threads,
                workers=arguments.workers,
                checkpoint_seconds=arguments.checkpoint_seconds,
                fresh=arguments.fresh,
                evaluations=arguments.evaluations,
            )
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped before or after training", file=sys.stderr)
        return Interrupted.exit_code
    except DetbenchError as error:
        _write_error(arguments, str(error), type(error).__name__)
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:  # a bug of ours: the batch goes on, the traceback is in the log
        _write_error(arguments, f"{type(error).__name__}: {error}", "bug")
        traceback.print_exc()
        return 1
    return PAUSED if result is None and arguments.peer is None else 0


@contextlib.contextmanager
def _seated(arguments: argparse.Namespace) -> Iterator[str]:
    """Joins the processes that train the run, where there are several; yields this one's device."""
    if arguments.processes == 1:
        yield arguments.device
        return
    from detbench.engine.processes import Seat, joined, led

    if arguments.peer is not None:
        seat = Seat(**arguments.peer)
        with joined(seat, arguments.folder):
            yield seat.device(arguments.device)
    else:
        with led(arguments.folder, arguments.processes, launched(), sys.argv[1:]) as seat:
            yield seat.device(arguments.device)


def _write_error(arguments: argparse.Namespace, message: str, kind: str) -> None:
    """The leader writes down what ended a run; a peer has told it."""
    if arguments.peer is None:
        write_json(arguments.folder / ERROR, {"message": message, "kind": kind})


if __name__ == "__main__":
    sys.exit(main())
