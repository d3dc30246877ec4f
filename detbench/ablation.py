"""Ablations: a parameter over values becomes a recipe of its own, so that it runs and is reported like any other."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import tomli_w

from detbench.errors import RecipeError
from detbench.overrides import Tree, parse_value
from detbench.parts.experiment import Experiment
from detbench.parts.part import canonical, closest, digest_of, plain
from detbench.recipe_text import SCALES, Row, Sweep
from detbench.recipes import (
    Context,
    Recipe,
    find_param,
    load,
    merge,
    names,
    resolve,
    resolve_if_possible,
    slug,
)
from detbench.store import write_text


@dataclass(frozen=True)
class Step:
    """One value of a parameter, and the row it makes by itself."""

    value: Any
    row: Row


@dataclass(frozen=True)
class Series:
    """One parameter over several values.

    Attributes:
        param: its name, or the key path.
        name: what tells it from the parameter's other series; "" where there is one.
        keys: the key paths that take the values; none where rows spell them out.
        steps: the values.
        under: the row that the values are laid over.
        by_path: nobody names it: its rows change another row, whatever else is changed there.
    """

    param: str
    name: str
    keys: tuple[str, ...]
    steps: tuple[Step, ...]
    under: Row
    by_path: bool = False


@dataclass(frozen=True)
class Ablation:
    """An ablation that stands in a file.

    Attributes:
        path: of its recipe.
        source: the recipe that it was made from.
        under: the rows that its values are laid over, one for each series: what the source says without them.
    """

    path: Path
    source: Recipe
    under: tuple[Row, ...]

    def defaults(self, context: Context) -> list[Experiment]:
        """What the values are changes of; nothing where the source says no whole experiment without them."""
        found = (resolve_if_possible(self.source, row, context) for row in self.under)
        return [experiment for experiment in found if experiment is not None]


def make(
    params: Sequence[str],
    *,
    values: Sequence[str],
    recipe: str | None,
    row: str | None,
    folder: Path,
    zipped: bool = False,
    context: Context = Context(),
) -> Ablation:
    """Writes the recipe of an ablation. The same ablation is the same file.

    Differences are taken to the source's baseline where it is among the rows, or else to the row that changes
    nothing. The paper's claims come along as far as their rows do.

    Args:
        params: names the papers use (`tau`) or key paths (`optim.lr`); several make a grid.
        values: one comma-separated list for each parameter, in order; the paper's own where there are fewer. An
            item such as `1..9/2` stands for 1, 3, 5, 7, 9.
        recipe: where to look for the parameters; needed where a name is ambiguous, and for key paths.
        row: the row that key paths start from, the table's baseline by default; of a parameter with several
            series, those it stands in.
        folder: where the file goes.
        zipped: the first values of all parameters together, then the second ones, instead of the grid.
        context: in which a row may change nothing.

    Raises:
        RecipeError: a parameter nobody sweeps, an ambiguous one, or values that can't be used.
    """
    if not params:
        raise RecipeError("ablate: no parameter; give --param NAME, or --param key.path with --recipe")
    if twice := [param for param in dict.fromkeys(params) if params.count(param) > 1]:
        raise RecipeError(f"ablate: --param {twice[0]} is given twice; give all its values in one --values")
    if len(values) > len(params):
        raise RecipeError(f"ablate: {len(values)} lists of --values for {len(params)} --param")
    source = _source(params, recipe)
    start = None if row is None else _row_called(source, row)
    chosen = [_split(text, param) for text, param in zip(values, params, strict=False)]
    lists = [*chosen, *[None] * (len(params) - len(values))]
    axes = [_axis(source, param, own, params, start) for param, own in zip(params, lists, strict=True)]
    if zipped:
        _require_pairs(params, axes)
    under = [series.under for series in axes[0]] if len(axes) == 1 else [_under(source, axes, start)]
    tree = _recipe_tree(source, axes, start, under, context, zipped=zipped)
    custom = "-" + slug("-".join(values)) if values else ""
    name = f"{slug(source.short_name)}-{slug('-'.join(params))}{'-zip' if zipped else ''}{custom}"
    path = folder / f"{name[:100]}-{digest_of(tree)[:8]}.toml"
    write_text(path, tomli_w.dumps(tree))
    return Ablation(path, source, tuple(under))


def require_values(recipe: Recipe, context: Context) -> None:
    """Refuses overrides that make two values of an ablation the same.

    Raises:
        RecipeError: two rows that differ are the same experiment with the overrides laid over them.
    """
    without = replace(context, overrides=())
    seen: dict[str, Row] = {}
    for row in recipe.runnable():
        other = seen.setdefault(digest_of(plain(resolve(recipe, row, context))), row)
        if resolve(recipe, row, without) != resolve(recipe, other, without):
            raise RecipeError(
                f"ablate: with {' '.join(context.overrides)}, '{other.label}' and '{row.label}' are the same; leave "
                "out the override of what is ablated"
            )


def _require_pairs(params: Sequence[str], axes: Sequence[Sequence[Series]]) -> None:
    lengths = [len(axis[0].steps) for axis in axes]
    if len(params) < 2:
        raise RecipeError("ablate: --zip goes through several --param side by side; give two or more")
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{param} has {n}" for param, n in zip(params, lengths, strict=True))
        raise RecipeError(f"ablate: --zip needs equally many values of each parameter; {counts}")


def _source(params: Sequence[str], recipe: str | None) -> Recipe:
    """The one recipe that the parameters are to be found in."""
    if recipe is not None:
        return load(recipe)
    by_name = [param for param in params if "." not in param]
    if not by_name:
        raise RecipeError(f"ablate: {params[0]} is a key path; say which recipe it is for with --recipe")
    found = find_param(by_name[0])
    if not found:
        known = sorted({sweep.param for name in names() for sweep in load(name).sweeps})
        raise RecipeError(
            f"ablate: no recipe sweeps a parameter called '{by_name[0]}'{closest(by_name[0], known)} "
            "A key path such as optim.lr works too, with --recipe"
        )
    if len(found) > 1:
        places = "\n".join(f"  --recipe {loaded.name}    {loaded.head.title}" for loaded, _ in found)
        raise RecipeError(f"ablate: '{by_name[0]}' is a parameter of several recipes; choose one:\n{places}")
    return found[0][0]


def _axis(
    recipe: Recipe, param: str, values: list[Any] | None, params: Sequence[str], start: Row | None
) -> tuple[Series, ...]:
    """All series of one parameter that are meant, at the values asked for."""
    sweeps = [sweep for sweep in recipe.sweeps if sweep.param == param]
    if sweeps:
        if start is not None:
            sweeps = _with_row(recipe, sweeps, params, start)
        return tuple(_series(recipe, sweep, values) for sweep in sweeps)
    if "." not in param:
        known = sorted({sweep.param for sweep in recipe.sweeps})
        elsewhere = [found.name for found, _ in find_param(param)]
        there = f"; it is swept in {', '.join(elsewhere)}" if elsewhere else closest(param, known)
        raise RecipeError(
            f"ablate: {recipe.short_name} sweeps no '{param}'{there}. A key path such as branches.o2m.weight, with "
            "--values, works in every recipe"
        )
    if values is None:
        raise RecipeError(
            f"ablate: {param} is a key path, so no paper gives values for it; give --values 1,2,3"
        )
    under = start or _baseline(recipe)
    if under.quoted:
        raise RecipeError(
            f"ablate: {recipe.name}, row '{under.label}': is quoted from the paper, never run; choose another "
            "row with --row"
        )
    steps = tuple(
        Step(value, _laid_over([under], f"{_short(param)}={_text(value)}", {param: value}))
        for value in values
    )
    return (Series(param, "", (param,), steps, under, by_path=True),)


def _with_row(recipe: Recipe, sweeps: Sequence[Sweep], params: Sequence[str], row: Row) -> list[Sweep]:
    """Those of a parameter's sweeps that are of a row's series, whichever of the parameters the row belongs to."""
    names = {
        sweep.series
        for sweep in recipe.sweeps
        if sweep.param in params and row.label in [point.label for point in sweep.point]
    }
    chosen = [sweep for sweep in sweeps if sweep.series in names]
    if not chosen:
        labels = ", ".join(slug(point.label) for sweep in sweeps for point in sweep.point)
        raise RecipeError(
            f"ablate: {recipe.name}: '{row.label}' is no row of '{sweeps[0].param}'; its rows are {labels}"
        )
    return chosen


def _series(recipe: Recipe, sweep: Sweep, values: list[Any] | None) -> Series:
    """A sweep of the paper, or the same at other values; a value the paper has keeps the paper's row."""
    papers = {_text(point.value): Step(point.value, recipe.rows[point.label]) for point in sweep.point}
    under = Row(label="", use=sweep.use, set=sweep.set)
    steps = []
    for value in papers if values is None else values:
        known = papers.get(_text(value))
        if known is not None:
            steps.append(known)
        elif sweep.keys:
            series = f"{sweep.series}, " if sweep.series else ""
            label = f"{series}{sweep.param}={_text(value)}"
            steps.append(Step(value, _laid_over([under], label, dict.fromkeys(sweep.keys, value))))
        else:
            raise RecipeError(
                f"ablate: {recipe.name}: '{sweep.param}' has no value '{_text(value)}'; "
                f"it is one of {', '.join(papers)}"
            )
    return Series(sweep.param, sweep.series, sweep.keys, tuple(steps), under)


