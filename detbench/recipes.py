"""Recipes: one TOML file for one table or figure, and how its rows become experiments.

A row is laid over its base in a fixed order, later layers winning:

    base  <-  variant  <-  the table's [set]  <-  the row's set  <-  scale overlays (base, variant, table, row)
          <-  --data  <-  overrides of the command line

A table with another `kind` replaces what it is laid over; otherwise tables merge key by key.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from detbench.errors import RecipeError
from detbench.overrides import Tree, override, refuse_dates
from detbench.parts.data import source_in
from detbench.parts.experiment import Experiment, InitFrom, read_experiment
from detbench.parts.part import closest, plain, read_part
from detbench.recipe_text import (
    SCALES,
    BaseText,
    Claim,
    Head,
    Point,
    RecipeText,
    Row,
    Scale,
    Sweep,
    Value,
    Variant,
    problems_of,
)


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe: all rows, those of its sweeps included, in the paper's order.

    Attributes:
        name: "date/table5"; for a user's own file, its absolute path, so that runs can be told whose they are from
            any folder. `load` takes it.
        path: the file.
        head: what is reproduced.
        rows: by label.
        sweeps: parameters and the labels of their rows in order of value.
        claims: the paper's claims.
    """

    name: str
    path: Path
    head: Head
    rows: dict[str, Row]
    sweeps: tuple[Sweep, ...]
    claims: tuple[Claim, ...]
    common: Tree = field(repr=False)
    overlays: dict[Scale, Tree] = field(repr=False)

    @property
    def short_name(self) -> str:
        """The name for people: of a user's own file, the file's name alone."""
        return short(self.name)

    def needs(self, row: Row) -> tuple[str, ...]:
        """Parts without which a row can't run; empty when it can."""
        return (*self.head.needs, *(n for n in row.needs if n not in self.head.needs))

    def coordinates(self) -> dict[str, dict[str, Value]]:
        """Label of each row that stands in sweeps to its value of each parameter: two of them make a grid."""
        found: dict[str, dict[str, Value]] = {}
        for sweep in self.sweeps:
            for point in sweep.point:
                found.setdefault(point.label, {})[sweep.param] = point.value
        return found

    def runnable(self) -> list[Row]:
        """Rows that can be trained with the parts there are."""
        return [row for row in self.rows.values() if not row.quoted and not self.needs(row)]


@dataclass(frozen=True)
class Context:
    """What is laid over every row of a command.

    Attributes:
        scale: the named overlay.
        data: folder of the user's own data, in COCO's format or CrowdHuman's; None for the scale's own.
        overrides: `key.path=value` strings, in order.
    """

    scale: Scale = "cpu"
    data: str | None = None
    overrides: tuple[str, ...] = ()


