"""Early stopping: who is stopped, when, and that nothing of it depends on chance or order. No run is trained here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from detbench import ablation, recipes, runs, stopping
from detbench.cli import app
from detbench.errors import RecipeError
from detbench.recipes import Context
from detbench.results import CURVE, RESULT, STOPPED, read_curve, read_stopped
from detbench.runs import Cell
from detbench.stopping import Race, lags
from detbench.store import Store
from detbench.workers import Outcome

EVALUATIONS, STEPS = 5, 100
OVERRIDES = (f"training.evaluations={EVALUATIONS}",)
FIVE = {  # AP at each evaluation
    "optim.lr=1": (2, 4, 6, 8, 10),
    "optim.lr=2": (2, 10, 20, 30, 40),
    "optim.lr=3": (9, 14, 18, 22, 26),
    "optim.lr=4": (0, 9, 17, 26, 35),
    "optim.lr=5": (1, 2, 3, 4, 5),
}


def race_of(
    folder: Path,
    params: Sequence[str] = ("optim.lr",),
    values: Sequence[str] = ("1..5",),
    *,
    seeds: int = 1,
    margin: float = 5.0,
    overrides: tuple[str, ...] = OVERRIDES,
    recipe: str = "quickstart",
) -> Race:
    store = Store(folder)
    made = ablation.make(params, values=values, recipe=recipe, row=None, folder=store.ablations)
    context = Context("smoke", None, overrides)
    chosen = recipes.select([str(made.path)])
    cells = runs.plan(chosen, context, seeds=range(seeds), store=store)
    return stopping.race(chosen[0][0], cells, made.defaults(context), margin)


class Trainings:
    """Stands for `workers.execute`: runs whose curves are given, done in an order of its own.

    Attributes:
        begun: labels of cells in the order in which they were worked on, with the evaluation each went to.
        fresh: labels that were begun from the start again.
    """

    def __init__(
        self,
        curves: Callable[[Cell], Sequence[float | None]],
        *,
        order: int = 0,
        fails: frozenset[str] = frozenset(),
    ) -> None:
        self.curves, self.chance, self.fails = curves, random.Random(order), fails
        self.begun: list[tuple[str, int]] = []
        self.fresh: list[str] = []

    def __call__(
        self, cells: Sequence[Cell], *, force: bool, evaluations: int | None, watch: Any
    ) -> list[Outcome]:
        outcomes = []
        for cell in self.chance.sample(cells, len(cells)):
            if cell.state == "finished" and not force:
                continue
            if force:
                self.fresh.append(cell.label)
                (cell.folder / RESULT).unlink(missing_ok=True)
            runs.request(cell)
            (cell.folder / STOPPED).unlink(missing_ok=True)
            to = evaluations or EVALUATIONS
            self.begun.append((cell.label, to))
            scores = self.curves(cell)[:to]
            lines = [
                {
                    "step": STEPS * i // EVALUATIONS,
                    "of": STEPS,
                    "epoch": i,
                    "seconds": i,
                    "metrics": {"AP": score},
                }
                for i, score in enumerate(scores, 1)
            ]
            (cell.folder / CURVE).write_text(
                "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
            )
            if cell.label in self.fails:
                outcomes.append(Outcome(cell, "failed", "NaN"))
            elif to == EVALUATIONS:
                (cell.folder / RESULT).write_text("{}", encoding="utf-8")
                outcomes.append(Outcome(cell, "finished"))
            else:
                outcomes.append(Outcome(cell, "paused"))
        watch([], outcomes)
        return outcomes


def five(cell: Cell) -> Sequence[float]:
    return FIVE[cell.label]


def ends(outcomes: Sequence[Outcome]) -> dict[str, str]:
    return {outcome.cell.label: outcome.state for outcome in outcomes}


# ------------------------------------------------------------------ the rule


def test_a_value_may_be_behind_the_best_by_the_margin_and_no_more() -> None:
    found = lags({"a": {0: 30.0}, "b": {0: 25.0}, "c": {0: 24.9}}, 5.0)
    assert list(found) == ["c"]
    assert (found["c"].best_label, found["c"].best, found["c"].score) == ("a", 30.0, 24.9)


def test_a_lag_that_chance_between_seeds_explains_stops_nothing() -> None:
    # Pooled: sqrt((18 + 18) / 2) = 4.243; t(0.975, 2) = 4.303; times sqrt(2 / 2): 18.26 points.
    noisy = {"a": {0: 33.0, 1: 39.0}, "b": {0: 15.0, 1: 21.0}}
    assert lags(noisy, 5.0) == {}
    (lag,) = lags({"a": {0: 33.0, 1: 39.0}, "b": {0: 14.0, 1: 20.0}}, 5.0).values()
    assert lag.allowed == pytest.approx(18.26, abs=0.01)
    assert (lag.score, lag.best, lag.seeds) == (17.0, 36.0, 2)


def test_only_seeds_that_both_have_are_compared() -> None:
    found = lags({"a": {0: 10.0, 1: 50.0}, "b": {0: 9.0}, "c": {2: 0.0}}, 0.5)
    assert {label: (lag.score, lag.best, lag.seeds) for label, lag in found.items()} == {}
    alike = {"a": {0: 30.0, 1: 30.1}, "b": {1: 20.0}, "c": {2: 0.0}}
    assert {label: lag.best for label, lag in lags(alike, 0.5).items()} == {"b": 30.1}


def test_of_equals_and_of_nothing_none_is_stopped() -> None:
    assert lags({"a": {0: 3.0}, "b": {0: 3.0}}, 0.0) == {}
    assert lags({}, 0.0) == {}


# ------------------------------------------------------------------ the race


def test_values_too_far_behind_stop_where_they_are_and_the_others_end(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    found = ends(race.run(Trainings(five)))
    assert found == {
        "optim.lr=1": "stopped",
        "optim.lr=2": "finished",
        "optim.lr=3": "stopped",
        "optim.lr=4": "finished",
        "optim.lr=5": "stopped",
    }
    records = {cell.label: read_stopped(cell.folder) for cell in race.cells}
    assert {label: record and record.step for label, record in records.items()} == {
        "optim.lr=1": 40,
        "optim.lr=2": None,
        "optim.lr=3": 80,
        "optim.lr=4": None,
        "optim.lr=5": 40,
    }
    assert records["optim.lr=3"] is not None
    assert records["optim.lr=3"].text == (
        "stopped early at step 80 of 100: AP 22.0 there, 8.0 behind 'optim.lr=2'; allowed were 5.0"
    )
    assert {cell.label: cell.state for cell in race.cells}["optim.lr=3"] == "stopped"


def test_nothing_is_stopped_before_a_third_of_the_training(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    assert list(race.rounds) == [2, 3, 4]
    late = {"optim.lr=1": (0, 30, 30, 30, 30)}
    found = ends(race.run(Trainings(lambda cell: late.get(cell.label, (30,) * 5))))
    assert set(found.values()) == {"finished"}


def test_the_default_is_never_stopped(tmp_path: Path) -> None:
    race = race_of(tmp_path, values=("0.5,1e-3",))
    (kept,) = race.contests[0].kept
    assert kept == "optim.lr=0.001", "what quickstart's rows have at this scale"
    poor = Trainings(lambda cell: (0,) * 5 if cell.label == kept else (50,) * 5)
    assert ends(race.run(poor)) == {"optim.lr=0.5": "finished", kept: "finished"}


def test_what_is_decided_depends_on_no_order(tmp_path: Path) -> None:
    races = [race_of(tmp_path / str(order), seeds=3) for order in range(4)]

    def noisy(cell: Cell) -> list[float]:
        chance = random.Random(f"{cell.label}/{cell.seed}")
        return [score + chance.gauss(0, 1) for score in FIVE[cell.label]]

    decided = []
    for order, race in enumerate(races):
        race.run(Trainings(noisy, order=order))
        decided.append([read_stopped(cell.folder) for cell in race.cells])
    assert any(decided[0])
    assert all(found == decided[0] for found in decided)


def test_all_seeds_of_a_value_stop_together(tmp_path: Path) -> None:
    race = race_of(tmp_path, seeds=2)
    race.run(Trainings(lambda cell: [score + cell.seed for score in FIVE[cell.label]]))
    stopped = [(cell.label, cell.seed) for cell in race.cells if cell.state == "stopped"]
    assert stopped == [(f"optim.lr={lr}", seed) for seed in (0, 1) for lr in (1, 3, 5)]


def test_the_same_command_again_decides_the_same_and_trains_nothing(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    race.run(Trainings(five))
    before = [read_stopped(cell.folder) for cell in race.cells]
    again = Trainings(five)
    race.run(again)
    assert again.begun == []
    assert [read_stopped(cell.folder) for cell in race.cells] == before


def test_a_finished_run_stays_a_result_however_far_behind(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    last = [cell for cell in race.cells if cell.label == "optim.lr=5"]
    Trainings(five)(last, force=False, evaluations=None, watch=lambda *_: None)
    race.run(Trainings(five))
    assert {cell.label: cell.state for cell in race.cells}["optim.lr=5"] == "finished"


def test_a_run_that_fails_leaves_the_race_and_is_no_measure_for_others(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    found = ends(race.run(Trainings(five, fails=frozenset({"optim.lr=2"}))))
    assert found["optim.lr=2"] == "failed"
    assert found["optim.lr=4"] == "finished"
    record = read_stopped(next(cell.folder for cell in race.cells if cell.label == "optim.lr=5"))
    assert record is not None
    assert record.best_row == "optim.lr=3"


def test_a_score_that_could_not_be_measured_stops_nobody(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    found = ends(race.run(Trainings(lambda cell: [None] * 5)))
    assert set(found.values()) == {"finished"}


def test_force_starts_every_run_afresh_once(tmp_path: Path) -> None:
    race = race_of(tmp_path)
    race.run(Trainings(five))
    again = Trainings(five)
    race.run(again, force=True)
    assert sorted(again.fresh) == sorted(FIVE)
    assert [read_curve(cell.folder).evaluations[-1]["step"] for cell in race.cells] == [40, 100, 80, 100, 40]


def test_series_of_a_parameter_are_contests_of_their_own(tmp_path: Path) -> None:
    race = race_of(tmp_path, ["lambda_o2m"], [], recipe="date/table10")
    methods = [{label.split(",")[0] for label in contest.values} for contest in race.contests]
    assert methods == [{"DATE-F"}, {"DATE-R"}]
    assert all(contest.kept for contest in race.contests)


def test_a_grid_is_one_contest(tmp_path: Path) -> None:
    race = race_of(tmp_path, ["optim.lr", "training.batch"], ["0.1,0.2", "2,4"])
    assert [len(contest.values) for contest in race.contests] == [4]


# ------------------------------------------------------------------ refused


def test_runs_that_are_evaluated_once_can_not_be_stopped_early(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"needs evaluations before the end; .* training\.evaluations=5"):
        race_of(tmp_path, overrides=())


def test_runs_that_are_evaluated_at_different_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'training\.evaluations=3' 3, 'training\.evaluations=4' 4"):
        race_of(tmp_path, ["training.evaluations"], ["3,4"], overrides=())


def test_values_that_differ_in_the_test_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"it is trained as .* is and only tested otherwise"):
        race_of(tmp_path, ["test.postprocess.keep"], ["10,20"])


def test_a_margin_without_early_stopping_is_refused() -> None:
    found = CliRunner().invoke(app, ["ablate", "--param", "tau", "--stop-margin", "3"])
    assert str(found.exception) == "ablate: --stop-margin says when --stop-early stops; give both"
