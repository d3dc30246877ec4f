"""What the runs say about a paper's claims: measured values, and on how many seeds they are as claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from detbench.recipes import Claim
from detbench.report.forms import interval_text, number_text
from detbench.report.gather import Collected
from detbench.report.table import Column, column_of
from detbench.stats import Estimate, mean_interval, paired_difference


@dataclass(frozen=True)
class Observation:
    """A claim beside what was measured of it. A count, no verdict: a few seeds seldom decide anything.

    Attributes:
        claim: as the recipe has it.
        missing: labels of its rows without a number.
        seeds: that all of its rows have.
        holds: seeds on which it is as claimed.
        text: the same in one sentence.
    """

    claim: Claim
    missing: tuple[str, ...]
    seeds: int
    holds: int
    text: str

    @property
    def tone(self) -> Literal["open", "all", "some", "none"]:
        """On all, some or none of the seeds; open below two seeds where seeds matter."""
        if self.seeds < (1 if column_of(self.claim.metric).counted else 2):
            return "open"
        if self.holds == self.seeds:
            return "all"
        return "some" if self.holds else "none"


def observe(collected: Collected, claim: Claim) -> Observation:
    """What there is about a claim."""
    column = column_of(claim.metric)
    values = {label: collected.entry(label).values(claim.metric) for label in claim.rows}
    missing = tuple(label for label, found in values.items() if not found)
    shared = [seed for seed in values[claim.rows[0]] if all(seed in found for found in values.values())]
    if missing:
        return Observation(claim, missing, 0, 0, f"Not measured yet: {'; '.join(missing)}.")
    if not shared:
        return Observation(claim, (), 0, 0, "Its rows have no seed in common.")
    if column.counted:
        shared = shared[:1]
    by_row = [[found[seed] for seed in shared] for found in values.values()]
    holds = sum(_holds(claim, column, numbers) for numbers in zip(*by_row, strict=True))
    if claim.kind == "at_least":
        measured = _difference_text(paired_difference(by_row[0], by_row[1]), column)
    else:
        means = [mean_interval(numbers).mean for numbers in by_row]
        measured = "; ".join(
            f"{label}: {number_text(mean, column)}" for label, mean in zip(claim.rows, means, strict=True)
        )
    text = f"{measured}. {_count_text(holds, len(shared), counted=column.counted)}."
    return Observation(claim, (), len(shared), holds, text)


def _holds(claim: Claim, column: Column, values: Sequence[float]) -> bool:
    """Whether one seed's values, in the order of the claim's rows, are as claimed. Ties are."""
    worse = [value if column.lower_is_better else -value for value in values]
    match claim.kind:
        case "at_least":
            return values[0] - values[1] >= claim.margin
        case "best":
            return worse[0] == min(worse)
        case "order":
            return all(a <= b for a, b in pairwise(worse))
        case "monotone":
            return all(a <= b for a, b in pairwise(values))


def _difference_text(difference: Estimate, column: Column) -> str:
    number = f"{number_text(difference.mean, column, signed=True)} {column.metric}"
    interval = interval_text(difference, column)
    return f"{number} {interval}" if interval else number


def _count_text(holds: int, seeds: int, *, counted: bool) -> str:
    if counted:
        return "As claimed" if holds else "Not as claimed"
    if seeds == 1:
        return f"{'As' if holds else 'Not as'} claimed on the only seed, which decides nothing"
    return f"As claimed on {holds} of {seeds} seeds"
