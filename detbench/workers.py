"""Worker processes: the missing runs get done, several side by side, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from detbench.errors import RecipeError
from detbench.results import read_environment, read_result
from detbench.runs import Cell, request
from detbench.store import ERROR, HELD, LOG, PAUSED, Store, forget_ending, sha256_of

# Variables by which somebody says how idle OpenMP threads are to wait.
_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
_LOOK_SECONDS = 2.0  # between looks at runs that another process holds


@dataclass(frozen=True)
class Outcome:
    """How one cell ended.

    Attributes:
        state: "finished", "interrupted", "paused", or with a message "failed" or "stopped".
        kind: of a failure, the name of its error in `detbench.errors`, if it has one.
    """

    cell: Cell
    state: str
    message: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process that it started.

    Attributes:
        index: of this process among all.
        number: of all.
        local_index: of this process among those of its machine.
        local_number: of those.
        host: where all processes can meet.
        port: likewise.
        has_store: torchrun's own store is there.
        attempt: torchrun may start all anew.
    """

    index: int
    number: int
    local_index: int
    local_number: int
    host: str
    port: int
    has_store: bool
    attempt: str


def launched() -> Launch | None:
    """How torchrun, or what sets its variables as well, started this process among others; None if it didn't."""
    told = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= told.keys() or told["WORLD_SIZE"] == "1":
        return None
    return Launch(
        index=int(told["RANK"]),
        number=int(told["WORLD_SIZE"]),
        local_index=int(told.get("LOCAL_RANK", told["RANK"])),
        local_number=int(told.get("LOCAL_WORLD_SIZE", told["WORLD_SIZE"])),
        host=told["MASTER_ADDR"],
        port=int(told["MASTER_PORT"]),
        has_store=told.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=f"attempt {told.get('TORCHELASTIC_RESTART_COUNT', 0)}",
    )


Watch = Callable[[Sequence[Cell], Sequence[Outcome]], None]


