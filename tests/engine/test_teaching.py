"""Training with a teacher: who sees what, what is averaged, which stage rules, and what survives a kill."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from smoke_runs import assert_same_to_the_bit, cell_of, do, train_with_kills, trainer_of, worker
from torch import nn

from detbench import recipes, runs
from detbench.data.dataset import open_data
from detbench.engine import apply, teach
from detbench.engine.teach import Taught, follow
from detbench.engine.train import Trainer
from detbench.parts.test import Nms, TopK
from detbench.recipes import Context
from detbench.results import DETECTIONS, read_curve, read_detections
from detbench.store import STUDENT, WEIGHTS, Store

RECIPE = """
[recipe]
paper = "sized-l1"
table = "few"
kind = "table"
title = "Few labels"
dataset = "coco-val2017"
metrics = ["AP"]
base = "query"
baseline = "Supervised"

[[row]]
label = "Supervised"
use = "dino"
set.data.labelled = { percent = 50.0 }

[[row]]
label = "Taught"
use = "dino"
set.data.labelled = { percent = 50.0 }
set.teacher = { momentum = 0.9, group = 2, weight = 4.0, labels = { threshold = 0.0 } }

[[row]]
label = "Student"
use = "dino"
set.data.labelled = { percent = 50.0 }
set.teacher = { momentum = 0.9, group = 2, weight = 4.0, labels = { threshold = 0.0 } }
set.test.student = true

[[row]]
label = "Stages"
use = "dino"
set.data.labelled = { percent = 50.0 }
set.teacher.momentum = 0.9
set.teacher.group = 2
set.teacher.weight = 4.0
set.teacher.labels.threshold = 0.0
set.teacher.consistency = { roi_size = 2, hidden_dim = 8, mining = {} }

[row.set.first_stage]
until = 0.5
silent_on_pseudo = ["denoising"]
postprocess = { kind = "nms", score_threshold = 0.0, iou_threshold = 0.6, per_level = 300, keep = 300 }

[row.set.first_stage.branches.decoder]
predictor = { kind = "decoder" }
assigner = { kind = "query_iou" }
losses.cls = { kind = "focal", weight = 1.0, divide_by = "objects" }
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "few.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def taught(trainer: Trainer) -> Taught:
    assert isinstance(trainer.objective, Taught)
    return trainer.objective


def test_a_teacher_is_the_moving_average_of_its_student(recipe: str, tmp_path: Path, cache: Path) -> None:
    """Worked out again from the students of each step."""
    trainer = trainer_of(cell_of(f"{recipe}/taught", Store(tmp_path), "schedule.length=12"), cache)
    objective, students = taught(trainer), []
    before_step = objective.before_step

    def note(step: int) -> None:
        students.append(copy.deepcopy(dict(trainer.model.named_parameters())))
        before_step(step)

    objective.before_step = note  # type: ignore[method-assign]
    trainer.run()
    expected = {name: torch.zeros_like(p) for name, p in students[0].items()}
    for step, student in enumerate(students):
        momentum = min(0.9, 1 - 1 / (step + 1))
        for name, value in expected.items():
            expected[name] = momentum * value + (1 - momentum) * student[name].detach()
    assert len(students) == 12
    for name, parameter in objective.teacher.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
        assert not parameter.requires_grad
    assert not objective.teacher.training
    both = zip(objective.teacher.parameters(), trainer.model.parameters(), strict=True)
    assert any(not torch.equal(mine, its) for mine, its in both)


def test_statistics_of_norms_are_averaged_and_counters_taken_over() -> None:
    student, teacher = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        student(torch.tensor([[4.0], [6.0]]))
    follow(teacher, student, momentum=0.75)
    assert teacher.running_mean is not None
    assert teacher.running_mean.item() == pytest.approx(0.25 * 0.1 * 5)
    assert teacher.num_batches_tracked == student.num_batches_tracked == 1


def test_a_module_that_is_used_twice_is_moved_once() -> None:
    layer = nn.Linear(1, 1, bias=False)
    student = nn.Sequential(layer, layer)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        teacher[0].weight.fill_(1.0)
    follow(teacher, student, momentum=0.5)
    assert teacher[0].weight.item() == teacher[1].weight.item() == 1.5


