"""What differs between two rows, runs or recipes, and when a comparison is called controlled."""

import json

import pytest

from detbench.errors import RecipeError, StoreError
from detbench.parts.part import plain
from detbench.recipes import Context, load, resolve, slug
from detbench.report.diff import Side, compare, diff, text
from detbench.store import Store, write_json

PAPER = Context("paper")


def of_rows(a, b, tmp_path, context=PAPER):
    return diff(a, b, Store(tmp_path), context)


@pytest.fixture
def own(tmp_path):
    """A recipe whose second row changes one setting, and whose third starts from another variant."""
    path = tmp_path / "own.toml"
    path.write_text(
        """
[recipe]
paper = "none"
table = "own"
title = "own"
metrics = ["AP"]
base = "dense"
[[row]]
label = "plain"
use = "onenet"
[[row]]
label = "slow"
use = "onenet"
set.optim.lr = 0.0007
[[row]]
label = "other"
use = "fcos"
set.optim.lr = 0.0007
""",
        encoding="utf-8",
    )
    return path


def test_rows_that_differ_in_what_one_of_them_sets_are_controlled(own, tmp_path):
    found = of_rows(f"{own}/plain", f"{own}/slow", tmp_path)
    before = resolve(load(str(own)), load(str(own)).rows["plain"], PAPER).optim.lr
    assert found.ablated == {"optim.lr": (before, 0.0007)}
    assert found.besides == {}
    assert found.controlled is True
    assert "controlled" in text(found)


def test_rows_of_different_variants_are_not_controlled_and_every_other_key_is_named(own, tmp_path):
    found = of_rows(f"{own}/plain", f"{own}/other", tmp_path)
    assert found.controlled is False
    assert "optim.lr" in found.ablated
    assert found.besides
    assert all(key in text(found) for key in found.besides)


def test_a_row_does_not_differ_from_itself(own, tmp_path):
    found = of_rows(f"{own}/slow", f"{own}/slow", tmp_path)
    assert (found.ablated, found.besides, found.controlled) == ({}, {}, True)


def test_runs_with_other_seeds_and_versions_are_not_controlled():
    recipe = load("quickstart")
    experiment = resolve(recipe, recipe.runnable()[0], PAPER)
    record = {"seed": 0, "commit": "a", "environment.torch": "2.0"}
    a = Side("a", experiment, frozenset(), record)
    b = Side("b", experiment, frozenset(), record | {"seed": 1, "environment.torch": "2.1"})
    found = compare(a, b)
    assert found.besides == {"seed": (0, 1), "environment.torch": ("2.0", "2.1")}
    assert found.controlled is False


def test_of_a_run_whose_recipe_is_gone_nobody_says_that_it_is_controlled():
    recipe = load("quickstart")
    experiment = resolve(recipe, recipe.runnable()[0], PAPER)
    found = compare(Side("a", experiment, None), Side("b", experiment, frozenset()))
    assert found.controlled is None
    assert "can't be said" in text(found)


def test_recipes_are_compared_row_by_row(own, tmp_path):
    other = tmp_path / "other.toml"
    changed = own.read_text(encoding="utf-8").replace('"other"', '"new"', 1).replace("0.0007", "0.0009", 1)
    other.write_text(changed, encoding="utf-8")
    found = of_rows(str(own), str(other), tmp_path)
    assert found.only == (("other",), ("new",))
    assert found.rows == {"slow": {"optim.lr": (0.0007, 0.0009)}}
    assert json.loads(json.dumps(plain(found)))["rows"]["slow"]["optim.lr"] == [0.0007, 0.0009]


def test_a_name_that_stands_for_nothing_gets_the_closest_one(own, tmp_path):
    label = slug(load("date/table5").runnable()[0].label)
    with pytest.raises(RecipeError, match=f"did you mean.*{label[:4]}|did you mean"):
        of_rows(f"date/table5/{label}x", f"{own}/plain", tmp_path)
    with pytest.raises(RecipeError, match="no recipe is called so"):
        of_rows("date/tabel5", "date/table5", tmp_path)
    with pytest.raises(StoreError, match="no run is called abcd1234"):
        of_rows("abcd1234", f"{own}/plain", tmp_path)


def test_a_recipe_is_not_compared_with_a_row(own, tmp_path):
    with pytest.raises(RecipeError, match=r"is a recipe, .* name one of its rows: plain, slow, other"):
        of_rows(str(own), f"{own}/plain", tmp_path)


def test_a_run_that_is_not_finished_is_refused(own, tmp_path):
    write_json(tmp_path / "runs" / "0123456789abcdef" / "0" / "request.json", {})
    with pytest.raises(StoreError, match="not finished"):
        diff("0123", f"{own}/plain", Store(tmp_path / "runs"), PAPER)
