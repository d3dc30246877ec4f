"""Ablations: a parameter over values becomes a recipe of its own, so that it runs and is reported like any other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detbench.errors import RecipeError
from detbench.parts.part import closest, plain
from detbench.recipes import (
    SCALES,
    Point,
    Recipe,
    Row,
    Sweep,
    Tree,
    find_param,
    load,
    merge,
    names,
    parse_value,
    point_row,
    slug,
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One parameter of an ablation: its name and, for each series, the rows its values make."""

    param: str
    sweeps: tuple[Sweep, ...]


def make(
    params: Sequence[str], *, values: Sequence[str], recipe: str | None, row: str | None, folder: Path
) -> Path:
    """Writes the recipe of an ablation and returns its path.

    Args:
        params: names the papers use (`tau`) or key paths (`optim.lr`); several make a grid.
        values: one comma-separated list for each parameter, in order; the paper's own where there are fewer.
        recipe: where to look for the parameters; needed where a name is ambiguous, and for key paths.
        row: the row that key paths start from; the table's baseline by default.
        folder: where the file goes.

    Raises:
        RecipeError: a parameter nobody sweeps, an ambiguous one, or values that can't be used.
    """
    if not params:
        raise RecipeError("ablate: no parameter; give --param NAME, or --param key.path with --recipe")
    if len(values) > len(params):
        raise RecipeError(f"ablate: {len(values)} lists of --values for {len(params)} --param")
    source = _source(params, recipe)
    lists = [_split(text) for text in values] + [None] * (len(params) - len(values))
    axes = [_axis(source, param, chosen, row) for param, chosen in zip(params, lists, strict=True)]
    tree = _recipe_tree(source, axes)
    custom = "-" + slug("-".join(values)) if values else ""
    name = f"{slug(source.name)}-{slug('-'.join(params))}{custom}"
    path = folder / f"{name[:100]}.toml"
    _write(path, tree)
    return path


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


def _axis(recipe: Recipe, param: str, values: list[Any] | None, row: str | None) -> Axis:
    sweeps = [sweep for sweep in recipe.sweeps if sweep.param == param]
    if not sweeps:
        if "." not in param:
            known = sorted({sweep.param for sweep in recipe.sweeps})
            raise RecipeError(f"ablate: {recipe.name} sweeps no '{param}'{closest(param, known)}")
        if values is None:
            raise RecipeError(
                f"ablate: {param} is a key path, so no paper gives values for it; give --values 1,2,3"
            )
        start = _start_row(recipe, row)
        points = tuple(Point(value=value, label=f"{param}={_text(value)}") for value in values)
        return Axis(param, (Sweep(param=param, key=param, use=start.use, set=start.set, point=points),))
    if values is None:
        return Axis(param, tuple(sweeps))
    return Axis(param, tuple(_with_values(recipe, sweep, values) for sweep in sweeps))


def _with_values(recipe: Recipe, sweep: Sweep, values: list[Any]) -> Sweep:
    """The same sweep at other values; a value the paper has keeps the paper's row."""
    papers = {_text(point.value): point for point in sweep.point}
    points = []
    for value in values:
        known = papers.get(_text(value))
        if known is not None:
            points.append(known)
        elif sweep.key:
            series = f"{sweep.series}, " if sweep.series else ""
            points.append(Point(value=value, label=f"{series}{sweep.param}={_text(value)}"))
        else:
            raise RecipeError(
                f"ablate: {recipe.name}: '{sweep.param}' has no value '{_text(value)}'; "
                f"it is one of {', '.join(papers)}"
            )
    return Sweep(
        param=sweep.param,
        key=sweep.key,
        series=sweep.series,
        use=sweep.use,
        set=sweep.set,
        point=tuple(points),
    )


def _start_row(recipe: Recipe, label: str | None) -> Row:
    if label is not None:
        for row in recipe.rows.values():
            if label in (row.label, slug(row.label)):
                return row
        raise RecipeError(f"ablate: {recipe.name} has no row '{label}'{closest(label, list(recipe.rows))}")
    if recipe.head.baseline:
        return recipe.rows[recipe.head.baseline]
    return next(iter(recipe.rows.values()))


def _recipe_tree(recipe: Recipe, axes: Sequence[Axis]) -> Tree:
    """The ablation as a recipe: all series of one parameter, or the grid of the first series of several."""
    rows: dict[str, Row] = {}
    sweeps: list[Tree] = []
    if len(axes) == 1:
        for sweep in axes[0].sweeps:
            points = []
            for point in sweep.point:
                row = recipe.rows.get(point.label) or point_row(sweep, point)
                rows[row.label] = row
                points.append({"value": point.value, "label": row.label})
            sweeps.append({"param": sweep.param, "key": sweep.key, "series": sweep.series, "point": points})
    else:
        first = [axis.sweeps[0] for axis in axes]
        for combination in itertools.product(*(sweep.point for sweep in first)):
            parts = [_point_of(recipe, sweep, point) for sweep, point in zip(first, combination, strict=True)]
            label = ", ".join(
                f"{sweep.param}={_text(point.value)}" for sweep, point in zip(first, combination, strict=True)
            )
            changed: Tree = {}
            values: Tree = {}
            for part, sweep, point in zip(parts, first, combination, strict=True):
                changed = merge(changed, part.set)
                if sweep.key:
                    values[sweep.key] = point.value
            use = next((part.use for part in parts if part.use), "")
            rows[label] = Row(label=label, use=use, set=changed, scale=dict.fromkeys(SCALES, values))
    params = [axis.param for axis in axes]
    head = plain(recipe.head) | {
        "table": f"ablation of {', '.join(params)}",
        "kind": "ablation",
        "title": f"{', '.join(params)} in {recipe.name}",
        "baseline": "",
        "needs": list(recipe.head.needs),
        "note": f"Made by `detbench ablate` from {recipe.name}.",
    }
    return {
        "recipe": head,
        "set": recipe.common,
        "scale": recipe.overlays,
        "row": [plain(row) for row in rows.values()],
        "sweep": sweeps,
    }


def _point_of(recipe: Recipe, sweep: Sweep, point: Point) -> Row:
    return recipe.rows.get(point.label) or point_row(sweep, point)


def _split(text: str) -> list[Any]:
    """Values as TOML writes them, between commas that stand outside brackets."""
    return [parse_value(piece.strip()) for piece in re.split(r",(?![^\[{]*[\]}])", text) if piece.strip()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _write(path: Path, tree: Tree) -> None:
    import tomli_w

    from detbench.store import write_text

    write_text(path, tomli_w.dumps(tree))