def test_pseudo_losses_are_those_of_the_teachers_boxes_times_the_weight(
    recipe: str, tmp_path: Path, cache: Path
) -> None:
    """Put together by hand from the same batch: labelled images as ever, the others with moved boxes as objects."""
    trainer = trainer_of(cell_of(f"{recipe}/taught", Store(tmp_path)), cache)
    objective = taught(trainer)
    objective.before_step(0)
    batch = next(objective.batches(0))
    trainer.model.train()

    torch.manual_seed(0)
    losses = objective.losses(batch, 0.0)

    torch.manual_seed(0)
    branches = objective.experiment.branches
    targets = batch.labelled.targets
    for name, value in teach.losses_of(branches, objective.predict(batch.labelled, targets), targets).items():
        torch.testing.assert_close(losses[name], value)
    views = objective.look(batch)
    assert sum(views.on_weak.counts) > 0
    pseudo = teach.moved(views.on_weak, batch.weak_to_strong, batch.strong.sizes).above(0.0)
    assert pseudo.pseudo
    again = teach.losses_of(branches, objective.predict(batch.strong, pseudo), pseudo)
    for name, value in again.items():
        torch.testing.assert_close(losses[f"pseudo.{name}"], 4.0 * value)
    assert len(losses) == 2 * len(again)


def test_a_teachers_boxes_lie_where_its_student_sees_the_same_things(
    recipe: str, tmp_path: Path, cache: Path
) -> None:
    """A box in the file's image, found on the weak view, is the box of the strong view."""
    objective = taught(trainer_of(cell_of(f"{recipe}/taught", Store(tmp_path)), cache))
    batch = next(objective.batches(0))
    center = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    for i in range(len(batch.weak.names)):
        height, width = batch.weak.original_sizes[i]
        point = center * torch.tensor([width, height, 1])
        weak, strong = batch.weak.matrices[i] @ point, batch.strong.matrices[i] @ point
        assert 0 < weak[0] < batch.weak.sizes[i][1]
        torch.testing.assert_close(batch.weak_to_strong[i].double() @ weak, strong, atol=1e-3, rtol=1e-4)


def test_the_first_stage_has_its_branches_its_silence_and_its_postprocess(
    recipe: str, tmp_path: Path, cache: Path
) -> None:
    cell = cell_of(f"{recipe}/stages", Store(tmp_path), "schedule.length=4", "training.evaluations=4")
    do(cell, cache)
    steps = read_curve(cell.folder).steps
    for entry in steps[:2]:
        assert not [name for name in entry["losses"] if name.startswith("pseudo.denoising")]
        assert "denoising.cls" in entry["losses"]
        assert "decoder.bbox" not in entry["losses"], "the first stage's decoder learns classes alone"
    for entry in steps[2:]:
        assert {"pseudo.denoising.cls", "decoder.bbox", "pseudo.decoder.bbox"} <= set(entry["losses"])


def test_until_the_burn_in_is_over_labelled_images_are_learnt_alone(
    recipe: str, tmp_path: Path, cache: Path
) -> None:
    cell = cell_of(f"{recipe}/taught", Store(tmp_path), "schedule.length=4", "teacher.burn_in=0.5")
    assert do(cell, cache).data["num_unlabelled"] == 3
    learnt = [any(name.startswith("pseudo.") for name in e["losses"]) for e in read_curve(cell.folder).steps]
    assert learnt == [False, False, True, True]


