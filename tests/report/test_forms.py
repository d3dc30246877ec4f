"""All forms of a table show the same cells, and survive what stands in a label."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import get_args

import pytest
from rich.console import Console

from detbench.report import forms
from detbench.report.columns import Column
from detbench.report.table import Table, build

NUMBER = r"[+-]?\d+\.\d+"


@pytest.fixture(params=["three seeds", "one seed", "every state"])
def table(request, collect, special) -> Table:
    return {
        "three seeds": lambda: build(collect("date/table5")),
        "one seed": lambda: build(collect("quickstart", 1)),
        "every state": lambda: build(special),
    }[request.param]()


def _shown(table: Table) -> list[list[list[str]]]:
    """Of each row and column, all numbers in order, at the digits shown."""

    def digits(column, *values, signed=False):
        return [f"{v:{'+' if signed else ''}z.{column.decimals}f}" for v in values if v is not None]

    rows = []
    for row in table.rows:
        cells = []
        for column, cell in zip(table.columns, row.cells, strict=True):
            numbers = []
            if cell.measured:
                numbers += digits(column, cell.measured.mean, cell.measured.sd)
            if cell.difference:
                d = cell.difference
                numbers += digits(column, d.mean, d.low, d.high, signed=True)
            cells.append(numbers + digits(column, cell.reported))
        rows.append(cells)
    return rows


@dataclass(frozen=True)
class Read:
    """What a form says of a table, read back from its text.

    Attributes:
        rows: of each row label, seeds, and for each column all numbers in order, at the digits shown.
        verdicts: ruling, claim and reason of each.
    """

    rows: list[tuple[str, list[int], list[list[str]]]]
    verdicts: list[tuple[str, str, str]]


def _expected(table: Table) -> Read:
    rows = zip(
        (row.label for row in table.rows), (list(row.seeds) for row in table.rows), _shown(table), strict=True
    )
    verdicts = [(v.ruling, forms.claim_text(v), v.text) for v in table.verdicts]
    return Read(list(rows), verdicts)


def _seeds(facts: str) -> list[int]:
    """Seeds from "4 seeds: 0–2, 5; and more"."""
    told = re.search(r"(\d+) seeds?: (\d+(?:–\d+)?(?:, \d+(?:–\d+)?)*)", facts)
    if told is None:
        return []
    seeds: list[int] = []
    for part in told[2].split(", "):
        first, _, last = part.partition("–")
        seeds += range(int(first), int(last or first) + 1)
    assert len(seeds) == int(told[1])
    return seeds


def _joined(lines: list[list[str]], columns: int) -> list[tuple[str, list[int], list[list[str]]]]:
    """Lines of (label, kind and facts, cells...) as rows; a line without a label goes on with the row above."""
    rows: list[tuple[str, list[int], list[list[str]]]] = []
    for label, kind, *cells in lines:
        if label:
            rows.append((label, _seeds(kind), [[] for _ in range(columns)]))
        for i, cell in enumerate(cells):
            rows[-1][2][i].extend(re.findall(NUMBER, cell))
    return rows


def _of_terminal(table: Table) -> Read:
    text = forms.terminal(table, Console(width=1000, file=io.StringIO(), highlight=False))
    body, _, claims = text.partition("What the paper claims\n")
    lines = body[body.index("─") :].splitlines()[1:]
    count, rows = len(table.columns), []
    for block in "\n".join(lines[: lines.index("", _last_number(lines))]).split("\n\n"):
        cells: list[list[str]] = [[] for _ in range(count)]
        heads = []
        for line in block.splitlines():
            parts = re.split(r"\s{2,}", line.strip())
            if not line.startswith(" "):
                heads.append(parts.pop(0))
            for i, part in enumerate(parts[1:]):
                cells[i] += re.findall(NUMBER, part)
        label, *facts = heads
        rows.append((label, _seeds(" ".join(facts)), cells))
    told = claims.splitlines()
    verdicts = [
        (*head.strip().split("  ", 1), reason.strip())
        for head, reason in zip(told[::2], told[1::2], strict=True)
    ]
    return Read(rows, verdicts)


def _last_number(lines: list[str]) -> int:
    notes = next(i for i, line in enumerate(lines) if line.startswith(" • "))
    return max(i for i, line in enumerate(lines[:notes]) if line.strip())


def _of_markdown(table: Table) -> Read:
    def plain(text: str) -> str:
        return re.sub(r"\\([\\`*<>\[\]|&~_])", r"\1", text).strip()

    text = forms.markdown(table)
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert {len(cells) for cells in lines} == {len(table.columns) + 2}
    claims = re.findall(r"^- \*\*(\w+)\*\*: (.*)$", text, re.MULTILINE)
    verdicts = [(ruling, *_cut(plain(rest), table)) for ruling, rest in claims]
    return Read(
        _joined([[plain(cell) for cell in cells] for cells in lines[2:]], len(table.columns)), verdicts
    )


def _of_latex(table: Table) -> Read:
    signs = {
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textdagger{}": "†", "$-$": "−", "--": "–", r"$\pm$": "±",
        **{rf"\{sign}": sign for sign in "_&#%${}"},
    }  # fmt: skip

    def plain(text: str) -> str:
        for command, sign in signs.items():
            text = text.replace(command, sign)
        return text.strip()

    text = forms.latex(table)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].replace(r"\addlinespace", "")
    lines = [re.split(r"(?<!\\)&", line) for line in re.split(r"\\\\\n", body) if line.strip()]
    assert {len(cells) for cells in lines} == {len(table.columns) + 2}
    claims = re.findall(r"^\\item\[(\w+)\] (.*)$", text, re.MULTILINE)
    verdicts = [(ruling, *_cut(plain(rest), table)) for ruling, rest in claims]
    return Read(_joined([[plain(cell) for cell in cells] for cells in lines], len(table.columns)), verdicts)


def _cut(text: str, table: Table) -> tuple[str, str]:
    """Claim and reason from a sentence that holds both: "claim (place). reason"."""
    claims = [forms.claim_text(verdict) for verdict in table.verdicts]
    claim = next((claim for claim in claims if text.startswith(f"{claim}. ")), "")
    return claim, text.removeprefix(f"{claim}. ")


def _of_html(table: Table) -> Read:
    reader = _Cells()
    reader.feed(forms.html(table))
    rows = [
        (
            row.heads[0].strip(),
            _seeds(" ".join(row.heads)),
            [re.findall(NUMBER, _ascii(cell)) for cell in row.cells],
        )
        for row in reader.rows
    ]
    return Read(
        rows, [(ruling, f"{claim} ({place})", reason) for ruling, claim, place, reason in reader.claims()]
    )


def _of_csv(table: Table) -> Read:
    columns = {column.metric: column for column in table.columns}
    rows: dict[str, tuple[str, list[int], list[list[str]]]] = {}
    for line in csv.DictReader(io.StringIO(forms.csv_text([table]))):
        seeds = [int(seed) for seed in line["seeds"].split()]
        row = rows.setdefault(line["row"], (line["row"], seeds, []))
        column = columns[line["metric"]]
        numbers = [_digits(column, line[name], signed="difference" in name) for name in NUMBERS]
        row[2].append([number for number in numbers if number])
    claims = csv.DictReader(io.StringIO(forms.claims_csv(table)))
    verdicts = [
        (
            line["verdict"],
            f"{line['claim']} ({'; '.join(filter(None, (line['place'], line['note'])))})",
            " ".join(filter(None, (line["reason"], line["decided_by"]))),
        )
        for line in claims
    ]
    return Read(list(rows.values()), verdicts)


def _of_json(table: Table) -> Read:
    (tree,) = json.loads(forms.json_text([table]))
    rows = []
    for row in tree["rows"]:
        cells = []
        for column, cell in zip(table.columns, row["cells"], strict=True):
            measured, difference = cell["measured"] or {}, cell["difference"] or {}
            numbers = [_digits(column, measured.get(name)) for name in ("mean", "sd")]
            numbers += [
                _digits(column, difference.get(name), signed=True) for name in ("mean", "low", "high")
            ]
            numbers.append(_digits(column, cell["reported"]))
            cells.append([number for number in numbers if number])
        rows.append((row["label"], row["seeds"], cells))
    verdicts = [
        (
            verdict["ruling"],
            f"{verdict['claim']['text']} "
            f"({'; '.join(filter(None, (verdict['claim']['place'], verdict['claim']['note'])))})",
            " ".join(filter(None, (verdict["reason"], verdict["decided_by"]))),
        )
        for verdict in tree["verdicts"]
    ]
    return Read(rows, verdicts)


NUMBERS = ("measured", "sd", "difference", "difference_low", "difference_high", "reported")


def _digits(column: Column, number: str | float | None, *, signed: bool = False) -> str:
    return "" if number in ("", None) else f"{float(number):{'+' if signed else ''}z.{column.decimals}f}"


def _ascii(text: str) -> str:
    return text.replace("−", "-")


READERS = {
    "terminal": _of_terminal, "markdown": _of_markdown, "csv": _of_csv, "json": _of_json, "latex": _of_latex,
    "html": _of_html,
}  # fmt: skip


def test_every_form_can_be_read_back():
    assert set(READERS) == set(get_args(forms.Format))


@pytest.mark.parametrize("form", READERS)
def test_a_form_read_back_says_the_same_cell_by_cell(form, table):
    read, expected = READERS[form](table), _expected(table)
    assert read.rows == expected.rows
    told = [tuple(map(_ascii, verdict)) for verdict in read.verdicts]
    assert told == [tuple(map(_ascii, verdict)) for verdict in expected.verdicts]


def test_the_table_that_is_read_back_has_something_of_everything(special):
    table = build(special)
    assert {row.state for row in table.rows} == {"measured", "not run", "quoted", "needs"}
    assert {len(row.seeds) for row in table.rows} == {4, 2, 0}
    assert {verdict.ruling for verdict in table.verdicts} == {"supported", "contradicted", "undecided"}
    cells = [cell for row in table.rows for cell in row.cells]
    assert any(cell.measured is None and cell.reported is None for cell in cells)
    assert any(cell.difference for cell in cells)


def test_the_numbers_of_the_seeds_are_in_csv_json_and_html(table):
    lines = csv.DictReader(io.StringIO(forms.csv_text([table])))
    (tree,) = json.loads(forms.json_text([table]))
    reader = _Cells()
    reader.feed(forms.html(table))
    for row, of_json, of_html in zip(table.rows, tree["rows"], reader.rows, strict=True):
        for i, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            pairs = (pair.split(":") for pair in next(lines)["by_seed"].split())
            assert {int(seed): float(number) for seed, number in pairs} == cell.by_seed
            assert {
                int(seed): number for seed, number in of_json["cells"][i]["by_seed"].items()
            } == cell.by_seed
            dots = re.findall(rf"(\d+): ({NUMBER})", of_html.dots.get(i, ""))
            shown = {} if len(cell.by_seed) < 2 or column.counted else cell.by_seed
            assert dots == [(str(seed), _digits(column, number)) for seed, number in shown.items()]


def test_csv_holds_every_number_in_full_precision(table):
    lines = list(csv.DictReader(io.StringIO(forms.csv_text([table]))))
    assert len(lines) == len(table.rows) * len(table.columns)
    cells = [
        (row, column, cell)
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    ]
    for line, (row, column, cell) in zip(lines, cells, strict=True):
        assert (line["row"], line["metric"], line["state"]) == (row.label, column.metric, row.state)
        for name, value in {
            "measured": cell.measured and cell.measured.mean,
            "sd": cell.measured and cell.measured.sd,
            "difference": cell.difference and cell.difference.mean,
            "difference_low": cell.difference and cell.difference.low,
            "reported": cell.reported,
            "rank": cell.rank,
        }.items():
            assert (float(line[name]) if line[name] else None) == value


def test_json_holds_every_number_in_full_precision(table):
    (tree,) = json.loads(forms.json_text([table]))
    assert [column["metric"] for column in tree["columns"]] == [column.metric for column in table.columns]
    for read, row in zip(tree["rows"], table.rows, strict=True):
        assert read["label"] == row.label
        for found, cell in zip(read["cells"], row.cells, strict=True):
            assert found["reported"] == cell.reported
            assert (found["measured"] or {}).get("mean") == (cell.measured and cell.measured.mean)
            assert (found["difference"] or {}).get("high") == (cell.difference and cell.difference.high)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_the_same_cells_within_its_width(table, width):
    text = forms.terminal(table, Console(width=width, file=io.StringIO(), highlight=False))
    assert max(map(len, text.splitlines())) <= width
    body = text[text.index("─") : text.index(" • ")]
    shown = sorted(re.findall(rf"(?<![\w.=]){NUMBER}(?![\w.])", body))
    assert shown == sorted(number for row in _shown(table) for cell in row for number in cell)


def test_best_is_bold_and_second_underlined(collect):
    table = build(collect("date/table5"))
    best = f"{max(row.cells[0].measured.mean for row in table.rows):.1f}"
    second = f"{sorted(row.cells[0].measured.mean for row in table.rows)[-2]:.1f}"
    assert f"| **{best} ± " in forms.markdown(table)
    assert f"| <ins>{second} ± " in forms.markdown(table)
    assert rf"\textbf{{{best}}}" in forms.latex(table)
    assert rf"\underline{{{second}}}" in forms.latex(table)
    assert f'<strong title="best">{best}</strong>' in forms.html(table)
    assert f'<u title="second best">{second}</u>' in forms.html(table)


def test_latex_escapes_what_it_would_take_for_commands(special):
    text = forms.latex(build(special))
    assert r"x\_y=1\textdagger{} \{50 \%\} \textless{}b\textgreater{}\#1" in text
    assert r"a, b \& c" in text
    assert r"\$5" in text
    assert text.isascii()


def test_html_escapes_labels(special):
    text = forms.html(build(special))
    assert "<b>" not in text
    assert "&lt;b&gt;#1&lt;/b&gt;" in text
    assert "a, b &amp; c" in text


def test_markdown_escapes_labels(special):
    text = forms.markdown(build(special))
    assert r"\<b\>#1\</b\>" in text
    assert r"with \\ and \|" in text


def test_a_piped_terminal_table_has_no_escape_codes(collect):
    assert "\x1b" not in forms.terminal(build(collect("date/table5")))


def test_colour_is_for_terminals_that_want_it(collect, monkeypatch):
    table = build(collect("date/table5"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = Console(force_terminal=True, color_system="standard", file=io.StringIO())
    assert "\x1b[1;32m" in forms.terminal(table, coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Console(force_terminal=True, color_system="standard", file=io.StringIO())
    assert "\x1b[1;32m" not in forms.terminal(table, plain)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json", "latex", "html"])
def test_several_tables_render_to_one_text(collect, form):
    tables = [build(collect("date/table5", 1)), build(collect("quickstart", 1))]
    text = forms.render(tables, form)
    assert text.endswith("\n")
    assert "DATE-R (Ours)" in text
    assert "FCOS" in text


@dataclass
class _Row:
    heads: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    dots: dict[int, str] = field(default_factory=dict)


class _Cells(HTMLParser):
    """The rows of a table's body, and the claims below it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[_Row] = []
        self.items: list[tuple[str, list[str]]] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        if tag == "tbody":
            self.rows = []
        elif tag == "tr":
            self.rows.append(_Row())
        elif tag == "td":
            self.rows[-1].cells.append("")
        elif tag == "li":
            self.items.append((names.get("class", ""), []))
        if "seeds" in names.get("class", "") and "aria-label" in names:
            self.rows[-1].dots[len(self.rows[-1].cells) - 1] = names["aria-label"]
        self.inside.append(tag)

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if "tbody" in self.inside and "td" in self.inside:
            self.rows[-1].cells[-1] += data
        elif "tbody" in self.inside and "th" in self.inside:
            self.rows[-1].heads.append(data)
        elif "li" in self.inside:
            self.items[-1][1].append(data.strip())

    def claims(self) -> list[tuple[str, str, str, str]]:
        """Ruling, claim, place and reason."""
        told = [[text for text in texts if text] for ruling, texts in self.items if ruling]
        return [(ruling, claim, place, reason) for ruling, claim, place, reason in told]


def _has_booktabs() -> bool:
    finder = shutil.which("kpsewhich")
    found = finder and subprocess.run([finder, "booktabs.sty"], capture_output=True, check=False)
    return bool(found and found.stdout) and shutil.which("pdflatex") is not None


@pytest.mark.skipif(not _has_booktabs(), reason="needs a TeX with booktabs")
def test_latex_compiles_with_booktabs_alone(table, tmp_path):
    document = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        + forms.latex(table)
        + r"\end{document}"
    )
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
