"""The shape of a recipe file and of a base file: what may stand where, and which names must agree.

What it means is said in `recipes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from detbench.parts.part import Count, Positive, closest, part

Value = bool | int | float | str
Scale = Literal["smoke", "cpu", "gpu", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "gpu", "paper")


@part
class Folds:
    """A number of folds for each scale."""

    smoke: Count = 1
    cpu: Count = 1
    gpu: Count = 1
    paper: Count = 1


@part
class Head:
    """The [recipe] table: what is reproduced.

    Attributes:
        paper: short name of the paper; the folder the file stands in.
        table: the paper's number, such as "table5" or "figure3".
        kind: "table", "figure", "list", or "demo" and "ablation" for what no paper prints.
        title: in our own words.
        dataset: where the reported metrics were measured.
        schedule: training length that all rows share in the paper, if there is one.
        metrics: columns, in the paper's order.
        note: what holds for the whole table.
        base: the file under recipes/_base/ its rows start from.
        needs: parts that don't exist yet, without which no row can run.
        baseline: label of the row that differences are taken to.
        tolerance: how far a number measured at paper scale may be from the reported one, by metric, where it is not
            the usual (report/gate.py).
        folds: over how many folds of labelled images a row is the mean.
        plots: what to draw: "convergence", "losses", "sizes", "loss:<branch>.<loss>", "alignment".
    """

    paper: str
    table: str
    kind: Literal["table", "figure", "list", "demo", "ablation"] = "table"
    title: str
    dataset: str = ""
    schedule: str = ""
    metrics: tuple[str, ...]
    note: str = ""
    base: str = ""
    needs: tuple[str, ...] = ()
    baseline: str = ""
    tolerance: dict[str, float] = Field(default_factory=dict)
    folds: Folds = Folds()
    plots: tuple[str, ...] = ("convergence", "losses", "sizes")


@part
class Row:
    """One row: what it changes, and what the paper reports for it.

    Attributes:
        label: the paper's words, unique within the table.
        use: the base's variant this row starts from.
        set: what the row changes on top of it.
        scale: changes that hold at one scale only, after that scale's overlay.
        reported: metric to number; what the paper omits is omitted.
        quoted: the row is another method's, shown but never run.
        needs: parts that don't exist yet, without which this row can't run.
        cost: which cost the columns params_m and gflops mean: the model at inference or in training.
        note: what to know about the number.
        source: where the number is from; "ours" of a row that the paper's table doesn't have.
    """

    label: str
    use: str = ""
    set: dict[str, Any] = Field(default_factory=dict)
    scale: dict[Scale, dict[str, Any]] = Field(default_factory=dict)
    reported: dict[str, float] = Field(default_factory=dict)
    quoted: bool = False
    needs: tuple[str, ...] = ()
    cost: Literal["infer", "train"] = "infer"
    note: str = ""
    source: str = "paper"


@part
class Point:
    """One value of a sweep. `label` names its row; a label that exists already joins that row to the sweep.

    `set` spells the value out where it is a name; else the sweep's key takes the value itself.
    """

    value: Value
    label: str
    set: dict[str, Any] = Field(default_factory=dict)
    use: str = ""
    reported: dict[str, float] = Field(default_factory=dict)
    needs: tuple[str, ...] = ()
    note: str = ""
    source: str = "paper"


@part
class Sweep:
    """One parameter over several values.

    Attributes:
        param: the paper's name of it: what `ablate --param` finds.
        key: the key path that takes the values, or several that take the same; empty where each point has a `set`.
        series: what tells this sweep from another of the same parameter in the table.
        use: the variant all points start from.
        set: what all points change.
        point: the paper's values.
    """

    param: str
    key: str | tuple[str, ...] = ()
    series: str = ""
    use: str = ""
    set: dict[str, Any] = Field(default_factory=dict)
    point: tuple[Point, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All key paths that take the values."""
        return (self.key,) if isinstance(self.key, str) else self.key