def _row_called(recipe: Recipe, name: str) -> Row:
    for row in recipe.rows.values():
        if name in (row.label, slug(row.label)):
            return row
    raise RecipeError(f"ablate: {recipe.name} has no row '{name}'{closest(name, list(recipe.rows))}")


def _baseline(recipe: Recipe) -> Row:
    return recipe.rows[recipe.head.baseline] if recipe.head.baseline else next(iter(recipe.rows.values()))


def _laid_over(rows: Sequence[Row], label: str, values: Mapping[str, Any]) -> Row:
    """One row of what several say, later ones winning, with values that hold whatever any scale says."""
    made = Row(label=label)
    for row in rows:
        made = replace(
            made,
            use=made.use or row.use,
            set=merge(made.set, row.set),
            scale={scale: merge(made.scale.get(scale, {}), row.scale.get(scale, {})) for scale in SCALES},
            needs=tuple(dict.fromkeys((*made.needs, *row.needs))),
        )
    return replace(made, scale={scale: merge(tree, values) for scale, tree in made.scale.items()})


def _recipe_tree(
    recipe: Recipe,
    axes: Sequence[Sequence[Series]],
    start: Row | None,
    under: Sequence[Row],
    context: Context,
    *,
    zipped: bool,
) -> Tree:
    """The ablation as a recipe: all series of one parameter, or one series each of several, combined."""
    params = [axis[0].param for axis in axes]
    note = f"Made by `detbench ablate` from {recipe.short_name}."
    if len(axes) == 1:
        steps = [step for series in axes[0] for step in series.steps]
        rows = [step.row for step in steps]
        sweeps = [_sweep_tree(series) for series in axes[0]]
    else:
        series = [axis[0] for axis in axes]
        lists = [one.steps for one in series]
        places = list(zip(*lists, strict=True) if zipped else itertools.product(*lists))
        rows = _with_reported(recipe, [_combined(recipe, series, steps, start) for steps in places])
        sweeps = list(_grid_sweeps(params, places, rows, zipped=zipped))
        for first, *others in axes:
            if others:
                names = ", ".join(f"'{series.name}'" for series in others)
                note += (
                    f" Of {first.param} this is the series '{first.name}'; a --row of {names} gives another."
                )
    head = plain(recipe.head) | {
        "table": f"ablation of {', '.join(params)}",
        "kind": "ablation",
        "title": f"{', '.join(params)} in {recipe.short_name}",
        "baseline": _baseline_among(rows, recipe, under, context),
        "note": note,
    }
    return {
        "recipe": head,
        "set": recipe.common,
        "scale": recipe.overlays,
        "row": list({row.label: plain(row) for row in rows}.values()),
        "sweep": sweeps,
        "claim": [plain(claim) for claim in recipe.claims if set(claim.rows) <= {row.label for row in rows}],
    }


