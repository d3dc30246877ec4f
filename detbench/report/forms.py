"""A table as text: terminal, Markdown, CSV, JSON, LaTeX, HTML.

Every form shows the same cells: CSV and JSON in full precision, the others with the column's digits."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detbench.parts.part import plain
from detbench.report.claims import Ruling, Verdict
from detbench.report.columns import BLANK, Column, interval_text, number_text
from detbench.report.table import Table, TableCell, TableRow
from detbench.stats import Estimate

if TYPE_CHECKING:
    import jinja2
    from rich.console import Console

Format = Literal["terminal", "markdown", "csv", "json", "latex", "html"]
Part = Literal["measured", "spread", "difference", "interval", "reported"]
Mark = Callable[[str, "int | None"], str]

_CSV_HEAD = (
    "table", "row", "state", "seeds", "steps", "metric", "measured", "sd", "low", "high", "count", "by_seed",
    "difference", "difference_low", "difference_high", "difference_count", "reported", "rank", "remark",
)  # fmt: skip
_CLAIMS_HEAD = (
    "table", "claim", "place", "note", "kind", "metric", "rows", "verdict", "seeds", "p_for", "p_against",
    "reason", "decided_by",
)  # fmt: skip
_RULING_STYLES: dict[Ruling, str] = {"supported": "green", "contradicted": "red", "undecided": "yellow"}
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "²": r"$^2$", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "±": r"$\pm$",
    "×": r"$\times$", "−": r"$-$", "–": "--",
    "≥": r"$\geq$", "≤": r"$\leq$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$",
    "τ": r"$\tau$",
}  # fmt: skip


def render(tables: Sequence[Table], form: Format) -> str:
    """Tables, one after another, in one form; ends with a line break."""
    match form:
        case "csv":
            return csv_text(tables)
        case "json":
            return json_text(tables)
        case "terminal":
            return "\n".join(terminal(table) for table in tables)
        case "markdown":
            return "\n".join(markdown(table) for table in tables)
        case "latex":
            return "\n".join(latex(table) for table in tables)
        case "html":
            return "\n".join(html(table) for table in tables)


def terminal(table: Table, console: Console | None = None) -> str:
    """For a console: as wide as it is, coloured if it is a terminal and NO_COLOR isn't set.

    Where mean and spread side by side are too wide, they stand under each other.
    """
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    console = console or Console(highlight=False)
    blocks = [_lines(row, table.columns, mark=_keep) for row in table.rows]
    if _width(table, blocks) > console.width:
        blocks = [_narrow_lines(row, table.columns) for row in table.rows]
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, leading=1)
    grid.add_column("", overflow="fold")
    grid.add_column("", style="dim", no_wrap=True)
    for column in table.columns:
        grid.add_column(column.metric, justify="right", no_wrap=True)
    for row, block in zip(table.rows, blocks, strict=True):
        label = Text.assemble(row.label, (f"\n{row_facts(row)}", "dim"))
        numbers = []
        for i, cell in enumerate(row.cells):
            text = Text()
            for number, line in enumerate(block):
                text.append("\n" if number else "")
                text.append(line.texts[i], style=_style(line, cell))
            numbers.append(text)
        grid.add_row(label, Text("\n".join(line.kind for line in block)), *numbers)
    with console.capture() as capture:
        console.print(Text.assemble((f"{table.name}", "bold"), f"  {table.title}"))
        console.print(Text(table.caption, style="dim"))
        console.print()
        console.print(grid)
        console.print()
        for note in table.notes:
            console.print(Padding(Text(f"• {note}", style="dim"), (0, 0, 0, 1)))
        if table.verdicts:
            console.print("\nWhat the paper claims")
        for verdict in table.verdicts:
            head = Text.assemble((verdict.ruling, _RULING_STYLES[verdict.ruling]), f"  {claim_text(verdict)}")
            console.print(Padding(head, (0, 0, 0, 1)))
            console.print(Padding(Text(verdict.text, style="dim"), (0, 0, 0, 5)))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def markdown(table: Table) -> str:
    """A section of GitHub's Markdown: best bold, second underlined."""

    def mark(text: str, rank: int | None) -> str:
        return {1: f"**{text}**", 2: f"<ins>{text}</ins>"}.get(rank or 0, text)

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    out = [f"### {_markdown(table.name)}: {_markdown(table.title)}", "", _markdown(table.caption), ""]
    out.append(line(["", "", *(_markdown(column.metric) for column in table.columns)]))
    out.append(line(["---", "---", *("--:" for _ in table.columns)]))
    for row in table.rows:
        for i, item in enumerate(_lines(row, table.columns, mark=mark)):
            label, kind = _heads(row, item, first=i == 0)
            out.append(line([_markdown(label), _markdown(kind), *item.texts]))
    out += ["", *(f"- {_markdown(note)}" for note in table.notes)]
    if table.verdicts:
        out += ["", "What the paper claims:", ""]
    out += [
        f"- **{verdict.ruling}**: {_markdown(claim_text(verdict))}. {_markdown(verdict.text)}"
        for verdict in table.verdicts
    ]
    return "\n".join(out).rstrip() + "\n"


