"""What is collected from a store: whose runs they are is decided by what the data is now."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from typer.testing import CliRunner

from detbench import cli, recipes, runs
from detbench.data.drawn import write
from detbench.parts.data import Drawn
from detbench.parts.part import plain
from detbench.recipes import Context, select
from detbench.report import build, collect, render
from detbench.results import REQUEST, RESULT, read_request, read_result
from detbench.store import Store, write_json


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def finish(store: Store, pattern: str, context: Context, *, day: int = 1, seeds: int = 1) -> list[str]:
    """Finished runs of rows, made up; the digests of their experiments."""
    digests = []
    for index, cell in enumerate(
        runs.plan(recipes.select([pattern]), context, seeds=range(seeds), store=store)
    ):
        runs.request(cell)
        _, row = recipes.named_row(f"{cell.places[0][0]}/{recipes.slug(cell.places[0][1])}")
        result, _ = run(row, cell.seed, index, plain(cell.experiment), set())
        named = replace(
            result,
            digest=cell.digest,
            training_digest=cell.training_digest,
            scale=context.scale,
            finished=f"2026-11-{day:02d}T00:00:00+00:00",
        )
        (cell.folder / RESULT).write_text(json.dumps(plain(named)), encoding="utf-8")
        digests.append(cell.digest)
    return digests


def write_data(folder: Path, seed: int) -> None:
    write(Drawn(size=32, num_train=2, num_val=2, seed=seed), folder)


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def reported(store: Store) -> list[str]:
    return [result.digest for table in collect(store) for result in table.results]


def test_runs_on_data_that_was_replaced_are_not_reported_as_runs_on_what_lies_there_now(
    store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    context = Context("smoke", str(folder))
    made = {}
    for seed in (1, 2, 3):
        write_data(folder, seed)
        made[seed] = finish(store, "quickstart/fcos", context, day=seed)
        assert reported(store) == made[seed]
        remove(folder)
    assert len({*made[1], *made[2], *made[3]}) == 3
    assert reported(store) == made[3], "without the data the newest run says what it was"
    for path in (store.root / made[3][0]).glob(f"0/{RESULT}"):
        path.unlink()
    assert reported(store) == made[2]
    write_data(folder, 1)
    assert reported(store) == made[1]


def test_rows_named_are_reported_alone_with_their_differences_to_the_baseline(store: Store) -> None:
    finish(store, "date/table5", Context("smoke"), seeds=2)
    (whole,) = map(build, collect(store, select(["date/table5"])))
    (part,) = collect(store, select(["date/table5/DATE-F (Ours)", "date/table5/date-r-ours"]))
    alone = build(part)
    assert [row.label for row in alone.rows] == ["DATE-R (Ours)", "DATE-F (Ours)"]
    differences = {row.label: [cell.difference for cell in row.cells] for row in whole.rows}
    for row in alone.rows:
        assert [cell.difference for cell in row.cells] == differences[row.label]
        assert row.cells[0].difference is not None
        assert row.changes
    assert part.recipe.claims == ()
    assert [point.label for sweep in part.recipe.sweeps for point in sweep.point] == [
        "DATE-R (Ours)",
        "DATE-F (Ours)",
    ]
    assert render([part], "terminal")


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


def test_recipes_that_are_gone_or_broken_are_left_out_with_a_line_each(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gone", "broken"):
        path = tmp_path / f"{name}.toml"
        path.write_text(OWN + f"set.optim.lr = {len(name) / 100}\n", encoding="utf-8")
        finish(store, str(path), Context("smoke"))
    finish(store, "quickstart/fcos", Context("smoke"))
    assert sorted(table.name for table in collect(store)) == ["broken", "gone", "quickstart"]
    (tmp_path / "gone.toml").unlink()
    (tmp_path / "broken.toml").write_text("[recipe\n", encoding="utf-8")
    recipes._load_file.cache_clear()  # the next command reads files anew
    assert [table.name for table in collect(store)] == ["quickstart"]
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 2
    assert any("gone.toml: no such file" in line for line in said)
    assert any("broken.toml: not TOML" in line for line in said)


def test_a_users_own_recipe_is_reported_from_any_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.toml").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "mine")
    finish(store, "own.toml", Context("smoke"))
    monkeypatch.chdir(tmp_path)
    assert [table.name for table in collect(store)] == ["own"]


def rename(store: Store, digest: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Changes what was asked of a run and gives it the digest that it would have had; its new name."""
    folder = store.folder(digest, 0)
    request = read_request(folder)
    change(request)
    request["digest"] = digest[::-1]
    result = plain(replace(read_result(folder), digest=digest[::-1]))
    write_json(folder / REQUEST, request)
    write_json(folder / RESULT, result)
    folder.parent.rename(store.root / digest[::-1])
    return f"{digest[::-1]}/0"


