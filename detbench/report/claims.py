"""What the runs say about a paper's claims: supported, contradicted or undecided, and what would decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from detbench.recipe_text import Claim
from detbench.report.columns import Column, column_of, difference, interval_text, number_text
from detbench.report.gather import Collected
from detbench.stats import Estimate, holm, one_sided_p, seeds_to_decide

Ruling = Literal["supported", "contradicted", "undecided"]

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Contrast:
    """One of the comparisons that a claim is made of: `upper` minus `lower` exceeds the margin, says the claim.

    Attributes:
        upper: label of the row said to have the larger number.
        lower: label of the row said to have the smaller one.
        margin: in the metric's unit.
        difference: measured, paired over the seeds that both rows have.
    """

    upper: str
    lower: str
    margin: float
    difference: Estimate

    @property
    def excess(self) -> float:
        """How far the measured difference lies beyond the margin, the claim's way."""
        return self.difference.mean - self.margin


@dataclass(frozen=True)
class Verdict:
    """What was measured of a claim, and what follows.

    A claim is one contrast or several: at_least and sign compare two rows, order and monotone each row with the
    next, best the first with each other. Each contrast is tested one-sidedly, for the claim and against it, with
    Student's test of the differences paired over seeds.

    supported: every contrast is significantly as claimed. The claim's p-value is the largest of its contrasts'.
    contradicted: one contrast at least is significantly the other way. The claim's p-value is the smallest of its
        contrasts', times their number (Bonferroni).
    undecided: neither, or too little is measured: one seed has no spread to test against, nor have several that agree
        to the digit.

    Both kinds of p-value are adjusted over all claims of the table that were tested (Holm) and significant below
    0.05: the chance that any claim of a table is wrongly called supported is 5 percent at most, and the same for
    contradicted. A number counted from the network (parameters, multiply-accumulates) has no spread: one value
    decides, and what is equal is "at least", "best" and in order, but has no sign.

    Attributes:
        claim: as the recipe has it.
        ruling: the verdict.
        seeds: the smallest number that a contrast is paired over; 0 where something is not measured.
        contrasts: what the claim comes down to; empty where something is not measured.
        p_for: adjusted p-value of the claim; None where nothing was tested.
        p_against: adjusted p-value of its opposite.
        reason: what was measured and how sure it is, in words.
        decided_by: what would decide it; "" where it is decided.
    """

    claim: Claim
    ruling: Ruling
    seeds: int
    contrasts: tuple[Contrast, ...]
    p_for: float | None
    p_against: float | None
    reason: str
    decided_by: str

    @property
    def text(self) -> str:
        """Reason, and what would decide, in a few sentences."""
        return " ".join(filter(None, (self.reason, self.decided_by)))


def judge(collected: Collected) -> tuple[Verdict, ...]:
    """A verdict on each claim about the rows that are reported, of all that the recipe makes."""
    if collected.whole is not None:
        return tuple(v for v in judge(collected.whole) if v.claim in collected.recipe.claims)
    found = [(claim, _contrasts(collected, claim)) for claim in collected.recipe.claims]
    tested = [number for number, (claim, contrasts) in enumerate(found) if _testable(claim, contrasts)]
    p_for = holm([_p_for(found[number][1]) for number in tested])
    p_against = holm([_p_against(found[number][1]) for number in tested])
    adjusted = dict(zip(tested, zip(p_for, p_against, strict=True), strict=True))
    return tuple(
        _tested(claim, contrasts, *adjusted[number], family=len(tested))
        if number in adjusted
        else _untested(collected, claim, contrasts)
        for number, (claim, contrasts) in enumerate(found)
    )


def _contrasts(collected: Collected, claim: Claim) -> tuple[Contrast, ...]:
    """The comparisons of a claim; empty where two of its rows have no seed in common."""
    column = column_of(claim.metric)
    contrasts = []
    for upper, lower in _pairs(claim, column):
        measured = difference(collected.entry(upper), collected.entry(lower), column)
        if measured is None:
            return ()
        contrasts.append(Contrast(upper, lower, claim.margin, measured))
    return tuple(contrasts)


def _pairs(claim: Claim, column: Column) -> list[tuple[str, str]]:
    """Labels of the rows to compare, the one said to have the larger number first."""
    first, *others = claim.rows
    match claim.kind:
        case "at_least":
            return [(first, others[0])]
        case "sign":
            return [(first, others[0]) if claim.sign == "+" else (others[0], first)]
        case "monotone":
            return [(after, before) for before, after in pairwise(claim.rows)]
        case "order":
            better = list(pairwise(claim.rows))
        case "best":
            better = [(first, other) for other in others]
    return [(worse, good) for good, worse in better] if column.lower_is_better else better


def _testable(claim: Claim, contrasts: Sequence[Contrast]) -> bool:
    counted = column_of(claim.metric).counted
    return bool(contrasts) and not counted and min(c.difference.count for c in contrasts) > 1


def _p_for(contrasts: Sequence[Contrast]) -> float:
    return max(one_sided_p(contrast.difference, contrast.margin) for contrast in contrasts)


def _p_against(contrasts: Sequence[Contrast]) -> float:
    smallest = min(1 - one_sided_p(contrast.difference, contrast.margin) for contrast in contrasts)
    return min(1.0, len(contrasts) * smallest)


