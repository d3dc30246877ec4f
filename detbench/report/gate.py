"""The gate: what was supported must stay so, and at paper scale numbers must be the paper's, within a tolerance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detbench.errors import StoreError
from detbench.report.columns import number_text
from detbench.report.gather import Collected
from detbench.report.table import Table, build

TOLERANCE = {
    "AP": 0.5, "AP50": 0.5, "AP75": 0.5, "APs": 1.0, "APm": 1.0, "APl": 1.0, "mMR": 0.5, "recall": 0.5,
    "params_m": 0.1, "params_train_m": 0.1, "params_infer_m": 0.1,
    "gflops": 1.0, "gflops_train": 1.0, "gflops_infer": 1.0,
}  # fmt: skip
"""How far a mean may be from the paper's number, in the metric's unit, where a recipe doesn't say: a choice, no
measurement. Papers print millions of parameters to one decimal and GFLOPs to none. Metrics that are not here, such as
latency, depend on the machine and aren't held."""


@dataclass
class Held:
    """What was held to the records and to the papers, and what was missed.

    Attributes:
        claims: how many that the records call supported.
        numbers: how many at paper scale.
        misses: what the gate stops, one line each; empty where it passes.
        absent: tables with supported claims, "name, scale, data", that nothing reported was held to.
    """

    claims: int = 0
    numbers: int = 0
    misses: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What was held, for a gate that passes."""
        text = (
            f"{_count(self.claims, 'claim')} still supported, {_count(self.numbers, 'number')} of papers met"
        )
        return text + (f"; recorded, but not reported here: {'; '.join(self.absent)}" if self.absent else "")


def hold(collections: Sequence[Collected], records: Path) -> Held:
    """Holds reported tables to what was recorded and, at paper scale, to the papers' numbers.

    Only tables that are reported are held to anything, and claims only where all their rows are; nothing is said of
    runs on other data than the record's, or with overrides.

    Args:
        collections: what is reported.
        records: folder with tables as `report --format json` prints them, such as results/.

    Raises:
        StoreError: there is no such folder, or a record can't be read.
    """
    supported = _supported(records)
    held = Held()
    reported = set()
    for collected in collections:
        if collected.overrides:
            continue
        table = build(collected)
        key = ", ".join((table.name, table.scale, table.data))
        recorded = supported.get(key, [])
        reported.add(key)
        held.claims += sum(verdict.claim.text in recorded for verdict in table.verdicts)
        held.misses += _lost(table, recorded, whole=len(collected.entries) == len(collected.recipe.rows))
        if collected.scale == "paper":
            compared = list(_compared(collected, table))
            held.numbers += len(compared)
            held.misses += [text for missed, text in compared if missed]
    held.absent += [key for key, texts in supported.items() if texts and key not in reported]
    return held


def _lost(table: Table, supported: Sequence[str], *, whole: bool) -> Iterator[str]:
    """Claims that the record calls supported and the table doesn't; a table may be reported in part."""
    verdicts = {verdict.claim.text: verdict for verdict in table.verdicts}
    for text in supported:
        if text not in verdicts:
            if whole:
                yield f"{table.name}: '{text}' was supported, and is no claim of the recipe any more"
        elif verdicts[text].ruling != "supported":
            verdict = verdicts[text]
            yield f"{table.name}: '{text}' was supported, now {verdict.ruling}: {verdict.text}"


def _compared(collected: Collected, table: Table) -> Iterator[tuple[bool, str]]:
    """For each reported number with a tolerance: whether the measured one is farther off, and how far."""
    tolerances = TOLERANCE | collected.recipe.head.tolerance
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            tolerance = tolerances.get(column.metric)
            if cell.measured is None or cell.reported is None or tolerance is None:
                continue
            off = cell.measured.mean - cell.reported
            measured, reported = (number_text(n, column) for n in (cell.measured.mean, cell.reported))
            yield (
                abs(off) > tolerance,
                f"{table.name}, row '{row.label}': {column.metric} {measured} is "
                f"{number_text(off, column, signed=True)} from the reported {reported}, more than {tolerance:g}",
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _supported(records: Path) -> dict[str, list[str]]:
    """Table, scale and data ("date/table5, cpu, drawn shapes") to the texts of its supported claims."""
    if not records.is_dir():
        raise StoreError(f"{records}: no such folder; give the one that holds the records, with --records")
    found: dict[str, list[str]] = {}
    for path in sorted(records.rglob("*.json")):
        for table in _read(path):
            try:
                if "verdicts" not in table:  # recorded before there were any
                    continue
                key = ", ".join((table["name"], table["scale"], table["data"]))
                texts = [v["claim"]["text"] for v in table["verdicts"] if v["ruling"] == "supported"]
            except (KeyError, TypeError):
                raise StoreError(
                    f"{path}: no table as `detbench report --format json` prints it; write it again"
                ) from None
            found.setdefault(key, []).extend(texts)
    return found


def _read(path: Path) -> list[Any]:
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no JSON, or not even text
        raise StoreError(f"{path}: can't be read ({error})") from None
    return tables if isinstance(tables, list) else [tables]
