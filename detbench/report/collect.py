"""From a store of runs to what reports are made of: which recipes, at which scale, on which data, with which runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from detbench.errors import RecipeError
from detbench.parts.data import Drawn
from detbench.parts.experiment import Experiment
from detbench.parts.part import canonical, plain
from detbench.recipes import Context, Recipe, Row, changes, load, resolve, select
from detbench.report.gather import Collected, Entry
from detbench.results import RESULT, read_curve, read_request
from detbench.store import Store


def collect(
    store: Store,
    patterns: Sequence[str] | None = None,
    *,
    scale: str | None = None,
    context: Context | None = None,
) -> list[Collected]:
    """Every table there is something to say about.

    Args:
        store: where the runs are.
        patterns: recipes to report; by default all that finished runs were asked for by.
        scale: only this scale.
        context: only what was run with this scale, data and overrides; then a table is given even with no run in it.

    Raises:
        RecipeError: a pattern stands for nothing.
    """
    requests = [read_request(folder) for folder in store.folders() if (folder / RESULT).is_file()]
    fingerprints = {canonical(r["experiment"]["data"]["source"]): r["fingerprint"] for r in requests}
    contexts = dict.fromkeys(Context(r["scale"], r["data"], tuple(r["overrides"])) for r in requests)
    if context is not None:
        contexts = {context: None}
    names = dict.fromkeys(place[0] for r in requests for place in r["places"])
    recipes = [recipe for recipe, _ in select(patterns)] if patterns else list(_still_there(names))
    tables = []
    for recipe in recipes:
        for chosen in contexts:
            if scale is None or chosen.scale == scale:
                table = _table(recipe, chosen, store, fingerprints)
                if table.results or context is not None:
                    tables.append(table)
    return tables


def _still_there(names: Iterable[str]) -> Iterable[Recipe]:
    """The recipes of those names; a user's own file may be gone by now."""
    for name in names:
        if not name.endswith(".toml") or Path(name).is_file():
            yield load(name)


def _table(recipe: Recipe, context: Context, store: Store, fingerprints: dict[str, str]) -> Collected:
    baseline = _experiment(recipe, recipe.rows.get(recipe.head.baseline), context)
    entries = []
    for row in recipe.rows.values():
        experiment = _experiment(recipe, row, context)
        digest = None if experiment is None else _digest(experiment, store, fingerprints)
        results = store.finished(digest) if digest else []
        entries.append(
            Entry(
                row=row,
                digest=digest,
                needs=recipe.needs(row),
                changes=changes(baseline, experiment) if baseline and experiment else {},
                results=results,
                curves=[read_curve(store.folder(result.digest, result.seed)) for result in results],
            )
        )
    data = next((result.data["name"] for entry in entries for result in entry.results), context.data or "")
    return Collected(recipe, context.scale, data, context.overrides, entries)


def _experiment(recipe: Recipe, row: Row | None, context: Context) -> Experiment | None:
    """A row's experiment; None for rows that don't run, or that the context's overrides don't fit."""
    if row is None or row.quoted or recipe.needs(row):
        return None
    try:
        return resolve(recipe, row, context)
    except RecipeError:
        return None


def _digest(experiment: Experiment, store: Store, fingerprints: dict[str, str]) -> str | None:
    """The name of an experiment's runs. The data need not be there any more: its fingerprint was written down."""
    source = experiment.data.source
    known = fingerprints.get(canonical(plain(source)))
    if known is None and isinstance(source, Drawn):
        from detbench.data.fingerprint import fingerprint

        known = fingerprint(source, store.cache)
    return None if known is None else experiment.digest(known)