def execute(
    cells: Sequence[Cell],
    *,
    store: Store,
    jobs: int = 1,
    processes: int | None = None,
    threads: int | None = None,
    workers: int = 0,
    device: str = "auto",
    force: bool = False,
    evaluations: int | None = None,
    watch: Watch = lambda running, done: None,
) -> list[Outcome]:
    """Does what is missing, several runs side by side.

    A run whose training another cell has done, or is doing, waits for those weights and only tests them; one that
    another process holds is waited for. A run that starts from another's weights waits for that one to finish.
    Finished runs are not run again unless `force`, which trains all that was asked for anew and leaves those alone
    that others merely start from. One run's failure stops no others but those that need its weights.

    Args:
        jobs: runs side by side.
        processes: that train each run together; by default one, and under torchrun those that it started.
        threads: torch threads of each process; by default OMP_NUM_THREADS, else the cores divided by all processes
            (always so under torchrun, which sets that variable itself). A run that was begun goes on with the
            numbers it began with: others would give other bits.
        evaluations: a run that has been evaluated so often is paused, its state saved.
        watch: called a few times a second with the running cells and the outcomes so far.

    Raises:
        RecipeError: a batch can't be shared evenly by so many processes; or they can't be had; or a file of weights
            isn't there, or isn't what a run of the same name started from.
        KeyboardInterrupt: the user stopped it, or stopped a worker; the others have saved their state.
    """
    for cell in cells:
        request(cell)
    launch = launched()
    here = (processes or 1) if launch is None else launch.local_number
    processes = _checked_number(processes, launch, jobs=jobs, device=device)
    batch = _Batch(
        cells, store, processes=processes, threads=threads or default_threads(jobs * here), workers=workers,
        device=device, force=force, evaluations=evaluations,
    )  # fmt: skip
    try:
        while batch.todo or batch.running:
            batch.start_what_can(jobs)
            batch.collect_what_ended()
            watch(list(batch.running), batch.done)
            time.sleep(0.2)
    except KeyboardInterrupt:
        batch.stop()
        watch([], batch.done)
        raise
    if any(outcome.state == "interrupted" for outcome in batch.done):
        raise KeyboardInterrupt
    return batch.done


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(processes: int = 1) -> int:
    """Threads for each of so many processes: OMP_NUM_THREADS where it is a number, else the cores divided by them."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets the variable itself, to 1.
    if launched() is None and re.fullmatch("[1-9][0-9]*", asked):
        return int(asked)
    return max(1, cores() // processes)


def _checked_number(asked: int | None, launch: Launch | None, *, jobs: int, device: str) -> int | None:
    """How many processes are to train each run; None where nothing is said.

    Raises:
        RecipeError: it can't be.
    """
    if launch is not None:
        if jobs > 1:
            raise RecipeError("--jobs: runs can't be side by side under torchrun; leave it out")
        if asked not in (None, launch.number):
            raise RecipeError(f"--nproc {asked}: torchrun started {launch.number} processes; leave it out")
        asked = launch.number
    if asked not in (None, 1) and device.startswith("cuda:"):
        raise RecipeError(f"--device {device}: {asked} processes take a GPU each; use --device cuda")
    return asked


def _require_shares(cells: Iterable[Cell], number: int) -> None:
    """Refuses experiments whose batch so many processes can't share.

    Raises:
        RecipeError: there are such; all of them are named.
    """
    problems = {
        f"{cell.label}: a step's {cell.experiment.training.batch} images (training.batch) are handed out in "
        f"{cell.experiment.shares} equal shares, which {number} processes can't divide among them; take a number of "
        f"processes that divides {cell.experiment.shares}, or another training.batch"
        for cell in cells
        if cell.experiment.shares % number
    }
    if problems:
        raise RecipeError(sorted(problems))


def _require_weights(cells: Iterable[Cell]) -> None:
    """Refuses experiments that start from a file which isn't there.

    Raises:
        RecipeError: there are such; all of them are named.
    """
    problems = {
        f"{cell.label}: starts from {file}: no such file"
        for cell in cells
        if (file := cell.experiment.weights_file) is not None and not file.is_file()
    }
    if problems:
        raise RecipeError(sorted(problems))


class _Batch:
    """The state of one `execute`: what waits, what is at work, what has ended."""

    def __init__(
        self, cells: Sequence[Cell], store: Store, *, processes: int | None, threads: int, workers: int, device: str,
        force: bool, evaluations: int | None,
    ) -> None:  # fmt: skip
        self.store, self.processes, self.threads = store, processes, threads
        self.workers, self.device = workers, device
        self.evaluations = evaluations
        self.forced = {cell for cell in cells if force and cell.asked}
        self.todo = [cell for cell in cells if cell in self.forced or cell.state != "finished"]
        self.running: dict[Cell, subprocess.Popen[bytes]] = {}
        self.done: list[Outcome] = []
        self.trained_here: set[tuple[str, int]] = set()
        self.next_look = 0.0
        _require_shares(self.todo, processes or 1)
        _require_weights(self.todo)
        self._require_same_weights(cells)
        self._require_number_begun_with()

    def start_what_can(self, jobs: int) -> None:
        """Starts waiting cells as far as `jobs` allows. Looks at the store only when something may have changed."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + _LOOK_SECONDS
        for cell in list(self.todo):
            state = cell.state
            if state == "finished" and cell not in self.forced:  # another process did it while we waited
                self._end(cell, Outcome(cell, "finished"))
            elif _key(cell) in map(_key, self.running) or self._source_is_due(cell):
                continue
            elif cell.starts_from is not None and self.store.trained(cell.starts_from, cell.seed) is None:
                self._end(cell, Outcome(cell, "failed", _without_source(cell)))
            elif state != "running" and len(self.running) < jobs:
                self.todo.remove(cell)
                self.running[cell] = self._start(cell)

    def collect_what_ended(self) -> None:
        """Outcomes of workers that have ended. A worker that found its run held by another process waits again."""
        for cell, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[cell]
            self.next_look = 0.0
            if code == HELD:
                self.todo.append(cell)
                self.next_look = time.monotonic() + _LOOK_SECONDS
                continue
            outcome = _outcome(cell, code)
            self.done.append(outcome)
            if outcome.state == "finished" and not read_result(cell.folder).weights_from:
                self.trained_here.add(_key(cell))
            if outcome.state == "failed":
                for other in [c for c in self.todo if _key(c) == _key(cell)]:
                    same = f"not started: its training is that of '{cell.label}', which failed: {outcome.message}"
                    self._end(other, Outcome(other, "failed", same, outcome.kind))

    def stop(self) -> None:
        """Asks every worker to save its state and waits until it has."""
        for process in self.running.values():
            process.terminate()  # not SIGINT, to which the background jobs of a script are deaf
        for cell, process in self.running.items():
            self.done.append(_outcome(cell, process.wait()))

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        self.todo.remove(cell)
        self.done.append(outcome)

    def _require_number_begun_with(self) -> None:
        """Refuses to go on with another number of processes than a run began with, where one was asked for."""
        begun = {cell: _begun_with(cell.folder) for cell in self.todo if cell not in self.forced}
        problems = [
            f"{cell.label}, seed {cell.seed}: begun with {numbers[0]} processes, and goes on with as many alone; "
            f"found {self.processes}. Ask for {numbers[0]}, or start anew with --force"
            for cell, numbers in begun.items()
            if numbers is not None and self.processes not in (None, numbers[0])
        ]
        if problems:
            raise RecipeError(problems)

    def _require_same_weights(self, cells: Iterable[Cell]) -> None:
        """Refuses a file of weights that changed since a run of the same name started from it."""
        sha256 = cache(sha256_of)
        problems = []
        for cell in cells:
            file = cell.experiment.weights_file
            if file is None or cell in self.forced or not file.is_file():
                continue
            trained = self.store.trained(cell.training_digest, cell.seed)
            for folder in dict.fromkeys([cell.folder, trained or cell.folder]):
                before = (read_environment(folder) or {}).get("weights_sha256")
                if before not in (None, sha256(file)):
                    problems.append(
                        f"{cell.label}, seed {cell.seed}: {file} isn't what {folder} started from (its SHA-256 was "
                        f"{before}). Give the new file another name, or start anew with --force"
                    )
        if problems:
            raise RecipeError(problems)

    def _source_is_due(self, cell: Cell) -> bool:
        """Whether the run that a cell starts from is yet to finish."""
        due = {_key(other) for other in [*self.todo, *self.running]}
        return (cell.starts_from, cell.seed) in due

    def _start(self, cell: Cell) -> subprocess.Popen[bytes]:
        forget_ending(cell.folder)
        begun = None if cell in self.forced else _begun_with(cell.folder)
        processes, threads = begun or (self.processes or 1, self.threads)
        command = [
            sys.executable, "-m", "detbench.engine", str(cell.folder), "--cache", str(self.store.cache),
            "--processes", str(processes), "--threads", str(threads), "--workers", str(self.workers),
            "--device", self.device,
        ]  # fmt: skip
        may_borrow = cell not in self.forced or _key(cell) in self.trained_here
        trained = self.store.trained(cell.training_digest, cell.seed) if may_borrow else None
        if trained is not None:
            command += ["--weights-from", str(trained)]
        elif cell.starts_from is not None:
            command += ["--init-from", str(self.store.trained(cell.starts_from, cell.seed))]
        if cell in self.forced:
            command += ["--fresh"]
        if self.evaluations is not None:
            command += ["--evaluations", str(self.evaluations)]
        with (cell.folder / LOG).open("ab") as log:
            # A session of its own: Ctrl-C reaches the worker once, from us, and not in the middle of a write.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(threads),
                start_new_session=True,
            )