def test_each_evaluation_keeps_the_detections_of_its_stage(
    recipe: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(f"{recipe}/stages", Store(tmp_path), "schedule.length=4", "training.evaluations=4")
    used: list[str] = []
    for kind in (Nms, TopK):
        original = kind.__call__

        def noted(self: Any, *args: Any, original: Any = original) -> Any:
            used.append(self.kind)
            return original(self, *args)

        monkeypatch.setattr(kind, "__call__", noted)
    do(cell, cache)
    assert used == ["nms", "nms", "top_k", "top_k"]


def test_teacher_and_student_are_tested_from_one_training(recipe: str, tmp_path: Path, cache: Path) -> None:
    cells = [
        cell_of(f"{recipe}/{row}", Store(tmp_path), "schedule.length=6") for row in ("taught", "student")
    ]
    assert cells[0].digest != cells[1].digest
    do(cells[0], cache)
    trained = Store(tmp_path).trained(cells[1].training_digest, 0)
    assert trained == cells[0].folder
    do(cells[1], cache, weights_from=trained)
    for name in (WEIGHTS, STUDENT):
        one, other = (load_file(cell.folder / name) for cell in cells)
        assert all(torch.equal(one[key], other[key]) for key in one)
    teacher, student = (load_file(cells[0].folder / name) for name in (WEIGHTS, STUDENT))
    assert any(not torch.equal(teacher[key], student[key]) for key in teacher)
    one, other = (read_detections(cell.folder / DETECTIONS) for cell in cells)
    assert not np.array_equal(one.scores, other.scores)
    for cell, weights in zip(cells, (teacher, student), strict=True):
        loaded = apply.load(cell.folder, device=torch.device("cpu")).model.state_dict()
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_without_a_teacher_unlabelled_images_are_seen_by_nobody(
    recipe: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(f"{recipe}/supervised", Store(tmp_path), "schedule.length=6")
    data = open_data(cell.experiment.data, cache)
    assert data.unlabelled is not None
    result = do(cell, cache)
    assert result.data["num_train"] == len(data.train) == 3
    assert "num_unlabelled" not in result.data
    assert result.epochs == 6 * 2 / 3
    seen = {name for batch in _some_batches(trainer_of(cell, cache)) for name in batch.names}
    assert not seen & {data.train.annotations.file_name(i) for i in data.unlabelled.indices.tolist()}


def _some_batches(trainer: Trainer) -> list[Any]:
    batches = trainer.objective.batches(0)
    return [next(batches) for _ in range(6)]


def test_an_epoch_of_a_teachers_training_is_of_all_images(recipe: str, tmp_path: Path, cache: Path) -> None:
    settings = ("schedule.length=2", "schedule.unit=epochs")
    assert trainer_of(cell_of(f"{recipe}/taught", Store(tmp_path), *settings), cache).total == 2 * 6 / 2


def test_a_plan_counts_what_unlabelled_images_cost(recipe: str, tmp_path: Path) -> None:
    def seconds(row: str, *overrides: str) -> float:
        store, settings = Store(tmp_path), ("training.evaluations=1", "schedule.length=1000", *overrides)
        chosen = recipes.select([f"{recipe}/{row}"])
        (cell,) = runs.plan(chosen, Context("cpu", None, settings), seeds=[0], store=store)
        expected = runs.estimate(cell, store=store)
        assert expected is not None
        return expected.minutes * 60 - 16

    four_labelled = seconds("supervised")
    assert four_labelled == pytest.approx(140)
    assert seconds("supervised", "training.batch=8") == pytest.approx(2 * four_labelled)
    half = ("training.batch=8", "teacher.labelled_share=0.5")
    assert seconds("taught", *half) == pytest.approx(2.36 * four_labelled)
    assert seconds("taught", *half, "teacher.burn_in=1.0") == pytest.approx(four_labelled)


@pytest.mark.slow
def test_a_killed_training_ends_bit_identical_to_one_never_killed(
    recipe: str, tmp_path: Path, cache: Path
) -> None:
    """Student, teacher, optimiser, both streams of images and the stage, killed on both sides of its switch."""
    settings = ("schedule.length=40", "training.evaluations=4")
    whole = cell_of(f"{recipe}/stages", Store(tmp_path / "whole"), *settings)
    killed = cell_of(f"{recipe}/stages", Store(tmp_path / "killed"), *settings)
    assert worker(whole, cache).wait() == 0
    kills = train_with_kills(killed, cache, after=(5, 17, 22))
    assert min(kills) < 20 < max(kills), (
        f"killed after steps {kills}, which is on one side of the switch only"
    )
    assert_same_to_the_bit(whole.folder, killed.folder, WEIGHTS, STUDENT)
