"""What tensors are called elsewhere: tables from our names to theirs, and how one is applied and held to account."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Rows = Literal["all", "query_key", "value", "first", "last", "classes", "encoder_classes", "labels"]
"""Which rows of their tensor are ours.

"query_key", "value": of the joint projection of `nn.MultiheadAttention`, in which queries, keys and values follow
each other. "first", "last": as many as ours has. "classes": those of our classes, see `ClassRows`; "encoder_classes":
of the first stage; "labels": as "classes", of an embedding that may have one row more.
"""

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Rule:
    """Where tensors of one kind come from.

    `[i]` stands for a number, `[i+3]` in `theirs` for it and 3, `[layers]` for the number of decoder layers, a `*` at
    the end for anything.

    Attributes:
        ours: pattern of our names.
        theirs: the name there; several are joined, row upon row.
        rows: which rows are taken.
        unless: the rule holds only for files in which no name matches this pattern; "" for all.
    """

    ours: str
    theirs: str | tuple[str, ...]
    rows: Rows = "all"
    unless: str = ""


@dataclass(frozen=True)
class Tied:
    """Tensors that are in the file more than once: they are left out after a comparison.

    Attributes:
        theirs: pattern of the copies.
        of: what they are copies of.
    """

    theirs: str
    of: str


@dataclass(frozen=True)
class Mark:
    """What the presence of a tensor says about how its authors' code computes.

    Attributes:
        theirs: pattern of their names.
        present: allowed values by key path of an experiment, where the file has such a tensor.
        absent: the same where it has none.
    """

    theirs: str
    present: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    absent: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The names of one code base.

    Attributes:
        name: as the command line calls it.
        title: whose files these are.
        rules: tried in order; the first whose sources are all in the file counts.
        class_bias: a tensor with an element for each class, first of these that the file has; empty for bodies.
        ignored: patterns of names that no result needs, with the reason.
        tied: copies.
        settings: allowed values by key path of an experiment: how that code computes what no tensor tells.
        marks: settings that the presence of tensors tells.
        requires: a pattern that some name must match; "" for none.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    class_bias: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    tied: tuple[Tied, ...] = ()
    settings: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    requires: str = ""

    def applies_to(self, theirs: Mapping[str, Tensor]) -> bool:
        """Whether the file has the tensor that the layout requires."""
        return not self.requires or _any(self.requires, theirs)

    def num_class_rows(self, theirs: Mapping[str, Tensor]) -> int | None:
        """How many classes the file's head tells apart; None where it has no such head."""
        return next((len(theirs[name]) for name in self.class_bias if name in theirs), None)

    def settings_of(self, theirs: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
        """Allowed values by key path, those included that marks tell."""
        found = dict(self.settings)
        for mark in self.marks:
            found |= mark.present if _any(mark.theirs, theirs) else mark.absent
        return found


@dataclass(frozen=True)
class ClassRows:
    """Which rows of a class head are ours.

    Attributes:
        ids: row of each of our classes; None for the rows as they are.
        objectness: whether the first stage learned to call every object class 0, so that its row 0 stays the first.
    """

    ids: tuple[int, ...] | None = None
    objectness: bool = False


@dataclass(frozen=True, eq=False)
class Translation:
    """A checkpoint under our names, and what didn't fit.

    Attributes:
        layout: by which it was read.
        tensors: by our names.
        num_wanted: tensors of ours.
        missing: ours that the file can't fill, with the name looked for.
        misshapen: ours of another shape.
        left_over: theirs that nobody asked for, or not for all rows.
        left_out: reasons for which tensors of theirs were left out, and how many.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    num_wanted: int
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    left_over: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether every tensor of ours is filled and every one of theirs accounted for."""
        return not (self.missing or self.misshapen or self.left_over)

    @property
    def closeness(self) -> tuple[bool, float, int]:
        """Greater is closer: whether it fits, the filled share of ours, how little is left over."""
        return self.fits, len(self.tensors) / self.num_wanted, -len(self.left_over)

    def problems(self, *, left_over: str) -> str:
        """All misfits on one line, "" for none; `left_over` says what tensors are that nobody asked for."""
        found = (
            some("missing", self.missing),
            some(left_over, self.left_over),
            some("of another shape", self.misshapen),
        )
        return "; ".join(text for text in found if text)


def translate(
    layout: Layout,
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, torch.Size],
    *,
    class_rows: ClassRows = ClassRows(),
) -> Translation:
    """Reads a checkpoint by a layout.

    Args:
        layout: the table.
        theirs: the checkpoint's tensors.
        ours: shapes of all that is to be filled.
        class_rows: which rows of class heads are ours.
    """
    layers = [
        int(number) for name in ours for number in re.findall(r"^transformer\.decoder\.layers\.(\d+)", name)
    ]
    numbers = {"layers": max(layers, default=-1) + 1}
    rules = [rule for rule in layout.rules if not (rule.unless and _any(rule.unless, theirs))]
    tensors: dict[str, Tensor] = {}
    missing, misshapen = [], []
    unread = {name: torch.ones(_num_rows(tensor.shape), dtype=torch.bool) for name, tensor in theirs.items()}
    for name, shape in ours.items():
        if name.endswith(_COUNTER):  # of batches, which no result depends on
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        found = [(rule, sources) for rule in rules if (sources := _sources(rule, name, numbers))]
        rule, sources = next((pair for pair in found if all(s in theirs for s in pair[1])), (None, ()))
        if rule is None:
            there = found[0][1][0] if found else name
            missing.append(name if there == name else f"{name}, there {there}")
            continue
        parts = []
        for source in sources:
            whole = theirs[source]
            rows = _rows(rule.rows, _num_rows(whole.shape), _num_rows(shape), class_rows)
            parts.append(whole if rows is None else whole[rows])
            unread[source][slice(None) if rows is None or rule.rows in _OF_CLASSES else rows] = False
        tensor = (
            parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1, *part.shape[1:]) for part in parts])
        )
        if tensor.shape == shape:
            tensors[name] = tensor.clone()
        else:
            misshapen.append(f"{name} {tuple(tensor.shape)} for {tuple(shape)}")
    left_over, left_out = _account(layout, theirs, unread)
    return Translation(
        layout, tensors, len(ours), tuple(missing), tuple(misshapen), tuple(left_over), left_out
    )