@part
class Claim:
    """One claim of the paper as data.

    Attributes:
        text: the claim in our own words.
        place: where the paper makes it.
        metric: the column it is about.
        kind: "sign" (first row minus second is above zero, or below it), "at_least" (first row minus second row >=
            margin), "order" (rows from best to worst), "best" (the first of rows is best), "monotone" (along rows as
            listed, upwards).
        rows: labels; two of them for "sign" and "at_least".
        margin: of "at_least", in the metric's unit.
        sign: of "sign".
        note: what to know of it, such as that the paper's own numbers contradict it.
    """

    text: str
    place: str
    metric: str = "AP"
    kind: Literal["sign", "at_least", "order", "best", "monotone"] = "order"
    rows: tuple[str, ...]
    margin: float = 0.0
    sign: Literal["+", "-"] = "+"
    note: str = ""


@part
class RecipeText:
    """A recipe file, checked for shape only."""

    recipe: Head
    set: dict[str, Any] = Field(default_factory=dict)
    scale: dict[Scale, dict[str, Any]] = Field(default_factory=dict)
    row: tuple[Row, ...] = ()
    sweep: tuple[Sweep, ...] = ()
    claim: tuple[Claim, ...] = ()


@part
class Variant:
    """A named change of a base, such as one method of a family, and its overlays for scales.

    Attributes:
        use: the variant that this one starts from.
        set: what it changes.
        scale: changes that hold at one scale only.
        step_time: of training, over that of the base's `Reference`, where it was measured; None for what the variant
            has that this one starts from, or 1.
    """

    use: str = ""
    set: dict[str, Any]
    scale: dict[Scale, dict[str, Any]] = Field(default_factory=dict)
    step_time: Positive | None = None


@part
class Reference:
    """What a run of a base's default variant took where it was measured; what `plan` goes by at first.

    Attributes:
        seconds_per_step: of training.
        batch: images of such a step, all labelled.
        seconds_per_test: of one evaluation.
        memory_mb: peak resident memory of the worker.
        disk_mb: of a finished run's folder.
        hardware: where.
    """

    seconds_per_step: float
    batch: int
    seconds_per_test: float
    memory_mb: float
    disk_mb: float
    hardware: str


@part
class BaseText:
    """A file under recipes/_base/: the experiment at paper scale, its variants, and its overlay for each scale."""

    base: dict[str, Any]
    estimate: dict[Scale, Reference] = Field(default_factory=dict)
    variant: dict[str, Variant] = Field(default_factory=dict)
    scale: dict[Scale, dict[str, Any]] = Field(default_factory=dict)


def problems_of(text: RecipeText, rows: Mapping[str, Row], *, where: str) -> Iterator[str]:
    """Names in a recipe that stand for no row or metric of it, and claims that claim nothing, each as a line.

    Args:
        text: the recipe.
        rows: all of it by label, those of its sweeps included.
        where: opens each line.
    """
    labels, metrics = list(rows), list(text.recipe.metrics)
    for claim in text.claim:
        place = f"{where}, claim '{claim.text}'"
        yield from (f"{place}: {problem}" for problem in _claim_problems(claim))
        yield from (f"{place}: {_no_row(label, labels)}" for label in claim.rows if label not in rows)
        yield from _no_metrics([claim.metric], metrics, where=place)
    yield from _no_metrics(text.recipe.tolerance, metrics, where=f"{where}: tolerance")
    if text.recipe.baseline and text.recipe.baseline not in rows:
        yield f"{where}: baseline: {_no_row(text.recipe.baseline, labels)}"
    for row in rows.values():
        yield from _no_metrics(row.reported, metrics, where=f"{where}, row '{row.label}': reported")


def _no_row(label: str, labels: list[str]) -> str:
    return f"no row is called '{label}'{closest(label, labels)}"


def _no_metrics(names: Iterable[str], metrics: list[str], *, where: str) -> Iterator[str]:
    for name in names:
        if name not in metrics:
            yield f"{where}: {name} is no metric of this table{closest(name, metrics)}"


def _claim_problems(claim: Claim) -> Iterator[str]:
    """What is wrong with a claim by itself."""
    two = claim.kind in ("sign", "at_least")
    if len(claim.rows) < 2 or (two and len(claim.rows) > 2):
        yield f"{claim.kind} compares two rows{'' if two else ' or more'}, not {len(claim.rows)}"
    if len(set(claim.rows)) < len(claim.rows):
        yield "a row is named twice"
    if claim.margin and claim.kind != "at_least":
        yield f"a margin belongs to at_least, not to {claim.kind}"
    if claim.sign != "+" and claim.kind != "sign":
        yield f"a sign belongs to the kind sign, not to {claim.kind}"