def latex(table: Table) -> str:
    """A `table` for a paper (needs booktabs): best bold, second underlined, the spread small beside it.

    Verdicts on claims are a list of their own after it.
    """

    def mark(text: str, rank: int | None) -> str:
        number, plus_minus, spread = text.partition(" ± ")
        number = {1: rf"\textbf{{{number}}}", 2: rf"\underline{{{number}}}"}.get(rank or 0, number)
        return number + (rf" {{\scriptsize $\pm$ {spread}}}" if plus_minus else "")

    out = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}. {_latex(table.caption)}}}",
        rf"\label{{tab:{table.name.replace('/', ':')}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
        rf" & & {' & '.join(_latex(column.metric) for column in table.columns)} \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number:
            out.append(r"\addlinespace")
        for i, item in enumerate(_lines(row, table.columns, mark=mark)):
            label, kind = _heads(row, item, first=i == 0)
            texts = [
                _latex(text) if text == BLANK else rf"${text}$" if item.part == "difference" else text
                for text in item.texts
            ]
            out.append(rf"{_latex(label)} & {_latex(kind)} & {' & '.join(texts)} \\")
    out += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        out += [r"", r"\medskip", rf"{{\footnotesize {' '.join(_latex(note) for note in table.notes)}\par}}"]
    out.append(r"\end{table}")
    if table.verdicts:
        out += [r"", r"\begin{description}"]
        out += [
            rf"\item[{verdict.ruling}] {_latex(claim_text(verdict))}. {_latex(verdict.text)}"
            for verdict in table.verdicts
        ]
        out.append(r"\end{description}")
    return "\n".join(out) + "\n"


def csv_text(tables: Sequence[Table]) -> str:
    """One line for each cell, in full precision; what is not known is empty. Claims: see `claims_csv`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                m, d = cell.measured, cell.difference
                writer.writerow([
                    table.name, row.label, row.state, " ".join(map(str, row.seeds)), row.steps, column.metric,
                    *((m.mean, m.sd, m.low, m.high, m.count) if m else [None] * 5),
                    " ".join(f"{seed}:{number!r}" for seed, number in cell.by_seed.items()),
                    *((d.mean, d.low, d.high, d.count) if d else [None] * 4),
                    cell.reported, cell.rank, row.remark,
                ])  # fmt: skip
    return stream.getvalue()


def claims_csv(table: Table) -> str:
    """One line for each claim about a table with its verdict; labels of rows are told apart by " | "."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CLAIMS_HEAD)
    for verdict in table.verdicts:
        claim = verdict.claim
        writer.writerow([
            table.name, claim.text, claim.place, claim.note, claim.kind, claim.metric, " | ".join(claim.rows),
            verdict.ruling, verdict.seeds, verdict.p_for, verdict.p_against, verdict.reason, verdict.decided_by,
        ])  # fmt: skip
    return stream.getvalue()


def json_text(tables: Sequence[Table]) -> str:
    """A list of tables with all their fields, in full precision."""
    return json.dumps(plain(tuple(tables)), indent=2, ensure_ascii=False) + "\n"


def html(table: Table) -> str:
    """The table as an HTML fragment, with its caption, its notes and the verdicts on its claims."""
    templates = environment()
    parts = ("table.html.j2", "claims.html.j2")
    return "".join(templates.get_template(part).render(table=table) for part in parts)


def environment() -> jinja2.Environment:
    """The templates of this room; everything put into them is escaped."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("detbench.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "number": number_text, "spread": spread_text, "interval": interval_text, "facts": row_facts,
        "seed_places": seed_places,
        "minus": lambda text: re.sub(r"(?<!\w)-(?=\d)", "−", text),
    }  # fmt: skip
    return templates


def spread_text(estimate: Estimate, column: Column) -> str:
    """The standard deviation with its column's digits; "" for one seed or a counted column."""
    return "" if estimate.sd is None else number_text(estimate.sd, column)


def row_facts(row: TableRow) -> str:
    """What stands beside a row's label: how many seeds it has and which, or why it has none."""
    return "; ".join(filter(None, (seeds_text(row.seeds), row.remark)))


