"""The training loop: batches in, weights out, resumable at any step to the last bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detbench.core.distributed import most_over_processes, process_index, sum_over_processes
from detbench.data.batch import Batch, TeachingBatch
from detbench.data.dataset import OpenData
from detbench.engine import checkpoint
from detbench.engine.objective import Objective, Supervised
from detbench.engine.optim import build_optimizer, lr_factor, set_lr, total_steps
from detbench.engine.processes import add_up_gradients, gather_objects
from detbench.engine.teach import Taught
from detbench.engine.weights import start_from
from detbench.errors import Interrupted, NonFiniteLoss
from detbench.parts.experiment import Experiment
from detbench.results import CURVE, read_curve
from detbench.store import WEIGHTS, cut_curve

_LOG_POINTS = 400  # loss entries of a whole run: enough for a smooth curve, cheap to draw


class Trainer:
    """One training from its first step, or its last checkpoint, to its end.

    Args:
        experiment: what to train.
        seed: of weights, order and augmentation.
        data: the opened data.
        folder: the run's folder; checkpoints and the curve are written there.
        init_from: the finished run whose weights are taken over before the first step; None for none.
        device: where to train.
        workers: processes that load images.
        checkpoint_seconds: training time between checkpoints; 0 writes one after every step.
        evaluate: called with the model to test and the share of steps done at each evaluation; gives metrics in
            percent.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        seed: int,
        data: OpenData,
        folder: Path,
        init_from: Path | None,
        device: torch.device,
        workers: int,
        checkpoint_seconds: float,
        evaluate: Callable[[nn.Module, float], dict[str, float | None]],
    ) -> None:
        self.experiment, self.seed, self.folder = experiment, seed, folder
        self.checkpoint_seconds, self.evaluate = checkpoint_seconds, evaluate
        training = experiment.training

        torch.manual_seed(seed)
        if experiment.weights is None:
            model = experiment.detector.build(branches=experiment.branches, num_classes=data.num_classes)
        else:
            model = start_from(Path(experiment.weights), experiment, data.class_names)
        if experiment.init is not None and init_from is not None:
            take_over(model, checkpoint.weights_of(init_from / WEIGHTS), experiment.init.modules)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        kind = Supervised if experiment.teacher is None else Taught
        self.objective: Objective[Any] = kind(
            experiment, self.model, data=data, seed=seed, device=device, workers=workers
        )
        self.optimizer = build_optimizer(experiment.optim, self.model, *self.objective.beside)
        self.average = _moving_average(self.model, training.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self.total = total_steps(
            experiment.schedule, num_images=self.objective.num_images, batch=training.batch
        )
        self.step = 0
        self.seconds = 0.0
        self.pending: dict[str, float] = {}  # sums of losses since the last entry in the curve
        self.pending_steps = 0
        self._resume()

    @property
    def results(self) -> dict[str, nn.Module]:
        """What the training leaves, by the names of the files that keep it."""
        return self.objective.results if self.average is None else {WEIGHTS: self.average.module}

    @property
    def tested_model(self) -> nn.Module:
        """Of these the one that is evaluated."""
        return self.objective.tested if self.average is None else self.average.module

    def run(self, *, evaluations: int | None = None) -> None:
        """Trains to the end of the schedule, or until it has been evaluated so often, with its state saved.

        Raises:
            NonFiniteLoss: a loss or gradient became NaN or infinite; the last good checkpoint stays.
            Interrupted: SIGINT or SIGTERM; a checkpoint was written.
        """
        training = self.experiment.training
        # The last evaluation is the test of the finished model, which run.py does and logs.
        milestones = evaluation_steps(self.total, training.evaluations) - {self.total}
        last = self.total if evaluations is None else [*sorted(milestones), self.total][:evaluations][-1]
        log_every = max(1, self.total // _LOG_POINTS)
        batches = self.objective.batches(self.step)
        last_save = self.seconds
        self.model.train()
        with _stop_signals() as stop_asked, contextlib.closing(batches):
            while self.step < last:
                started = time.perf_counter()
                losses = self._step(next(batches))
                self.seconds += time.perf_counter() - started
                for name, value in losses.items():
                    self.pending[name] = self.pending.get(name, 0.0) + value
                self.pending_steps += 1
                if self.step % log_every == 0 or self.step == self.total:
                    self._log_losses()
                if self.step in milestones:
                    self._log({"metrics": self.evaluate(self.tested_model, self.step / self.total)})
                    self.model.train()
                stopping = most_over_processes(int(stop_asked())) > 0
                due = self.seconds - last_save >= self.checkpoint_seconds
                if due or stopping or self.step == last:
                    self._save()
                    last_save = self.seconds
                if stopping and self.step < last:
                    raise Interrupted(
                        f"{self.folder}: stopped after step {self.step} of {self.total}, state saved"
                    )

    def log_final(self, metrics: dict[str, float | None]) -> None:
        """Ends the curve with the test of the finished model, unless a run killed since has done so."""
        evaluations = read_curve(self.folder).evaluations
        if not evaluations or evaluations[-1]["step"] < self.total:
            self._log({"metrics": metrics})

    def _step(self, batch: Batch | TeachingBatch) -> dict[str, float]:
        """One optimiser step on one global batch, and what each loss was."""
        training = self.experiment.training
        # Denoising and dropout draw from torch's own generator: what they draw is a function of (seed, step).
        torch.manual_seed(self.seed << 32 | self.step)
        factor = lr_factor(self.experiment.schedule, step=self.step, total=self.total)
        set_lr(self.optimizer, factor)
        self.objective.before_step(self.step)
        logged: dict[str, float] = {}
        for part in self.objective.parts(batch):
            # Summed by name, so that the order a recipe lists them in moves no bit.
            losses = dict(sorted(self.objective.losses(part, self.step / self.total).items()))
            total = torch.stack(list(losses.values())).sum() / training.accumulate
            own = torch.stack([*losses.values(), total * training.accumulate]).detach()
            values = sum_over_processes(own).tolist()  # one transfer
            for name, value in zip([*losses, "total"], values, strict=True):
                logged[name] = logged.get(name, 0.0) + value / training.accumulate
            self._refuse_non_finite(logged, part)
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        add_up_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.experiment.optim.clip_norm or math.inf)
        if not self.scaler.is_enabled():  # a scaled gradient may overflow: the scaler then skips the step
            self._refuse_non_finite({"gradient norm": norm.item()} | logged, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if (
            self.scaler.is_enabled() and self.scaler.get_scale() < 1
        ):  # not overflow any more: gradients are NaN
            self._refuse_non_finite({"gradient norm": math.nan} | logged, batch)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return logged

    def _refuse_non_finite(self, losses: dict[str, float], batch: Batch | TeachingBatch) -> None:
        if all(math.isfinite(value) for value in losses.values()):
            return
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        images = ", ".join(itertools.chain(*gather_objects(batch.names)))
        saved = checkpoint.saved_step(self.folder)
        kept = (
            f"the checkpoint of step {saved} is kept"
            if saved is not None
            else "no checkpoint was written yet"
        )
        raise NonFiniteLoss(
            f"step {self.step} of {self.total}: a loss is not finite ({values}) on the images {images}; {kept}. "
            "A lower optim.lr, a longer schedule.warmup_steps or optim.clip_norm may help"
        )

    def _log_losses(self) -> None:
        mean = {name: total / self.pending_steps for name, total in self.pending.items()}
        self._log({"lr": self.optimizer.param_groups[-1]["lr"], "losses": mean})
        self.pending, self.pending_steps = {}, 0

    def _log(self, entry: dict[str, Any]) -> None:
        if process_index() > 0:
            return
        epoch = self.step * self.experiment.training.batch / self.objective.num_images
        head = {
            "step": self.step,
            "of": self.total,
            "epoch": round(epoch, 4),
            "seconds": round(self.seconds, 3),
        }
        with (self.folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(head | entry) + "\n")

    def _save(self) -> None:
        if process_index() > 0:
            return
        checkpoint.save(
            self.folder,
            {
                "step": self.step,
                "seconds": self.seconds,
                "pending": self.pending,
                "pending_steps": self.pending_steps,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            | self.objective.state_dict(),
        )

    def _resume(self) -> None:
        state = checkpoint.load(self.folder)
        if process_index() == 0:
            cut_curve(self.folder, after_step=0 if state is None else state["step"])
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.pending, self.pending_steps = state["pending"], state["pending_steps"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state)


def take_over(model: nn.Module, weights: Mapping[str, Tensor], modules: Sequence[str]) -> None:
    """Puts the weights of whole modules in the place of a model's own; its other weights stay.

    Args:
        model: of the same layout in these modules, which `parts.experiment` has seen to.
        weights: another model's, by the same names.
        modules: first words of parameter names.
    """
    taken = {name: weight for name, weight in weights.items() if name.split(".")[0] in modules}
    left = model.load_state_dict(taken, strict=False)
    assert not left.unexpected_keys
    assert not any(name.split(".")[0] in modules for name in left.missing_keys)


def evaluation_steps(total: int, evaluations: int) -> set[int]:
    """The steps after which a model is evaluated: evenly spread, the last step among them."""
    return {max(1, round(total * (i + 1) / evaluations)) for i in range(evaluations)}


def _moving_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question that the loop asks between steps."""
    asked = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
