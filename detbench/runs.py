"""Runs: rows times seeds. What is there, what is missing, and how the missing ones get done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detbench.errors import RecipeError
from detbench.parts.data import Source
from detbench.parts.experiment import Experiment
from detbench.parts.part import plain
from detbench.recipes import Context, Recipe, Row, base_of, named_row, resolve
from detbench.results import REQUEST, read_curve, read_request
from detbench.store import ERROR, LOG, State, Store, forget, forget_failure, state_of, write_json


@dataclass(frozen=True, eq=False)
class Cell:
    """One run that rows ask for.

    Attributes:
        places: the (recipe, row label) pairs it answers for; several rows may mean the same experiment.
        experiment: what is run.
        seed: with which seed.
        context: scale, data and overrides it was resolved with.
        fingerprint: of its data.
        digest: of the experiment with its data.
        training_digest: of the training alone; cells that share it (and the seed) train once.
        folder: where it lives.
        asked: False for a run that only others start from.
    """

    places: tuple[tuple[str, str], ...]
    experiment: Experiment
    seed: int
    context: Context
    fingerprint: str
    digest: str
    training_digest: str
    folder: Path
    asked: bool = True

    @property
    def starts_from(self) -> str | None:
        """The training digest of the run whose weights it starts from, if it starts from one; of its own seed."""
        init = self.experiment.init
        return None if init is None else init.experiment.training_digest(self.fingerprint)

    @property
    def label(self) -> str:
        """The row it is first asked for by."""
        return self.places[0][1]

    @property
    def state(self) -> State:
        """How far it has come."""
        return state_of(self.folder)


@dataclass(frozen=True)
class Progress:
    """Where a worker is: the newest of what its curve says.

    `score` is the first metric of the last evaluation with its name; None before one.
    """

    step: int
    of: int
    epoch: float
    seconds: float
    loss: float | None
    score: tuple[str, float] | None

    @property
    def seconds_left(self) -> float | None:
        """Training time still to come at the pace so far; None before the first step."""
        return self.seconds / self.step * (self.of - self.step) if self.step else None


@dataclass(frozen=True)
class Outcome:
    """How one cell ended: "finished", "failed" with a message, or "interrupted"."""

    cell: Cell
    state: str
    message: str = ""


def plan(
    chosen: Sequence[tuple[Recipe, Sequence[Row]]], context: Context, *, seeds: Sequence[int], store: Store
) -> list[Cell]:
    """The distinct runs that rows and seeds ask for, seed by seed so that a first table is there early.

    A run that others start from stands before them, asked for or not. Quoted rows and rows that need parts which
    don't exist are passed over; something has to be left.

    Raises:
        RecipeError: every mistake of every row at once.
        DataError: the data is missing or unreadable.
    """
    from detbench.data.fingerprint import fingerprint

    resolved = [
        (recipe, row, experiment)
        for recipe, rows in chosen
        for row, experiment in _resolve_all(recipe, rows, context)
    ]
    if not resolved:
        needs = sorted({need for recipe, rows in chosen for row in rows for need in recipe.needs(row)})
        names = ", ".join(recipe.name for recipe, _ in chosen)
        why = f"they need parts that don't exist yet: {', '.join(needs)}" if needs else "they are quoted"
        raise RecipeError(f"{names}: none of the chosen rows can run; {why}")
    cells: dict[tuple[str, int], Cell] = {}
    fingerprints: dict[Source, str] = {}  # of real data each one looks at every image file
    for seed in seeds:
        for recipe, row, asked_for in resolved:
            sources = _sources(asked_for)
            for place, experiment in [*sources, ((recipe.name, row.label), asked_for)]:
                source = experiment.data.source
                if source not in fingerprints:
                    fingerprints[source] = fingerprint(source, store.cache)
                data = fingerprints[source]
                digest = experiment.digest(data)
                before = cells.get((digest, seed))
                places = before.places if before else ()
                cells[digest, seed] = Cell(
                    places if place in places else (*places, place), experiment, seed, context, data, digest,
                    experiment.training_digest(data), store.folder(digest, seed),
                    asked=experiment is asked_for or (before is not None and before.asked),
                )  # fmt: skip
    return list(cells.values())


def _sources(experiment: Experiment) -> list[tuple[tuple[str, str], Experiment]]:
    """The experiments that one starts from, with their recipes and rows; what others start from comes first."""
    if experiment.init is None:
        return []
    recipe, row = named_row(experiment.init.row)
    source = experiment.init.experiment
    return [*_sources(source), ((recipe.name, row.label), source)]


def _resolve_all(recipe: Recipe, rows: Sequence[Row], context: Context) -> list[tuple[Row, Experiment]]:
    """The experiments of the rows that can run. A mistake that rows share is told once."""
    resolved = []
    problems: dict[str, list[str]] = {}
    runnable = [row for row in rows if not row.quoted and not recipe.needs(row)]
    for row in runnable:
        try:
            resolved.append((row, resolve(recipe, row, context)))
        except RecipeError as error:
            for problem in error.problems:
                problems.setdefault(problem.replace(f", row '{row.label}'", "", 1), []).append(row.label)
    if problems:
        raise RecipeError(
            [
                problem if len(labels) == len(runnable) else f"{problem} (in the rows {', '.join(labels)})"
                for problem, labels in problems.items()
            ]
        )
    return resolved


def request(cell: Cell) -> None:
    """Writes down what is asked of a cell's folder, and adds the rows that ask for it to those that did before."""
    context = cell.context
    asked = [list(place) for place in cell.places]
    if (cell.folder / REQUEST).is_file():
        before = read_request(cell.folder)["places"]
        if all(place in before for place in asked):
            return
        asked = before + [place for place in asked if place not in before]
    write_json(
        cell.folder / REQUEST,
        {
            "digest": cell.digest,
            "training_digest": cell.training_digest,
            "seed": cell.seed,
            "scale": context.scale,
            "data": context.data,
            "overrides": list(context.overrides),
            "fingerprint": cell.fingerprint,
            "places": asked,
            "experiment": plain(cell.experiment),
        },
    )


