"""Training with a teacher: a moving average of the model labels the images that have no labels (Semi-DETR)."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detbench.core.teaching.labels import Candidates, candidates_of, moved
from detbench.core.types import QueryPredictions
from detbench.data.batch import Batch, TeachingBatch, to_network
from detbench.data.dataset import DetectionData
from detbench.data.loader import teaching_batches
from detbench.engine.objective import Objective, autocast, losses_of
from detbench.parts.teaching import Teacher
from detbench.store import STUDENT, WEIGHTS


class Taught(Objective[TeachingBatch]):
    """Some images of a batch are labelled; of the others the student learns what its teacher sees (spec 8.1, 8.3).

    The model that is optimised is the student. The teacher starts as it and is never optimised.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()

    @property
    def rule(self) -> Teacher:
        """What the experiment says of the teacher."""
        assert self.experiment.teacher is not None
        return self.experiment.teacher

    @property
    def unlabelled(self) -> DetectionData:
        """The images that the teacher labels."""
        assert self.data.unlabelled is not None, "Experiment refuses a teacher without them"
        return self.data.unlabelled

    @property
    def num_images(self) -> int:
        """Images of an epoch, labelled or not."""
        return len(self.data.train) + len(self.unlabelled)

    @property
    def results(self) -> dict[str, nn.Module]:
        """Teacher and student, by the names of the files that keep them."""
        return {WEIGHTS: self.teacher, STUDENT: self.model}

    @property
    def tested(self) -> nn.Module:
        """The teacher, unless the experiment asks for the student."""
        return self.model if self.experiment.test.student else self.teacher

    def batches(self, steps_from: int) -> Generator[TeachingBatch, None, None]:
        """The batches of all steps from one on, without end."""
        return teaching_batches(
            self.data.train, self.unlabelled, self.experiment.data, self.rule, seed=self.seed,
            batch=self.experiment.training.batch, steps_from=steps_from, workers=self.workers,
        )  # fmt: skip

    def parts(self, batch: TeachingBatch) -> list[TeachingBatch]:
        """The batch as a whole: `Experiment` refuses parts of it."""
        return [batch]

    def before_step(self, step: int) -> None:
        """Moves the teacher towards the student, all the way before the first step."""
        follow(self.teacher, self.model, momentum=min(self.rule.momentum, 1 - 1 / (step + 1)))

    def losses(self, batch: TeachingBatch, progress: float) -> dict[str, Tensor]:
        """The losses of labelled images as "branch.loss", of the others as "pseudo.branch.loss"."""
        branches, silent = self.experiment.branches_at(progress), self.experiment.silent_at(progress)
        targets = batch.labelled.targets.to(self.device)
        losses = losses_of(branches, self.predict(batch.labelled, targets), targets)

        found = self.find(batch.weak)
        pseudo = moved(found, batch.weak_to_strong.to(self.device), batch.strong.sizes)
        pseudo_targets = pseudo.above(self.rule.labels.threshold)
        learning = {name: branch for name, branch in branches.items() if name not in silent}
        outputs = self.predict(batch.strong, pseudo_targets, tuple(learning))
        for name, value in losses_of(learning, outputs, pseudo_targets).items():
            losses[f"pseudo.{name}"] = self.rule.weight * value
        return losses

    @torch.no_grad()
    def find(self, weak: Batch) -> Candidates:
        """What the teacher makes out on weak views."""
        name = self.experiment.test.branch
        images = to_network(weak, self.experiment.data.pixels, self.device)
        with autocast(self.device, self.experiment.training.precision):
            predictions = self.teacher(images, weak.sizes, branches=(name,))[name]
        assert isinstance(predictions, QueryPredictions), "Experiment refuses a teacher of another detector"
        return candidates_of(self.rule.labels, predictions, weak.sizes)

    def state_dict(self) -> dict[str, Any]:
        """The teacher."""
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it from a state that holds it."""
        self.teacher.load_state_dict(state["teacher"])


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Moves a teacher towards its student: momentum * teacher + (1 - momentum) * student.

    So do the running statistics of its norms: weights and statistics then stand for the same past. The paper's norms
    are frozen, it says nothing of them.
    """
    for weight, target in zip(teacher.parameters(), student.parameters(), strict=True):
        weight.lerp_(target, 1 - momentum)
    for buffer, current in zip(teacher.buffers(), student.buffers(), strict=True):
        if buffer.is_floating_point():
            buffer.lerp_(current, 1 - momentum)
        else:
            buffer.copy_(current)
