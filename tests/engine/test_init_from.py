"""Rows that start from another row's finished run: what they take over, when they train, what they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from smoke_runs import do

from detbench import recipes, runs, workers
from detbench.errors import RecipeError
from detbench.recipes import Context
from detbench.results import RESULT
from detbench.store import CHECKPOINT, ERROR, PREVIOUS, WEIGHTS, Store

SMOKE = Context("smoke")
FCOS, ONENET_DAGGER = "date/table1/fcos-36-ep", "date/table11/onenet-dagger*"


def planned(store: Store, *patterns: str, overrides: tuple[str, ...] = ()) -> list[runs.Cell]:
    return runs.plan(recipes.select(patterns), Context("smoke", None, overrides), seeds=[0], store=store)


def own_recipe(folder: Path, *rows: dict[str, Any]) -> Path:
    """A user's own recipe whose rows are OneNet unless they say otherwise."""
    head = {"paper": "own", "table": "own", "title": "own", "metrics": ["AP"], "base": "dense"}
    path = folder / "own.toml"
    path.write_text(tomli_w.dumps({"recipe": head, "row": [{"use": "onenet"} | row for row in rows]}))
    return path


def resolved(path: Path, label: str, context: Context = SMOKE) -> Any:
    recipe = recipes.load(str(path))
    return recipes.resolve(recipe, recipe.rows[label], context)


def test_the_run_that_others_start_from_is_planned_first_and_once(tmp_path: Path) -> None:
    cells = planned(Store(tmp_path), ONENET_DAGGER, "date/figure3/*")
    places = [[f"{recipe}/{label}" for recipe, label in cell.places] for cell in cells]
    # At smoke scale 12 and 36 epochs are the same two steps.
    assert places[0] == ["date/table1/FCOS, 36 ep", "date/table1/FCOS, 12 ep"]
    assert [cell.asked for cell in cells] == [False, True, True, True, True]
    assert [cell.starts_from for cell in cells] == [None, *[cells[0].training_digest] * 3, None]


def test_a_run_that_is_asked_for_too_counts_as_asked_for(tmp_path: Path) -> None:
    for patterns in [(ONENET_DAGGER, FCOS), (FCOS, ONENET_DAGGER)]:
        cells = planned(Store(tmp_path), *patterns)
        assert [(cell.label, cell.asked) for cell in cells] == [("FCOS, 36 ep", True), (cells[1].label, True)]


def test_the_digest_holds_the_sources_training_and_not_its_name(tmp_path: Path) -> None:
    path = own_recipe(
        tmp_path,
        {"label": "a", "set": {"init": {"row": "date/table1/fcos-12-ep"}}},
        {"label": "same", "set": {"init": {"row": "quickstart/fcos"}}},
        {"label": "other source", "set": {"init": {"row": "date/table1/retinanet-12-ep"}}},
        {"label": "less", "set": {"init": {"row": "quickstart/fcos", "modules": ["neck", "backbone"]}}},
        {"label": "order", "set": {"init": {"row": "quickstart/fcos", "modules": ["backbone", "neck"]}}},
        {"label": "random"},
    )
    digests = {label: resolved(path, label).training_digest("data") for label in recipes.load(str(path)).rows}
    assert digests["a"] == digests["same"]
    assert digests["less"] == digests["order"]
    assert len(set(digests.values())) == 4


def test_overrides_reach_the_source_unless_they_are_a_rows_own() -> None:
    recipe, row = recipes.named_row(ONENET_DAGGER)
    context = Context("smoke", None, ("schedule.length=5", "branches.o2o.weight=2", "test.branch=o2o"))
    source = recipes.resolve(recipe, row, context).init.source  # type: ignore[union-attr]
    assert source is not None
    assert source.schedule.length == 5
    assert source.test.branch == "o2m"
    assert recipes.resolve(recipe, row, Context("smoke", None, ("init=unset",))).init is None


