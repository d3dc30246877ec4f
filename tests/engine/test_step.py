"""One training step, held against what is worked out beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from smoke_runs import cell_of, trainer_of
from torch import Tensor

from detbench.engine.objective import split
from detbench.engine.train import Trainer
from detbench.store import Store

ROW = "date/table1/fcos-12-ep"
WHOLE = ("training.batch=4", "optim.clip_norm=1e9")


def trainer(folder: Path, *overrides: str) -> Trainer:
    """A training of a store of its own, ready for its first step."""
    return trainer_of(cell_of(ROW, Store(folder), *WHOLE, *overrides), folder / "cache")


def gradients_of_first_step(trained: Trainer) -> dict[str, Tensor]:
    """What the optimiser is given in the first step."""
    found = {}

    def look(*_: object) -> None:
        found.update(
            {name: p.grad.clone() for name, p in trained.model.named_parameters() if p.grad is not None}
        )

    trained.optimizer.register_step_pre_hook(look)
    trained._step(next(trained.objective.batches(0)))
    return found


def test_an_accumulated_gradient_is_the_mean_over_the_parts_of_the_batch(tmp_path):
    found = gradients_of_first_step(trainer(tmp_path, "training.accumulate=2"))

    halves = []
    for half in (0, 1):
        apart = trainer(tmp_path)  # the same weights and the same images
        apart.model.train()
        batch = next(apart.objective.batches(0))
        losses = apart.objective.losses(split(batch, 2)[half], 0.0)
        sum(losses.values()).backward()
        halves.append({name: p.grad for name, p in apart.model.named_parameters() if p.grad is not None})

    assert found.keys() == halves[0].keys()
    for name, gradient in found.items():
        expected = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_gradient_in_parts_is_another_where_objects_are_spread_unevenly(tmp_path):
    """Each part divides by its own positives, as the docstring of `accumulate` says."""
    whole = gradients_of_first_step(trainer(tmp_path / "whole"))
    parts = gradients_of_first_step(trainer(tmp_path / "parts", "training.accumulate=2"))
    with pytest.raises(AssertionError):
        for name, gradient in whole.items():
            torch.testing.assert_close(gradient, parts[name], rtol=1e-3, atol=1e-5)