def _tested(
    claim: Claim, contrasts: tuple[Contrast, ...], p_for: float, p_against: float, *, family: int
) -> Verdict:
    seeds = min(contrast.difference.count for contrast in contrasts)
    ruling: Ruling = "undecided"
    if p_for < ALPHA:
        ruling = "supported"
    elif p_against < ALPHA:
        ruling = "contradicted"
    p_text = {
        "supported": f"{_p_text(p_for)} for it",
        "contradicted": f"{_p_text(p_against)} against it",
        "undecided": f"{_p_text(p_for)} for it, {_p_text(p_against)} against it",
    }[ruling]
    return Verdict(
        claim, ruling, seeds, contrasts, p_for, p_against,
        reason=f"{_measured(claim, contrasts)} over {seeds} seeds, {p_text}.",
        decided_by=_decided_by(contrasts, seeds, family) if ruling == "undecided" else "",
    )  # fmt: skip


def _untested(collected: Collected, claim: Claim, contrasts: tuple[Contrast, ...]) -> Verdict:
    """A verdict without a test: on a counted number, on one seed, or on rows that are not measured."""
    if not contrasts:
        reason, decided_by = _not_measured(collected, claim)
        return Verdict(claim, "undecided", 0, (), None, None, reason, decided_by)
    measured = _measured(claim, contrasts)
    seeds = min(contrast.difference.count for contrast in contrasts)
    if column_of(claim.metric).counted:
        strict = claim.kind == "sign"
        holds = all(c.excess > 0 if strict else c.excess >= 0 for c in contrasts)
        ruling: Ruling = "supported" if holds else "contradicted"
        return Verdict(
            claim, ruling, seeds, contrasts, None, None, f"{measured}, the same for every seed.", ""
        )
    over_images = any(contrast.difference.over == "images" for contrast in contrasts)
    brackets = " (in brackets: over other images, with the same training)" if over_images else ""
    reason = f"{measured} with one seed{brackets}."
    decided_by = "One seed can't tell methods from chance; a verdict needs two at least."
    return Verdict(claim, "undecided", seeds, contrasts, None, None, reason, decided_by)


def _not_measured(collected: Collected, claim: Claim) -> tuple[str, str]:
    """Why there is nothing to compare, and what would be needed."""
    entries = [collected.entry(label) for label in claim.rows]
    without = [entry for entry in entries if not entry.values(claim.metric)]
    if not without:
        return "Its rows have no seed in common.", "Runs of all its rows with the same seeds would decide it."
    labels = "; ".join(
        f"{entry.row.label} ({f'no {claim.metric}' if entry.state == 'measured' else entry.state})"
        for entry in without
    )
    states = {entry.state for entry in without}
    if "quoted" in states:
        return f"Not measured: {labels}.", "Nothing here can decide it: quoted rows are never run."
    if "stopped early" in states:
        again = "The same `detbench ablate` without --stop-early finishes them, which would decide it."
        return f"Not measured: {labels}.", again
    if "needs" in states:
        return f"Not measured: {labels}.", "It waits for parts that don't exist yet."
    if "not run" not in states:
        return f"Not measured: {labels}.", "The validation images have nothing that it could be measured on."
    return f"Not measured: {labels}.", "Runs of these rows would decide it."


def _decided_by(contrasts: Sequence[Contrast], seeds: int, family: int) -> str:
    """How many more seeds would decide a claim, were the differences and their spread as measured.

    Support needs every contrast, so that the risks of missing one share what POWER leaves (Bonferroni); contradiction
    needs one alone. The level is the strictest that Holm may ask for.
    """
    if any(contrast.difference.sd == 0 for contrast in contrasts):
        return (
            "Seeds agree to the digit, so that their spread isn't known; more seeds, or more images to test on, "
            "would show it."
        )
    level = ALPHA / family
    if all(contrast.excess > 0 for contrast in contrasts):
        ruling = "support"
        power = 1 - (1 - POWER) / len(contrasts)
        counts = [_seeds(contrast, level, power) for contrast in contrasts]
        needed = None if None in counts else max(count for count in counts if count is not None)
    else:
        ruling = "contradict"
        against = [contrast for contrast in contrasts if contrast.excess < 0]
        counts = [_seeds(contrast, level / len(contrasts), POWER) for contrast in against]
        needed = min((count for count in counts if count is not None), default=None)
    if needed is None:
        return f"At this difference no number of seeds up to {MOST_SEEDS:,} would decide it."
    more = max(needed - seeds, 1)
    return (
        f"Were the difference as measured, {more} more seed{'s' if more > 1 else ''} ({seeds + more} in all) "
        f"would {ruling} it with at least {POWER:.0%} probability."
    )


def _seeds(contrast: Contrast, level: float, power: float) -> int | None:
    assert contrast.difference.sd is not None
    return seeds_to_decide(
        abs(contrast.excess), contrast.difference.sd, alpha=level, power=power, most=MOST_SEEDS
    )


def _measured(claim: Claim, contrasts: Sequence[Contrast]) -> str:
    """The differences in words; of a single one without the labels, which the claim has."""
    column = column_of(claim.metric)
    texts = [
        f"{number_text(c.difference.mean, column, signed=True)} {claim.metric} "
        f"{interval_text(c.difference, column)}".rstrip()
        for c in contrasts
    ]
    if len(contrasts) == 1 and contrasts[0].upper == claim.rows[0]:
        return texts[0]
    pairs = (f"{c.upper} − {c.lower}: {text}" for c, text in zip(contrasts, texts, strict=True))
    return "; ".join(pairs)


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
