"""From a store of runs to what reports are made of: which recipes, at which scale, on which data, with which runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbench.errors import DataError, RecipeError, StoreError
from detbench.parts.data import Source
from detbench.parts.experiment import Experiment
from detbench.parts.part import canonical, flatten, plain
from detbench.recipe_text import Row
from detbench.recipes import Context, Recipe, changes, folds_of, load, resolve_if_possible, slug
from detbench.report.folds import mean_curve, mean_result, mean_scores
from detbench.report.gather import Collected, Entry
from detbench.report.sampling import resampled_scores
from detbench.results import RESULT, Result, read_curve, read_request, read_result
from detbench.runs import context_of
from detbench.store import Store

if TYPE_CHECKING:
    from detbench.metrics.alignment import Alignment

Fingerprint = Callable[[Source, Source | None], str | None]


def collect(
    store: Store,
    chosen: Sequence[tuple[Recipe, Sequence[Row]]] | None = None,
    *,
    scale: str | None = None,
    context: Context | None = None,
) -> list[Collected]:
    """Every table there is something to say about.

    Args:
        store: where the runs are.
        chosen: recipes with their rows to report; by default all that finished runs were asked for by. A recipe that
            can't be loaded any more is left out then, with a line on stderr, and so are runs that no row means any
            more.
        scale: only this scale.
        context: only what was run with this scale, data and overrides; then a table is given even with no run in it.
    """
    finished = [folder for folder in store.folders() if (folder / RESULT).is_file()]
    requests = [read_request(folder) for folder in sorted(finished, key=lambda f: read_result(f).finished)]
    fingerprint = _fingerprints(store, requests)
    contexts = dict.fromkeys(map(context_of, requests))
    if context is not None:
        contexts = {context: None}
    if chosen is None:
        names = dict.fromkeys(place[0] for r in requests for place in r["places"])
        chosen = [(recipe, list(recipe.rows.values())) for recipe in _still_there(names)]
    tables = []
    for recipe, rows in chosen:
        for one in contexts:
            if scale is None or one.scale == scale:
                table = _table(recipe, rows, one, store, fingerprint)
                if table.results or context is not None:
                    tables.append(table)
    if context is None:
        asked = [r for r in requests if scale in (None, r["scale"])]
        for line in _left_out(asked, chosen, tables):
            print(line, file=sys.stderr)
    return tables


def _left_out(
    requests: Iterable[dict[str, Any]],
    chosen: Iterable[tuple[Recipe, Sequence[Row]]],
    tables: Iterable[Collected],
) -> Iterable[str]:
    """A line for each recipe with finished runs that none of its rows means any more, and each way they were run."""
    listed = (entry for table in tables for entry in (*table.entries, table.unlisted) if entry)
    shown = {digest for entry in listed for digest in entry.digests}
    rows = {recipe.name: (recipe, {row.label for row in some}) for recipe, some in chosen}
    stray: dict[tuple[str, Context], dict[str, list[dict[str, Any]]]] = {}
    for request in requests:
        for name, label in request["places"]:
            if request["digest"] in shown or name not in rows:
                continue
            recipe, labels = rows[name]
            if label in labels or label not in recipe.rows:
                stray.setdefault((name, context_of(request)), {}).setdefault(label, []).append(request)
    for (name, context), by_label in stray.items():
        yield _stray_text(rows[name][0], context, by_label)


def _stray_text(recipe: Recipe, context: Context, by_label: dict[str, list[dict[str, Any]]]) -> str:
    """What is to be known of finished runs, by the labels of the rows that once meant them."""
    count = sum(map(len, by_label.values()))
    text = (
        f"left out of the report: {count} finished run{'s' if count > 1 else ''} of {recipe.short_name} at scale "
        f"{context.scale}."
    )
    if changed := [label for label in by_label if label in recipe.rows]:
        data = [] if context.data is None else ["--data", context.data]
        row = shlex.join(
            [f"{recipe.name}/{slug(changed[0])}", *context.overrides, "--scale", context.scale, *data]
        )
        pairs = [
            (by_label[label][0], resolve_if_possible(recipe, recipe.rows[label], context))
            for label in changed
        ]
        text += (
            f" These rows mean another experiment now: {'; '.join(changed)} ({_since(pairs)}). "
            f"`detbench run {row}` runs one as it is now."
        )
    if gone := [label for label in by_label if label not in recipe.rows]:
        text += f" The recipe has no such rows any more: {'; '.join(gone)}."
    first = next(iter(by_label.values()))[0]
    return f"{text} `detbench report {first['digest']}/{first['seed']}` shows a run by itself."


def _since(pairs: Iterable[tuple[dict[str, Any], Experiment | None]]) -> str:
    """What has changed between what runs were asked and what their rows mean now."""
    found: dict[str, dict[str, None]] = {}
    for request, experiment in pairs:
        if experiment is None:
            found["can't be run as they were"] = {}
            continue
        then, now = flatten(request["experiment"]), flatten(plain(experiment))
        for key in {**now, **then}:
            if key not in then:
                found.setdefault("new settings", {})[key] = None
            elif key not in now:
                found.setdefault("settings that are gone", {})[key] = None
            elif now[key] != then[key]:
                found.setdefault("changed settings", {})[key] = None
    named = {what: (list(keys)[:4], len(keys) - 4) for what, keys in found.items()}
    return (
        "; ".join(
            what + (f": {', '.join(keys)}" if keys else "") + (f" and {more} more" if more > 0 else "")
            for what, (keys, more) in named.items()
        )
        or "the data has changed"
    )


def _fingerprints(store: Store, requests: Iterable[dict[str, Any]]) -> Fingerprint:
    """What names the data of the sources now. Of data that can't be read any more, its newest run wrote it down.

    Args:
        store: keeps parsed annotations.
        requests: of finished runs, the newest last.
    """
    from detbench.data.fingerprint import fingerprint

    written = {
        canonical([r["experiment"]["data"].get(key) for key in ("source", "unlabelled")]): r["fingerprint"]
        for r in requests
    }

    @cache  # of real data each one looks at every image file
    def of(source: Source, unlabelled: Source | None) -> str | None:
        try:
            return fingerprint(source, store.cache, unlabelled=unlabelled)
        except DataError:
            return written.get(canonical([plain(source), unlabelled and plain(unlabelled)]))

    return of


def _still_there(names: Iterable[str]) -> Iterable[Recipe]:
    """The recipes of those names; a user's own file may be gone or broken by now."""
    found = {}
    for name in names:
        try:
            recipe = load(name)
        except RecipeError as error:
            print(f"left out of the report: {'; '.join(error.problems)}", file=sys.stderr)
        else:
            found[recipe.name] = recipe
    return found.values()