def recipes_dir() -> Path:
    """The folder of the recipes that come with detbench, in a clone or an installed wheel.

    Raises:
        RecipeError: the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "_recipes", here.parent / "recipes"):
        if (folder / "_base").is_dir():
            return folder
    raise RecipeError(f"{here}: the recipes that come with detbench are missing; install it again")


def names() -> list[str]:
    """The names of all recipes that come with detbench, sorted naturally."""
    root = recipes_dir()
    found = [
        path.relative_to(root).with_suffix("").as_posix()
        for path in root.rglob("*.toml")
        if not path.relative_to(root).parts[0].startswith("_") and path.name != "reported.toml"
    ]
    return sorted(found, key=_natural)


def load(name: str) -> Recipe:
    """The recipe of that name ("date/table5"), or in that file ("my/own.toml").

    Raises:
        RecipeError: no such recipe, or its text is wrong; lists every mistake.
    """
    if name.endswith(".toml"):
        path = Path(name).resolve()
        if not path.is_file():
            raise RecipeError(f"{name}: no such file")
        return _load_file(path, str(path))
    path = recipes_dir() / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"{name}: no recipe is called so{_closest_recipe(name)}")
    return _load_file(path, name)


def select(patterns: Sequence[str]) -> list[tuple[Recipe, list[Row]]]:
    """Recipes and rows that names or globs stand for: "date/table5", "date/*", "date/table5/DATE-F*".

    A row is named by its label or by its slug (lower case, dashes).

    Raises:
        RecipeError: every pattern that stands for nothing, with the closest name.
    """
    chosen: dict[str, tuple[Recipe, list[Row]]] = {}
    problems: list[str] = []
    for pattern in patterns:
        try:
            hits = _select_one(pattern)
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        for recipe, rows in hits:
            have = chosen.setdefault(recipe.name, (recipe, []))[1]
            have += [row for row in rows if row not in have]
    if problems:
        raise RecipeError(problems)
    return list(chosen.values())


def named_row(name: str) -> tuple[Recipe, Row]:
    """The one row that a name stands for.

    Raises:
        RecipeError: it stands for none, or for several.
    """
    hits = [(recipe, row) for recipe, rows in select([name]) for row in rows]
    if len(hits) > 1:
        labels = ", ".join(slug(row.label) for _, row in hits)
        raise RecipeError(f"{name}: stands for {len(hits)} rows; name one of {labels}")
    return hits[0]


def resolve(recipe: Recipe, row: Row, context: Context) -> Experiment:
    """The experiment of one row at one scale; with it that of the row whose weights it starts from, if it does.

    Raises:
        RecipeError: with every mistake in the layers, each with the place it stands in; or the row is quoted, or
            needs parts that don't exist.
    """
    return _resolve(recipe, row, context, ())


def resolve_if_possible(recipe: Recipe, row: Row, context: Context) -> Experiment | None:
    """As `resolve`; None for a row that is never run or doesn't go with the context: that is told where it is run."""
    try:
        return resolve(recipe, row, context)
    except RecipeError:
        return None


def folds_of(recipe: Recipe, experiment: Experiment, context: Context) -> list[Experiment]:
    """The experiments that a row is the mean of: itself, or itself on each fold of labelled images.

    A fold named on the command line is the only one.
    """
    labelled, count = experiment.data.labelled, getattr(recipe.head.folds, context.scale)
    if labelled is None or any(override.startswith("data.labelled.fold=") for override in context.overrides):
        return [experiment]
    folds = (replace(labelled, fold=fold) for fold in range(1, count + 1))
    return [replace(experiment, data=replace(experiment.data, labelled=fold)) for fold in folds]


def _resolve(recipe: Recipe, row: Row, context: Context, before: tuple[str, ...]) -> Experiment:
    """`resolve` for a row that the rows in `before` start from, one after the other."""
    where = f"{recipe.name}, row '{row.label}'"
    if row.quoted:
        raise RecipeError(f"{where}: is quoted from the paper, never run")
    missing = recipe.needs(row)
    if missing:
        raise RecipeError(f"{where}: can't run yet, needs: {', '.join(missing)}")
    tree = layers(recipe, row, context)
    experiment = read_experiment(tree, where=where)
    if context.overrides:
        experiment = override(experiment, context.overrides, where=where)
    if experiment.init is None:
        return experiment
    before = (*before, f"{recipe.name}/{slug(row.label)}")
    try:
        source = _source_of(experiment.init, context, before)
    except RecipeError as error:
        raise RecipeError([f"{where}: init.row: {problem}" for problem in error.problems]) from None
    tree = plain(experiment)
    return read_experiment(merge(tree, {"init": {"source": plain(source)}}), where=where)


def _source_of(init: InitFrom, context: Context, before: tuple[str, ...]) -> Experiment:
    """The experiment whose weights another starts from.

    Overrides of what a row has for itself, its branches, test and own start, aren't passed on to the source.
    """
    if init.source is not None:
        raise RecipeError("give init.row alone; init.source is filled in from it")
    recipe, row = named_row(init.row)
    name = f"{recipe.name}/{slug(row.label)}"
    if name in before:
        raise RecipeError(f"a row can't start from itself: {' starts from '.join([*before, name])}")
    own = ("branches", "test", "init")
    passed = tuple(text for text in context.overrides if re.split(r"[.=]", text.strip())[0] not in own)
    return _resolve(recipe, row, replace(context, overrides=passed), before)


