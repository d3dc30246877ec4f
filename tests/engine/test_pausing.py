"""A run that is paused at an evaluation, as early stopping does: nothing of it is a result, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from smoke_runs import cell_of, do

from detbench import runs
from detbench.results import CURVE, STOPPED, read_curve, read_stopped
from detbench.store import WEIGHTS, Store

SETTINGS = ("training.evaluations=3", "schedule.length=6")


def cell_in(store: Store) -> runs.Cell:
    return cell_of("quickstart/fcos", store, *SETTINGS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def without_time(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / CURVE).read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_paused_run_ends_with_the_bits_of_one_that_never_paused(tmp_path, cache):
    straight, paused = cell_in(Store(tmp_path / "a")), cell_in(Store(tmp_path / "b"))
    whole = do(straight, cache)
    for number in (1, 2):
        assert do(paused, cache, evaluations=number) is None
        assert [e["step"] for e in read_curve(paused.folder).evaluations] == [2, 4][:number]
        assert paused.state == "resumable"
    result = do(paused, cache)
    assert result.metrics == whole.metrics
    weights = [load_file(cell.folder / WEIGHTS) for cell in (straight, paused)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert without_time(straight.folder) == without_time(paused.folder)


def test_a_pause_at_the_last_evaluation_is_the_end(tmp_path, cache):
    cell = cell_in(Store(tmp_path))
    assert do(cell, cache, evaluations=3) is not None
    assert cell.state == "finished"


@pytest.mark.slow
def test_a_stopped_value_is_told_of_and_finished_by_the_command_without_stopping(tmp_path):
    def ablate(*options: str) -> str:
        command = [
            sys.executable, "-m", "detbench", "ablate", "--recipe", "quickstart", "--param", "optim.lr", "--row",
            "fcos", "--values", "1e-9,1e-3", "--scale", "smoke", "--runs", str(tmp_path), *SETTINGS,
            "schedule.length=60", "--json", *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (table,) = json.loads(ablate("--stop-early", "--stop-margin", "0"))
    states = {row["label"]: row["state"] for row in table["rows"]}
    assert states == {"optim.lr=1e-09": "stopped early", "optim.lr=0.001": "measured"}
    assert any(note.startswith("Stopped early, 1 of 2 rows: optim.lr=1e-09.") for note in table["notes"])
    (record,) = tmp_path.glob(f"*/*/{STOPPED}")
    stopped = read_stopped(record.parent)
    assert stopped.step in (20, 40)
    assert stopped.best_row == "optim.lr=0.001"

    (table,) = json.loads(ablate())
    assert {row["state"] for row in table["rows"]} == {"measured"}
    assert not list(tmp_path.glob(f"*/*/{STOPPED}"))
