"""What differs between two rows, runs or recipes, and whether it is only what they were made to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment, read_experiment
from detbench.recipe_text import Row
from detbench.recipes import Context, Recipe, changes, load, named_row, names, resolve, slug
from detbench.results import read_request, read_result
from detbench.runs import context_of
from detbench.store import Store

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Side:
    """One of two things to compare that have one experiment each.

    Attributes:
        name: of the row or the run.
        experiment: resolved.
        ablated: the key paths that its row sets by itself; None for a run whose row is gone.
        record: of a run, what else it was made with: seed, scale, data, commit, versions, hardware.
    """

    name: str
    experiment: Experiment
    ablated: frozenset[str] | None
    record: dict[str, Any] | None = None


@dataclass(frozen=True)
class Difference:
    """What differs between two sides; None stands for a key that one of them lacks.

    Attributes:
        names: of both.
        ablated: differing keys that either row sets by itself.
        besides: all others, those of the runs' records included.
        controlled: nothing differs besides what is ablated; None where it isn't known what the rows set.
    """

    names: tuple[str, str]
    ablated: dict[str, Pair]
    besides: dict[str, Pair]
    controlled: bool | None


@dataclass(frozen=True)
class RecipeDifference:
    """What differs between two recipes.

    Attributes:
        names: of both.
        only: labels of runnable rows that the other recipe lacks.
        rows: label to the differing keys of a row that both have; rows without any are left out.
    """

    names: tuple[str, str]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    rows: dict[str, dict[str, Pair]]


def diff(a: str, b: str, store: Store, context: Context) -> Difference | RecipeDifference:
    """Compares two rows ("date/table5/date-f"), two runs (folder, or start of a digest and "/seed"), a row with a
    run, or two recipes.

    Args:
        a: name of the first.
        b: name of the second.
        store: the runs are looked for in it.
        context: scale, data and overrides that rows and recipes are resolved with.

    Raises:
        RecipeError: a name stands for nothing, with the closest one, or a recipe is compared with a row or run.
        StoreError: a run isn't finished, or a digest is no run's or several runs'.
    """
    recipes = [_recipe(name) for name in (a, b)]
    if recipes[0] is not None and recipes[1] is not None:
        return _of_recipes(recipes[0], recipes[1], context)
    sides = [
        _side(name, store, context) for name, recipe in zip((a, b), recipes, strict=True) if recipe is None
    ]
    for recipe in recipes:
        if recipe is not None:
            labels = ", ".join(slug(row.label) for row in recipe.runnable())
            raise RecipeError(
                f"diff: {recipe.short_name} is a recipe, {sides[0].name} is not; name one of its rows: {labels}"
            )
    return compare(*sides)


def compare(a: Side, b: Side) -> Difference:
    """The differences of two sides."""
    differing: dict[str, Pair] = dict(changes(a.experiment, b.experiment))
    known = None if a.ablated is None or b.ablated is None else a.ablated | b.ablated
    ablated = {key: pair for key, pair in differing.items() if known and _is_set(key, known)}
    besides = {key: pair for key, pair in differing.items() if key not in ablated}
    if a.record is not None and b.record is not None:
        keys = dict.fromkeys((*a.record, *b.record))
        pairs = {key: (a.record.get(key), b.record.get(key)) for key in keys}
        besides |= {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return Difference((a.name, b.name), ablated, besides, None if known is None else not besides)


def text(found: Difference | RecipeDifference) -> str:
    """Differences for reading, one line for each key."""
    if isinstance(found, RecipeDifference):
        lines = [
            f"only in {name}: {label}"
            for name, labels in zip(found.names, found.only, strict=True)
            for label in labels
        ]
        for label, keys in found.rows.items():
            lines += [f"{label}:", *_lines(keys)]
        return "\n".join(lines or ["no row differs"]) + "\n"
    lines = []
    if found.ablated:
        lines += ["ablated:", *_lines(found.ablated)]
    if found.besides:
        lines += ["besides:" if found.ablated else "differs:", *_lines(found.besides)]
    others = len(found.besides)
    verdict = {
        True: "controlled: only what the rows themselves set differs",
        False: f"not controlled: {others} other key{' differs' if others == 1 else 's differ'}",
        None: "whether this is controlled can't be said: the recipe of a run is gone",
    }[found.controlled]
    return "\n".join([*(lines or ["nothing differs"]), verdict]) + "\n"


def _recipe(name: str) -> Recipe | None:
    return load(name) if name.endswith(".toml") or name in names() else None


def _of_recipes(a: Recipe, b: Recipe, context: Context) -> RecipeDifference:
    rows = [{row.label: row for row in recipe.runnable()} for recipe in (a, b)]
    shared = [label for label in rows[0] if label in rows[1]]
    differing = {
        label: changes(resolve(a, rows[0][label], context), resolve(b, rows[1][label], context))
        for label in shared
    }
    return RecipeDifference(
        names=(a.short_name, b.short_name),
        only=(
            tuple(label for label in rows[0] if label not in rows[1]),
            tuple(label for label in rows[1] if label not in rows[0]),
        ),
        rows={label: keys for label, keys in differing.items() if keys},
    )


def _side(name: str, store: Store, context: Context) -> Side:
    folder = store.find(name)
    if folder is not None:
        return _run(folder)
    recipe, row = named_row(name)
    ablated = frozenset(_row_keys(row, context))
    return Side(f"{recipe.short_name}/{slug(row.label)}", resolve(recipe, row, context), ablated)


def _run(folder: Path) -> Side:
    result, request = read_result(folder), read_request(folder)
    record: dict[str, Any] = {"seed": result.seed, "scale": result.scale, "commit": result.commit}
    record |= {f"data.{key}": value for key, value in result.data.items()}
    record |= {f"environment.{key}": value for key, value in result.environment.items()}
    context = context_of(request)
    try:
        rows = [load(name).rows[label] for name, label in request["places"]]
    except (RecipeError, KeyError):
        ablated = None
    else:
        ablated = frozenset(key for row in rows for key in _row_keys(row, context))
    experiment = read_experiment(result.experiment, where=str(folder))
    return Side(result.name, experiment, ablated, record)


def _row_keys(row: Row, context: Context) -> Iterator[str]:
    yield from _paths(row.set)
    yield from _paths(row.scale.get(context.scale, {}))


def _paths(tree: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _is_set(key: str, known: frozenset[str]) -> bool:
    """Whether a differing key, or the kind of the part that stands there, is among those set."""
    return f"{key}.kind" in known or any(key == one or key.startswith(f"{one}.") for one in known)


def _lines(pairs: Mapping[str, Pair]) -> list[str]:
    return [f"  {key}: {_shown(a)} -> {_shown(b)}" for key, (a, b) in pairs.items()]


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
