"""What training minimises: where its batches come from, and the losses of a batch with all images labelled."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Generic

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detbench.core.detectors import Detector
from detbench.core.distributed import most_over_processes, num_processes, process_index
from detbench.core.supervise import supervise
from detbench.core.types import Predictions, Targets
from detbench.data.batch import Batch, to_network
from detbench.data.dataset import OpenData
from detbench.data.loader import AnyBatch, train_batches
from detbench.parts.branches import Branch
from detbench.parts.experiment import Experiment
from detbench.store import WEIGHTS

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(ABC, Generic[AnyBatch]):
    """What a training step computes its losses from.

    Args:
        experiment: what is trained.
        model: what is trained, on its device.
        data: the opened data.
        seed: of order and augmentation.
        device: where the model is.
        workers: processes that load images.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: Detector,
        *,
        data: OpenData,
        seed: int,
        device: torch.device,
        workers: int,
    ) -> None:
        self.experiment, self.model, self.data = experiment, model, data
        self.seed, self.device, self.workers = seed, device, workers
        self.forward: Callable[..., Any] = torch.compile(model) if experiment.training.compile else model

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Images of an epoch."""

    @property
    def results(self) -> dict[str, nn.Module]:
        """What a training leaves, by the names of the files that keep it."""
        return {WEIGHTS: self.model}

    @property
    def tested(self) -> nn.Module:
        """Of these the one that the experiment tests."""
        return self.model

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """What is optimised beside the model."""
        return ()

    @abstractmethod
    def batches(self, steps_from: int) -> Generator[AnyBatch, None, None]:
        """The batches of all steps from one on, without end."""

    @abstractmethod
    def parts(self, batch: AnyBatch) -> list[AnyBatch]:
        """What a batch is computed in, one part after another."""

    def before_step(self, step: int) -> None:
        """What is done before the step of that number, from 0."""

    @abstractmethod
    def losses(self, batch: AnyBatch, progress: float) -> dict[str, Tensor]:
        """Every loss of a part of a batch by name.

        Args:
            batch: the part.
            progress: steps done over all steps.
        """

    def state_dict(self) -> dict[str, Any]:
        """What has to be had again beside the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it from a state that holds it."""

    def predict(
        self, batch: Batch, targets: Targets | None = None, branches: Iterable[str] | None = None
    ) -> dict[str, Predictions]:
        """The model's predictions by branch; `targets` and `branches` as detectors take them."""
        with self.autocast():
            outputs: dict[str, Predictions] = self.forward(self.images(batch), batch.sizes, targets, branches)
        return outputs

    def images(self, batch: Batch) -> Tensor:
        """The batch's images as the network takes them, padded alike in all processes."""
        images = to_network(batch, self.experiment.data.pixels, self.device)
        height, width = images.shape[-2:]
        right, bottom = most_over_processes(width) - width, most_over_processes(height) - height
        return F.pad(images, (0, right, 0, bottom)) if right or bottom else images

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The experiment's precision."""
        return autocast(self.device, self.experiment.training.precision)


class Supervised(Objective[Batch]):
    """All images of a batch are labelled."""

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.data.train)

    def batches(self, steps_from: int) -> Generator[Batch, None, None]:
        """The batches of all steps from one on, without end."""
        return train_batches(
            self.data.train, self.experiment.data, seed=self.seed, batch=self.experiment.training.batch,
            steps_from=steps_from, workers=self.workers, parts=self.experiment.training.accumulate,
            rank=process_index(), world=num_processes(),
        )  # fmt: skip

    def parts(self, batch: Batch) -> list[Batch]:
        """A batch in the equal parts that the experiment asks for."""
        return split(batch, self.experiment.training.accumulate)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Every loss of a part of a batch as "branch.loss"."""
        targets = batch.targets.to(self.device)
        outputs = self.predict(batch, targets)
        return losses_of(self.experiment.branches_at(progress), outputs, targets)


def losses_of(
    branches: Mapping[str, Branch], outputs: Mapping[str, Predictions], targets: Targets
) -> dict[str, Tensor]:
    """The losses of all branches as "branch.loss"."""
    return {
        f"{name}.{loss}": value
        for name, branch in branches.items()
        for loss, value in supervise(branch, outputs[name], targets).items()
    }


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for "bf16" and "fp16", nothing for "fp32"."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch as `parts` equal ones, padded as the whole."""
    if parts == 1:
        return [batch]
    size = len(batch.names) // parts
    bounds = [0, *itertools.accumulate(batch.targets.counts)]
    out = []
    for i in range(0, len(batch.names), size):
        images = slice(i, i + size)
        objects = slice(bounds[i], bounds[i + size])
        targets = batch.targets
        out.append(
            Batch(
                images=batch.images[images],
                targets=Targets(
                    targets.labels[objects], targets.boxes[objects], targets.image_idx[objects] - i,
                    targets.counts[images], targets.sizes[images],
                ),
                sizes=batch.sizes[images],
                original_sizes=batch.original_sizes[images],
                image_index=batch.image_index[images],
                names=batch.names[images],
                matrices=batch.matrices[images],
            )
        )  # fmt: skip
    return out
