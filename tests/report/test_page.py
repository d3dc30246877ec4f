"""The page stands alone, is well formed, and says what it must."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import get_args, get_type_hints

import pytest

from detbench import recipes
from detbench.recipe_text import Claim
from detbench.report.page import command_of, key_of, page, write_site
from detbench.report.table import build

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect", "circle", "line"}


class _Reader(HTMLParser):
    """Checks that tags nest, and collects what tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attrs: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attrs.append((tag, dict(attrs)))
        if tag not in VOID or "svg" in self.open:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attrs.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def text(collect, special) -> str:
    return page([collect("date/table5", 2), special])


def test_the_page_is_well_formed_and_its_ids_are_unique(text):
    reader = _read(text)
    assert reader.open == []
    ids = [attrs["id"] for _, attrs in reader.attrs if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [attrs["href"] for tag, attrs in reader.attrs if tag == "a"]
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_page_loads_nothing(text):
    for tag, attrs in _read(text).attrs:
        assert tag not in ("link", "img", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)


def test_tables_can_be_read_aloud(text):
    reader = _read(text)
    tables = sum(tag == "table" for tag, _ in reader.attrs)
    assert tables == sum(tag == "caption" for tag, _ in reader.attrs)
    assert all("scope" in attrs for tag, attrs in reader.attrs if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in reader.attrs if tag == "svg")
    assert any("aria-sort" in attrs for _, attrs in reader.attrs)


def test_labels_are_escaped_in_tables_and_plots(text):
    assert "<b>#1" not in text
    assert "&lt;b&gt;#1" in text
    assert "x_y=1† {50 %} <b>#1</b>" in " ".join(_read(text).text)


def test_the_page_names_version_command_and_where_it_ran(text):
    shown = " ".join(_read(text).text)
    assert "detbench run date/table5 --scale cpu --seeds 2" in shown
    assert "AMD EPYC 9354, 1 thread" in shown
    assert "0123456789" in shown
    assert "2026-11-21" in shown


def test_a_row_opens_to_its_settings_and_its_difference(text):
    shown = " ".join(_read(text).text)
    assert "branches.o2o.assigner" in shown
    assert "kind = poto" in shown
    assert "optim.lr = " in shown


def test_all_recipes_are_in_the_overview_with_their_state(collect):
    shown = " ".join(_read(page([collect("quickstart", 1)])).text)
    assert all(name in shown for name in recipes.names())


def test_the_overview_counts_the_verdicts_on_a_recipes_claims(collect):
    collected = collect("date/table5", 3)
    rulings = [verdict.ruling for verdict in build(collected).verdicts]
    counted = [f"{rulings.count(r)} {r}" for r in ("supported", "contradicted", "undecided") if r in rulings]
    assert counted
    overview = page([collected]).partition('<section id="overview"')[2]
    assert (
        "".join(_read(f"<section{overview.partition('</section>')[0]}</section>").text).count(
            ", ".join(counted)
        )
        == 1
    )
    assert "supported" not in page([]).partition('<section id="overview"')[2]


def test_a_claim_of_each_kind_has_its_verdict_and_what_would_decide_it(collect):
    kinds = get_args(get_type_hints(Claim)["kind"])
    assert len(kinds) == 5
    rows = ("DATE-F (Ours)", "DATE-R (Ours)")
    claims = tuple(Claim(text=f"a claim of {kind}", place="here", kind=kind, rows=rows) for kind in kinds)
    for seeds, decides in ((1, "a verdict needs two at least"), (0, "Runs of these rows would decide it")):
        measured = collect("date/table5", {"Baseline (OneNet)": (0,), **dict.fromkeys(rows, range(seeds))})
        section = page([replace(measured, recipe=replace(measured.recipe, claims=claims))])
        section = section.partition("What the paper claims")[2].partition("</ul>")[0]
        assert section.count("<strong>undecided</strong>") == 5
        assert section.count(decides) == 5
        assert all(f"a claim of {kind} " in section for kind in kinds)


def test_the_cards_of_tables_count_their_verdicts(collect):
    collected = collect("date/table5", 3)
    rulings = [verdict.ruling for verdict in build(collected).verdicts]
    cards = page([collected]).partition('<nav aria-label="Tables">')[2].partition("</nav>")[0]
    for ruling in set(rulings):
        assert f'<span class="{ruling}">{rulings.count(ruling)} {ruling}</span>' in cards


def test_cards_and_headings_tell_tables_of_one_recipe_apart(collect):
    drawn = collect("date/table5", 1)
    others = [replace(drawn, data_name="bccd"), collect("date/table5", 1, overrides=("optim.lr=0.001",))]
    spoken = "".join(_read(page([drawn, *others])).text)
    for place in ("cpu · drawn shapes", "cpu · bccd", "cpu · drawn shapes · optim.lr=0.001"):
        assert spoken.count(f"date/table5 · {place} One-to-many") == 2  # a card and a heading


def test_a_page_without_runs_is_an_overview(collect):
    reader = _read(page([]))
    assert reader.open == []
    assert "svg" not in [tag for tag, _ in reader.attrs]


def test_equal_runs_make_an_equal_page(collect):
    assert page([collect("quickstart", 1)]) == page([collect("quickstart", 1)])


def test_the_site_holds_page_tables_and_plots(collect, tmp_path):
    collected = collect("quickstart", 1)
    path = write_site([collected], tmp_path)
    assert path == tmp_path / "index.html"
    key = key_of(collected)
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == sorted(
        f"{key}{suffix}" for suffix in (".md", ".csv", ".json", ".tex", "-claims.csv")
    )
    assert (tmp_path / "plots" / key / "convergence-epoch.svg").is_file()
    assert (tmp_path / "plots" / key / "convergence-epoch.png").read_bytes().startswith(b"\x89PNG")


def test_overrides_give_a_table_files_of_its_own(collect):
    plain, other = collect("quickstart", 1), collect("quickstart", 1, overrides=("optim.lr=5e-4",))
    assert key_of(plain) != key_of(other)
    assert "optim.lr=5e-4" in command_of(other)


def test_the_command_names_the_rows_when_only_some_were_run(collect):
    collected = collect("date/table5", {"DATE-F (Ours)": (0, 1)})
    assert command_of(collected) == "detbench run date/table5/date-f-ours --scale cpu --seeds 2"
