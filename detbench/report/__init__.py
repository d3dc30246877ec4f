"""The report room: what was measured beside what papers report, as tables, plots and a page. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from detbench.report import forms
from detbench.report.collect import collect
from detbench.report.forms import Format
from detbench.report.gate import hold
from detbench.report.gather import Collected, Entry
from detbench.report.page import page, write_site
from detbench.report.table import Table, build

__all__ = [
    "Collected",
    "Entry",
    "Format",
    "Table",
    "build",
    "collect",
    "hold",
    "page",
    "render",
    "write_site",
]


def render(collections: Sequence[Collected], form: Format) -> str:
    """The tables of what was collected, one after another, in one form."""
    return forms.render([build(collected) for collected in collections], form)
