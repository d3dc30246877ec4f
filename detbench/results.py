"""What a finished run says: its result, its curve, its raw detections. Read from its folder, never edited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbench.errors import StoreError
from detbench.parts.data import Data
from detbench.parts.part import read_part
from detbench.parts.test import Test

if TYPE_CHECKING:
    from detbench.metrics.tables import DetectionTable

RESULT, CURVE, REQUEST, DETECTIONS = "result.json", "curve.jsonl", "request.json", "detections.npz"
STOPPED, ENVIRONMENT = "stopped.json", "environment.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run. Written once, never edited.

    Attributes:
        digest: of the experiment (training and test) with its data's fingerprint.
        training_digest: of the training alone.
        seed: of the run.
        scale: the named overlay it was resolved with; never mixed in one table.
        experiment: the resolved experiment as a plain tree.
        metrics: AP and its kin in percent, as papers print them; None where nothing could be measured, such as
            APs without small objects.
        per_class: class name to its metrics in percent.
        cost: "params_train_m" and "params_infer_m" in millions of trainable parameters, "gflops_train" and
            "gflops_infer" in 1e9 multiply-accumulates of one image at the test size.
        steps: optimiser steps taken.
        epochs: passes over the training images.
        seconds: "train" and "test", wall time without start-up.
        data: "fingerprint", "name", "num_train", "num_val", "num_classes", "drawn" (bool), and with a teacher
            "num_unlabelled".
        environment: versions, hardware, threads, device; "weights_sha256" of the file that training started from.
        commit: of detbench's clone; "" outside one. `environment["code"]` tells changed files too.
        weights_from: "" or the run ("digest/seed") whose training this test used.
        finished: ISO time, UTC.
    """

    digest: str
    training_digest: str
    seed: int
    scale: str
    experiment: dict[str, Any]
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    cost: dict[str, float]
    steps: int
    epochs: float
    seconds: dict[str, float]
    data: dict[str, Any]
    environment: dict[str, Any]
    commit: str
    weights_from: str
    finished: str

    @property
    def name(self) -> str:
        """What the run is called by: "digest/seed"."""
        return f"{self.digest}/{self.seed}"

    @property
    def data_part(self) -> Data:
        """The data as recorded: readable also where the rest of the experiment is none that this version knows.

        Raises:
            RecipeError: it isn't readable either.
        """
        return read_part(Data, self.experiment["data"], where=f"{self.name}: data")

    @property
    def test_part(self) -> Test:
        """The test as recorded; as `data_part`."""
        return read_part(Test, self.experiment["test"], where=f"{self.name}: test")


@dataclass(frozen=True)
class Curve:
    """How a run went: one entry for each logged step and one for each evaluation.

    Attributes:
        steps: step, epoch, seconds of training so far, lr, and "losses" by name ("o2o.cls"; "total").
        evaluations: step, epoch, seconds of training so far, and "metrics" in percent.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Why an ablation stopped a run before its end. The run keeps its checkpoint and goes on when it is run again.

    Attributes:
        seed: of the run.
        step: after which it was stopped.
        of: steps of its whole training.
        metric: that was compared, in percent.
        score: of the run's value of the parameter at that evaluation, the mean over its seeds.
        best_row: label of the value that was best there.
        best: its mean over the same seeds.
        allowed: how far behind a value might be: the margin, or what chance between seeds explains if that is more.
        margin: that was asked for.
        seeds: compared.
    """

    seed: int
    step: int
    of: int
    metric: str
    score: float
    best_row: str
    best: float
    allowed: float
    margin: float
    seeds: int

    @property
    def text(self) -> str:
        """The decision in words."""
        mean = f"mean {self.metric} of {self.seeds} seeds" if self.seeds > 1 else self.metric
        return (
            f"stopped early at step {self.step:,} of {self.of:,}: {mean} {self.score:.1f} there, "
            f"{self.best - self.score:.1f} behind '{self.best_row}'; allowed were {self.allowed:.1f}"
        )


def read_stopped(folder: Path) -> Stopped | None:
    """Why the run in a folder was stopped early; None where it wasn't.

    Raises:
        StoreError: the record is damaged.
    """
    path = folder / STOPPED
    if not path.is_file():
        return None
    try:
        return Stopped(**_read_tree(path))
    except _DAMAGED as error:
        raise StoreError(f"{path}: damaged ({error}); delete it, and run again to finish the run") from None


def read_result(folder: Path) -> Result:
    """The result in a finished run's folder.

    Raises:
        StoreError: it is missing or damaged.
    """
    path = folder / RESULT
    try:
        return Result(**_read_tree(path))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; the run is not finished") from None
    except _DAMAGED as error:
        raise StoreError(f"{path}: damaged ({error}); delete the folder {folder} and run it again") from None


def read_curve(folder: Path) -> Curve:
    """The curve in a run's folder so far; empty when it has none yet."""
    curve = Curve()
    for entry in _lines(folder / CURVE):
        (curve.evaluations if "metrics" in entry else curve.steps).append(entry)
    return curve


def read_request(folder: Path) -> dict[str, Any]:
    """What was asked of a run: experiment, seed, scale, data, overrides, and its rows ("places").

    Raises:
        StoreError: it is missing or damaged.
    """
    path = folder / REQUEST
    try:
        return _read_tree(path)
    except _DAMAGED as error:
        raise StoreError(
            f"{path}: unreadable ({error}); delete the folder {folder} and run it again"
        ) from None


def read_environment(folder: Path) -> dict[str, Any] | None:
    """What a run was begun with, on which machine; None where it wasn't begun.

    Raises:
        StoreError: the record is damaged.
    """
    path = folder / ENVIRONMENT
    if not path.is_file():
        return None
    try:
        return _read_tree(path)
    except _DAMAGED as error:
        raise StoreError(f"{path}: damaged ({error}); delete the folder {folder} and run it again") from None


def read_detections(path: Path) -> DetectionTable:
    """The raw detections of a finished run.

    Raises:
        StoreError: the file is missing or damaged.
    """
    # Here, because most who read results have no use for NumPy and would wait for it.
    import zlib
    from zipfile import BadZipFile

    import numpy as np

    from detbench.metrics.tables import DetectionTable

    try:
        with np.load(path) as arrays:
            return DetectionTable(
                **{name: arrays[name] for name in ("image", "label", "boxes_xywh", "scores")}
            )
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise StoreError(f"{path}: can't be read ({error})") from None


_DAMAGED = (OSError, ValueError, TypeError)  # no text, no JSON, or JSON of something else


def _read_tree(path: Path) -> dict[str, Any]:
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise TypeError("no JSON object")
    return tree


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON lines; a last line cut off by a killed process is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
