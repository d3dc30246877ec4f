"""All forms of a table show the same cells, and survive what stands in a label."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from rich.console import Console

from detbench.report import forms
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


def _joined(lines: list[list[str]], columns: int) -> list[list[list[str]]]:
    """Lines of (label, kind, cells...) as rows; a line without a label goes on with the row above."""
    rows: list[list[list[str]]] = []
    for label, _, *cells in lines:
        if label.strip():
            rows.append([[] for _ in range(columns)])
        for i, cell in enumerate(cells):
            rows[-1][i] += re.findall(NUMBER, cell)
    return rows


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


def test_markdown_shows_the_same_cells(table):
    lines = [line for line in forms.markdown(table).splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(cells) for cells in split} == {len(table.columns) + 2}
    assert _joined(split[2:], len(table.columns)) == _shown(table)


def test_latex_shows_the_same_cells(table):
    body = forms.latex(table).split(r"\midrule")[1].split(r"\bottomrule")[0].replace(r"\addlinespace", "")
    split = [re.split(r"(?<!\\)&", line) for line in re.split(r"\\\\\n", body) if line.strip()]
    assert {len(cells) for cells in split} == {len(table.columns) + 2}
    assert _joined(split, len(table.columns)) == _shown(table)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_the_same_cells_within_its_width(table, width):
    text = forms.terminal(table, Console(width=width, file=io.StringIO(), highlight=False))
    assert max(map(len, text.splitlines())) <= width
    body = text[text.index("─") : text.index(" • ")]
    shown = sorted(re.findall(rf"(?<![\w.=]){NUMBER}(?![\w.])", body))
    assert shown == sorted(number for row in _shown(table) for cell in row for number in cell)


def test_html_shows_the_same_cells(table):
    reader = _Cells()
    reader.feed(forms.html(table))
    found = [[re.findall(NUMBER, cell.replace("−", "-")) for cell in row] for row in reader.rows]
    assert found == _shown(table)


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


class _Cells(HTMLParser):
    """The text of every td, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        if tag == "tbody":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        self.inside = tag == "td" or (self.inside and tag not in ("th", "tr"))

    def handle_endtag(self, tag):
        if tag == "td":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


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
