"""Query detectors' recipes at paper scale: the settings that their authors train and test with."""

from __future__ import annotations

import pytest

from detbench import recipes
from detbench.parts.assigners import QueryHungarian
from detbench.parts.data import DetrResize
from detbench.parts.experiment import Experiment
from detbench.parts.losses import Focal, IouQuality, Loss, PositionSupervised, QualityFocal, Varifocal
from detbench.parts.part import flatten
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
    ("deta/known-numbers", "DETA (bs=16, three learning-rate groups), 12 ep"): (
        12, 10, 16, 2e-4, 0.1, False, 2, 1.0, 100, True, True,
    ),
    ("deta/known-numbers", "DETA (no frozen backbone), 12 ep"): (
        12, 10, 16, 1e-4, 1.0, False, 1, 1.0, 100, True, True,
    ),
    ("match-free/table1", "Deformable DETR, Ours"): (20, 16, 16, 2e-4, 0.1, True, 2, 2.0, 100, False, False),
}  # fmt: skip

# What all of them share (spec 1.1 to 1.3, 1.8, 1.10).
SHARED = {
    "detector.backbone.depth": 50,
    "detector.backbone.stride_in": "3x3",
    "detector.backbone.norm": "frozen",
    "detector.neck.channels": 256,
    "detector.neck.groups": 32,
    "detector.position.temperature": 10000,
    "detector.position.offset": -0.5,
    "detector.transformer.encoder_layers": 6,
    "detector.transformer.decoder_layers": 6,
    "detector.transformer.num_heads": 8,
    "detector.transformer.num_points": 4,
    "detector.transformer.self_attention": True,
    "detector.class_prior": 0.01,
    "data.pixels.pad_multiple": 1,
    "data.train.shorts": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    "data.train.crop_shorts": [400, 500, 600],
    "data.train.crop_min": 384,
    "data.train.crop_max": 600,
    "data.train.crop_probability": 0.5,
    "data.train.flip": 0.5,
    "data.test.short": 800,
    "data.test.long": 1333,
}

# Of every Hungarian matching and every loss of a kind, in whichever branch (spec 1.8, 2.9, 4.2 to 4.4, 5.1).
OF_KIND: dict[str, dict[str, object]] = {
    "query_hungarian": {
        "cost_class": 2, "cost_bbox": 5, "cost_giou": 2, "focal_alpha": 0.25, "focal_gamma": 2, "focal_eps": 1e-8,
    },
    "focal": {"alpha": 0.25, "gamma": 2},
    "align": {"gamma": 2, "quality_alpha": 0.25, "quality_floor": 0.01, "iou_eps": 1e-6},
    "box_l1": {"weight": 5, "box_format": "cxcywh"},
    "query_giou": {"weight": 2},
    "weighted_focal": {"alpha": 0.25, "gamma": 2, "background": True},
}  # fmt: skip