def source_of(layout: Layout, name: str) -> str:
    """What a tensor of ours is called by the first rule about it."""
    return next(sources[0] for rule in layout.rules if (sources := _sources(rule, name, {})))


def some(what: str, names: Sequence[str]) -> str:
    """`3 missing (a, b, c)`, at most three names spelled out; empty for none."""
    if not names:
        return ""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})"


def prefixed(rules: Sequence[Rule], *, ours: str, theirs: str) -> tuple[Rule, ...]:
    """The same rules for names that stand behind a prefix, here and there."""
    return tuple(
        Rule(
            ours + rule.ours,
            theirs + rule.theirs if isinstance(rule.theirs, str) else tuple(theirs + t for t in rule.theirs),
            rule.rows,
        )
        for rule in rules
    )


_OF_CLASSES = ("classes", "encoder_classes", "labels")


def _rows(rows: Rows, num_theirs: int, num_ours: int, classes: ClassRows) -> slice | list[int] | None:
    """Their rows that are ours; None for all."""
    joint = num_theirs * 2 // 3
    match rows:
        case "query_key":
            return slice(joint)
        case "value":
            return slice(joint, None)
        case "first":
            return slice(num_ours)
        case "last":
            return slice(num_theirs - num_ours, None)
        case "classes" | "encoder_classes" | "labels" if (
            classes.ids is not None and max(classes.ids) < num_theirs
        ):
            first = 0 if rows == "encoder_classes" and classes.objectness else classes.ids[0]
            return [first, *classes.ids[1:]]
        case "labels" if num_theirs == num_ours + 1:
            return slice(num_ours)
    return None


def _account(
    layout: Layout, theirs: Mapping[str, Tensor], unread: Mapping[str, Tensor]
) -> tuple[list[str], dict[str, int]]:
    """What of theirs wasn't read: names that should have been, and the number of the others by reason."""
    left_over, left_out = [], Counter[str]()
    for name, rows in unread.items():
        if not rows.any():
            continue
        if not rows.all():
            left_over.append(f"{int(rows.sum())} of the {len(rows)} rows of {name}")
            continue
        reason = _why_unneeded(layout, name)
        if reason is None and (of := _tied_to(layout, name)) is not None:
            if of in theirs and torch.equal(theirs[name], theirs[of]):
                reason = "copies of others"
            else:
                name = f"{name}, which is no copy of {of}"
        if reason is None:
            left_over.append(name)
        else:
            left_out[reason] += 1
    return left_over, dict(left_out)


def _why_unneeded(layout: Layout, name: str) -> str | None:
    """Why no result needs a tensor of theirs; None where one may."""
    if name.endswith(_COUNTER):
        return "counters of batches"
    return next((why for pattern, why in layout.ignored if _match(pattern, name) is not None), None)


def _tied_to(layout: Layout, name: str) -> str | None:
    """What a tensor of theirs is a copy of; None where it is an original."""
    for tied in layout.tied:
        found = _match(tied.theirs, name)
        if found is not None and (of := _expand(tied.of, found)) != name:
            return of
    return None


def _sources(rule: Rule, name: str, numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Their names of our tensor by a rule; none where it is about others."""
    found = _match(rule.ours, name)
    if found is None:
        return ()
    templates = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
    return tuple(_expand(template, found | {k: str(v) for k, v in numbers.items()}) for template in templates)


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(_match(pattern, name) is not None for name in names)


def _match(pattern: str, name: str) -> dict[str, str] | None:
    """What `[i]` and `*` stand for in a name; None where the pattern doesn't match."""
    found = _regex(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    text = re.sub(r"\\\[(\w+)\\\]", r"(?P<\1>\\d+)", re.escape(pattern))
    text = text.replace(r"\*", "(?P<rest>.*)", 1).replace(r"\*", ".*")
    return re.compile(text)


def _expand(template: str, found: Mapping[str, str]) -> str:
    """A name from its template and what the pattern's places stood for."""
    name = re.sub(r"\[(\w+)([+-]\d+)?\]", lambda m: str(int(found[m[1]]) + int(m[2] or 0)), template)
    return name.replace("*", found.get("rest", ""))


def _num_rows(shape: torch.Size) -> int:
    return shape[0] if shape else 1
