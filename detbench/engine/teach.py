"""Training with a teacher: a moving average of the model labels the images that have no labels (Semi-DETR)."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detbench.core.detectors.query import QueryDetector
from detbench.core.distributed import num_processes, process_index
from detbench.core.teaching.consistency import ConsistencyModule, Views
from detbench.core.teaching.labels import candidates_of, moved
from detbench.core.types import QueryPredictions
from detbench.data.batch import TeachingBatch
from detbench.data.dataset import DetectionData
from detbench.data.loader import teaching_batches
from detbench.engine.objective import Objective, losses_of
from detbench.parts.teaching import Teacher
from detbench.store import STUDENT, WEIGHTS


class Taught(Objective[TeachingBatch]):
    """Some images of a batch are labelled; of the others the student learns what its teacher sees (spec 8.1, 8.3).

    The model that is optimised is the student. The teacher starts as it and is never optimised.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.consistency: ConsistencyModule | None = None
        if self.rule.consistency is not None:
            self.consistency = ConsistencyModule(
                self.rule.consistency,
                channels=self.experiment.detector.neck.channels,
                strides=self.student.strides,
            ).to(self.device)

    @property
    def student(self) -> QueryDetector:
        """The model that is optimised."""
        assert isinstance(self.model, QueryDetector), "Experiment refuses a teacher of another detector"
        return self.model

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """What else is optimised."""
        return () if self.consistency is None else (self.consistency,)

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
            rank=process_index(), world=num_processes(),
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
        if progress < self.rule.burn_in:
            return losses

        views = self.look(batch)
        pseudo = views.on_strong.above(self.rule.labels.threshold)
        learning = {name: branch for name, branch in branches.items() if name not in silent}
        with self.autocast():
            if self.consistency is not None and self.experiment.first_stage_at(progress):
                outputs, distance = self.consistency(
                    self.student,
                    self.teacher,
                    views,
                    threshold=self.rule.labels.threshold,
                    tested=self.experiment.test.branch,
                    branches=tuple(learning),
                )
                losses["pseudo.consistency"] = self.rule.weight * distance
            else:
                outputs, _ = self.student.decode(views.strong, pseudo, tuple(learning))
        for name, value in losses_of(learning, outputs, pseudo).items():
            losses[f"pseudo.{name}"] = self.rule.weight * value
        return losses

    def look(self, batch: TeachingBatch) -> Views:
        """Both views of the unlabelled images, and what the teacher makes out on the weak ones."""
        tested = self.experiment.test.branch
        with self.autocast():
            with torch.no_grad():
                weak = self.teacher.encode(self.images(batch.weak), batch.weak.sizes)
                predictions, _ = self.teacher.decode(weak, branches=(tested,))
            strong = self.student.encode(self.images(batch.strong), batch.strong.sizes)
        of_teacher = predictions[tested]
        assert isinstance(of_teacher, QueryPredictions), "Experiment tests a decoder output alone"
        found = candidates_of(self.rule.labels, of_teacher, batch.weak.sizes)
        return Views(
            weak, strong, found, moved(found, batch.weak_to_strong.to(self.device), batch.strong.sizes)
        )

    def state_dict(self) -> dict[str, Any]:
        """The teacher, and what else is optimised."""
        return {
            "teacher": self.teacher.state_dict(),
            "beside": [module.state_dict() for module in self.beside],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores both from a state that holds them."""
        self.teacher.load_state_dict(state["teacher"])
        for module, own in zip(self.beside, state["beside"], strict=True):
            module.load_state_dict(own)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Moves a teacher towards its student: momentum * teacher + (1 - momentum) * student.

    So do the running statistics of its norms, of which the paper says nothing, its norms being frozen: weights and
    statistics then stand for the same past (DINO at cpu scale after 1,393 steps: 16.0 AP, with the student's 15.6).
    """
    for weight, target in zip(teacher.parameters(), student.parameters(), strict=True):
        weight.lerp_(target, 1 - momentum)
    for buffer, current in zip(teacher.buffers(), student.buffers(), strict=True):
        if buffer.is_floating_point():
            buffer.lerp_(current, 1 - momentum)
        else:
            buffer.copy_(current)
