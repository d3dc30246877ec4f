"""One metric of a table: how its numbers are compared, told apart over seeds and images, and written."""

from __future__ import annotations

from dataclasses import dataclass

from detbench.report.gather import Entry, is_cost
from detbench.stats import Estimate, bootstrap_interval, paired_difference

BLANK = "–"

_LOWER_IS_BETTER = ("params", "gflops", "mMR", "latency", "loss")
_DECIMALS = {"params": 2, "gflops": 2, "loss": 3}


@dataclass(frozen=True)
class Column:
    """One metric.

    Attributes:
        metric: its name in the recipe.
        decimals: digits after the point, in every rendering that is read by people.
        lower_is_better: a smaller number wins.
        counted: the same for every seed, so it has no spread.
    """

    metric: str
    decimals: int
    lower_is_better: bool
    counted: bool


def column_of(metric: str) -> Column:
    """How a metric is shown and compared."""
    return Column(
        metric=metric,
        decimals=next((digits for start, digits in _DECIMALS.items() if metric.startswith(start)), 1),
        lower_is_better=metric.startswith(_LOWER_IS_BETTER),
        counted=is_cost(metric),
    )


def difference(entry: Entry, baseline: Entry, column: Column) -> Estimate | None:
    """Mean of one row minus another, paired over the seeds both have; None where they have none in common.

    With one seed its interval is over images, where both runs' scores on resampled images are known.
    """
    own, base = entry.values(column.metric), baseline.values(column.metric)
    seeds = [seed for seed in own if seed in base]
    if not seeds:
        return None
    if column.counted:
        seeds = seeds[:1]
    over_seeds = paired_difference([own[seed] for seed in seeds], [base[seed] for seed in seeds])
    ours, theirs = entry.resampled.get(column.metric), baseline.resampled.get(column.metric)
    if ours is None or theirs is None or not _on_the_same_images(entry, baseline):
        return over_seeds
    return bootstrap_interval(over_seeds.mean, ours - theirs)


def _on_the_same_images(entry: Entry, baseline: Entry) -> bool:
    fingerprint, other = (row.results[0].data["fingerprint"] for row in (entry, baseline))
    return bool(fingerprint == other)


def number_text(value: float | None, column: Column, *, signed: bool = False) -> str:
    """A number with its column's digits."""
    if value is None:
        return BLANK
    return f"{value:{'+' if signed else ''}z.{column.decimals}f}"


def interval_text(estimate: Estimate, column: Column) -> str:
    """The interval of a difference; "" where none is known."""
    if estimate.low is None:
        return ""
    low, high = (number_text(end, column, signed=True) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"
