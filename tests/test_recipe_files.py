"""Every recipe file against the papers' numbers, its own claims, and the parts there are."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from detbench import recipes
from detbench.errors import RecipeError
from detbench.parts.experiment import read_experiment
from detbench.parts.part import plain, read_part
from detbench.recipe_text import SCALES, BaseText, Claim, Row, Scale, Sweep
from detbench.recipes import Context, Recipe

ROOT = recipes.recipes_dir()
NAMES = recipes.names()
PAPERS = ("align-detr", "date", "deta", "match-free", "sized-l1")
BASES = sorted((ROOT / "_base").glob("*.toml"))

# One name for each missing part, so that `needs` agrees across files. A part that is built moves to PARTS.
MISSING = {
    "AP gain over another row", "LVIS data and metrics", "Swin-L",
    "matching time as a result of a run", "memory fusion",
}  # fmt: skip
PARTS = {
    "3D max filtering",
    "Align loss",
    "Co-DETR",
    "CrowdHuman data and metrics",
    "DETA assigner",
    "DINO",
    "DeFCN auxiliary loss",
    "Deformable-DETR",
    "GT-Probe",
    "H-DETR",
    "IoU branch",
    "IoU histogram",
    "PMC",
    "PSL",
    "QFL",
    "Semi-DETR",
    "Sized L1",
    "VFL",
    "matching benchmark",
    "partly labelled COCO",
    "unlabelled COCO images",
    "weights from another run",
}

# Rows that differ in nothing that is trained or tested: the same model, looked at in two ways.
SAME_EXPERIMENT = {
    "align-detr/figure1-left": [("high confident samples", "best regressed samples (oracle)")],
    "align-detr/table5": [("alpha=0.25", "k=4"), ("alpha=0.25", "tau=1.5"), ("k=4", "tau=1.5")],
    "date/table8": [("DATE-F (Ours), infer", "DATE-F (Ours), train")],
}

# Claims that the paper's own table contradicts.
CONTRADICTED = {
    ("date/table7", "A larger weight helps the one-to-many branch in all metrics: APs"),
    ("date/table9", "Separate towers add no more than about 100 GFLOPs (42 %) in training"),
    ("sized-l1/table1", "Sized L1 in the supervised branch improves Semi-DETR with 1% of the labels"),
    ("sized-l1/table1", "Sized L1 in both branches improves Semi-DETR with 1% of the labels"),
    ("sized-l1/table2", "Sized L1 in the supervised branch improves small objects with 1% of the labels"),
    ("sized-l1/table2", "Sized L1 in both branches improves small objects with 1% of the labels"),
    ("sized-l1/table2", "Sized L1 in both branches improves small objects with 5% of the labels"),
}

# Recipes of several rows without a claim, and why.
WITHOUT_CLAIMS = {
    "align-detr/figure1-left": "a histogram: its rows are two kinds of samples of one run, not numbers to compare",
    "match-free/ablations": "the paper's open points, on whose outcome it says nothing",
}

# Recipes whose claims are about curves or about rows no paper gives numbers for.
WITHOUT_NUMBERS = {
    "align-detr/figure1-right",
    "date/figure4",
    "deta/ablations",
    "quickstart",
    "sized-l1/choices",
    "sized-l1/on-dense",
    "sized-l1/on-dino",
    "sized-l1/table1",
}


@cache
def reported() -> dict[str, dict[str, Any]]:
    """The tables of recipes/reported.toml by recipe name."""
    tables = recipes.read_toml(ROOT / "reported.toml")["table"]
    return {f"{table['paper']}/{table['id']}": table for table in tables}


def from_papers() -> list[Recipe]:
    return [recipe for recipe in map(recipes.load, NAMES) if recipe.head.kind not in ("demo", "ablation")]


def papers_own(recipe: Recipe) -> list[Row]:
    """Rows that the paper's table has."""
    return [row for row in recipe.rows.values() if row.source != "ours"]