def seeds_text(seeds: Sequence[int]) -> str:
    """How many and which: "1 seed: 0", "5 seeds: 0–3, 7"; "" for none."""
    if not seeds:
        return ""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    which = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}: {', '.join(which)}"


def seed_places(cell: TableCell, table: Table, column: Column) -> list[tuple[int, float, float]]:
    """Each seed of a cell, its number, and where its dot stands: 0 at the column's lowest number, 100 at its highest.

    None of a single seed, which is the mean, and of a number that is counted, the same for every seed.
    """
    if len(cell.by_seed) < 2 or column.counted:
        return []
    index = table.columns.index(column)
    every = [number for row in table.rows for number in row.cells[index].by_seed.values()]
    low, high = min(every), max(every)
    return [
        (seed, number, 100 * (number - low) / (high - low) if high > low else 50.0)
        for seed, number in cell.by_seed.items()
    ]


def claim_text(verdict: Verdict) -> str:
    """A claim with its place in the paper, and what is to be known of it."""
    claim = verdict.claim
    return f"{claim.text} ({'; '.join(filter(None, (claim.place, claim.note)))})"


@dataclass(frozen=True)
class _Line:
    """One line of a row, over all columns.

    Attributes:
        part: of the cells that it shows.
        kind: its heading.
        texts: one for each column.
    """

    part: Part
    kind: str
    texts: list[str]


def _heads(row: TableRow, line: _Line, *, first: bool) -> tuple[str, str]:
    """The two texts before a line's numbers; the row's label and facts stand on its first line alone."""
    return (row.label, ", ".join(filter(None, (line.kind, row_facts(row))))) if first else ("", line.kind)


def _lines(row: TableRow, columns: Sequence[Column], *, mark: Mark) -> list[_Line]:
    """Measured, difference to the baseline, reported; a line without any number is left out."""

    def measured(cell: TableCell, column: Column) -> str:
        if cell.measured is None:
            return BLANK
        spread = spread_text(cell.measured, column)
        return mark(number_text(cell.measured.mean, column) + (f" ± {spread}" if spread else ""), cell.rank)

    def difference(cell: TableCell, column: Column) -> str:
        if cell.difference is None:
            return BLANK
        number = number_text(cell.difference.mean, column, signed=True)
        return f"{number} {interval_text(cell.difference, column)}".rstrip()

    pairs = list(zip(row.cells, columns, strict=True))
    lines = []
    if row.state == "measured":
        lines.append(_Line("measured", "measured", [measured(*pair) for pair in pairs]))
    if any(cell.difference for cell in row.cells):
        lines.append(_Line("difference", "− baseline", [difference(*pair) for pair in pairs]))
    if any(cell.reported is not None for cell in row.cells) or not lines:
        texts = [number_text(cell.reported, column) for cell, column in pairs]
        lines.append(_Line("reported", "reported", texts))
    return lines


def _narrow_lines(row: TableRow, columns: Sequence[Column]) -> list[_Line]:
    """The same with every number on a line of its own."""

    def line(part: Part, kind: str, values: list[float | None]) -> _Line:
        signed = part in ("difference", "interval")
        texts = [number_text(v, column, signed=signed) for v, column in zip(values, columns, strict=True)]
        return _Line(part, kind, texts)

    def of(estimates: list[Estimate | None], number: str) -> list[float | None]:
        return [None if estimate is None else getattr(estimate, number) for estimate in estimates]

    measured = [cell.measured for cell in row.cells]
    difference = [cell.difference for cell in row.cells]
    lines = [
        line("measured", "measured", of(measured, "mean")),
        line("spread", "± sd", of(measured, "sd")),
        line("difference", "− baseline", of(difference, "mean")),
        line("interval", "95 % from", of(difference, "low")),
        line("interval", "95 % to", of(difference, "high")),
        line("reported", "reported", [cell.reported for cell in row.cells]),
    ]
    return [each for each in lines if set(each.texts) != {BLANK}] or lines[-1:]


def _width(table: Table, blocks: Sequence[Sequence[_Line]]) -> int:
    """Columns of text a terminal needs: numbers never wrap, labels may down to 24."""
    numbers = sum(
        max(len(column.metric), *(len(line.texts[i]) for block in blocks for line in block)) + 2
        for i, column in enumerate(table.columns)
    )
    return min(24, max(len(row.label) for row in table.rows)) + 2 + len("− baseline") + numbers


def _style(line: _Line, cell: TableCell) -> str:
    if line.part == "measured":
        return {1: "bold green", 2: "underline"}.get(cell.rank or 0, "")
    return "dim" if line.part in ("reported", "spread", "interval") else ""


def _keep(text: str, rank: int | None) -> str:
    return text


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*<>\[\]|&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