def layers(recipe: Recipe, row: Row, context: Context) -> Tree:
    """The plain tree of a row before defaults are filled in and overrides applied."""
    base = base_of(recipe)
    tree = base.base
    variants = _variants(base, row.use, where=f"{recipe.name}, row '{row.label}'")
    for variant in variants:
        tree = merge(tree, variant.set)
    tree = merge(merge(tree, recipe.common), row.set)
    if context.scale != "paper":
        tree = merge(tree, base.scale.get(context.scale, {}))
        for variant in variants:
            tree = merge(tree, variant.scale.get(context.scale, {}))
    tree = merge(tree, recipe.overlays.get(context.scale, {}))
    tree = merge(tree, row.scale.get(context.scale, {}))
    if context.data is not None:
        source = source_in(context.data)
        folder = {"kind": source.kind, "root": source.root}
        tree = merge(tree, {"data": {"source": folder}})
        if tree["data"].get("unlabelled") is not None:
            tree = merge(tree, {"data": {"unlabelled": folder}})
    return tree


def _variants(base: BaseText, name: str, *, where: str) -> list[Variant]:
    """The variant of that name behind those that it starts from; none for no name."""
    if not name:
        return []
    if name not in base.variant:
        raise RecipeError(
            f"{where}: use: the base has no variant '{name}'{closest(name, list(base.variant))}"
        )
    variant = base.variant[name]
    return [*_variants(base, variant.use, where=f"variant '{name}'"), variant]


def base_of(recipe: Recipe) -> BaseText:
    """What a recipe's rows start from.

    Raises:
        RecipeError: the recipe names none, or one that doesn't exist.
    """
    if not recipe.head.base:
        raise RecipeError(f"{recipe.name}: [recipe] names no base, so no row of it can be resolved")
    return _load_base(recipes_dir() / "_base" / f"{recipe.head.base}.toml")