def spelled_rows(recipe: Recipe) -> list[Row]:
    """Rows that say something of an experiment, those that can't run yet included."""
    return [row for row in recipe.rows.values() if recipe.head.base and row.use]


def resolve_spelled(recipe: Recipe, row: Row, scale: Scale) -> None:
    """Reads a row's experiment as `resolve` does, for rows that can't run yet too."""
    read_experiment(recipes.layers(recipe, row, Context(scale=scale)), where=f"{recipe.name}/{row.label}")


# ------------------------------------------------------------------ the papers' numbers


def test_there_is_a_recipe_for_every_table_figure_and_list() -> None:
    assert {recipe.name for recipe in from_papers()} == set(reported())


def test_the_recipes_hold_25_tables_5_figures_1_list_187_rows_and_711_numbers() -> None:
    kinds = [recipe.head.kind for recipe in from_papers()]
    rows = [row for recipe in from_papers() for row in papers_own(recipe)]
    assert (kinds.count("table"), kinds.count("figure"), kinds.count("list")) == (25, 5, 1)
    assert len(rows) == 187
    assert sum(len(row.reported) for row in rows) == 711


@pytest.mark.parametrize("name", sorted(reported()))
def test_a_recipe_agrees_with_the_reported_numbers(name: str) -> None:
    table, recipe = reported()[name], recipes.load(name)
    assert recipe.head.kind == table["kind"]
    assert recipe.head.metrics == tuple(table["metrics"])
    assert recipe.head.dataset == table["dataset"]
    assert recipe.head.schedule == table.get("schedule", "")
    assert [row.label for row in papers_own(recipe)] == [row["label"] for row in table["row"]]
    assert not any(row.reported for row in recipe.rows.values() if row.source == "ours")
    for row in table["row"]:
        ours = recipe.rows[row["label"]]
        assert ours.reported == row["reported"], ours.label
        assert ours.quoted == (not row["runnable"]), ours.label
        assert ours.source == row["source"], ours.label


# ------------------------------------------------------------------ rows as experiments


@pytest.mark.parametrize("name", [name for name in NAMES if recipes.load(name).runnable()])
def test_every_runnable_row_resolves_at_every_scale(name: str) -> None:
    recipe = recipes.load(name)
    for row in recipe.runnable():
        for scale in SCALES:
            recipes.resolve(recipe, row, Context(scale=scale))


def test_what_a_row_that_cannot_run_yet_already_says_is_valid() -> None:
    rows = [(recipe, row) for recipe in from_papers() for row in spelled_rows(recipe) if recipe.needs(row)]
    for recipe, row in rows:
        for scale in SCALES:
            resolve_spelled(recipe, row, scale)


def test_a_row_without_a_base_says_nothing_of_an_experiment() -> None:
    for recipe in map(recipes.load, NAMES):
        if not recipe.head.base:
            assert not recipe.runnable(), recipe.name
            assert not any(row.use or row.set or row.scale for row in recipe.rows.values()), recipe.name


# At smoke scale all schedules are two steps long, so 12 and 36 epochs are the same there.
@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_no_two_rows_of_a_table_are_the_same_experiment(scale: Scale) -> None:
    # A list of published numbers may name one training by each of its sources.
    for recipe in (recipe for recipe in map(recipes.load, NAMES) if recipe.head.kind != "list"):
        digests = {
            r.label: recipes.resolve(recipe, r, Context(scale=scale)).digest("") for r in recipe.runnable()
        }
        same = [pair for pair in combinations(digests, 2) if digests[pair[0]] == digests[pair[1]]]
        assert same == SAME_EXPERIMENT.get(recipe.name, []), recipe.name