def test_the_modules_are_taken_over_and_nothing_else(tmp_path: Path) -> None:
    standing = {"optim": {"lr": 1e-30, "weight_decay": 0.0}}
    path = own_recipe(
        tmp_path,
        {"label": "from", "set": {"init": {"row": FCOS}}, "scale": {"smoke": standing}},
        {"label": "neck", "set": {"init": {"row": FCOS, "modules": ["neck"]}}, "scale": {"smoke": standing}},
        {"label": "random", "scale": {"smoke": standing}},
    )
    store = Store(tmp_path / "runs")
    cells = planned(store, str(path))
    for cell in cells:
        do(cell, store.cache, init_from=cells[0].folder if cell.starts_from else None)
    weights = {cell.label: load_file(cell.folder / WEIGHTS) for cell in cells}
    source = weights["FCOS, 36 ep"]
    for label, modules in (("from", {"backbone", "neck", "towers"}), ("neck", {"neck"})):
        for name, weight in weights[label].items():
            if "running" in name or "num_batches" in name:
                continue  # a norm's statistics go on
            origin = source if name.split(".")[0] in modules else weights["random"]
            assert torch.allclose(weight, origin[name], rtol=0, atol=1e-25), name
    moved = [name for name, w in weights["from"].items() if not torch.allclose(w, weights["random"][name])]
    assert {name.split(".")[0] for name in moved} >= {"backbone", "neck", "towers"}


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source, cell = planned(store, ONENET_DAGGER, overrides=("schedule.length=6",))
    do(source, store.cache)
    do(cell, store.cache, init_from=source.folder, checkpoint_seconds=0)
    whole = load_file(cell.folder / WEIGHTS)
    (cell.folder / CHECKPOINT).unlink()
    (cell.folder / RESULT).unlink()
    assert (cell.folder / PREVIOUS).is_file()
    do(cell, store.cache, init_from=source.folder)
    again = load_file(cell.folder / WEIGHTS)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_a_source_that_fails_stops_those_that_start_from_it_and_no_others(tmp_path: Path) -> None:
    breaks = {"optim": {"lr": 1e30, "clip_norm": 1e30}, "schedule": {"length": 50}}
    path = own_recipe(
        tmp_path,
        {"label": "breaks", "scale": {"smoke": breaks}},
        {"label": "after", "set": {"init": {"row": f"{tmp_path}/own.toml/breaks"}}},
        {"label": "good"},
    )
    store = Store(tmp_path / "runs")
    cells = planned(store, str(path))
    outcomes = {outcome.cell.label: outcome for outcome in workers.execute(cells, store=store, threads=1)}
    assert {label: outcome.state for label, outcome in outcomes.items()} == {
        "breaks": "failed",
        "after": "failed",
        "good": "finished",
    }
    assert "not started: there are no weights of" in outcomes["after"].message
    assert json.loads((cells[0].folder / ERROR).read_text())["kind"] == "NonFiniteLoss"


@pytest.mark.slow
def test_force_leaves_a_run_alone_that_others_merely_start_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source, cell = planned(store, ONENET_DAGGER)
    workers.execute([source, cell], store=store, threads=1)
    before = {c: (c.folder / RESULT).stat().st_mtime_ns for c in (source, cell)}
    workers.execute([source, cell], store=store, threads=1, force=True)
    assert (source.folder / RESULT).stat().st_mtime_ns == before[source]
    assert (cell.folder / RESULT).stat().st_mtime_ns > before[cell]


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"row": "date/table1/no-such-row"}, {}, "no row of date/table1 is called 'no-such-row'"),
    ({"row": "date/table1"}, {}, "stands for 7 rows; name one of"),
    ({"row": "date/table4/annotations"}, {}, "is quoted from the paper, never run"),
    ({"row": FCOS, "modules": ["head"]}, {}, "init.modules.0"),
    (
        {"row": FCOS},
        {"detector": {"subnets": {"num_convs": 3}}},
        "the towers of .* there detector.subnets.num_convs is 1, here 3",
    ),
    (
        {"row": FCOS},
        {"detector": {"neck": {"channels": 32}}},
        "the neck and towers of .* there detector.neck.channels is 16, here 32",
    ),
    (
        {"row": FCOS},
        {"detector": {"backbone": {"width": 12}}},
        "the backbone and neck of .* there detector.backbone.width is 8",
    ),
    (
        {"row": FCOS},
        {"detector": {"subnets": {"shared": False}}},
        "towers can only be taken over where all branches share them",
    ),
    ({"row": FCOS}, {"data": {"source": {"num_train": 8}}}, "is trained on other data"),
]


@pytest.mark.parametrize(("init", "changed", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_a_start_that_cannot_be_is_refused_before_anything_runs(
    init: dict[str, Any], changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = own_recipe(tmp_path, {"label": "bad", "set": {"init": init}, "scale": {"smoke": changed}})
    with pytest.raises(RecipeError, match=message):
        resolved(path, "bad")


def test_rows_that_start_from_each_other_are_refused(tmp_path: Path) -> None:
    path = own_recipe(
        tmp_path,
        {"label": "a", "set": {"init": {"row": f"{tmp_path}/own.toml/b"}}},
        {"label": "b", "set": {"init": {"row": f"{tmp_path}/own.toml/a"}}},
    )
    with pytest.raises(
        RecipeError, match=r"can't start from itself: .*/a starts from .*/b starts from .*/a$"
    ):
        resolved(path, "a")


def test_a_row_that_lacks_parts_is_no_start(tmp_path: Path) -> None:
    waiting = next(
        f"{recipe.name}/{recipes.slug(row.label)}"
        for recipe in map(recipes.load, recipes.names())
        for row in recipe.rows.values()
        if recipe.needs(row) and not row.quoted
    )
    path = own_recipe(tmp_path, {"label": "a", "set": {"init": {"row": waiting}}})
    with pytest.raises(RecipeError, match="can't run yet, needs"):
        resolved(path, "a")


def test_a_start_from_a_start_trains_in_order(tmp_path: Path) -> None:
    path = own_recipe(
        tmp_path,
        {"label": "second", "set": {"init": {"row": f"{tmp_path}/own.toml/first"}}},
        {"label": "first", "set": {"init": {"row": FCOS}}},
    )
    cells = planned(Store(tmp_path / "runs"), str(path))
    assert [cell.label for cell in cells] == ["FCOS, 36 ep", "first", "second"]
    assert [cell.asked for cell in cells] == [False, True, True]
