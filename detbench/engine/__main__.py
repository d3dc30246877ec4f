"""The worker process: `python -m detbench.engine FOLDER` does the run that a folder's request asks for."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import traceback
from pathlib import Path

from detbench.errors import DetbenchError, Interrupted, StoreError
from detbench.parts.experiment import read_experiment
from detbench.results import RESULT, read_request
from detbench.store import ERROR, HELD, PAUSED, hold, write_json


def main() -> int:
    """Exit codes are those of the command line. A failure stands in error.json, for the process that waits."""
    parser = argparse.ArgumentParser(prog="python -m detbench.engine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--weights-from", type=Path)
    parser.add_argument("--init-from", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--fresh", action="store_true", help="forget what the folder holds")
    parser.add_argument("--evaluations", type=int, help="pause when it has been evaluated so often")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder: Path = arguments.folder
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(folder))
        except StoreError as error:
            print(error, file=sys.stderr)
            return HELD
        if (folder / RESULT).is_file() and not arguments.fresh:
            return 0
        try:
            request = read_request(folder)
            from detbench.engine.run import run_experiment

            result = run_experiment(
                read_experiment(request["experiment"], where=str(folder)),
                seed=request["seed"],
                fingerprint=request["fingerprint"],
                scale=request["scale"],
                folder=folder,
                cache=arguments.cache,
                weights_from=arguments.weights_from,
                init_from=arguments.init_from,
                device=arguments.device,
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
            write_json(folder / ERROR, {"message": str(error), "kind": type(error).__name__})
            print(error, file=sys.stderr)
            return error.exit_code
        except Exception as error:  # a bug of ours: the batch goes on, the traceback is in the log
            write_json(folder / ERROR, {"message": f"{type(error).__name__}: {error}", "kind": "bug"})
            traceback.print_exc()
            return 1
    return PAUSED if result is None else 0


if __name__ == "__main__":
    sys.exit(main())
