"""What a report is made of: one recipe's rows with their finished runs. Reads no folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from detbench.recipe_text import Row, Scale
from detbench.recipes import Recipe, recipes_dir
from detbench.results import Curve, Result, Stopped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from detbench.metrics.alignment import Alignment

State = Literal["measured", "stopped early", "not run", "quoted", "needs"]

_OF_THE_MODEL = ("params_train_m", "params_infer_m", "gflops_train", "gflops_infer")
_OF_THE_ROW = {"params_m": "params_{}_m", "gflops": "gflops_{}"}


@dataclass(frozen=True)
class Entry:
    """One row of a recipe and what there is of it.

    Attributes:
        row: the recipe's row.
        digests: of its experiment, one for each fold that it is the mean over; empty where it can't be resolved.
        needs: parts that don't exist yet, without which it can't run.
        changes: key to (the baseline row's value, this row's), at the scale and with the overrides in force.
        results: finished runs, by seed; of several folds one result, when all are finished.
        curves: one for each result, in the same order.
        alignments: one for each result where the recipe asks for that plot.
        partial: seeds of which some folds are finished and some are not, with how many are.
        stopped: why runs of the row were stopped early, by seed; they are no results.
        resampled: metric to the single run's scores on resampled images, in percent; empty with several seeds.
    """

    row: Row
    digests: tuple[str, ...]
    needs: tuple[str, ...]
    changes: dict[str, tuple[Any, Any]]
    results: list[Result]
    curves: list[Curve]
    alignments: list[Alignment] = field(default_factory=list)
    partial: dict[int, int] = field(default_factory=dict)
    stopped: list[Stopped] = field(default_factory=list)
    resampled: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """Measured, or why not."""
        if self.row.quoted:
            return "quoted"
        if self.needs:
            return "needs"
        if self.results:
            return "measured"
        return "stopped early" if self.stopped else "not run"

    def values(self, metric: str) -> dict[int, float]:
        """Seed to the number measured for a column; runs in which it could not be measured are left out."""
        runs = zip(self.results, self.curves, strict=True)
        found = {result.seed: _value(result, curve, metric, self.row.cost) for result, curve in runs}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Collected:
    """One recipe at one scale on one data set.

    Attributes:
        recipe: the recipe.
        scale: the named overlay all its runs share.
        data_name: of the data set, such as "drawn shapes".
        overrides: `key.path=value` laid over every row.
        entries: one for each row, in the paper's order.
        unlisted: the baseline, where only other rows are reported.
        whole: the recipe with all its rows, where only some are reported: claims are judged in it, since nobody
            should make one supported by asking for less.
    """

    recipe: Recipe
    scale: Scale
    data_name: str
    overrides: tuple[str, ...]
    entries: list[Entry]
    unlisted: Entry | None = None
    whole: Collected | None = None

    @property
    def name(self) -> str:
        """The recipe's name; of the user's own file, the file's name alone."""
        return self.recipe.name if self.shipped else self.recipe.path.stem

    @property
    def shipped(self) -> bool:
        """Whether the recipe came with detbench."""
        return self.recipe.path.is_relative_to(recipes_dir())

    @property
    def results(self) -> list[Result]:
        """All finished runs, row by row."""
        return [result for entry in self.entries for result in entry.results]

    @property
    def baseline(self) -> Entry | None:
        """The row that differences are taken to, if the recipe names one; it need not be among the entries."""
        label = self.recipe.head.baseline
        return next((entry for entry in self.entries if entry.row.label == label), self.unlisted)

    def entry(self, label: str) -> Entry:
        """The row of that label."""
        return next(entry for entry in self.entries if entry.row.label == label)

    def distinct(self, fact: Callable[[Result], str]) -> list[str]:
        """What the runs say about something, each answer once, in order of appearance."""
        return list(dict.fromkeys(fact(result) for result in self.results))


def is_cost(metric: str) -> bool:
    """Whether a column is counted from the network rather than measured: the same for every seed."""
    return metric in _OF_THE_MODEL or metric in _OF_THE_ROW


def hardware(result: Result) -> str:
    """Where a run was made, in words: "NVIDIA H200" or "AMD EPYC 9354, 1 thread"."""
    machine = result.environment
    if machine["device"] != "cpu":
        return str(machine["device"])
    threads = machine["threads"]
    return f"{machine['cpu']}, {threads} thread{'s' if threads != 1 else ''}"


def _value(result: Result, curve: Curve, metric: str, cost: str) -> float | None:
    if metric in _OF_THE_ROW:
        return result.cost[_OF_THE_ROW[metric].format(cost)]
    if metric in _OF_THE_MODEL:
        return result.cost[metric]
    if metric.startswith("loss_"):
        return _last_loss(curve, metric)
    return result.metrics.get(metric)


def _last_loss(curve: Curve, metric: str) -> float | None:
    """A training loss at the end, "loss_cls_o2o" for loss `cls` of branch `o2o`: its mean over the last tenth."""
    loss, _, branch = metric.removeprefix("loss_").rpartition("_")
    logged = [
        (s["step"], s["losses"][f"{branch}.{loss}"]) for s in curve.steps if f"{branch}.{loss}" in s["losses"]
    ]
    last = [value for step, value in logged if step > 0.9 * logged[-1][0]]
    return sum(last) / len(last) if last else None