def test_rows_tested_on_another_branch_or_with_nms_share_their_training() -> None:
    def training(name: str, label: str) -> str:
        recipe = recipes.load(name)
        return recipes.resolve(recipe, recipe.rows[label], Context(scale="paper")).training_digest("")

    date_f = training("date/table5", "DATE-F (Ours), POTO")
    assert training("date/table1", "DATE-F (Ours), 12 ep") == date_f
    assert training("date/table6", "DATE-F, 12 ep, NMS") == date_f
    assert training("date/table7", "FCOS, lambda_o2m=1") == date_f
    assert training("date/table10", "DATE-F, lambda_o2o=1, lambda_o2m=1") == date_f
    assert training("date/table7", "FCOS, lambda_o2m=4") != date_f


def test_a_long_schedule_keeps_its_factor_at_every_scale_but_smoke() -> None:
    recipe = recipes.load("date/table1")
    factors: dict[Scale, int] = {"smoke": 1, "cpu": 3, "gpu": 3, "paper": 3}
    for scale, times in factors.items():
        experiment = recipes.resolve(recipe, recipe.rows["DATE-F (Ours), 36 ep"], Context(scale=scale))
        assert experiment.schedule.times == times
        assert experiment.data.train.kind == ("detr" if scale == "paper" else "fixed")


def test_rows_of_a_table_share_optimiser_schedule_and_data_at_cpu_scale() -> None:
    for name in (name for name in NAMES if name.startswith("date/")):
        recipe = recipes.load(name)
        resolved = [recipes.resolve(recipe, row, Context(scale="cpu")) for row in recipe.runnable()]
        alike = [(e.optim, e.data, e.schedule.length, e.schedule.decay, e.training) for e in resolved]
        assert all(other == alike[0] for other in alike), name


def test_needs_name_parts_by_one_name_each_and_none_that_exists() -> None:
    assert not MISSING & PARTS
    needed = {
        part
        for recipe in map(recipes.load, NAMES)
        for row in recipe.rows.values()
        for part in recipe.needs(row)
    }
    assert needed == MISSING


# ------------------------------------------------------------------ sweeps


def sweeps() -> Iterator[tuple[Recipe, Sweep]]:
    for recipe in map(recipes.load, NAMES):
        for sweep in recipe.sweeps:
            yield recipe, sweep


def test_the_keys_of_a_sweep_have_the_value_of_each_point() -> None:
    checked = 0
    for recipe, sweep in sweeps():
        for point in sweep.point if sweep.keys else ():
            for scale in SCALES:
                tree = plain(recipes.resolve(recipe, recipe.rows[point.label], Context(scale=scale)))
                for key in sweep.keys:
                    value: Any = tree
                    for step in key.split("."):
                        value = value[step]
                    assert value == point.value, (recipe.name, point.label, scale, key)
                checked += 1
    assert checked


def test_points_of_a_sweep_differ_from_each_other_in_its_keys_alone() -> None:
    for recipe, sweep in sweeps():
        if sweep.keys:
            points = [
                recipes.resolve(recipe, recipe.rows[p.label], Context(scale="cpu")) for p in sweep.point
            ]
            for a, b in combinations(points, 2):
                assert set(recipes.changes(a, b)) == set(sweep.keys), (recipe.name, sweep.param)


def test_a_parameter_is_swept_in_one_recipe_of_a_paper() -> None:
    homes: dict[tuple[str, str], set[str]] = {}
    for recipe, sweep in sweeps():
        homes.setdefault((recipe.head.paper, sweep.param), set()).add(recipe.name)
    assert {key: names for key, names in homes.items() if len(names) > 1} == {}


def test_sweeps_of_one_parameter_in_a_recipe_are_told_apart_by_their_series() -> None:
    seen = [(recipe.name, sweep.param, sweep.series) for recipe, sweep in sweeps()]
    assert len(seen) == len(set(seen))


# ------------------------------------------------------------------ claims