def progress(folder: Path) -> Progress | None:
    """How far the run in a folder has come; None before its first log entry."""
    curve = read_curve(folder)
    entries = curve.steps + curve.evaluations
    if not entries:
        return None
    last = max(entries, key=lambda entry: entry["step"])
    loss = curve.steps[-1]["losses"]["total"] if curve.steps else None
    metrics = curve.evaluations[-1]["metrics"] if curve.evaluations else {}
    score = next(((name, value) for name, value in metrics.items() if value is not None), None)
    return Progress(last["step"], last["of"], last["epoch"], last["seconds"], loss, score)


def execute(
    cells: Sequence[Cell],
    *,
    store: Store,
    jobs: int = 1,
    threads: int | None = None,
    workers: int = 0,
    device: str = "auto",
    force: bool = False,
    watch: Callable[[Sequence[Cell], Sequence[Outcome]], None] = lambda running, done: None,
) -> list[Outcome]:
    """Does what is missing, several runs side by side, each in a process of its own.

    A run whose training another cell has done, or is doing, waits for those weights and only tests them; one that
    another process holds is waited for. A run that starts from another's weights waits for that one to finish.
    Finished runs are not run again unless `force`, which leaves those alone that others merely start from. One
    run's failure stops no others but those that start from it.

    Args:
        jobs: runs side by side.
        threads: torch threads of each run; by default the free cores divided by the jobs.
        watch: called a few times a second with the running cells and the outcomes so far.

    Raises:
        KeyboardInterrupt: after the workers have saved their state.
    """
    threads = threads or max(1, free_cores() // jobs)
    if force:
        for cell in cells:
            if cell.asked:
                forget(cell.folder)
    for cell in cells:
        request(cell)
    todo = [cell for cell in cells if cell.state != "finished"]
    done: list[Outcome] = []
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    try:
        while todo or running:
            for cell in list(todo):
                state = cell.state
                if state == "finished":  # another process did it while we waited
                    todo.remove(cell)
                    done.append(Outcome(cell, "finished"))
                elif _source_is_due(cell, [*todo, *running]):
                    continue
                elif cell.starts_from is not None and store.trained(cell.starts_from, cell.seed) is None:
                    todo.remove(cell)
                    done.append(Outcome(cell, "failed", _without_source(cell)))
                elif state != "running" and len(running) < jobs and _may_start(cell, running):
                    todo.remove(cell)
                    running[cell] = _start(cell, store, threads=threads, workers=workers, device=device)
            for cell, process in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    done.append(_outcome(cell, process.returncode))
            watch(list(running), done)
            if done and done[-1].state == "interrupted" and not running:
                raise KeyboardInterrupt
            time.sleep(0.2)
    except KeyboardInterrupt:
        for process in running.values():
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        for cell, process in running.items():
            process.wait()
            done.append(_outcome(cell, process.returncode))
        watch([], done)
        raise
    return done


def free_cores() -> int:
    """Cores this process may use that aren't busy with something else, at least one.

    Trap 4: two spinning torch processes on one core slow each other down by up to 60 times.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(allowed - load))


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take.

    Attributes:
        minutes: training and tests, on one core of the hardware named in `source`.
        memory_mb: at the peak.
        disk_mb: that stays.
        source: "finished runs" of this store, or where the reference was measured.
    """

    minutes: float
    memory_mb: float
    disk_mb: float
    source: str


def estimate(cell: Cell, recipe: Recipe, *, store: Store) -> Estimate | None:
    """Time, memory and disk of a cell; None where neither this store nor the base has a measurement to go by."""
    reference = base_of(recipe).estimate.get(cell.context.scale)
    schedule = cell.experiment.schedule
    if reference is None or schedule.unit != "steps":
        return None
    steps = schedule.length * schedule.times
    ours = [result for result in store.results() if _alike(result.experiment, cell.experiment)]
    if ours:
        per_step = sum(r.seconds["train"] / r.steps for r in ours) / len(ours)
        source = f"{len(ours)} finished runs of this store"
    else:
        per_step, source = reference.seconds_per_step, reference.hardware
    minutes = (steps * per_step + cell.experiment.training.evaluations * reference.seconds_per_test) / 60
    return Estimate(minutes, reference.memory_mb, reference.disk_mb, source)


def _alike(tree: dict[str, Any], experiment: Experiment) -> bool:
    """Whether a step of a finished run costs what a step of this experiment costs."""
    ours = plain(experiment)
    same = all(tree[key] == ours[key] for key in ("detector", "training"))
    return (
        same
        and tree["data"]["train"] == ours["data"]["train"]
        and set(tree["branches"]) == set(ours["branches"])
    )


def _may_start(cell: Cell, running: dict[Cell, Any]) -> bool:
    """Not while a cell with the same training is at work: its weights will serve this one too."""
    return all((c.training_digest, c.seed) != (cell.training_digest, cell.seed) for c in running)


def _source_is_due(cell: Cell, others: Sequence[Cell]) -> bool:
    """Whether the run that a cell starts from is yet to finish among others."""
    return any((other.training_digest, other.seed) == (cell.starts_from, cell.seed) for other in others)


def _without_source(cell: Cell) -> str:
    assert cell.experiment.init is not None
    return (
        f"not started: there are no weights of '{cell.experiment.init.row}', seed {cell.seed}, which it starts from; "
        "mend what made that run fail, or run it again with --force"
    )


def _start(cell: Cell, store: Store, *, threads: int, workers: int, device: str) -> subprocess.Popen[bytes]:
    forget_failure(cell.folder)
    command = [
        sys.executable, "-m", "detbench.engine", str(cell.folder), "--cache", str(store.cache),
        "--threads", str(threads), "--workers", str(workers), "--device", device,
    ]  # fmt: skip
    trained = store.trained(cell.training_digest, cell.seed)
    if trained is not None:
        command += ["--weights-from", str(trained)]
    elif cell.starts_from is not None:
        command += ["--init-from", str(store.trained(cell.starts_from, cell.seed))]
    environment = dict(os.environ)
    if not any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in environment):
        # Trap 4: idle OpenMP threads that spin for long starve whatever else runs on the core.
        environment |= {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"}
    log = (cell.folder / LOG).open("ab")
    with log:
        # A session of its own: Ctrl-C reaches the worker once, from us, and not in the middle of a write.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _outcome(cell: Cell, code: int) -> Outcome:
    if code == 0:
        return Outcome(cell, "finished")
    if code == 130:
        return Outcome(cell, "interrupted")
    path = cell.folder / ERROR
    if path.is_file():
        return Outcome(cell, "failed", json.loads(path.read_text(encoding="utf-8"))["message"])
    killed = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return Outcome(
        cell,
        "failed",
        f"the worker was {killed}; its log is {cell.folder / LOG}. Run again to go on where it stopped",
    )