def _baseline_among(rows: Sequence[Row], recipe: Recipe, under: Sequence[Row], context: Context) -> str:
    """Label of the row that differences are taken to; "" for none, as of several series, each with its own."""
    if recipe.head.baseline in [row.label for row in rows]:
        return recipe.head.baseline
    unchanged = resolve_if_possible(recipe, under[0], context)
    if len(under) > 1 or unchanged is None:
        return ""
    return next((row.label for row in rows if resolve_if_possible(recipe, row, context) == unchanged), "")


def _combined(recipe: Recipe, axes: Sequence[Series], steps: Sequence[Step], start: Row | None) -> Row:
    """One value of each parameter together.

    Key paths change what the papers' own parameters make, or else the row to start from.
    """
    pairs = list(zip(axes, steps, strict=True))
    named = [step.row for series, step in pairs if not series.by_path]
    params = [series.param for series in axes]
    label = ", ".join(f"{_short(series.param, params)}={_text(step.value)}" for series, step in pairs)
    values = {key: step.value for series, step in pairs for key in series.keys}
    # A kind starts its part afresh, so it comes before what is set in that part.
    values = dict(sorted(values.items(), key=lambda item: not item[0].endswith(".kind")))
    return _laid_over(named or [start or _baseline(recipe)], label, values)


