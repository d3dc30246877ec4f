"""Overrides of the command line: `key.path=value` laid over a resolved experiment, strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from typing import Any

from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment, read_experiment
from detbench.parts.part import closest, plain, read_part

Tree = dict[str, Any]


def override(experiment: Experiment, overrides: Sequence[str], *, where: str) -> Experiment:
    """An experiment with `key.path=value` laid over it, in order.

    The key must exist. A whole table, or another `kind`, starts that part afresh with its defaults, which the
    overrides after it may change; the kind that is already there changes nothing.

    Raises:
        RecipeError: every override that is no `key=value`, names an unknown key or can't be read, and every
            impossible combination of the others.
    """
    tree, problems = _laid_over(plain(experiment), overrides, where=where)
    try:
        changed = read_experiment(tree, where=where)
    except RecipeError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if not problems:
        return changed
    # What can't be read hides which of the others don't go together.
    readable = [text for text in overrides if _is_readable(experiment, text)]
    if len(readable) < len(overrides):
        try:
            override(experiment, readable, where=where)
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    raise RecipeError(problems)


def _is_readable(experiment: Experiment, text: str) -> bool:
    """Whether an override names a key and a value it can have, whatever goes with it."""
    tree, problems = _laid_over(plain(experiment), [text], where="")
    try:
        read_part(Experiment, tree, where="")
    except RecipeError:
        return False
    return not problems


def _laid_over(tree: Tree, overrides: Sequence[str], *, where: str) -> tuple[Tree, list[str]]:
    """A resolved plain tree with the overrides that it can take, and what is wrong with the others."""
    problems: list[str] = []
    unread: list[str] = []  # parts that could not be started afresh: what their keys are isn't known
    for text in overrides:
        key, eq, raw = text.partition("=")
        key = key.strip()
        if not eq or not key:
            problems.append(f"{where}: '{text}' is no override; write key.path=value")
            continue
        if any(key.startswith(f"{part}.") for part in unread):
            continue
        known = _known_paths(tree)
        if key not in known:
            problems.append(f"{where}: {key}: no such key{_closest_path(key, known)}")
            continue
        steps = key.split(".")
        try:
            value = parse_value(raw, where=f"{where}: {key}")
            if steps[-1] == "kind" and value == _at(tree, steps):
                continue
            if steps[-1] == "kind":
                steps, value = steps[:-1], {"kind": value}
            changed = _put(tree, steps, value)
            tree = plain(read_part(Experiment, changed, where=where)) if isinstance(value, dict) else changed
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            unread.append(".".join(steps))
    return tree, problems


def parse_value(raw: str, *, where: str) -> Any:
    """A value as TOML writes it; `unset` for an optional key without value; any other bare word is a string.

    Args:
        raw: the text.
        where: opens a complaint.

    Raises:
        RecipeError: it is or holds a date or a time, which no setting is.
    """
    raw = raw.strip()
    if raw == "unset":
        return None
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw
    refuse_dates(value, where=where)
    return value


def _known_paths(tree: Any, prefix: str = "") -> list[str]:
    """Every path into a plain tree, tables and lists included."""
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list):
        items = ((str(i), v) for i, v in enumerate(tree))
    out = []
    for key, value in items:
        path = f"{prefix}{key}"
        out += [path, *_known_paths(value, f"{path}.")]
    return out


def _closest_path(key: str, known: list[str]) -> str:
    parent, _, last = key.rpartition(".")
    ends = [k for k in known if k.rpartition(".")[2] == last]
    if ends:
        return f"; it stands at {', '.join(ends)}"
    hint = closest(key, known)
    if "did you mean" in hint:
        return hint
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    return (
        closest(last, siblings)
        if siblings
        else closest(key.split(".")[0], [k for k in known if "." not in k])
    )


def refuse_dates(tree: Any, *, where: str) -> None:
    """TOML has dates and times, recipes don't."""
    if isinstance(tree, date | time):
        raise RecipeError(f'{where}: {tree} is a date or a time to TOML; a text stands in quotes: "{tree}"')
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        refuse_dates(below, where=where)


def _at(tree: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    return tree


def _put(tree: Any, steps: Sequence[str], value: Any) -> Any:
    if not steps:
        return value
    if isinstance(tree, list):
        i = int(steps[0])
        return [*tree[:i], _put(tree[i], steps[1:], value), *tree[i + 1 :]]
    return {**tree, steps[0]: _put(tree.get(steps[0], {}), steps[1:], value)}
