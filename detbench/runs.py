"""Runs: rows times seeds. What is there, what is missing, how far it is and what it will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detbench.errors import RecipeError
from detbench.parts.data import Source
from detbench.parts.experiment import Experiment
from detbench.parts.part import plain
from detbench.recipe_text import Row
from detbench.recipes import Context, Recipe, base_of, folds_of, load, named_row, resolve, step_time
from detbench.results import REQUEST, read_curve, read_request
from detbench.store import State, Store, state_of, write_request

# What an unlabelled image costs over a labelled one: the student learns from it, the teacher looks at it, and it is
# transformed twice (measured with DINO at cpu scale, 0.33 s for 4 + 4 images against 0.14 s for 4).
_UNLABELLED = 1.36


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
        """The row it is first asked for by, and its fold of labelled images if it isn't the first."""
        return self.places[0][1] + self.fold

    @property
    def fold(self) -> str:
        """The fold as it follows a label, such as ", fold 2"; "" for the first and where all images are labelled."""
        labelled = self.experiment.data.labelled
        return f", fold {labelled.fold}" if labelled is not None and labelled.fold > 1 else ""

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

    resolved = resolve_rows(chosen, context)
    if not resolved:
        needs = sorted({need for recipe, rows in chosen for row in rows for need in recipe.needs(row)})
        names = ", ".join(recipe.name for recipe, _ in chosen)
        why = f"they need parts that don't exist yet: {', '.join(needs)}" if needs else "they are quoted"
        raise RecipeError(f"{names}: none of the chosen rows can run; {why}")
    cells: dict[tuple[str, int], Cell] = {}
    fingerprints: dict[tuple[Source, Source | None], str] = {}  # of real data each looks at every image file
    resolved = [
        (recipe, row, fold)
        for recipe, row, experiment in resolved
        for fold in folds_of(recipe, experiment, context)
    ]
    for seed in seeds:
        for recipe, row, asked_for in resolved:
            sources = _sources(asked_for)
            for place, experiment in [*sources, ((recipe.name, row.label), asked_for)]:
                source, unlabelled = experiment.data.source, experiment.data.unlabelled
                if (source, unlabelled) not in fingerprints:
                    fingerprints[source, unlabelled] = fingerprint(source, store.cache, unlabelled=unlabelled)
                data = fingerprints[source, unlabelled]
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


def resolve_rows(
    chosen: Sequence[tuple[Recipe, Sequence[Row]]], context: Context
) -> list[tuple[Recipe, Row, Experiment]]:
    """The experiments of the rows that can run.

    Raises:
        RecipeError: every mistake of every row at once; one that all rows of a recipe share is told once.
    """
    resolved = []
    told: list[str] = []
    for recipe, rows in chosen:
        problems: dict[str, list[str]] = {}
        runnable = [row for row in rows if not row.quoted and not recipe.needs(row)]
        for row in runnable:
            try:
                resolved.append((recipe, row, resolve(recipe, row, context)))
            except RecipeError as error:
                for problem in error.problems:
                    problems.setdefault(problem.replace(f", row '{row.label}'", "", 1), []).append(row.label)
        told += [
            problem if len(labels) == len(runnable) else f"{problem} (in the rows {'; '.join(labels)})"
            for problem, labels in problems.items()
        ]
    if told:
        raise RecipeError(told)
    return resolved


def request(cell: Cell) -> None:
    """Writes down what is asked of a cell's folder, and adds the rows that ask for it to those that did before.

    Of a finished run nothing but the rows changes: the rest is what it was made with.
    """
    context = cell.context
    asked = [list(place) for place in cell.places]
    path = cell.folder / REQUEST
    if path.is_file():
        before = read_request(cell.folder)
        asked = before["places"] + [place for place in asked if place not in before["places"]]
        if cell.state == "finished":
            write_request(cell.folder, before | {"places": asked})
            return
    write_request(
        cell.folder,
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


def context_of(asked: Mapping[str, Any]) -> Context:
    """What the rows of a run were resolved with, from its request."""
    return Context(asked["scale"], asked["data"], tuple(asked["overrides"]))


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


def estimate(cell: Cell, *, store: Store) -> Estimate | None:
    """Time, memory and disk of a cell; None where neither this store nor the base has a measurement to go by."""
    name, label = cell.places[0]
    recipe = load(name)
    reference = base_of(recipe).estimate.get(cell.context.scale)
    schedule = cell.experiment.schedule
    if reference is None or schedule.unit != "steps":
        return None
    steps = schedule.length * schedule.times
    trained = (result for result in store.results() if not result.weights_from)
    ours = [result for result in trained if _alike(result.experiment, cell.experiment)]
    if ours:
        per_step = sum(r.seconds["train"] / r.steps for r in ours) / len(ours)
        source = f"{len(ours)} finished runs of this store"
    elif _is_as_measured(cell, recipe):
        per_image = reference.seconds_per_step / reference.batch * step_time(recipe, recipe.rows[label])
        per_step, source = per_image * _images_per_step(cell.experiment), reference.hardware
    else:
        return None
    minutes = (steps * per_step + cell.experiment.training.evaluations * reference.seconds_per_test) / 60
    at_once = cell.experiment.training.batch / cell.experiment.training.accumulate
    memory = reference.memory_mb * max(1.0, at_once / reference.batch)
    return Estimate(minutes, memory, reference.disk_mb, source)


def _is_as_measured(cell: Cell, recipe: Recipe) -> bool:
    """Whether no override makes a step work on other images or in another network than the scale's own."""
    plainly = resolve(recipe, recipe.rows[cell.places[0][1]], replace(cell.context, overrides=()))
    return plainly.detector == cell.experiment.detector and plainly.data.train == cell.experiment.data.train


def _images_per_step(experiment: Experiment) -> float:
    """The labelled images that cost as much as a step's images do."""
    batch, teacher = experiment.training.batch, experiment.teacher
    if teacher is None:
        return batch
    unlabelled = (1 - teacher.labelled_share) * (1 - teacher.burn_in)
    return batch * (teacher.labelled_share + unlabelled * _UNLABELLED)


def _alike(tree: dict[str, Any], experiment: Experiment) -> bool:
    """Whether a step of a finished run costs what a step of this experiment costs."""
    ours = plain(experiment)
    same = all(tree[key] == ours[key] for key in ("detector", "training"))
    return (
        same
        and tree["data"]["train"] == ours["data"]["train"]
        and set(tree["branches"]) == set(ours["branches"])
        and tree.get("teacher") == ours["teacher"]
    )