def _under(recipe: Recipe, axes: Sequence[Sequence[Series]], start: Row | None) -> Row:
    """What the values of several parameters are laid over together."""
    named = [axis[0].under for axis in axes if not axis[0].by_path]
    return _laid_over(named or [start or _baseline(recipe)], "", {})


def _with_reported(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    """The rows with the paper's numbers, where at its scale they are an experiment that it reports."""

    def spelled(row: Row) -> str | None:
        experiment = resolve_if_possible(recipe, row, Context("paper"))
        return None if experiment is None else canonical(plain(experiment))

    papers = {spelled(row): row for row in recipe.runnable()}
    papers.pop(None, None)
    same = ((row, papers.get(spelled(row))) for row in rows)
    return [
        row if paper is None else replace(row, reported=paper.reported, source=paper.source)
        for row, paper in same
    ]


def _grid_sweeps(
    params: Sequence[str], places: Sequence[Sequence[Step]], rows: Sequence[Row], *, zipped: bool
) -> Iterator[Tree]:
    """Each parameter's sweeps: one for all values that the others take meanwhile, which name the series.

    So every row stands in one sweep of each parameter, from which its place in the grid can be read. Side by side,
    the others change along: there is one sweep of each.
    """
    for axis, param in enumerate(params):
        series: dict[str, list[Tree]] = {}
        for steps, row in zip(places, rows, strict=True):
            others = [(p, step) for i, (p, step) in enumerate(zip(params, steps, strict=True)) if i != axis]
            name = ", ".join(
                f"{other} side by side" if zipped else f"{_short(other, params)}={_text(step.value)}"
                for other, step in others
            )
            series.setdefault(name, []).append(_point_tree(steps[axis].value, row))
        for name, points in series.items():
            yield {"param": param, "series": name, "point": points}


def _sweep_tree(series: Series) -> Tree:
    points = [_point_tree(step.value, step.row) for step in series.steps]
    # No key: what else a further value would stand on is said by the rows, not by the sweep.
    return {"param": series.param, "series": series.name, "point": points}


def _point_tree(value: Any, row: Row) -> Tree:
    # Lists and tables have no place on an axis: they stand there by name.
    return {"value": _text(value) if isinstance(value, list | dict) else value, "label": row.label}


def _split(text: str, param: str) -> list[Any]:
    """Values as TOML writes them, between commas that stand outside brackets."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    values = [
        value for piece in pieces if piece.strip() for value in _expanded(piece.strip(), f"ablate: {param}")
    ]
    if not values:
        raise RecipeError(f"ablate: {param}: no value in --values '{text}'; write them as 1,2,3")
    if strange := [v for v in values if isinstance(v, float) and not math.isfinite(v)]:
        raise RecipeError(f"ablate: {param}: {strange[0]} is no value to train with; give finite numbers")
    if None in values:
        raise RecipeError(
            f"ablate: {param}: 'unset' can't stand in a recipe, which an ablation is; give it as an override "
            f"to a run of its own: {param}=unset"
        )
    return list({_text(value): value for value in values}.values())  # each once


def _expanded(piece: str, where: str) -> list[Any]:
    """The values of a range such as `0.1..0.9/0.2`, both ends included; of anything else the value itself."""
    number = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
    found = re.fullmatch(rf"({number})\.\.({number})(?:/({number}))?", piece)
    if found is None:
        return [parse_value(piece, where=where)]
    whole = all(text is None or re.fullmatch(r"-?\d+", text) for text in found.groups())
    first, last, step = (
        Decimal(text or "1") for text in found.groups()
    )  # exact, so that 0.1..0.3/0.1 has 0.3
    if step <= 0 or last < first:
        raise RecipeError(
            f"{where}: the range {piece} goes upwards by a step above 0: write FIRST..LAST/STEP"
        )
    count = int((last - first) / step) + 1
    if count > 1000:
        raise RecipeError(f"{where}: the range {piece} has {count} values; at most 1000 are taken")
    return [int(v) if whole else float(v) for v in (first + i * step for i in range(count))]


def _short(param: str, among: Sequence[str] = ()) -> str:
    """A key path's last parts, two at least, that tell it from others; a whole path leaves a table no room."""
    parts = param.split(".")
    ends = (".".join(parts[-count:]) for count in range(2, len(parts)))
    others = [other for other in among if other != param]
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), param)


def _text(value: Any) -> str:
    """A value in a label: whole numbers without a point, all digits of others."""
    return value if isinstance(value, str) else canonical(value)