def _table(
    recipe: Recipe, rows: Sequence[Row], context: Context, store: Store, fingerprint: Fingerprint
) -> Collected:
    baseline = recipe.rows.get(recipe.head.baseline)
    under = None if baseline is None else resolve_if_possible(recipe, baseline, context)

    def entry(row: Row) -> Entry:
        experiment = resolve_if_possible(recipe, row, context)
        data = None if experiment is None else fingerprint(experiment.data.source, experiment.data.unlabelled)
        folds = [] if experiment is None or data is None else folds_of(recipe, experiment, context)
        digests = tuple(fold.digest(data) for fold in folds if data is not None)
        by_seed: dict[int, list[Result]] = {}
        for result in (result for digest in digests for result in store.finished(digest)):
            by_seed.setdefault(result.seed, []).append(result)
        whole = [by_seed[seed] for seed in sorted(by_seed) if len(by_seed[seed]) == len(digests)]
        folders = [[store.folder(run.digest, run.seed) for run in runs] for runs in whole]
        return Entry(
            row=row,
            digests=digests,
            needs=recipe.needs(row),
            changes=changes(under, experiment) if under and experiment else {},
            results=[mean_result(runs) for runs in whole],
            curves=[mean_curve([read_curve(folder) for folder in some]) for some in folders],
            alignments=_alignments(chain(*folders)) if "alignment" in recipe.head.plots else [],
            partial={seed: len(runs) for seed, runs in by_seed.items() if len(runs) < len(digests)},
            stopped=[stop for digest in digests for stop in store.stopped(digest)],
        )

    entries = [entry(row) for row in recipe.rows.values() if row in rows]
    unlisted = entry(baseline) if baseline is not None and baseline not in rows else None
    name = next((result.data["name"] for e in entries for result in e.results), context.data or "")
    if sum(len(one.results) == 1 for one in (*entries, unlisted) if one is not None) > 1:
        entries = [_over_images(store, one) for one in entries]
        unlisted = None if unlisted is None else _over_images(store, unlisted)
    part = len(entries) < len(recipe.rows)
    whole = _table(recipe, list(recipe.rows.values()), context, store, fingerprint) if part else None
    return Collected(_only(recipe, rows), context.scale, name, context.overrides, entries, unlisted, whole)


def _over_images(store: Store, entry: Entry) -> Entry:
    """A row of one seed with its scores on resampled images; without them where data or detections are gone."""
    if len(entry.results) != 1:
        return entry
    seed = entry.results[0].seed
    try:
        runs = [read_result(store.folder(digest, seed)) for digest in entry.digests]
        folds = [resampled_scores(store, run) for run in runs]
        return replace(entry, resampled=mean_scores(folds))
    except (DataError, StoreError) as error:
        print(f"no interval over images for '{entry.row.label}': {error}", file=sys.stderr)
        return entry


def _alignments(folders: Iterable[Path]) -> list[Alignment]:
    """How well scores and boxes go together in each run; none of runs whose data is gone."""
    from detbench.report.alignment import of_run

    found = []
    for folder in folders:
        try:
            found.append(of_run(folder))
        except DataError as error:
            print(f"left out of the plot of scores and boxes: {error}", file=sys.stderr)
    return found


def _only(recipe: Recipe, rows: Sequence[Row]) -> Recipe:
    """A recipe with what its sweeps and claims say about these rows alone."""
    labels = [row.label for row in rows]
    sweeps = (
        replace(sweep, point=tuple(point for point in sweep.point if point.label in labels))
        for sweep in recipe.sweeps
    )
    return replace(
        recipe,
        sweeps=tuple(sweep for sweep in sweeps if sweep.point),
        claims=tuple(claim for claim in recipe.claims if set(claim.rows) <= set(labels)),
    )
