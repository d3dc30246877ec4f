"""One run from request to result: open the data, train or borrow weights, test, write everything down."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from detbench.core.detectors import Detector
from detbench.core.distributed import process_index
from detbench.data.dataset import OpenData, open_data
from detbench.engine import checkpoint, machine
from detbench.engine.cost import costs_of
from detbench.engine.evaluate import (
    detect,
    measure,
    percent,
    percent_per_class,
    require_measurable,
    write_detections,
)
from detbench.engine.processes import leave, wait_for_all
from detbench.engine.train import Trainer
from detbench.errors import DataError
from detbench.parts.data import Drawn
from detbench.parts.experiment import Experiment
from detbench.parts.part import plain
from detbench.results import DETECTIONS, ENVIRONMENT, Result
from detbench.store import finish, forget, sha256_of, write_json


def run_experiment(
    experiment: Experiment,
    *,
    seed: int,
    fingerprint: str,
    scale: str,
    folder: Path,
    cache: Path,
    weights_from: Path | None = None,
    init_from: Path | None = None,
    device: str = "auto",
    threads: int = 1,
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
    fresh: bool = False,
    evaluations: int | None = None,
) -> Result | None:
    """Trains, tests and writes down one run; takes up a checkpoint that lies in its folder.

    Several processes call it alike; the first one writes.

    Args:
        experiment: what to run.
        seed: of weights, order and augmentation.
        fingerprint: of the data as it was planned with; other data is refused.
        scale: name of the overlay the experiment was resolved with, for the record.
        folder: the run's own, held by the caller.
        cache: for drawn data and annotation indices.
        weights_from: a finished run with the same training, whose weights are tested instead of training anew.
        init_from: the finished run that training starts from, where the experiment says it starts from one.
        fresh: forget what the folder holds, once it is clear that the run can start.
        evaluations: pause training when it has been evaluated so often; a checkpoint is written.

    Returns:
        The result; None where the run was paused, and in all processes but the first.

    Raises:
        DataError: the data changed since it was planned with, or can't be read.
        NonFiniteLoss: training broke down.
        Interrupted: the user stopped it.
    """
    chosen = machine.prepare(threads=threads, device=device)
    data = open_data(experiment.data, cache)
    if data.fingerprint != fingerprint:
        raise DataError(
            f"{data.root}: the data has changed since this run was planned (fingerprint {data.fingerprint}, "
            f"planned with {fingerprint}); run the command again"
        )
    require_measurable(data, experiment.test.metrics)
    environment = machine.describe(chosen, threads=threads)
    if experiment.weights_file is not None:
        environment["weights_sha256"] = sha256_of(experiment.weights_file)
    if process_index() == 0:
        if fresh:
            forget(folder)
        write_json(folder / ENVIRONMENT, environment)
    wait_for_all()  # none may find what is to be forgotten

    def test(model: nn.Module, progress: float) -> dict[str, float | None]:
        table = detect(model, experiment, data, device=chosen, workers=workers, progress=progress)
        if process_index() > 0:
            return {}
        return percent(measure(table, data.val.annotations, experiment.test.metrics))

    assert experiment.init is None or init_from is not None or weights_from is not None
    trainer = Trainer(
        experiment, seed=seed, data=data, folder=folder, init_from=init_from, device=chosen, workers=workers,
        checkpoint_seconds=checkpoint_seconds, evaluate=test,
    )  # fmt: skip
    if weights_from is None:
        trainer.run(evaluations=evaluations)
        if trainer.step < trainer.total:
            return None
    else:
        for file, model in trainer.results.items():
            model.load_state_dict(checkpoint.weights_of(weights_from / file))

    started = time.perf_counter()
    table = detect(trainer.tested_model, experiment, data, device=chosen, workers=workers)
    if process_index() > 0:
        return None
    leave()
    measured = measure(table, data.val.annotations, experiment.test.metrics)
    test_seconds = time.perf_counter() - started
    if weights_from is None:
        trainer.log_final(percent(measured))
    for file, model in trainer.results.items():
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / file)
    write_detections(folder / DETECTIONS, table)
    result = Result(
        digest=experiment.digest(fingerprint),
        training_digest=experiment.training_digest(fingerprint),
        seed=seed,
        scale=scale,
        experiment=plain(experiment),
        metrics=percent(measured),
        per_class=percent_per_class(measured, data.class_names),
        cost=_cost(experiment, trainer.model),
        steps=trainer.total,
        epochs=trainer.total * experiment.training.batch / trainer.objective.num_images,
        seconds={"train": trainer.seconds, "test": test_seconds},
        data=_describe_data(experiment, data),
        environment=environment,
        commit=_commit(),
        weights_from="" if weights_from is None else f"{weights_from.parent.name}/{weights_from.name}",
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    finish(folder, plain(result))
    return result


def _cost(experiment: Experiment, detector: Detector) -> dict[str, float]:
    """What the result records of `costs_of`."""
    costs = costs_of(experiment, detector)
    return {
        "params_train_m": costs.train.parameters / 1e6,
        "params_infer_m": costs.infer.parameters / 1e6,
        "gflops_train": costs.train.macs / 1e9,
        "gflops_infer": costs.infer.macs / 1e9,
        "height": costs.height,
        "width": costs.width,
    }


def _describe_data(experiment: Experiment, data: OpenData) -> dict[str, Any]:
    source = experiment.data.source
    unlabelled = {}
    if experiment.teacher is not None and data.unlabelled is not None:
        unlabelled["num_unlabelled"] = len(data.unlabelled)
    return unlabelled | {
        "fingerprint": data.fingerprint,
        "name": f"drawn {source.preset}" if isinstance(source, Drawn) else data.root.name,
        "drawn": isinstance(source, Drawn),
        "num_train": len(data.train),
        "num_val": len(data.val),
        "num_classes": data.num_classes,
    }


def _commit() -> str:
    """The commit that the clone's HEAD names; "" outside a clone. Read from git's own files: git may be missing."""
    git = Path(__file__).resolve().parent.parent.parent / ".git"
    head = git / "HEAD"
    if not head.is_file():
        return ""
    name = head.read_text(encoding="utf-8").strip()
    if not name.startswith("ref: "):
        return name[:12]
    name = name.removeprefix("ref: ")
    if (git / name).is_file():
        return (git / name).read_text(encoding="utf-8").strip()[:12]
    packed = git / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0][:12] for line in lines if line.endswith(f" {name}")), "")