def step_time(recipe: Recipe, row: Row) -> float:
    """A training step of a row over the one that its base's estimates are of, as far as its variant says."""
    variants = _variants(base_of(recipe), row.use, where=f"{recipe.name}, row '{row.label}'")
    return next((v.step_time for v in reversed(variants) if v.step_time is not None), 1.0)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` laid on `under`. Dotted keys reach into tables; a table of another `kind` replaces."""
    out = dict(under)
    for dotted, value in over.items():
        key, _, rest = dotted.partition(".")
        if rest:
            value = {rest: value}
        below = out.get(key)
        if isinstance(value, Mapping):
            replaces = "kind" in value and isinstance(below, Mapping) and below.get("kind") != value["kind"]
            out[key] = merge(below if isinstance(below, Mapping) and not replaces else {}, value)
        else:
            out[key] = value
    return out


def changes(under: Experiment, over: Experiment) -> dict[str, tuple[Any, Any]]:
    """Every key in which two experiments differ, with both values; None where one lacks the key.

    A part of another kind, or one that only one side has, is one difference with the whole part as value.
    """
    return dict(_differences(settings(under), settings(over), ""))


def settings(experiment: Experiment) -> Tree:
    """An experiment as a plain tree of what its own row says: a run it starts from stands there by name only."""
    tree: Tree = plain(experiment)
    if tree["init"] is not None:
        del tree["init"]["source"]
    return tree


def slug(label: str) -> str:
    """A label as a file or a shell likes it: lower case, digits, dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower().replace("†", "-dagger")).strip("-")


def short(name: str) -> str:
    """A recipe's name for people: of a user's own file, the file's name alone."""
    return Path(name).stem if name.endswith(".toml") else name


def find_param(name: str, *, recipe: str | None = None) -> list[tuple[Recipe, list[Sweep]]]:
    """The recipes that sweep a parameter of that name, each with its sweeps of it."""
    found = []
    for candidate in [recipe] if recipe else names():
        loaded = load(candidate)
        sweeps = [sweep for sweep in loaded.sweeps if sweep.param == name]
        if sweeps:
            found.append((loaded, sweeps))
    return found


def read_toml(path: Path) -> Tree:
    """A TOML file as a plain tree.

    Raises:
        RecipeError: the file is missing or no TOML, with the line; or it has a date or a time.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None
    refuse_dates(tree, where=str(path))
    return tree


@cache
def _load_base(path: Path) -> BaseText:
    return read_part(BaseText, read_toml(path), where=f"_base/{path.name}")


@cache
def _load_file(path: Path, name: str) -> Recipe:
    text = read_part(RecipeText, read_toml(path), where=name)
    rows: dict[str, Row] = {}
    problems = []
    for row in text.row:
        if row.label in rows:
            problems.append(f"{name}: two rows are called '{row.label}'")
        rows[row.label] = row
    for sweep in text.sweep:
        where = f"{name}, sweep '{sweep.param}'"
        if not sweep.keys and not all(point.set or point.use or point.label in rows for point in sweep.point):
            problems.append(f"{where}: give a key, or a set or use for every point")
        for point in sweep.point:
            if point.label not in rows:
                rows[point.label] = point_row(sweep, point)
            elif point != Point(value=point.value, label=point.label):
                problems.append(
                    f"{where}: the row '{point.label}' exists, so its point says nothing but value and label"
                )
    problems += problems_of(text, rows, where=name)
    if problems:
        raise RecipeError(problems)
    ordered = _paper_order(text.recipe, rows)
    return Recipe(name, path, text.recipe, ordered, text.sweep, text.claim, text.set, text.scale)


def point_row(sweep: Sweep, point: Point) -> Row:
    """The row that one value of a sweep makes. The value of its keys holds whatever a scale's overlay says."""
    value = {} if point.set else dict.fromkeys(sweep.keys, point.value)
    return Row(
        label=point.label, use=point.use or sweep.use, set=merge(sweep.set, point.set),
        scale=dict.fromkeys(SCALES, value) if value else {},
        reported=point.reported, needs=point.needs, note=point.note, source=point.source,
    )  # fmt: skip


def _paper_order(head: Head, rows: dict[str, Row]) -> dict[str, Row]:
    """Rows in the order in which the paper prints them; rows the paper lacks come last."""
    order = {label: i for i, label in enumerate(_reported_labels().get((head.paper, head.table), ()))}
    labels = sorted(rows, key=lambda label: order.get(label, len(order)))
    return {label: rows[label] for label in labels}


@cache
def _reported_labels() -> dict[tuple[str, str], tuple[str, ...]]:
    path = recipes_dir() / "reported.toml"
    tables = read_toml(path)["table"]
    return {(t["paper"], t["id"]): tuple(row["label"] for row in t["row"]) for t in tables}


def _select_one(pattern: str) -> list[tuple[Recipe, list[Row]]]:
    if pattern.endswith(".toml"):
        recipe = load(pattern)
        return [(recipe, list(recipe.rows.values()))]
    known = names()
    whole = [name for name in known if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}/")]
    if whole:
        recipes = [load(name) for name in whole]
        return [(recipe, list(recipe.rows.values())) for recipe in recipes]
    head, _, tail = pattern.rpartition("/")
    if ".toml/" in pattern:
        candidates = [head]
    else:
        candidates = [n for n in known if head and fnmatch.fnmatchcase(n, head)]
    hits, labels = [], []
    for name in candidates:
        recipe = load(name)
        rows = [row for row in recipe.rows.values() if _named(row, tail)]
        labels += [slug(row.label) for row in recipe.rows.values()]
        if rows:
            hits.append((recipe, rows))
    if hits:
        return hits
    if labels:
        raise RecipeError(f"{pattern}: no row of {head} is called '{tail}'{closest(slug(tail), labels)}")
    raise RecipeError(f"{pattern}: no recipe is called so{_closest_recipe(pattern)}")


def _closest_recipe(name: str) -> str:
    """What may have been meant by a name that no recipe has."""
    hint = closest(name, names())
    return f"{hint} `detbench ls` lists all" if "did you mean" in hint else "; `detbench ls` lists all"


def _named(row: Row, pattern: str) -> bool:
    return fnmatch.fnmatchcase(row.label, pattern) or fnmatch.fnmatchcase(slug(row.label), pattern)


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.get("kind") == b.get("kind"):
        for key in [*a, *(k for k in b if k not in a)]:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield path, (a, b)


def _natural(name: str) -> list[Any]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
