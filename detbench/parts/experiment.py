"""Experiment: everything one row of a table means. Equal experiments with equal seeds give equal results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from detbench.errors import RecipeError
from detbench.parts.branches import Branch
from detbench.parts.data import Data
from detbench.parts.detectors import Detector
from detbench.parts.part import OneOf, closest, digest_of, flatten, part, plain, read_part
from detbench.parts.test import Test
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
    """

    detector: Detector
    branches: dict[str, Branch]
    data: Data = Data()
    optim: OneOf[AdamW | Sgd] = AdamW()
    schedule: Schedule
    training: Training = Training()
    init: InitFrom | None = None
    test: Test

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """The plain tree that is hashed: the experiment with its data's fingerprint in place of the data's path.

        A run that it starts from counts with its training digest, whatever row names it. The batch size at test
        and the evaluation backend give the same numbers and stand outside.
        """
        tree: dict[str, Any] = plain(self)
        tree["data"]["source"] = fingerprint
        del tree["test"]["batch"]
        tree["test"]["metrics"].pop("backend", None)
        if self.init is not None:
            source = self.init.experiment.training_digest(fingerprint)
            tree["init"] = {"modules": sorted(set(self.init.modules)), "source": source}
        return tree

    def digest(self, fingerprint: str) -> str:
        """Names the experiment: training and test."""
        return digest_of(self.identity(fingerprint))

    def training_digest(self, fingerprint: str) -> str:
        """Names the training alone: experiments that share it share weights."""
        tree = self.identity(fingerprint)
        del tree["test"]
        del tree["training"]["evaluations"]
        return digest_of(tree)


def read_experiment(tree: Mapping[str, Any], *, where: str) -> Experiment:
    """The experiment that a plain tree spells out, checked key by key and then as a whole.

    Raises:
        RecipeError: with every mistake, each with its key path.
    """
    experiment = read_part(Experiment, tree, where=where)
    problems = _across_parts(experiment)
    if problems:
        raise RecipeError([f"{where}: {problem}" for problem in problems])
    return experiment


def _across_parts(experiment: Experiment) -> list[str]:
    """What no part can see alone."""
    problems = []
    names = list(experiment.branches)
    if not names:
        problems.append("branches: none; a detector needs at least one branch")
    if experiment.test.branch not in names:
        problems.append(
            f"test.branch: no branch is called '{experiment.test.branch}'{closest(experiment.test.branch, names)}"
        )
    if experiment.training.batch % experiment.training.accumulate:
        problems.append(
            f"training.accumulate: {experiment.training.accumulate} doesn't divide the batch of "
            f"{experiment.training.batch}"
        )
    if experiment.data.test.flip:
        problems.append(f"data.test.flip: must be 0 in the test transform, found {experiment.data.test.flip}")
    num_levels = experiment.detector.neck.num_levels
    for name, branch in experiment.branches.items():
        kinds = (branch.predictor.kind, branch.assigner.kind)
        if branch.assigner.kind == "fcos" and len(branch.assigner.size_ranges) != num_levels:
            problems.append(
                f"branches.{name}.assigner.size_ranges: {len(branch.assigner.size_ranges)} ranges for "
                f"{num_levels} pyramid levels (detector.neck.num_levels)"
            )
        if (branch.assigner.kind == "max_iou") != (branch.predictor.kind == "anchor"):
            problems.append(
                f"branches.{name}: predictor '{kinds[0]}' doesn't go with assigner '{kinds[1]}'; "
                "max_iou needs the anchor predictor and the anchor predictor needs max_iou"
            )
        if branch.predictor.kind == "unfiltered":
            other = experiment.branches.get(branch.predictor.branch)
            if other is None or other.predictor.kind != "point" or other.predictor.max_filter is None:
                problems.append(
                    f"branches.{name}.predictor.branch: '{branch.predictor.branch}' is no branch with a max_filter"
                )
        for loss_name, loss in branch.losses.items():
            where = f"branches.{name}.losses.{loss_name}"
            if loss.kind == "delta_l1" and branch.predictor.kind != "anchor":
                problems.append(f"{where}: delta_l1 needs the anchor predictor, found '{kinds[0]}'")
            needs_centerness = loss.kind == "centerness" or loss.divide_by == "centerness"
            if needs_centerness and branch.predictor.kind != "fcos":
                problems.append(f"{where}: centre-ness needs the fcos predictor, found '{kinds[0]}'")
    if experiment.init is not None and experiment.init.source is not None:
        problems += _across_runs(experiment, experiment.init.source, experiment.init)
    channels, groups = experiment.detector.neck.channels, experiment.detector.subnets.groups
    if channels % groups:
        problems.append(
            f"detector.subnets.groups: {groups} doesn't divide detector.neck.channels = {channels}"
        )
    return problems


# What decides the shapes and the meaning of a module's weights, below `detector`.
_LAYOUT: dict[Module, tuple[str, ...]] = {
    "backbone": ("backbone",),
    "neck": ("backbone", "neck"),
    "towers": ("neck.channels", "subnets.num_convs", "subnets.groups", "subnets.shared"),
}
_WITHOUT_SHAPE = ("backbone.weights", "backbone.frozen_stages")


def _across_runs(experiment: Experiment, source: Experiment, init: InitFrom) -> list[str]:
    """Why an experiment can't start from the weights of another."""
    problems = []
    if source.data.source != experiment.data.source:
        problems.append(f"init.row: '{init.row}' is trained on other data than this row (data.source)")
    if "towers" in init.modules and not experiment.detector.subnets.shared:
        problems.append("init.modules: towers can only be taken over where all branches share them")
    ours, theirs = flatten(plain(experiment.detector)), flatten(plain(source.detector))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        of = [m for m in init.modules if any(f"{key}.".startswith(f"{head}.") for head in _LAYOUT[m])]
        if of and key not in _WITHOUT_SHAPE and ours.get(key) != theirs.get(key):
            problems.append(
                f"init.modules: the {' and '.join(of)} of '{init.row}' don't fit: there detector.{key} is "
                f"{theirs.get(key)}, here {ours.get(key)}"
            )
    return problems