def holds(claim: Claim, numbers: Mapping[str, float]) -> bool:
    """Whether a claim is true of numbers, to the decimals that papers print."""
    values = [round(numbers[label], 6) for label in claim.rows]
    match claim.kind:
        case "order":
            return values == sorted(values, reverse=True)
        case "monotone":
            return values == sorted(values)
        case "best":
            return values[0] == max(values)
        case "at_least":
            better, worse = values
            return round(better - worse, 6) >= claim.margin
        case "sign":
            first, second = values
            return first > second if claim.sign == "+" else first < second


def test_every_claim_holds_for_the_papers_own_numbers_or_is_listed_as_contradicted() -> None:
    contradicted, without_numbers = set(), set()
    for recipe in map(recipes.load, NAMES):
        for claim in recipe.claims:
            numbers = {label: recipe.rows[label].reported.get(claim.metric) for label in claim.rows}
            known = {label: number for label, number in numbers.items() if number is not None}
            if len(known) < len(numbers):
                without_numbers.add(recipe.name)
            elif not holds(claim, known):
                contradicted.add((recipe.name, claim.text))
    assert contradicted == CONTRADICTED
    assert without_numbers == WITHOUT_NUMBERS


def test_every_claim_says_where_the_paper_makes_it_and_has_a_text_of_its_own() -> None:
    for recipe in map(recipes.load, NAMES):
        texts = [claim.text for claim in recipe.claims]
        assert len(texts) == len(set(texts)), recipe.name
        assert all(claim.place for claim in recipe.claims), recipe.name


def test_every_recipe_with_rows_to_compare_has_a_claim_or_a_reason_to_have_none() -> None:
    without = set()
    for recipe in map(recipes.load, NAMES):
        own = [row for row in recipe.rows.values() if not row.quoted]
        if len(own) > 1 and not recipe.claims:
            without.add(recipe.name)
    assert without == set(WITHOUT_CLAIMS)


def test_a_claim_that_the_papers_own_table_contradicts_says_so() -> None:
    for name, text in CONTRADICTED:
        claim = next(claim for claim in recipes.load(name).claims if claim.text == text)
        assert "Table" in claim.note, text


def test_every_table_of_date_has_a_baseline() -> None:
    for recipe in from_papers():
        if recipe.head.paper == "date":
            assert recipe.head.baseline, recipe.name