TRANSFORMER = "detector.transformer"
LEARNED = {"detector.queries.kind": "learned", "detector.queries.num": 300}
PROPOSALS = {"detector.queries.anchor_side": 0.05, "detector.neck.num_levels": 4}
SMALL = {f"{TRANSFORMER}.dim_feedforward": 1024, f"{TRANSFORMER}.dropout": 0.1}
LARGE = {f"{TRANSFORMER}.dim_feedforward": 2048, f"{TRANSFORMER}.dropout": 0}
BINARY = {"branches.encoder.predictor.tokens": "all", "branches.encoder.predictor.labels": "binary"}
H_DETR = PROPOSALS | LARGE | BINARY | {
    "detector.queries.num": 300,
    "detector.queries.select_by": "first_class",
    "detector.queries.content": "learned",
    "detector.queries.content_init": "normal",
    "detector.queries.position": "proposal",
    f"{TRANSFORMER}.final_norm": False,
    "detector.refinement": "twice",
    "branches.one_to_many.predictor.num_queries": 1500,
    "branches.one_to_many.assigner.copies": 6,
    "branches.one_to_many.weight": 1,
}  # fmt: skip
DINO = PROPOSALS | LARGE | {
    "detector.queries.num": 900,
    "detector.queries.select_by": "best_class",
    "detector.queries.content": "learned",
    "detector.queries.content_init": "xavier",
    "detector.queries.position": "reference",
    f"{TRANSFORMER}.final_norm": True,
    "detector.refinement": "twice",
    "branches.encoder.predictor.tokens": "selected",
    "branches.encoder.predictor.labels": "true",
    "branches.denoising.predictor.num_queries": 100,
    "branches.denoising.predictor.label_noise": 0.5,
    "branches.denoising.predictor.box_noise": 1,
}  # fmt: skip
RANKED = {
    f"branches.{branch}.assigner.{key}": value
    for branch in ("intermediate", "encoder")
    for key, value in {
        "copies": 4, "most_positive": 0.5, "rank.quality_alpha": 0.25, "rank.tau": 1.5, "rank.iou_eps": 1e-6,
    }.items()
}  # fmt: skip
IMPROVED = LARGE | BINARY | {
    "detector.neck.num_levels": 5,
    "detector.queries.anchor_side": 0.05,
    "detector.queries.num": 900,
    "detector.queries.select_by": "first_class",
    "detector.queries.content": "proposal_and_token",
    "detector.queries.position": "proposal",
    "detector.refinement": "detached",
}  # fmt: skip
DETA = IMPROVED | {
    "detector.queries.nms.per_level": 1000,
    "detector.queries.nms.iou_threshold": 0.9,
    "branches.encoder.assigner.positive": 0.7,
    "branches.encoder.assigner.sample": 256,
    "branches.encoder.assigner.most_positive": 0.5,
    "branches.decoder.assigner.positive": 0.6,
    "branches.decoder.assigner.sample": None,
    "branches.decoder.assigner.most_positive": 0.25,
    "test.postprocess.per_level": 10000,
    "test.postprocess.iou_threshold": 0.7,
    "test.postprocess.score_threshold": 0,
} | {
    f"branches.{branch}.assigner.{key}": value
    for branch in ("encoder", "decoder")
    for key, value in {"low_quality": "any", "balance": 4, "balance_by": "row"}.items()
}  # fmt: skip

