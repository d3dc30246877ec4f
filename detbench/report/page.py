"""The page: everything measured in one HTML file that needs no network; and the files beside it."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from detbench import __version__, recipes
from detbench.parts.part import canonical, digest_of, flatten
from detbench.recipes import Recipe, slug
from detbench.report import forms, plots
from detbench.report.claims import Ruling, Verdict
from detbench.report.columns import number_text
from detbench.report.forms import Format
from detbench.report.gather import Collected, Entry, State, hardware
from detbench.report.plots import Plot
from detbench.report.table import Table, build
from detbench.store import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

_FILES: tuple[tuple[Format, str], ...] = (
    ("markdown", "md"), ("csv", "csv"), ("json", "json"), ("latex", "tex"),
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One table of the page with all that belongs to it.

    Attributes:
        key: its anchor, and the stem of its files.
        place: recipe, scale, data and overrides, which together tell it from other tables of the same title.
        table: the numbers.
        entries: the rows' runs.
        plots: its figures.
        command: what makes these runs.
        facts: name and value of what holds for the whole section; empty without runs.
    """

    key: str
    place: str
    table: Table
    entries: list[Entry]
    plots: list[Plot]
    command: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Line:
    """One recipe in the overview, with its rows by state and what became of its claims, before any run of none.

    `key` leads to its section, if it has one.
    """

    name: str
    title: str
    scale: str
    key: str
    counts: dict[State, int]
    rulings: dict[Ruling, int]


def write_site(collections: Sequence[Collected], folder: Path) -> Path:
    """Writes index.html, tables/ (Markdown, CSV, JSON, LaTeX; claims as CSV), plots/ (SVG, PNG); returns the page."""
    sections = [_section(collected) for collected in collections]
    for section in sections:
        for form, suffix in _FILES:
            path = folder / "tables" / f"{section.key}.{suffix}"
            write_text(path, forms.render([section.table], form))
        if section.table.verdicts:
            path = folder / "tables" / f"{section.key}-claims.csv"
            write_text(path, forms.claims_csv(section.table))
        for plot in section.plots:
            plots.save(plot, folder / "plots" / section.key)
    path = folder / "index.html"
    write_text(path, _page(collections, sections))
    return path


def page(collections: Sequence[Collected]) -> str:
    """The whole page as text: a section for each table with runs, an overview of all recipes there are."""
    return _page(collections, [_section(collected) for collected in collections])


def key_of(collected: Collected) -> str:
    """A name for a table at its scale, on its data, with its overrides: unlike that of any other."""
    parts = [collected.name, collected.scale, collected.data_name]
    if collected.overrides:
        parts.append(digest_of(list(collected.overrides))[:6])
    return slug(" ".join(filter(None, parts)))


def command_of(collected: Collected) -> str:
    """The command that makes these runs."""
    seeds = {result.seed for result in collected.results}
    name = collected.recipe.name if collected.shipped else collected.recipe.path.name
    measured = [entry.row for entry in collected.entries if entry.results]
    whole = len(measured) == len(collected.recipe.runnable())
    words = ["detbench", "run", *([name] if whole else [f"{name}/{slug(row.label)}" for row in measured])]
    words += collected.overrides
    words += ["--scale", collected.scale, "--seeds", str(len(seeds))]
    if collected.scale != "paper" and not all(result.data["drawn"] for result in collected.results):
        words += ["--data", "DIR"]
    return shlex.join(words)


def _page(collections: Sequence[Collected], sections: Sequence[Section]) -> str:
    return (
        forms.environment()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            facts=_facts(collections),
            overview=_overview(collections, sections),
            sections=[section for section in sections if section.facts],
            setting=_setting,
            inline=_inline,
            seed_numbers=_seed_numbers,
            minutes=_minutes,
        )
    )


def _section(collected: Collected) -> Section:
    return Section(
        key=key_of(collected),
        place=" · ".join(
            filter(None, [collected.name, collected.scale, collected.data_name, *collected.overrides])
        ),
        table=build(collected),
        entries=collected.entries,
        plots=plots.draw(collected),
        command=command_of(collected),
        facts=_facts([collected]),
    )


def _inline(plot: Plot, key: str) -> Markup:
    """A plot as it stands in the page. Matplotlib escapes labels."""
    from markupsafe import Markup

    spoken = html.escape(f"{plot.title}. The table above has the final numbers.")
    return Markup(plots.page_svg(plot.figure, prefix=f"{key}-{plot.name}", title=spoken))


def _facts(collections: Sequence[Collected]) -> dict[str, str]:
    """What is true of all runs shown, each answer once."""
    results = [result for collected in collections for result in collected.results]
    if not results:
        return {}
    seeds = sorted({result.seed for result in results})

    def join(answers: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(answers))

    days = sorted(result.finished[:10] for result in results)
    return {
        "Runs": f"{len({(result.digest, result.seed) for result in results})}",
        "Seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})",
        "Scale": join([result.scale for result in results]),
        "Data": join([collected.data_name for collected in collections]),
        "Hardware": join([hardware(result) for result in results]),
        "Commit": join([_short(result.commit) for result in results]),
        "Finished": days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
    }


def _overview(collections: Sequence[Collected], sections: Sequence[Section]) -> dict[str, list[Line]]:
    """All recipes by paper: each as it was collected, at every scale, or as it stands before any run."""
    by_name: dict[str, list[tuple[Collected, Sequence[Verdict]]]] = {name: [] for name in recipes.names()}
    for collected, section in zip(collections, sections, strict=True):
        by_name.setdefault(collected.recipe.name, []).append((collected, section.table.verdicts))
    papers: dict[str, list[Line]] = {}
    for name, found in by_name.items():
        for collected, verdicts in found or [(_before_any_run(recipes.load(name)), ())]:
            papers.setdefault(collected.recipe.head.paper, []).append(_line(collected, verdicts))
    return papers


def _before_any_run(recipe: Recipe) -> Collected:
    entries = [Entry(row, (), recipe.needs(row), {}, [], []) for row in recipe.rows.values()]
    return Collected(recipe, "paper", "", (), entries)


def _line(collected: Collected, verdicts: Sequence[Verdict]) -> Line:
    kinds: tuple[State, ...] = ("measured", "stopped early", "not run", "quoted", "needs")
    states = [entry.state for entry in collected.entries]
    rulings = [verdict.ruling for verdict in verdicts]
    return Line(
        name=collected.name,
        title=collected.recipe.head.title,
        scale=collected.scale if collected.results else "",
        key=key_of(collected) if collected.results else "",
        counts={state: states.count(state) for state in kinds},
        rulings={ruling: rulings.count(ruling) for ruling in get_args(Ruling)} if collected.results else {},
    )


def _setting(value: Any) -> str:
    """A setting's value; that of a whole part is one line for each of its settings."""
    if isinstance(value, dict):
        return "\n".join(f"{key} = {_setting(leaf)}" for key, leaf in flatten(value).items())
    return value if isinstance(value, str) else canonical(value).replace("null", "none")


def _seed_numbers(entry: Entry, table: Table) -> list[dict[str, str]]:
    """Seed by seed, each column's number."""
    return [
        {
            column.metric: number_text(entry.values(column.metric).get(result.seed), column)
            for column in table.columns
        }
        for result in entry.results
    ]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _short(commit: str) -> str:
    digits, dash, dirty = commit.partition("-")
    return f"{digits[:10]}{dash}{dirty}" if commit else "outside a clone"
