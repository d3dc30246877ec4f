"""Early stopping of an ablation: values that have fallen far behind at a common evaluation are trained no further.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) with a margin in place of a fixed share: all values go as
far as the same evaluation, those too far behind the best one there are stopped, the others go on to the next. What is
decided depends on the curves alone, never on how many runs are done side by side or which is ready first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment
from detbench.parts.part import plain
from detbench.recipes import Recipe
from detbench.results import STOPPED, Stopped, read_curve
from detbench.runs import Cell
from detbench.stats import least_significant_difference
from detbench.store import write_json
from detbench.workers import Outcome, Watch

MARGIN = 5.0
"""How far behind a value may be, in percentage points, where the user doesn't say. Of six rows of date/table5 trained
for 1,000 steps at cpu scale (one seed), the two that ended ahead were 6 and 8 points behind after a fifth of the
training, and none more than 3 behind after two fifths."""

GRACE = 1 / 3
"""Share of the training before which nothing is stopped."""

Work = Callable[..., list[Outcome]]
"""`workers.execute` with every setting but the cells, `force`, `evaluations` and `watch`."""

Scores = Mapping[str, Mapping[int, float]]
"""Label of a value to what each of its seeds scored at one evaluation, in percent."""


@dataclass(frozen=True)
class Contest:
    """Values that are compared with each other.

    Attributes:
        values: label to the value's runs, one for each seed.
        kept: labels that are never stopped: of the default, and of what other runs start from.
        metric: that is compared; larger is better.
    """

    values: dict[str, list[Cell]]
    kept: frozenset[str]
    metric: str


@dataclass(frozen=True)
class Lag:
    """How far a value is behind the best one.

    Attributes:
        score: its mean over the seeds that both have.
        best_label: of the best value.
        best: its mean over the same seeds.
        allowed: how far behind it might be.
        seeds: that both have.
    """

    score: float
    best_label: str
    best: float
    allowed: float
    seeds: int


@dataclass(frozen=True)
class Race:
    """The runs of an ablation, and which of them may be stopped.

    Attributes:
        cells: all of them.
        contests: values that are compared: those along a sweep, and along all sweeps that share a row with it.
        evaluations: of each run, evenly spread, the last one at its end.
        margin: how far a value may be behind the best of its contest, in percentage points.
    """

    cells: Sequence[Cell]
    contests: Sequence[Contest]
    evaluations: int
    margin: float

    @property
    def rounds(self) -> range:
        """The evaluations at which values may be stopped, counted from 1; the last one is the end."""
        return range(math.ceil(GRACE * self.evaluations), self.evaluations)

    @property
    def text(self) -> str:
        """The rule in words, with what it never stops."""
        kept = ", ".join(f"'{label}'" for contest in self.contests for label in sorted(contest.kept))
        return (
            f"stops early: from evaluation {self.rounds[0]} of {self.evaluations} on, values more than "
            f"{self.margin:g} points of {self.contests[0].metric} behind the best, and more than chance between "
            f"seeds explains; never stopped: {kept or 'only the best'}"
        )

    def run(
        self, work: Work, *, force: bool = False, watch: Watch = lambda running, done: None
    ) -> list[Outcome]:
        """Does what is missing as `workers.execute` does, but stops values that have fallen too far behind.

        A stopped run is no result. The decision is written down in its folder, where its checkpoint stays: a command
        that asks for the run without stopping finishes it.

        Args:
            work: does runs.
            force: run everything from the start.
            watch: as `workers.execute` takes it.
        """
        ended: dict[Cell, Outcome] = {}

        def go(chosen: Sequence[Cell], *, force: bool = False, evaluations: int | None = None) -> None:
            before = [outcome for cell, outcome in ended.items() if cell not in chosen]

            def look(running: Sequence[Cell], done: Sequence[Outcome]) -> None:
                watch(running, [*before, *done])

            outcomes = work(chosen, force=force, evaluations=evaluations, watch=look)
            ended.update((outcome.cell, outcome) for outcome in outcomes)

        racing = {cell for contest in self.contests for runs in contest.values.values() for cell in runs}
        kept = {cell for contest in self.contests for label in contest.kept for cell in contest.values[label]}
        waiting = [cell for cell in self.cells if cell in racing - kept]
        go([cell for cell in self.cells if cell not in waiting], force=force)
        for number in self.rounds:
            fresh = force and number == self.rounds[0]
            due = [cell for cell in waiting if fresh or not _has_come_to(cell, number)]
            go(due, force=fresh, evaluations=number)
            racing -= {outcome.cell for outcome in ended.values() if outcome.state == "failed"}
            stops = [stop for contest in self.contests for stop in self._stops(contest, racing, number)]
            for cell, stopped in stops:
                racing.remove(cell)
                if cell.state != "finished":
                    write_json(cell.folder / STOPPED, plain(stopped))
                    ended[cell] = Outcome(cell, "stopped", stopped.text)
            waiting = [cell for cell in waiting if cell in racing]
        go(waiting)
        return list(ended.values())

    def _stops(self, contest: Contest, racing: set[Cell], number: int) -> Iterator[tuple[Cell, Stopped]]:
        """The runs to stop at an evaluation, with the record of why."""
        entries = {
            (label, cell.seed): entry
            for label, runs in contest.values.items()
            for cell in runs
            if cell in racing and (entry := _evaluation(cell, number)) is not None
        }
        scores: dict[str, dict[int, float]] = {}
        for (label, seed), entry in entries.items():
            score = entry["metrics"][contest.metric]
            if score is not None:
                scores.setdefault(label, {})[seed] = score
        for label, lag in lags(scores, self.margin).items():
            for cell in contest.values[label]:
                entry = entries.get((label, cell.seed))
                if label not in contest.kept and entry is not None:
                    yield cell, Stopped(
                        seed=cell.seed, step=entry["step"], of=entry["of"], metric=contest.metric, score=lag.score,
                        best_row=lag.best_label, best=lag.best, allowed=lag.allowed, margin=self.margin,
                        seeds=lag.seeds,
                    )  # fmt: skip


def race(recipe: Recipe, cells: Sequence[Cell], defaults: Sequence[Experiment], margin: float) -> Race:
    """The race of an ablation's runs.

    Args:
        recipe: the ablation's.
        cells: all runs that it asks for.
        defaults: what its source says where the parameters aren't changed.
        margin: how far a value may be behind the best, in percentage points.

    Raises:
        RecipeError: the runs can't be compared in the course of training, and why.
    """
    asked = [cell for cell in cells if cell.asked]
    evaluations = _common_evaluations(asked)
    _require_own_trainings(asked)
    started_from = {(cell.starts_from, cell.seed) for cell in cells}
    contests = []
    for labels in _connected({point.label for point in sweep.point} for sweep in recipe.sweeps):
        values: dict[str, list[Cell]] = {}
        for cell in asked:
            if any(label in labels for _, label in cell.places):
                values.setdefault(cell.label, []).append(cell)
        runs = [cell for of_value in values.values() for cell in of_value]
        kept = {
            cell.label
            for cell in runs
            if cell.experiment in defaults or (cell.training_digest, cell.seed) in started_from
        }
        coco = all(cell.experiment.test.metrics.kind == "coco" for cell in runs)
        contests.append(Contest(values, frozenset(kept), "AP" if coco else "AP50"))
    return Race(cells, [contest for contest in contests if contest.values], evaluations, margin)


def lags(scores: Scores, margin: float) -> dict[str, Lag]:
    """The values that are farther behind the best one than they may be.

    The best has the largest mean over its seeds, the first of equals. Others may be behind by the margin, or by what
    chance between seeds explains if that is more: the least significant difference at 5 percent.
    """
    if not scores:
        return {}
    best = max(scores, key=lambda label: fmean(scores[label].values()))
    chance = least_significant_difference([list(of_value.values()) for of_value in scores.values()])
    allowed = margin if chance is None else max(margin, chance)
    found = {}
    for label, own in scores.items():
        seeds = [seed for seed in own if seed in scores[best]]
        if seeds:
            lag = Lag(
                fmean(own[seed] for seed in seeds), best, fmean(scores[best][seed] for seed in seeds), allowed,
                len(seeds),
            )  # fmt: skip
            if lag.best - lag.score > allowed:
                found[label] = lag
    return found


def _evaluation(cell: Cell, number: int) -> dict[str, Any] | None:
    """What a run's curve says of an evaluation; None of a run that borrowed its weights and has no curve.

    A training of fewer steps than evaluations has fewer of them: the last one then.
    """
    evaluations = read_curve(cell.folder).evaluations
    return evaluations[:number][-1] if evaluations else None


def _has_come_to(cell: Cell, number: int) -> bool:
    return cell.state == "finished" or len(read_curve(cell.folder).evaluations) >= number


def _common_evaluations(cells: Sequence[Cell]) -> int:
    """How often every run is evaluated."""
    counts = {cell.label: cell.experiment.training.evaluations for cell in cells}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"'{label}' {count}" for label, count in counts.items())
        raise RecipeError(
            f"ablate: --stop-early compares runs at evaluations they have in common; training.evaluations is {found}"
        )
    (count,) = set(counts.values())
    if count == 1:
        raise RecipeError(
            "ablate: --stop-early needs evaluations before the end; give an override such as "
            "training.evaluations=5"
        )
    return count


def _require_own_trainings(cells: Sequence[Cell]) -> None:
    """Values that are trained alike and only tested differently have one curve: none can be stopped alone."""
    trained: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        other = trained.setdefault((cell.training_digest, cell.seed), cell)
        if other is not cell:
            raise RecipeError(
                f"ablate: --stop-early can't stop '{cell.label}': it is trained as '{other.label}' is and only "
                "tested otherwise; run without it"
            )


def _connected(groups: Iterable[set[str]]) -> list[set[str]]:
    """Sets that share a member put together."""
    found: list[set[str]] = []
    for group in groups:
        apart = [other for other in found if not other & group]
        found = [*apart, group.union(*(other for other in found if other & group))]
    return found
