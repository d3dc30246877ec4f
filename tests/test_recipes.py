"""How rows become experiments: overrides, what they refuse, and the names recipes go by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detbench import recipes, runs
from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment
from detbench.parts.part import flatten
from detbench.parts.training import AdamW, Cosine, Sgd
from detbench.recipe_text import SCALES, Row, Variant
from detbench.recipes import Context
from detbench.store import Store

OWN = """
[recipe]
paper = "none"
table = "own"
title = "one row"
metrics = ["AP"]
base = "dense"

[[row]]
label = "one"
use = "onenet"
"""


def resolved(*overrides: str, name: str = "quickstart/fcos") -> Experiment:
    recipe, row = recipes.named_row(name)
    return recipes.resolve(recipe, row, Context("smoke", None, overrides))


def problems(*overrides: str, name: str = "quickstart/fcos") -> list[str]:
    with pytest.raises(RecipeError) as error:
        resolved(*overrides, name=name)
    return error.value.problems


# ------------------------------------------------------------------ overrides


def test_the_keys_of_another_kind_can_be_set_in_the_same_command() -> None:
    assert resolved("optim.kind=sgd", "optim.lr=0.02").optim == Sgd(lr=0.02)


def test_the_keys_that_a_whole_table_leaves_to_their_defaults_can_be_set_after_it() -> None:
    changed = resolved('schedule.decay={kind="cosine"}', "schedule.decay.floor=0.5")
    assert changed.schedule.decay == Cosine(floor=0.5)


def test_setting_the_kind_that_is_there_already_keeps_its_settings() -> None:
    before = resolved()
    assert before.optim != AdamW(), "else the test could not see them reset"
    assert resolved("optim.kind=adamw") == before


@pytest.mark.parametrize(
    "name", ["quickstart/date-f", "date/table5/date-r-ours", "date/table2/defcn-3x-3dmf"]
)
@pytest.mark.parametrize("scale", SCALES)
def test_all_settings_of_a_row_are_overrides_that_change_nothing(name: str, scale: Any) -> None:
    recipe, row = recipes.named_row(name)
    plain = recipes.resolve(recipe, row, Context(scale))
    said = [f"{key}={_toml(value)}" for key, value in flatten(recipes.settings(plain)).items()]
    assert recipes.resolve(recipe, row, Context(scale, None, tuple(said))) == plain


def test_mistakes_of_all_overrides_come_at_once() -> None:
    found = problems("optim.kind=sdg", "optim.momentum=0.5", "schedule.lenght=1", "a=1", "b")
    assert len(found) == 4
    for problem, words in zip(
        found,
        (
            "optim.kind: unknown kind 'sdg'; did you mean 'sgd'?",
            "schedule.lenght: no such key; did you mean 'schedule.length'?",
            "a: no such key",
            "'b' is no override; write key.path=value",
        ),
        strict=True,
    ):
        assert words in problem


def test_a_mistake_of_one_sort_hides_none_of_another() -> None:
    said = ("optim.lrr=1", "optim.lr=fast", "test.branch=o2x", "training.accumulate=3", "optim.eps=-1")
    for order in (said, said[::-1]):
        found = "\n".join(sorted(problems(*order)))
        for words in (
            "optim.lrr: no such key; did you mean 'optim.lr'?",
            'optim.lr: input should be a valid number, found "fast"',
            "optim.eps: input should be greater than 0, found -1",
            "test.branch: no branch is called 'o2x'",
            "training.accumulate: 3 doesn't divide the batch of",
        ):
            assert words in found
        assert len(found.splitlines()) == len(said)


@pytest.mark.parametrize("key", ["schedule.length.foo.kind", "init.foo.kind", "optim.lr.kind", "kind"])
def test_a_kind_below_what_has_none_is_no_such_key(key: str) -> None:
    (problem,) = problems(f"{key}=x")
    assert f"{key}: no such key" in problem


@pytest.mark.parametrize("value", ["2020-01-01", "[2020-01-01T10:00:00]", "{ a = 10:00:00 }"])
def test_a_date_is_no_value(value: str) -> None:
    (problem,) = problems(f"test.branch={value}")
    assert "test.branch: " in problem
    assert "is a date or a time to TOML; a text stands in quotes" in problem


def test_a_date_in_a_file_is_a_mistake_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN + "note = 2020-01-01\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"own\.toml: 2020-01-01 is a date or a time"):
        recipes.load(str(path))


# ------------------------------------------------------------------ rows and names


def test_a_quoted_row_is_never_resolved() -> None:
    assert problems(name="date/table4/annotations") == [
        "date/table4, row 'Annotations': is quoted from the paper, never run"
    ]


def test_a_users_own_recipe_has_one_name_wherever_it_is_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert recipes.load("own.toml").name == str(path)
    assert recipes.load("../" + tmp_path.name + "/own.toml") is recipes.load(str(path))
    assert recipes.named_row("own.toml/one")[0].name == str(path)


def _toml(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def test_a_variant_lies_upon_the_one_that_it_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    base = recipes.base_of(recipes.load("align-detr/table1"))
    narrow = Variant(use="dino", set={"detector.queries.num": 30}, scale={"cpu": {"detector.queries.num": 7}})
    narrower = Variant(use="narrow", set={"detector.queries.num": 20})
    lost = Variant(use="dinno", set={})
    variants = {**base.variant, "narrow": narrow, "narrower": narrower, "lost": lost}
    monkeypatch.setattr(recipes, "base_of", lambda recipe: replace(base, variant=variants))
    recipe = recipes.load("align-detr/table1")

    def resolved(use: str, scale: Any) -> Experiment:
        return recipes.resolve(recipe, Row(label="any", use=use), Context(scale=scale))

    found = resolved("narrower", "paper")
    assert set(recipes.changes(resolved("dino", "paper"), found)) == {"detector.queries.num"}
    assert found.detector.queries.num == 20
    assert resolved("narrower", "cpu").detector.queries.num == 7
    with pytest.raises(
        RecipeError, match="variant 'lost': use: the base has no variant 'dinno'; did you mean 'dino'"
    ):
        resolved("lost", "paper")


def test_a_plan_follows_the_batch_and_knows_nothing_of_other_networks_and_images(tmp_path: Path) -> None:
    def expected(*overrides: str) -> runs.Estimate | None:
        chosen = recipes.select(["date/table5/date-f-ours"])
        (cell,) = runs.plan(chosen, Context("cpu", None, overrides), seeds=[0], store=Store(tmp_path))
        return runs.estimate(cell, store=Store(tmp_path))

    plainly, wide = expected(), expected("training.batch=16")
    assert plainly is not None
    assert wide is not None
    assert wide.memory_mb == 4 * plainly.memory_mb
    assert wide.minutes > 3 * plainly.minutes
    folded = expected("training.batch=16", "training.accumulate=4")
    assert folded is not None
    assert (folded.memory_mb, folded.minutes) == (plainly.memory_mb, wide.minutes)
    assert expected("data.train.short=640") is None
    assert expected("detector.backbone.width=48") is None
