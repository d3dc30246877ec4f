"""Query detectors' recipes at paper scale: the settings that their authors train and test with."""

from __future__ import annotations

import pytest

from detbench import recipes
from detbench.parts.data import DetrResize
from detbench.parts.experiment import Experiment
from detbench.parts.training import AdamW, Drops
from detbench.recipes import SCALES, Context, Scale

# Epochs, epoch of the drop, batch, rate, factor of sampling offsets, decay of norms, frozen stages, class weight,
# detections, whether boxes are clipped and images without objects left out (spec 1.9 to 1.11, 2.10, 3, 4.5, 6.1).
SETTINGS = {
    ("align-detr/table1", "Def.DETR, 50 ep"): (50, 40, 32, 2e-4, 0.1, True, 2, 2.0, 100, False, False),
    ("align-detr/table1", "DINO, 12 ep"): (12, 11, 16, 1e-4, 1.0, False, 1, 1.0, 300, True, True),
    ("align-detr/table1", "DINO, 24 ep"): (24, 20, 16, 1e-4, 1.0, False, 1, 1.0, 300, True, True),
    ("align-detr/table1", "H-DETR, 12 ep"): (12, 11, 16, 2e-4, 0.1, True, 2, 2.0, 100, False, False),
    ("align-detr/table1", "Align-DETR (Ours), 24 ep"): (24, 20, 16, 1e-4, 1.0, False, 1, 1.0, 300, True, True),
    ("align-detr/table2", "Align-H-DETR"): (12, 11, 16, 2e-4, 0.1, True, 2, 1.0, 100, False, False),
    ("deta/known-numbers", "Two-stage Deformable DETR, 50 ep"): (
        50, 40, 32, 2e-4, 0.1, True, 2, 2.0, 100, False, False,
    ),
    ("deta/known-numbers", "Improved Deformable DETR, 50 ep"): (
        50, 40, 16, 2e-4, 0.1, True, 2, 1.0, 100, False, False,
    ),
    ("deta/known-numbers", "DETA, 12 ep, released"): (12, 10, 16, 2e-4, 0.1, True, 2, 1.0, 100, False, False),
    ("deta/known-numbers", "DETA, 24 ep"): (24, 20, 16, 2e-4, 0.1, True, 2, 1.0, 100, False, False),
    ("deta/known-numbers", "DETA (bs=8), 12 ep"): (12, 10, 8, 1e-4, 1.0, False, 2, 1.0, 100, True, True),
    ("match-free/table1", "Deformable DETR, Ours"): (20, 16, 16, 2e-4, 0.1, True, 2, 2.0, 100, False, False),
}  # fmt: skip


def experiment(name: str, label: str, scale: Scale = "paper") -> Experiment:
    recipe = recipes.load(name)
    return recipes.resolve(recipe, recipe.rows[label], Context(scale=scale))


@pytest.mark.parametrize(("name", "label"), SETTINGS)
def test_a_detector_is_trained_and_tested_as_its_authors_do(name: str, label: str) -> None:
    e = experiment(name, label)
    assert isinstance(e.optim, AdamW) and isinstance(e.schedule.decay, Drops)
    epochs = e.schedule.length * e.schedule.times
    assert e.schedule.unit == "epochs" and e.schedule.warmup_steps == 0
    assert (e.optim.backbone_factor, e.optim.weight_decay, e.optim.clip_norm) == (0.1, 1e-4, 0.1)
    (drop,) = e.schedule.decay.at
    assert (
        pytest.approx(epochs),
        pytest.approx(epochs * drop),
        e.training.batch,
        e.optim.lr,
        e.optim.offsets_factor,
        e.optim.decay_norms,
        e.detector.backbone.frozen_stages,
        e.branches[e.test.branch].losses["cls"].weight,
        e.test.postprocess.keep,
        e.test.postprocess.clip,
        e.data.drop_empty,
    ) == SETTINGS[name, label]


def test_only_empty_boxes_are_left_out_and_nothing_limits_the_resize_before_a_crop() -> None:
    for name, label in SETTINGS:
        data = experiment(name, label).data
        assert data.min_box_side == 0
        assert isinstance(data.train, DetrResize)
        assert data.train.crop_long > 20 * max(data.train.crop_shorts)
        assert data.train.long == 1333


@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale != "paper"])
def test_small_scales_have_one_test_and_one_choice_of_images(scale: Scale) -> None:
    small = [experiment(name, label, scale) for name, label in SETTINGS]
    assert len({(e.data.drop_empty, e.data.min_box_side) for e in small}) == 1
    if scale != "smoke":
        assert {e.test.postprocess.clip for e in small} == {True}