# ------------------------------------------------------------------ files and guides


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_its_question_and_its_command(name: str) -> None:
    lines = (ROOT / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    opening = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert len(opening) >= 2
    assert any("?" in line for line in opening[:-1])
    assert opening[-1] == f"#   detbench run {name}"


def test_a_recipe_stands_in_its_papers_folder_under_its_tables_name() -> None:
    for recipe in map(recipes.load, NAMES):
        assert recipe.head.paper in PAPERS
        if recipe.head.kind != "demo":
            assert recipe.name == f"{recipe.head.paper}/{recipe.head.table}"


def test_the_list_of_recipes_is_complete() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = [line for line in text.splitlines() if line.startswith("| [")]
    assert listed == [listing(recipes.load(name)) for name in NAMES]


def listing(recipe: Recipe) -> str:
    """A recipe's line in recipes/README.md."""
    own = [row for row in recipe.rows.values() if not row.quoted]
    quoted = len(recipe.rows) - len(own)
    runs = f"{len(recipe.runnable())} of {len(own)}" + (f", {quoted} quoted" if quoted else "")
    return f"| [{recipe.name}]({recipe.name}.toml) | {recipe.head.title} | {runs} |"


@pytest.mark.parametrize("paper", PAPERS)
def test_a_papers_guide_names_every_part_its_recipes_lack(paper: str) -> None:
    guide = (ROOT / paper / "README.md").read_text(encoding="utf-8")
    mine = [recipe for recipe in map(recipes.load, NAMES) if recipe.head.paper == paper]
    needed = {part for recipe in mine for row in recipe.rows.values() for part in recipe.needs(row)}
    assert [part for part in sorted(needed) if part not in guide] == []


# ------------------------------------------------------------------ misspelt keys


def key_paths(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key of a tree, through tables and lists."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield (*path, key)
            yield from key_paths(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from key_paths(value, (*path, i))


def defines_a_name(path: tuple[str | int, ...]) -> bool:
    """Where a variant gives a branch or a loss its name, or a row a loss, another name is no mistake."""
    named = {"variant": ("branches", "losses"), "row": ("losses",)}.get(str(path[0]), ())
    return bool({"set", "scale"} & set(path)) and path[-2] in named


def misspell(tree: Any, path: tuple[str | int, ...]) -> tuple[Any, str]:
    """A copy of a tree in which one letter of the path's last key is another, and what the key has become."""
    head, rest = path[0], path[1:]
    if not rest:
        written = changed_letter(str(head), tree)
        return {written if key == head else key: value for key, value in tree.items()}, written
    below, written = misspell(tree[head], rest)
    if isinstance(tree, list):
        return [below if i == head else value for i, value in enumerate(tree)], written
    return {**tree, head: below}, written


def changed_letter(key: str, siblings: Mapping[str, Any]) -> str:
    i = zlib.crc32(key.encode()) % len(key)
    changed = (f"{key[:i]}{letter}{key[i + 1 :]}" for letter in "qxz" if letter != key[i])
    return next(name for name in changed if name not in siblings)


def suggests(error: RecipeError, written: str) -> bool:
    """Whether a message names what was written and what may have been meant.

    A misspelt name that another place refers to is found there, and is itself the suggestion.
    """
    hints = ("; did you mean '", "; known here: ")
    return any(written in line and any(hint in line for hint in hints) for line in error.problems)


def read_recipe(path: Path, mistake: tuple[str | int, ...]) -> None:
    """Loads a file and resolves the rows that the misspelt key belongs to."""
    recipe = recipes.load(str(path))
    rows = spelled_rows(recipe)
    if mistake[0] == "row":
        label = recipes.read_toml(path)["row"][mistake[1]]["label"]
        rows = [row for row in rows if row.label == label]
    for row in rows:
        for scale in ("paper", *row.scale, *recipe.overlays):
            resolve_spelled(recipe, row, scale)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_of_a_recipe_is_refused_with_a_suggestion(name: str, tmp_path: Path) -> None:
    tree = recipes.read_toml(ROOT / f"{name}.toml")
    accepted, unhelpful = [], []
    for i, path in enumerate(key_paths(tree)):
        file = tmp_path / f"{i}.toml"
        wrong, written = misspell(tree, path)
        file.write_text(tomli_w.dumps(wrong), encoding="utf-8")
        try:
            read_recipe(file, path)
        except RecipeError as error:
            if not suggests(error, written):
                unhelpful.append((path, error.problems))
        else:
            if not defines_a_name(path):
                accepted.append(path)
    assert (accepted, unhelpful) == ([], [])


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
def test_a_misspelt_key_of_a_base_is_refused_with_a_suggestion(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = recipes.read_toml(base)
    variants = {
        row.use: (recipe, row)
        for recipe in map(recipes.load, NAMES)
        for row in spelled_rows(recipe)
        if recipe.head.base == base.stem
    }
    assert set(variants) == set(tree["variant"])
    accepted, unhelpful = [], []
    for path in key_paths(tree):
        wrong, written = misspell(tree, path)
        try:
            text = read_part(BaseText, wrong, where=base.name)
            monkeypatch.setattr(recipes, "base_of", lambda recipe, text=text: text)
            for recipe, row in variants.values():
                for scale in ("paper", *(step for step in path if step in SCALES)):
                    resolve_spelled(recipe, Row(label=row.label, use=row.use), scale)
        except RecipeError as error:
            if not suggests(error, written):
                unhelpful.append((path, error.problems))
        else:
            if not defines_a_name(path):
                accepted.append(path)
    assert (accepted, unhelpful) == ([], [])
