"""Runs at `smoke` scale, in this process or in a worker's, for tests of whole runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from detbench import recipes, runs
from detbench.data.dataset import open_data
from detbench.engine import checkpoint
from detbench.engine.run import run_experiment
from detbench.engine.train import Trainer
from detbench.recipes import Context
from detbench.results import RESULT, Result, read_curve, read_result
from detbench.store import Store


def cell_of(pattern: str, store: Store, *overrides: str, seed: int = 0, data: str | None = None) -> runs.Cell:
    """The one cell that a pattern stands for; what is asked of it is written down."""
    context = Context("smoke", data, overrides)
    (cell,) = runs.plan(recipes.select([pattern]), context, seeds=[seed], store=store)
    runs.request(cell)
    return cell


def trainer_of(cell: runs.Cell, cache: Path) -> Trainer:
    """The training of a cell, before its first step or where its checkpoint left it, without evaluations."""
    return Trainer(
        cell.experiment, seed=cell.seed, data=open_data(cell.experiment.data, cache), folder=cell.folder,
        init_from=None, device=torch.device("cpu"), workers=0, checkpoint_seconds=1e9,
        evaluate=lambda model, progress: {},
    )  # fmt: skip


def do(cell: runs.Cell, cache: Path, **options: Any) -> Result | None:
    """The run of a cell in this process."""
    runs.request(cell)
    return run_experiment(
        cell.experiment, seed=cell.seed, fingerprint=cell.fingerprint, scale=cell.context.scale, folder=cell.folder,
        cache=cache, device="cpu", **options,
    )  # fmt: skip


def worker(cell: runs.Cell, cache: Path, *options: str) -> subprocess.Popen[bytes]:
    """The run of a cell in a process of its own."""
    runs.request(cell)
    command = [sys.executable, "-m", "detbench.engine", str(cell.folder), "--cache", str(cache)]
    return subprocess.Popen(
        [*command, "--device", "cpu", *options], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def train_with_kills(cell: runs.Cell, cache: Path, *, after: Iterable[int]) -> list[int]:
    """The run of a cell whose worker is killed once it has come to each of these steps; the steps that were saved."""
    saved = []
    for step in after:
        process = worker(cell, cache, "--checkpoint-seconds", "0")
        while process.poll() is None:
            now = runs.progress(cell.folder)
            if now is not None and now.step >= step:
                process.send_signal(signal.SIGKILL)
                process.wait()
                saved.append(checkpoint.saved_step(cell.folder) or 0)
            time.sleep(0.005)
    if not (cell.folder / RESULT).is_file():
        assert worker(cell, cache, "--checkpoint-seconds", "0").wait() == 0
    return saved


def assert_same_to_the_bit(one: Path, other: Path, *weights: str) -> None:
    """Two finished runs have the same weights, metrics and curves; the time they took may differ."""
    for file in weights:
        mine, theirs = load_file(one / file), load_file(other / file)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert read_result(one).metrics == read_result(other).metrics
    curves = [read_curve(folder) for folder in (one, other)]
    losses = [[(entry["step"], entry["losses"]) for entry in curve.steps] for curve in curves]
    metrics = [[(entry["step"], entry["metrics"]) for entry in curve.evaluations] for curve in curves]
    assert losses[0] == losses[1]
    assert metrics[0] == metrics[1]