# What each has of its own; the epsilon of its inverse sigmoid, and that of its IoU (spec's head, 1.9, 2, 3, 4, 6, 7).
OWN: dict[tuple[str, str], tuple[dict[str, object], float, float]] = {
    ("align-detr/table1", "Def.DETR, 50 ep"): (
        LEARNED | SMALL | {"detector.refinement": "detached", "detector.heads": "per_layer"}, 1e-5, 0,
    ),
    ("align-detr/table1", "DINO, 12 ep"): (DINO, 1e-3, 1e-6),
    ("align-detr/table1", "H-DETR, 12 ep"): (H_DETR, 1e-5, 0),
    ("align-detr/table1", "Align-DETR (Ours), 24 ep"): (
        DINO | RANKED | {"branches.last.assigner.copies": 1, "branches.last.assigner.rank": None}, 1e-3, 1e-6,
    ),
    ("align-detr/table2", "Align-H-DETR"): (
        H_DETR
        | {"branches.one_to_many.assigner.rank.quality_alpha": 0.25, "branches.one_to_many.assigner.rank.tau": 1.5},
        1e-5, 0,
    ),
    ("deta/known-numbers", "Improved Deformable DETR, 50 ep"): (IMPROVED, 1e-5, 0),
    ("deta/known-numbers", "DETA, 24 ep"): (DETA, 1e-5, 0),
    ("deta/known-numbers", "DETA (bs=8), 12 ep"): (DETA, 1e-3, 1e-6),
    ("deta/known-numbers", "DINO 5-scale"): (
        DINO | {"detector.neck.kind": "channel_mapper_c2", "detector.neck.num_levels": 5}, 1e-3, 1e-6,
    ),
    ("match-free/table1", "Deformable DETR, Baseline"): (
        LEARNED | SMALL | {"detector.refinement": "none", "detector.heads": "shared"}, 1e-5, 0,
    ),
    ("match-free/table1", "Deformable DETR, Ours"): (
        LEARNED | SMALL | {
            "detector.refinement": "none",
            "detector.heads": "shared",
            "branches.decoder.predictor.probe.dim": 256,
            "branches.decoder.predictor.probe.reads": "state",
            "branches.decoder.predictor.probe.layers": "shared",
            "branches.decoder.predictor.probe.detach_queries": False,
            "branches.decoder.assigner.rho": 0.5,
            "branches.decoder.assigner.rho_row": None,
            "branches.decoder.assigner.row_filter": "threshold",
            "branches.decoder.assigner.compare": "filtered",
            "branches.decoder.assigner.keep_row_argmax": True,
            "branches.decoder.assigner.normalization": "sum",
            "branches.decoder.assigner.eps": 1e-6,
            "branches.decoder.assigner.detach_correspondence": True,
            "branches.decoder.losses.correspondence.weight": 1,
            "branches.decoder.losses.correspondence.detach_cost": True,
            "branches.decoder.losses.correspondence.cost.cost_class": 2,
            "branches.decoder.losses.correspondence.cost.cost_bbox": 5,
            "branches.decoder.losses.correspondence.cost.cost_giou": 2,
        }, 1e-5, 0,
    ),
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


@pytest.mark.parametrize(("name", "label"), OWN)
def test_a_detector_is_built_and_supervised_as_its_authors_do(name: str, label: str) -> None:
    e = experiment(name, label)
    own, logit_eps, iou_eps = OWN[name, label]
    expected = SHARED | own | {"detector.logit_eps": logit_eps}
    found = flatten(recipes.settings(e))
    assert {key: found[key] for key in expected} == expected

    final = e.branches[e.test.branch].losses["cls"].weight
    for branch in e.branches.values():
        for part in (branch.assigner, *branch.losses.values()):
            for key, value in OF_KIND.get(part.kind, {}).items():
                assert getattr(part, key) == value, (part.kind, key)
        # One weight for the classes of all outputs, however many queries answer for an object.
        assert branch.losses["cls"].weight == final
        assert {loss.divide_by for loss in branch.losses.values()} == {
            "copies" if branch.predictor.kind in ("denoising", "one_to_many") else "objects"
        }
        weighed = (
            getattr(branch.assigner, "rank", None) is not None
            or branch.assigner.kind == "sparse_correspondence"
        )
        assert {loss.weigh_by for loss in branch.losses.values() if hasattr(loss, "weigh_by")} == {
            "match" if weighed else "one"
        }
        assert branch.losses["giou"].eps == iou_eps
        if branch.assigner.kind != "known" and branch.assigner.kind != "sparse_correspondence":
            assert branch.assigner.iou_eps == iou_eps


# The class loss of decoder and encoder, of denoising queries, and the power of the position in the cost (spec 5).
RIVALS: dict[str, tuple[Loss, Loss, float]] = {
    "Focal Loss": (
        Focal(weight=1.0, alpha=0.25, gamma=2.0, divide_by="objects"),
        Focal(weight=1.0, alpha=0.25, gamma=2.0, divide_by="copies"),
        0.0,
    ),
    "QFL": (
        QualityFocal(weight=1.0, beta=2.0, iou_eps=1e-6, divide_by="objects"),
        QualityFocal(weight=1.0, beta=2.0, iou_eps=1e-6, divide_by="copies"),
        0.0,
    ),
    "VFL": (
        Varifocal(weight=1.0, alpha=0.75, gamma=2.0, iou_eps=1e-6, divide_by="objects"),
        Varifocal(weight=1.0, alpha=0.75, gamma=2.0, iou_eps=1e-6, divide_by="copies"),
        0.0,
    ),
    "PSL": (
        PositionSupervised(weight=6.0, power=2.0, alpha=0.25, gamma=2.0, iou_eps=1e-6, divide_by="objects"),
        PositionSupervised(weight=1.0, power=2.0, alpha=0.25, gamma=2.0, iou_eps=1e-6, divide_by="copies"),
        0.0,
    ),
}
RIVALS["IoU branch"] = RIVALS["Focal Loss"]
RIVALS["PSL + PMC"] = (*RIVALS["PSL"][:2], 0.5)


@pytest.mark.parametrize("label", RIVALS)
def test_a_rival_of_the_align_loss_has_the_settings_of_its_own_paper(label: str) -> None:
    e = experiment("align-detr/table3", label)
    branches = e.branches
    of_all, of_denoising, power = RIVALS[label]
    assert branches["denoising"].losses["cls"] == of_denoising
    for name in ("decoder", "encoder"):
        assert branches[name].losses["cls"] == of_all
        assert branches[name].assigner == QueryHungarian(iou_eps=1e-6, position_power=power)
    quality = branches["decoder"].losses.get("iou")
    assert quality == (
        IouQuality(weight=1.0, iou_eps=1e-6, divide_by="objects") if label == "IoU branch" else None
    )
    assert e.test.postprocess.quality == ("sqrt" if label == "IoU branch" else "none")


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
