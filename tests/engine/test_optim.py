"""Learning rates by hand, parameter groups, and that the fused optimiser does what the plain one does."""

import math
from dataclasses import replace

import pytest
import torch

from detbench.engine.optim import build_optimizer, lr_factor, set_lr, total_steps
from detbench.engine.train import evaluation_steps
from detbench.parts.assigners import FcosRule, QueryHungarian
from detbench.parts.backbones import SmallResNet
from detbench.parts.branches import Branch, DecoderOutput, FcosPredictor
from detbench.parts.detectors import ChannelMapper, Dense, Fpn, LearnedQueries, Query, Subnets, Transformer
from detbench.parts.losses import Focal
from detbench.parts.training import AdamW, Constant, Cosine, Drops, Schedule, Sgd


def detector() -> torch.nn.Module:
    torch.manual_seed(0)
    part = Dense(
        backbone=SmallResNet(width=8),
        neck=Fpn(channels=16, num_levels=3),
        subnets=Subnets(num_convs=1, groups=4),
    )
    branch = Branch(predictor=FcosPredictor(), assigner=FcosRule(), losses={"cls": Focal()})
    return part.build(branches={"o2m": branch}, num_classes=3).to(memory_format=torch.channels_last)


def test_an_epoch_is_as_many_steps_as_the_images_fill_batches():
    twelve = Schedule(length=12)
    assert total_steps(twelve, num_images=117_266, batch=16) == math.ceil(12 * 117_266 / 16)
    assert total_steps(Schedule(length=12, times=3), num_images=100, batch=10) == 360
    assert total_steps(Schedule(length=5000, unit="steps", times=3), num_images=1, batch=1) == 15_000


def test_the_rate_warms_up_linearly_and_drops_where_told():
    schedule = Schedule(length=12, warmup_steps=10, warmup_factor=0.001, decay=Drops(at=(8 / 12, 11 / 12)))
    total = 120
    assert lr_factor(schedule, step=0, total=total) == pytest.approx(0.001)
    assert lr_factor(schedule, step=5, total=total) == pytest.approx(0.001 + 0.999 / 2)
    assert lr_factor(schedule, step=79, total=total) == 1
    assert lr_factor(schedule, step=80, total=total) == pytest.approx(0.1)
    assert lr_factor(schedule, step=110, total=total) == pytest.approx(0.01)


def test_cosine_ends_at_its_floor_and_constant_stays():
    cosine = Schedule(length=1, warmup_steps=0, decay=Cosine(floor=0.01))
    assert lr_factor(cosine, step=0, total=100) == 1
    assert lr_factor(cosine, step=50, total=100) == pytest.approx(0.505)
    assert lr_factor(cosine, step=100, total=100) == pytest.approx(0.01)
    assert lr_factor(Schedule(length=1, warmup_steps=0, decay=Constant()), step=99, total=100) == 1


def test_the_backbone_has_a_rate_of_its_own():
    model = detector()
    optimizer = build_optimizer(AdamW(lr=4e-4, backbone_factor=0.1), model)
    set_lr(optimizer, 0.5)
    body, rest = optimizer.param_groups
    assert (body["lr"], rest["lr"]) == (pytest.approx(2e-5), pytest.approx(2e-4))
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].startswith("backbone.") for p in body["params"])
    assert not any(names[id(p)].startswith("backbone.") for p in rest["params"])
    assert len(body["params"]) + len(rest["params"]) == len(names)


def test_offsets_reference_points_and_norms_have_their_own_rate_and_decay():
    """The groups of Deformable-DETR, and detrex's norms (spec 1.9)."""
    part = Query(
        backbone=SmallResNet(width=8),
        neck=ChannelMapper(channels=16, num_levels=4, groups=4),
        transformer=Transformer(encoder_layers=1, decoder_layers=1, num_heads=2, dim_feedforward=16),
        queries=LearnedQueries(num=4),
    )
    branch = Branch(predictor=DecoderOutput(), assigner=QueryHungarian(), losses={"cls": Focal()})
    model = part.build(branches={"decoder": branch}, num_classes=3)
    optim = AdamW(lr=2e-4, backbone_factor=0.5, offsets_factor=0.1, decay_norms=False, weight_decay=1e-4)
    of = {p: g for g in build_optimizer(optim, model).param_groups for p in g["params"]}

    slow = {name for name, p in model.named_parameters() if of[p]["lr"] == pytest.approx(2e-5)}
    attentions = ("encoder.layers.0.attention", "decoder.layers.0.cross_attention")
    assert slow == {
        *(
            f"transformer.{name}.sampling_offsets.{kind}"
            for name in attentions
            for kind in ("weight", "bias")
        ),
        "queries.one_to_one.reference_points.weight",
        "queries.one_to_one.reference_points.bias",
    }
    half = {name for name, p in model.named_parameters() if of[p]["lr"] == pytest.approx(1e-4)}
    assert half == {name for name, _ in model.named_parameters() if name.startswith("backbone.")}

    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    undecayed = {p for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    assert {p for p in of if of[p]["weight_decay"] == 0} == undecayed
    assert {of[p]["weight_decay"] for p in of if p not in undecayed} == {1e-4}
    decayed = build_optimizer(replace(optim, decay_norms=True), model)
    assert {group["weight_decay"] for group in decayed.param_groups} == {1e-4}


@pytest.mark.parametrize("optim", [AdamW(lr=1e-2), Sgd(lr=1e-2)], ids=lambda o: o.kind)
def test_the_fused_optimiser_does_what_the_plain_one_does(optim):
    # Fused kernels on the CPU go wrong in silence where a gradient lies in memory otherwise than its parameter.
    fused, plain = detector(), detector()
    optimizers = [build_optimizer(optim, fused), build_optimizer(optim, plain)]
    for group in optimizers[1].param_groups:
        group["fused"] = False
    for step in range(4):
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((fused, plain), optimizers, strict=True):
            out = model(images.to(memory_format=torch.channels_last))["o2m"]
            (out.pred_logits.square().mean() + out.pred_boxes.square().mean() / 1e4).backward()
            assert all(p.grad is None or p.grad.stride() == p.stride() for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
    for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=1e-5)


def test_evaluations_are_evenly_spread_and_the_last_step_is_one():
    assert evaluation_steps(100, 4) == {25, 50, 75, 100}
    assert evaluation_steps(2, 5) == {1, 2}
    assert evaluation_steps(7, 1) == {7}
