"""What makes a frozen dataclass spellable in a recipe, and how one is read, checked and written down."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import (
    Annotated,
    Any,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from detbench.errors import RecipeError

T = TypeVar("T")

OneOf = Annotated[T, Field(discriminator="kind")]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def part(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass; unknown keys and loose types are refused."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    made: type[T] = pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[assignment]
    return made


def read_part(cls: type[T], tree: Mapping[str, Any], *, where: str) -> T:
    """The part that a plain tree (as TOML gives it) spells out.

    Args:
        cls: the part's class.
        tree: nested dicts, lists, strings, numbers and booleans.
        where: what the tree was read from; opens each line of a complaint.

    Raises:
        RecipeError: with every mistake of the tree, each with its key path and the closest known name.
    """
    try:
        # JSON mode: lists stand for tuples while numbers, strings and booleans stay strictly apart.
        return TypeAdapter(cls).validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise RecipeError([f"{where}: {line}" for line in _complaints(cls, tree, error)]) from None


def plain(value: Any) -> Any:
    """A part as a plain tree of dicts, lists and scalars, every default spelled out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def canonical(tree: Any) -> str:
    """The one spelling of a plain tree that is hashed: sorted keys, whole floats written as integers."""
    return json.dumps(_same_numbers(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(tree: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a tree's canonical spelling."""
    return hashlib.sha256(canonical(tree).encode()).hexdigest()[:16]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a plain tree under its dotted path. Empty tables and lists are leaves."""
    if isinstance(tree, Mapping) and tree:
        pairs: Iterator[tuple[str, Any]] = iter(tree.items())
    elif isinstance(tree, list) and any(isinstance(v, Mapping | list) for v in tree):
        pairs = ((str(i), v) for i, v in enumerate(tree))
    else:
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in pairs:
        out |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def fields_at(cls: Any, tree: Any, path: tuple[str | int, ...]) -> list[str]:
    """The names that could stand at `path`'s last place, given what `tree` chose on the way there."""
    for candidate, rest_tree, rest in _walk(cls, tree, path[:-1]):
        if not rest:
            names = _names(candidate, rest_tree)
            if names:
                return names
    return []


def closest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?` for the known name most like `name`, or the list of all of them."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{match[0]}'?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def kinds(union: Any) -> dict[str, type]:
    """The members of a union of parts by their `kind`."""
    return {_kind(member): member for member in _members(union)}


def _same_numbers(tree: Any) -> Any:
    if isinstance(tree, bool):
        return tree
    if isinstance(tree, float) and tree.is_integer() and abs(tree) < 2**53:
        return int(tree)
    if isinstance(tree, Mapping):
        return {k: _same_numbers(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_same_numbers(v) for v in tree]
    return tree


def _members(hint: Any) -> list[type]:
    """The dataclasses a type hint may stand for (through Annotated, Optional and unions)."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return [m for arg in get_args(hint) for m in _members(arg)]
    return []


def _kind(cls: type) -> str:
    for f in dataclasses.fields(cls):
        if f.name == "kind":
            return str(f.default)
    return cls.__name__


def _names(hint: Any, tree: Any) -> list[str]:
    members = _members(hint)
    if isinstance(tree, Mapping) and "kind" in tree and len(members) > 1:
        members = [m for m in members if _kind(m) == tree["kind"]] or members
    return [f.name for m in members for f in dataclasses.fields(m)]


def _walk(
    hint: Any, tree: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[Any, Any, tuple[str | int, ...]]]:
    """Follows a path through type hints and the tree side by side."""
    yield hint, tree, path
    if not path:
        return
    head, rest = path[0], path[1:]
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    child = tree.get(head) if isinstance(tree, Mapping) else None
    if isinstance(tree, list) and str(head).isdigit() and int(head) < len(tree):
        child = tree[int(head)]
    if get_origin(base) in (dict, Mapping):
        yield from _walk(get_args(base)[1], child, rest)
    elif get_origin(base) in (tuple, list):
        yield from _walk(get_args(base)[0], child, rest)
    else:
        for arg in get_args(base):
            if get_origin(arg) in (dict, tuple, list, Annotated):
                yield from _walk(arg, tree, path)
        members = _members(base)
        if isinstance(tree, Mapping) and "kind" in tree and len(members) > 1:
            members = [m for m in members if _kind(m) == tree["kind"]]
        for member in members:
            hints = get_type_hints(member, include_extras=True)
            if head in hints:
                yield from _walk(hints[str(head)], child, rest)


def _complaints(cls: type, tree: Mapping[str, Any], error: ValidationError) -> list[str]:
    lines: list[str] = []
    for item in error.errors(include_url=False):
        path = _tree_path(item["loc"], tree)
        place = ".".join(str(p) for p in path)
        match item["type"]:
            case "extra_forbidden" | "unexpected_keyword_argument":
                names = fields_at(cls, tree, path)
                line = f"{place}: no such key{closest(str(path[-1]), names)}"
            case "union_tag_invalid":
                context = item["ctx"]
                known = [t.strip().strip("'") for t in str(context["expected_tags"]).split(",")]
                line = f"{place}.kind: unknown kind '{context['tag']}'{closest(str(context['tag']), known)}"
                if "did you mean" in line:
                    line += f" (known here: {', '.join(sorted(known))})"
            case "union_tag_not_found":
                slips = difflib.get_close_matches("kind", list(item["input"]), n=1)
                line = (
                    f"{place}.{slips[0]}: no such key; did you mean 'kind'?"
                    if slips
                    else f"{place}: says no kind{_beside(cls, tree, path)}"
                )
            case "literal_error" if path[-1] == "[key]":
                known = [word.strip(" '") for word in re.split(",| or ", item["ctx"]["expected"])]
                line = f"{place.removesuffix('.[key]')}: no such key{closest(str(path[-2]), known)}"
            case "missing" | "missing_argument" if _is_free_name(cls, tree, path[:-1]):
                line = f"{place.rpartition('.')[0]}: {path[-1]} is missing{_beside(cls, tree, path[:-1])}"
            case "missing" | "missing_argument":
                line = f"{place}: missing"
            case _:
                line = f"{place}: {_lower(item['msg'])}, found {json.dumps(item['input'], default=str)[:80]}"
        if line not in lines:
            lines.append(line)
    return lines


def _tree_path(loc: tuple[str | int, ...], tree: Any) -> tuple[str | int, ...]:
    """Pydantic's location without the union tags it mixes in: only steps that the tree itself has."""
    path: list[str | int] = []
    for i, step in enumerate(loc):
        if isinstance(tree, Mapping):
            last = i == len(loc) - 1
            if step in tree:
                tree = tree[step]
                path.append(step)
            elif last and not (isinstance(tree.get("kind"), str) and tree["kind"] == step):
                path.append(step)
            continue
        if isinstance(tree, list) and isinstance(step, int) and step < len(tree):
            tree = tree[step]
            path.append(step)
    return tuple(path)


def _is_free_name(cls: type, tree: Any, path: tuple[str | int, ...]) -> bool:
    """Whether the path ends in a name that a recipe's author may choose, such as a branch's."""
    return bool(path) and isinstance(path[-1], str) and not fields_at(cls, tree, path)


def _beside(cls: type, tree: Any, path: tuple[str | int, ...]) -> str:
    """Which of its neighbours half a part may be meant for, where nothing forbids the name it stands under."""
    if not _is_free_name(cls, tree, path):
        return ""
    return closest(str(path[-1]), [name for name in _at(tree, path[:-1]) if name != path[-1]])


def _at(tree: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