def test_finished_runs_that_no_row_means_any_more_are_named_with_what_to_do(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_a_setting(request: dict[str, Any]) -> None:
        del request["experiment"]["optim"]["weight_decay"]

    (old,) = finish(store, "quickstart/fcos", Context("smoke", None, ("optim.lr=5e-4",)))
    name = rename(store, old, without_a_setting)
    finish(store, "quickstart/onenet", Context("smoke"))
    assert [row.label for t in collect(store) for row in build(t).rows if row.seeds] == ["OneNet"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left out of the report: 1 finished run of quickstart at scale smoke.")
    assert "mean another experiment now: FCOS (new settings: optim.weight_decay)." in line
    assert f"`detbench report {name}` shows" in line
    assert "`detbench run quickstart/fcos optim.lr=5e-4 --scale smoke`" in line
    assert collect(store, select(["quickstart/onenet"]))
    assert collect(store, scale="cpu") == []
    assert capsys.readouterr().err == "", "what was not asked for is not left out"


def test_finished_runs_of_a_row_that_is_gone_are_named(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    (digest,) = finish(store, str(path), Context("smoke"))
    path.write_text(OWN.replace('"one"', '"two"').replace("onenet", "fcos"), encoding="utf-8")
    recipes._load_file.cache_clear()  # the next command reads files anew
    assert collect(store) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left out of the report: 1 finished run of own at scale smoke.")
    assert f"no such rows any more: one. `detbench report {digest}/0` shows" in line


def test_what_has_changed_since_a_run_is_named(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(request: dict[str, Any]) -> None:
        request["experiment"]["optim"]["lr"] = 0.25
        request["experiment"]["optim"]["of_old"] = 1

    folder = tmp_path / "data"
    write_data(folder, 1)
    (old,) = finish(store, "quickstart/fcos", Context("smoke"))
    rename(store, old, change)
    finish(store, "quickstart/onenet", Context("smoke", str(folder)))
    remove(folder)
    write_data(folder, 2)
    assert collect(store) == []
    settings, data = capsys.readouterr().err.splitlines()
    assert "FCOS (changed settings: optim.lr; settings that are gone: optim.of_old)" in settings
    assert "OneNet (the data has changed)" in data
    assert f"--data {folder}`" in data


def test_the_command_does_not_call_a_store_of_such_runs_empty(store: Store) -> None:
    def call(*patterns: str) -> str:
        done = CliRunner().invoke(cli.app, ["report", *patterns, "--runs", str(store.root)])
        assert (done.exit_code, done.stdout) == (0, "")
        return done.stderr

    assert "no finished run to report; `detbench run quickstart` makes some" in call()
    (old,) = finish(store, "quickstart/fcos", Context("smoke"))
    rename(store, old, lambda request: None)
    said = call()
    assert "left out of the report: 1 finished run of quickstart" in said
    assert "no finished run to report" not in said
    assert "none of its finished runs is in a table that was asked for" in call("date/table5")
