"""Rows that are means over folds of labelled images: the folds of one seed become one run (Semi-DETR; spec 8.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from detbench.results import Curve, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def mean_result(folds: Sequence[Result]) -> Result:
    """What runs of one seed on several folds come to: metrics are means, all else is the first fold's.

    What some fold could not measure is None. Training and test take as long as all folds together.
    """
    first = folds[0]
    return replace(
        first,
        metrics=_means([fold.metrics for fold in folds]),
        per_class={name: _means([fold.per_class[name] for fold in folds]) for name in first.per_class},
        seconds={name: sum(fold.seconds[name] for fold in folds) for name in first.seconds},
    )


def mean_curve(folds: Sequence[Curve]) -> Curve:
    """The curves of several folds as one: losses, metrics, epochs and seconds are means.

    Points that some fold lacks, as one whose curve was cut off, are left out.
    """
    return Curve(
        steps=_joined([fold.steps for fold in folds], "losses"),
        evaluations=_joined([fold.evaluations for fold in folds], "metrics"),
    )


def mean_scores(folds: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Scores on resampled images, the same draws for every fold: their means; what some fold lacks is left out."""
    import numpy as np

    names = [name for name in folds[0] if all(name in fold for fold in folds)]
    return {name: np.mean([fold[name] for fold in folds], axis=0) for name in names}


def _joined(folds: Sequence[Sequence[dict[str, Any]]], values: str) -> list[dict[str, Any]]:
    by_step = [{point["step"]: point for point in points} for points in folds]
    joined = []
    for step, point in by_step[0].items():
        points = [other[step] for other in by_step if step in other]
        if len(points) == len(folds):
            means = _means([{key: p[key] for key in ("epoch", "seconds")} for p in points])
            joined.append({**point, **means, values: _means([p[values] for p in points])})
    return joined


def _means(folds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in folds[0]:
        values = [fold.get(name) for fold in folds]
        known = [value for value in values if value is not None]
        means[name] = sum(known) / len(known) if len(known) == len(values) else None
    return means
