"""Experiment: everything one row of a table means. Equal experiments with equal seeds give equal results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from detbench.errors import RecipeError
from detbench.parts.branches import Branch
from detbench.parts.combinations import problems_of
from detbench.parts.data import Data
from detbench.parts.detectors import Detector
from detbench.parts.part import OneOf, digest_of, part, plain, read_part
from detbench.parts.teaching import FirstStage, Teacher
from detbench.parts.test import Postprocess, Test
from detbench.parts.training import AdamW, Schedule, Sgd, Training

Module = Literal["backbone", "neck", "towers"]


@part
class InitFrom:
    """Training starts from weights of another row's finished run instead of random ones (DATE, appendix A.2).

    The other run has the same seed, scale and data, and is trained first where it is missing.

    Attributes:
        row: the other row, as the command line names it ("date/table1/fcos-36-ep").
        modules: what is taken over; all else starts as it would without.
        source: the other row's experiment, which `recipes.resolve` fills in.
    """

    row: str
    modules: tuple[Module, ...] = ("backbone", "neck", "towers")
    source: Experiment | None = None

    @property
    def experiment(self) -> Experiment:
        """The other row's experiment."""
        assert self.source is not None, "only a resolved experiment is run or named"
        return self.source


@part
class Experiment:
    """What is trained, on what, how, and how it is tested.

    Attributes:
        detector: the network.
        branches: each stream of predictions by name, with its predictor, assigner and losses.
        data: images and transforms.
        optim: the optimiser.
        schedule: length and learning rate.
        training: batch, precision, averaging.
        init: the run whose weights training starts from; None for the backbone's own weights, all else random.
        test: what is measured on the trained model. No part of the training's identity.
        teacher: labels images that have no labels; None for none.
        first_stage: how the model is supervised up to some step; None for the same branches throughout.
        weights: a file of a whole detector to start from instead of random weights: a finished run's, or one that
            `weights import` wrote. What counts classes starts anew where the file's are others. None for none.
    """

    detector: OneOf[Detector]
    branches: dict[str, Branch]
    data: Data = Data()
    optim: OneOf[AdamW | Sgd] = AdamW()
    schedule: Schedule
    training: Training = Training()
    init: InitFrom | None = None
    test: Test
    teacher: Teacher | None = None
    first_stage: FirstStage | None = None
    weights: str | None = None

    @property
    def weights_file(self) -> Path | None:
        """The file that training starts from: the identity has its path, each run's environment what it held."""
        backbone = self.detector.backbone
        if self.weights is not None:
            return Path(self.weights)
        if backbone.kind != "resnet" or backbone.weights in ("none", "torchvision"):
            return None
        return Path(backbone.weights)

    @property
    def shares(self) -> int:
        """What processes can divide among them of a step's batch: images of a part of it, or a teacher's groups."""
        return self.training.batch // (
            self.training.accumulate if self.teacher is None else self.teacher.group
        )

    def first_stage_at(self, progress: float) -> FirstStage | None:
        """The first stage, if a training step belongs to it; `progress` as in `branches_at`."""
        if self.first_stage is None or progress >= self.first_stage.until:
            return None
        return self.first_stage

    def branches_at(self, progress: float) -> dict[str, Branch]:
        """The branches that supervise a training step.

        Args:
            progress: steps done before it over all steps.
        """
        first = self.first_stage_at(progress)
        return self.branches if first is None else {**self.branches, **first.branches}

    def silent_at(self, progress: float) -> tuple[str, ...]:
        """The branches that learn nothing from pseudo labels in a training step; as `branches_at`."""
        first = self.first_stage_at(progress)
        return () if first is None else first.silent_on_pseudo

    def postprocess_at(self, progress: float) -> Postprocess:
        """What makes detections of predictions, at the end of the first stage the first stage's still.

        Args:
            progress: steps done over all steps; 1 of a finished training.
        """
        if self.first_stage is None or progress > self.first_stage.until:
            return self.test.postprocess
        return self.first_stage.postprocess

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """The plain tree that is hashed, see `identity_of`."""
        return identity_of(plain(self), fingerprint)

    def digest(self, fingerprint: str) -> str:
        """Names the experiment: training and test."""
        return digest_of(self.identity(fingerprint))

    def training_digest(self, fingerprint: str) -> str:
        """Names the training alone: experiments that share it share weights."""
        return training_digest_of(plain(self), fingerprint)


def identity_of(tree: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """What names an experiment that stands as a plain tree, also one recorded before parts got new settings.

    Its data's fingerprint stands in place of the data's path. A run that it starts from counts with its training
    digest, whatever row names it. The batch size at test and the evaluation backend give the same numbers and
    stand outside; so does what an experiment with all its labels leaves unset, as older records do.
    """
    test = {k: v for k, v in tree["test"].items() if k != "batch" and (k, v) != ("student", False)}
    test["metrics"] = {key: value for key, value in test["metrics"].items() if key != "backend"}
    # The fingerprint is of both sources.
    data = {**_without(tree["data"], "labelled", "unlabelled"), "source": fingerprint}
    identity = {**_without(tree, "teacher", "first_stage", "weights"), "data": data, "test": test}
    if data.get("unlabelled") is not None:
        data["unlabelled"] = True
    init = tree["init"]
    if init is not None:
        assert init["source"] is not None, "a row's start is filled in when it is resolved"
        source = training_digest_of(init["source"], fingerprint)
        identity["init"] = {"modules": sorted(set(init["modules"])), "source": source}
    return identity


def training_digest_of(tree: Mapping[str, Any], fingerprint: str) -> str:
    """Names the training of an experiment that stands as a plain tree."""
    identity = identity_of(tree, fingerprint)
    del identity["test"]
    identity["training"] = {key: v for key, v in identity["training"].items() if key != "evaluations"}
    return digest_of(identity)


def _without(tree: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The tree without those of its keys that are unset."""
    return {key: value for key, value in tree.items() if key not in keys or value is not None}


def read_experiment(tree: Mapping[str, Any], *, where: str) -> Experiment:
    """The experiment that a plain tree spells out, checked key by key and then as a whole.

    Raises:
        RecipeError: with every mistake, each with its key path.
    """
    experiment = read_part(Experiment, tree, where=where)
    problems = list(problems_of(experiment))
    if problems:
        raise RecipeError([f"{where}: {problem}" for problem in problems])
    return experiment
