"""The dense detector: what its predictors mean, what its branches share, what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from scenes import some_targets
from torch import Tensor, nn

from detbench.core.cost import count
from detbench.core.detectors.dense import DenseDetector
from detbench.core.detectors.fpn import Fpn as FpnModule
from detbench.core.detectors.predictors import AnchorModule, DensePredictor, FcosModule, PointModule
from detbench.core.supervise import supervise
from detbench.core.types import DensePredictions
from detbench.parts.assigners import FcosRule, MaxIou, Poto
from detbench.parts.backbones import ResNet, SmallResNet
from detbench.parts.branches import AnchorPredictor, Branch, FcosPredictor, MaxFilter, PointPredictor
from detbench.parts.detectors import Dense, Fpn, Subnets
from detbench.parts.losses import BoxL1, Centerness, DeltaL1, Focal, Giou, LogIou

POINT = Branch(
    predictor=PointPredictor(),
    assigner=Poto(),
    losses={"class": Focal(weight=2.0), "l1": BoxL1(), "giou": Giou()},
)
FCOS = Branch(
    predictor=FcosPredictor(),
    assigner=FcosRule(),
    losses={"class": Focal(), "box": LogIou(), "centerness": Centerness()},
)
RETINA = Branch(
    predictor=AnchorPredictor(),
    assigner=MaxIou(),
    losses={"class": Focal(divide_by="positives_local"), "box": DeltaL1()},
    weight=2.0,
)
ALL = {"point": POINT, "fcos": FCOS, "retina": RETINA}


def small(branches: Mapping[str, Branch] = ALL, *, shared: bool = True, num_levels: int = 5) -> DenseDetector:
    torch.manual_seed(0)
    part = Dense(
        backbone=SmallResNet(width=8),
        neck=Fpn(channels=16, num_levels=num_levels),  # type: ignore[arg-type]
        subnets=Subnets(num_convs=1, groups=4, shared=shared),
    )
    return part.build(branches=branches, num_classes=3)


IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_every_branch_predicts_for_every_location() -> None:
    predictions = small()(IMAGES)
    for name, per_cell in (("point", 1), ("fcos", 1), ("retina", 9)):
        p, num = predictions[name], 257 * per_cell
        assert p.pred_logits.shape == (2, num, 3)
        assert p.pred_boxes.shape == (2, num, 4)
        assert p.anchors.boxes.shape == (num, 4)
        assert sum(p.anchors.level_sizes) == num
    assert predictions["fcos"].pred_centerness is not None
    assert predictions["fcos"].pred_centerness.shape == (2, 257)
    assert predictions["retina"].pred_deltas is not None
    assert predictions["point"].pred_deltas is predictions["point"].pred_centerness is None


@pytest.mark.parametrize("shared", [True, False])
def test_a_branch_asked_for_alone_predicts_the_same(shared: bool) -> None:
    detector = small(shared=shared).eval()
    everything = detector(IMAGES)
    for name in ALL:
        alone = detector(IMAGES, branches=(name,))
        assert list(alone) == [name]
        assert torch.allclose(alone[name].pred_logits, everything[name].pred_logits, atol=1e-5)
        assert torch.allclose(alone[name].pred_boxes, everything[name].pred_boxes, atol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_the_order_of_branches_changes_no_weight(shared: bool) -> None:
    one = small(ALL, shared=shared).state_dict()
    other = small(dict(reversed(ALL.items())), shared=shared).state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_branches_not_asked_for_arent_computed() -> None:
    detector = small(shared=False)
    called: list[str] = []
    for name, towers in detector.towers.items():
        towers.register_forward_hook(lambda *_, name=name: called.append(name))
    detector(IMAGES, branches=("fcos",))
    assert called == ["fcos"]


def test_the_factors_of_the_levels_are_one_set_or_one_for_each_branch() -> None:
    shared = small()
    assert [name for name, _ in shared.named_parameters() if name.startswith("scales")] == ["scales.shared"]
    part = Dense(
        backbone=SmallResNet(width=8),
        neck=Fpn(channels=16, num_levels=3),
        subnets=Subnets(num_convs=1, groups=4, shared_scales=False),
    )
    own = part.build(branches=ALL, num_classes=3).eval()
    before = own(IMAGES)
    with torch.no_grad():
        own.scales["fcos"] *= 2
    after = own(IMAGES)
    assert torch.equal(before["point"].pred_boxes, after["point"].pred_boxes)
    assert not torch.equal(before["fcos"].pred_boxes, after["fcos"].pred_boxes)
    alone = {id(p) for p in own.parameters_of(("fcos",))}
    assert {name for name, p in own.scales.items() if id(p) in alone} == {"fcos"}


def test_predictors_that_run_as_one_convolution_give_what_each_gives() -> None:
    detector = small().eval()
    fcos: DensePredictor = detector.predictors["fcos"]  # type: ignore[assignment]
    features = detector.neck(detector.backbone(IMAGES))
    tops = detector.towers["shared"](features)["class"]
    own = [fcos.convs["logits"](x).flatten(2).transpose(1, 2) for x in tops]
    assert torch.allclose(torch.cat(own, 1), detector(IMAGES)["fcos"].pred_logits, atol=1e-5)


def test_at_first_every_class_has_its_prior_probability() -> None:
    probability = small().eval()(IMAGES)["retina"].pred_logits.sigmoid()
    assert probability.mean().item() == pytest.approx(0.01, rel=0.05)


def test_parameter_names_tell_the_backbone_and_the_branches_apart() -> None:
    heads = {name.split(".")[0] for name, _ in small().named_parameters()}
    assert heads == {"backbone", "neck", "towers", "predictors", "scales"}
    branches = {name.split(".")[1] for name, _ in small().named_parameters() if name.startswith("predictors")}
    assert branches == set(ALL)


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_the_pyramid_halves_from_level_to_level(num_levels: int) -> None:
    detector = small({"point": POINT}, num_levels=num_levels)
    assert detector.strides == (8, 16, 32, 64, 128)[:num_levels]
    assert detector(IMAGES)["point"].anchors.level_sizes == (192, 48, 12, 4, 1)[:num_levels]


def test_the_pyramid_by_hand() -> None:
    # Convolutions turned into identities: P5 = C5, P4 = C4 + C5 doubled, P3 = C3 + P4's sum doubled; P6 is
    # every second value of P5, P7 of P6 without the negative ones.
    neck = FpnModule((1, 1, 1), channels=1, num_levels=5)
    for conv in neck.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
    c5 = torch.tensor([[-1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    levels = neck([torch.full((1, 1, 8, 8), 100.0), torch.full((1, 1, 4, 4), 10.0), c5])
    assert levels[2].flatten().tolist() == [-1, 2, 3, 4]
    assert levels[1][0, 0, 0].tolist() == [9, 9, 12, 12]
    assert levels[0][0, 0, 7].tolist() == [113] * 4 + [114] * 4
    assert levels[3].flatten().tolist() == [-1]
    assert levels[4].flatten().tolist() == [0]


def decode(predictor: DensePredictor, **raw: Tensor) -> DensePredictions:
    """One level of 1 x 2 cells at stride 8, whose scale is 2."""
    return predictor.decode({k: [v] for k, v in raw.items()}, torch.tensor([2.0]), ((1, 2),), (8,))


INIT = {"init_std": 0.01, "class_prior": 0.01}


def test_a_point_predictor_decodes_by_hand() -> None:
    # relu(2 * raw) * 8 around (4, 4) and (12, 4); a negative distance is none.
    raw = torch.tensor([[[0.25, 0.5, 1, 0.0], [-1, 0.5, 0.5, 0.5]]])
    p = decode(
        PointModule(PointPredictor(), 4, 3, groups=4, **INIT), logits=torch.zeros(1, 2, 3), distances=raw
    )
    assert p.pred_boxes.tolist() == [[[0, -4, 20, 4], [12, -4, 20, 12]]]


def test_an_fcos_predictor_decodes_by_hand() -> None:
    # exp(2 * raw) pixels, whatever the stride.
    raw = torch.tensor([[[0.0, 0, 0, 0], [1, 0, 0, -1]]])
    p = decode(
        FcosModule(FcosPredictor(), 4, 3, **INIT),
        logits=torch.zeros(1, 2, 3),
        distances=raw,
        centerness=torch.tensor([[[7.0], [8.0]]]),
    )
    assert p.pred_boxes[0, 0].tolist() == [3, 3, 5, 5]
    assert p.pred_boxes[0, 1].tolist() == pytest.approx([12 - 7.389056, 3, 13, 4.135335], abs=1e-5)
    assert p.pred_centerness is not None
    assert p.pred_centerness.tolist() == [[7, 8]]


@pytest.mark.parametrize(("scaled", "shift"), [(True, 2.0), (False, 1.0)])
def test_an_anchor_predictor_decodes_by_hand(scaled: bool, shift: float) -> None:
    module = AnchorModule(AnchorPredictor(scale_deltas=scaled), 4, 3, **INIT)
    logits = torch.arange(2 * 27.0).view(1, 2, 27)
    deltas = torch.zeros(1, 2, 36)
    deltas[0, 1, 4 * 3] = 1.0  # dx of the fourth anchor, the 32 x 32 one, of the second cell
    p = decode(module, logits=logits, deltas=deltas)
    assert p.pred_logits[0, 9 + 3].tolist() == [27 + 9, 27 + 10, 27 + 11]
    assert p.pred_boxes[0, 3].tolist() == pytest.approx([-16, -16, 16, 16])
    moved = 8 + 32 * shift
    assert p.pred_boxes[0, 12].tolist() == pytest.approx([moved - 16, -16, moved + 16, 16])
    assert p.pred_deltas is not None
    assert p.pred_deltas[0, 12].tolist() == [shift, 0, 0, 0]


def test_centerness_reads_the_tower_it_is_told_to() -> None:
    for tower in ("class", "box"):
        module = FcosModule(FcosPredictor(centerness_from=tower), 4, 3, **INIT)  # type: ignore[arg-type]
        assert "centerness" in module.convs_on(tower)  # type: ignore[arg-type]


def total_loss(detector: DenseDetector, images: Tensor) -> Tensor:
    targets = some_targets((3, 2), 0)
    predictions = detector(images)
    losses = [supervise(ALL[name], p, targets) for name, p in predictions.items()]
    return torch.stack([value for named in losses for value in named.values()]).sum()


def test_training_reaches_every_parameter() -> None:
    detector = small()
    total_loss(detector, IMAGES).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_double_precision_runs_and_agrees() -> None:
    detector = small()
    single = total_loss(detector, IMAGES)
    double = total_loss(detector.double(), IMAGES.double())
    assert double.dtype == torch.float64
    assert single.item() == pytest.approx(double.item(), rel=1e-4)


def test_channels_last_agrees() -> None:
    detector = small()
    plain = total_loss(detector, IMAGES)
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = total_loss(detector, IMAGES.contiguous(memory_format=torch.channels_last))
    assert plain.item() == pytest.approx(other.item(), rel=1e-4)


def test_mixed_precision_computes_boxes_and_losses_in_full() -> None:
    detector = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = detector(IMAGES)
        loss = total_loss(detector, IMAGES)
    for p in predictions.values():
        for field in dataclasses.fields(p):
            value = getattr(p, field.name)
            assert not isinstance(value, Tensor) or value.dtype == torch.float32
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(total_loss(detector, IMAGES).item(), rel=0.05)


DATE_F, DATE_R = {"point": POINT, "fcos": FCOS}, {"point": POINT, "retina": RETINA}
FILTERED = {**DATE_F, "point": dataclasses.replace(POINT, predictor=PointPredictor(max_filter=MaxFilter()))}
UNSHARED, R101 = {"shared": False}, {"depth": 101}
COSTS = [
    # spec 1.3: trainable parameters, MACs / 1e9 at 1280 x 800
    pytest.param({"point": POINT}, None, {}, 32_017_497, 200.50, id="OneNet"),
    pytest.param({"fcos": FCOS}, None, {}, 32_019_802, 200.55, id="FCOS"),
    pytest.param({"retina": RETINA}, None, {}, 33_566_457, 233.54, id="RetinaNet"),
    pytest.param(DATE_F, None, {}, 32_213_422, 204.68, id="DATE-F training"),
    pytest.param(DATE_F, ("point",), {}, 32_017_497, 200.50, id="DATE-F inference"),
    pytest.param(DATE_R, None, {}, 33_760_077, 237.67, id="DATE-R training"),
    pytest.param(DATE_R, None, UNSHARED, 38_482_765, 338.44, id="DATE-R not shared, training"),
    pytest.param(DATE_R, ("point",), UNSHARED, 32_017_497, 200.50, id="DATE-R not shared, inference"),
    pytest.param(FILTERED, None, {}, 32_806_319, 217.34, id="DATE-F with 3DMF, training"),
    pytest.param(FILTERED, ("point",), {}, 32_610_394, 213.16, id="DATE-F with 3DMF, inference"),
    pytest.param(DATE_F, ("point",), R101, 50_957_401, 276.57, id="ResNet-101 inference"),
]


@pytest.mark.parametrize(("branches", "used", "changes", "parameters", "giga_macs"), COSTS)
def test_size_and_work_are_the_papers(
    branches: dict[str, Branch],
    used: tuple[str, ...] | None,
    changes: dict[str, int],
    parameters: int,
    giga_macs: float,
) -> None:
    part = Dense(
        backbone=ResNet(depth=changes.get("depth", 50), stride_in="1x1"),  # type: ignore[arg-type]
        subnets=Subnets(shared=bool(changes.get("shared", True))),
    )
    with torch.device("meta"):
        detector = part.build(branches=branches, num_classes=80)
    cost = count(detector, height=800, width=1280, branches=used)
    assert cost.parameters == parameters
    assert cost.macs / 1e9 == pytest.approx(giga_macs, rel=1e-3)


def test_counting_leaves_the_detector_as_it_was() -> None:
    detector = small().eval()
    before = detector(IMAGES)["point"].pred_logits
    count(detector, height=96, width=128)
    assert torch.equal(detector(IMAGES)["point"].pred_logits, before)
    assert not any(m._forward_hooks for m in detector.modules())