def _environment(threads: int) -> dict[str, str]:
    """What a worker is told, besides what the user told us."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # Without it cuBLAS may add up in another order from run to run.
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not _WAITING.intersection(environment):
        # Trap 4: idle OpenMP threads that spin for long starve whatever else runs on the core.
        environment["GOMP_SPINCOUNT"] = "1000"
    return environment


def _key(cell: Cell) -> tuple[str, int]:
    """Cells with the same key share one training."""
    return cell.training_digest, cell.seed


def _begun_with(folder: Path) -> tuple[int, int] | None:
    """The numbers of processes and threads a run was begun with; older runs know of one process only."""
    environment = read_environment(folder)
    return None if environment is None else (environment.get("processes", 1), environment["threads"])


def _without_source(cell: Cell) -> str:
    assert cell.experiment.init is not None
    return (
        f"not started: there are no weights of '{cell.experiment.init.row}', seed {cell.seed}, which it starts from; "
        "mend what made that run fail, or run it again with --force"
    )


def _outcome(cell: Cell, code: int) -> Outcome:
    if code == 0:
        return Outcome(cell, "finished")
    if code == PAUSED:
        return Outcome(cell, "paused")
    if code in (130, -signal.SIGTERM):  # the latter where it was stopped before it could listen
        return Outcome(cell, "interrupted")
    path = cell.folder / ERROR
    if path.is_file():
        error = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(cell, "failed", error["message"], error["kind"])
    killed = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    again = f"its log is {cell.folder / LOG}. Run again to go on where it stopped"
    return Outcome(cell, "failed", f"the worker was {killed}; {again}")
