"""Queries from the teacher's features: where they come from, who learns, what is compared (spec 8.4)."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from query_scenes import NUM_CLASSES
from torch import Tensor

from detbench.core.detectors.query import QueryDetector
from detbench.core.layers.roi import roi_features
from detbench.core.teaching.consistency import ConsistencyModule, Projector, Views
from detbench.core.teaching.labels import Candidates
from detbench.parts.assigners import QueryHungarian
from detbench.parts.backbones import SmallResNet
from detbench.parts.branches import Branch, DecoderOutput
from detbench.parts.detectors import ChannelMapper, ProposalQueries, Query, Transformer
from detbench.parts.teaching import Consistency, CostMining

SIZE = (64, 96)  # height, width of every image
CHANNELS = 16
IMAGES = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def ramps(strides: tuple[int, ...], *, side: int = 256) -> list[Tensor]:
    """(1, 3, h, w) of each level: its index, and x and y in pixels."""
    levels = []
    for index, stride in enumerate(strides):
        at = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(at, at, indexing="ij")
        levels.append(torch.stack([torch.full_like(x, index), x, y])[None])
    return levels


def test_a_box_is_cut_cell_by_cell_from_the_level_of_its_size():
    strides = (8, 16, 32, 64)
    sides = {20.0: 0, 111.0: 0, 112.0: 1, 200.0: 1}
    boxes = torch.tensor([[20.0, 30.0, 20 + side, 30 + side] for side in sides])
    found = roi_features(
        ramps(strides), boxes, torch.zeros(4, dtype=torch.int64), strides=strides, size=7, finest_side=56
    )
    for features, (side, level) in zip(found, sides.items(), strict=True):
        assert torch.allclose(features[0], torch.tensor(float(level)))
        cells = (torch.arange(7) + 0.5) * side / 7
        # A coarse level's outermost samples lie beyond its outermost cells' middles.
        inside = (20 + cells < 256 - strides[level]) & (30 + cells < 256 - strides[level])
        assert torch.allclose(features[1][:, inside], (20 + cells[inside]).expand(7, -1), atol=1e-3)
        assert torch.allclose(features[2][inside], (30 + cells[inside])[:, None].expand(-1, 7), atol=1e-3)


def test_a_box_of_no_or_any_size_has_a_level():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 250.0, 250.0]])
    found = roi_features(
        ramps((8, 16)), boxes, torch.zeros(2, dtype=torch.int64), strides=(8, 16), size=3, finest_side=8
    )
    assert found[:, 0, 1, 1].tolist() == [0, 1]


def test_the_content_of_a_query_is_two_convolutions_and_two_linear_layers_of_its_box():
    torch.manual_seed(0)
    projector = Projector(4, roi_size=3, hidden_dim=10).eval()
    assert [tuple(p.shape) for p in projector.parameters() if p.dim() > 1] == [
        (4, 4, 3, 3),
        (4, 4, 3, 3),
        (10, 36),
        (4, 10),
    ]
    content = projector(torch.randn(5, 4, 3, 3))
    assert content.shape == (5, 4)
    assert (content >= 0).all()


def test_a_single_box_is_normalised_by_those_seen_before():
    torch.manual_seed(0)
    projector = Projector(4, roi_size=3, hidden_dim=10)
    for _ in range(3):
        projector(torch.randn(8, 4, 3, 3))
    before = projector.norm.running_mean.clone()
    assert torch.isfinite(projector(torch.randn(1, 4, 3, 3))).all()
    assert torch.equal(projector.norm.running_mean, before)
    assert projector(torch.zeros(0, 4, 3, 3)).shape == (0, 4)


def module(**settings: Any) -> ConsistencyModule:
    torch.manual_seed(5)
    part = Consistency(**{"hidden_dim": 32, "roi_size": 3, **settings})
    return ConsistencyModule(part, channels=CHANNELS, strides=(8, 16, 32))


def test_the_loss_is_the_mean_squared_distance_of_unit_vectors_of_each_layer():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 2 * 3, 4, generator=generator, dtype=torch.float64)
    expected = 0.0
    counts = (3, 0, 1)
    for layer in range(2):
        total, number = 0.0, 0
        for image, count in enumerate(counts):
            for group in range(2):
                number += max(count, 1)  # an image without candidates has one that agrees
                for slot in range(count):
                    a, b = (x[layer, image, group * 3 + slot].tolist() for x in (student, teacher))
                    norms = [math.sqrt(sum(v * v for v in x)) for x in (a, b)]
                    total += sum((u / norms[0] - v / norms[1]) ** 2 for u, v in zip(a, b, strict=True)) / 4
        expected += 10 * total / number
    assert module(groups=2).loss(student, teacher, counts).item() == pytest.approx(expected)


def detector(seed: int = 0) -> QueryDetector:
    torch.manual_seed(seed)
    part = Query(
        backbone=SmallResNet(width=8),
        neck=ChannelMapper(channels=CHANNELS, num_levels=3, groups=4),
        transformer=Transformer(
            encoder_layers=1, decoder_layers=2, num_heads=2, num_points=2, dim_feedforward=16, dropout=0.0
        ),
        queries=ProposalQueries(num=6, content="token", position="reference"),
        refinement="detached",
        heads="shared",
    )
    branch = Branch(predictor=DecoderOutput(), assigner=QueryHungarian(), losses={})
    return part.build(branches={"decoder": branch}, num_classes=NUM_CLASSES)


def candidates(scores: list[float], counts: tuple[int, ...], *, shift: float = 0.0) -> Candidates:
    corner = torch.arange(len(scores))[:, None].expand(-1, 2) * 4.0 + shift
    return Candidates(
        torch.zeros(len(scores), dtype=torch.int64),
        torch.cat([corner, corner + 24], 1),
        torch.tensor(scores),
        torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        counts,
        (SIZE,) * len(counts),
    )


def step(
    consistency: ConsistencyModule,
    student: QueryDetector,
    teacher: QueryDetector,
    *,
    found: Candidates,
    moved: Candidates | None = None,
) -> tuple[dict[str, Any], Tensor]:
    with torch.no_grad():
        weak = teacher.encode(IMAGES, found.sizes)
    return consistency(
        student,
        teacher,
        Views(weak, student.encode(IMAGES, found.sizes), found, found if moved is None else moved),
        threshold=0.4,
        tested="decoder",
        branches=["decoder"],
    )


def test_a_teacher_that_is_the_student_agrees_with_it_on_the_same_view():
    model = detector().eval()
    found = candidates([0.9, 0.5, 0.7], (2, 0, 1))
    _, same = step(module(), model, model, found=found)
    assert same.item() == pytest.approx(0, abs=1e-10)
    _, moved = step(
        module(), model, model, found=found, moved=candidates([0.9, 0.5, 0.7], (2, 0, 1), shift=9.0)
    )
    assert moved.item() > 1e-4


def test_the_projector_and_the_student_learn_and_the_teacher_does_not():
    student, teacher, consistency = detector(), detector(1).eval(), module()
    _, loss = step(consistency, student, teacher, found=candidates([0.9, 0.5, 0.7], (2, 0, 1)))
    loss.backward()
    assert consistency.projector.hidden.weight.grad.abs().sum() > 0
    assert next(student.backbone.parameters()).grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_groups_change_nothing_where_nothing_is_dropped():
    student, teacher = detector().eval(), detector(1).eval()
    found = candidates([0.9, 0.5, 0.7], (2, 0, 1))
    one, five = (step(module(groups=n), student, teacher, found=found)[1] for n in (1, 5))
    assert one.item() == pytest.approx(five.item(), rel=1e-4)


def test_candidates_below_the_threshold_take_no_part_without_mining():
    student, teacher = detector().eval(), detector(1).eval()
    all_of_them = candidates([0.9, 0.3, 0.7], (2, 0, 1))
    alone = all_of_them.where(all_of_them.scores > 0.4)
    losses = [step(module(), student, teacher, found=found)[1] for found in (all_of_them, alone)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_mined_candidates_take_part(monkeypatch: pytest.MonkeyPatch):
    student, teacher = detector().eval(), detector(1).eval()
    low = candidates([0.3, 0.2, 0.1], (2, 0, 1))
    seen: list[Candidates] = []

    def first_two(rule: Any, predictions: Any, found: Candidates) -> Tensor:
        assert not predictions.pred_logits.requires_grad
        seen.append(found)
        return found.scores >= 0.2

    monkeypatch.setattr("detbench.core.teaching.consistency.agreed", first_two)
    _, mined = step(module(mining=CostMining()), student, teacher, found=low)
    high = candidates([0.9, 0.9, 0.1], (2, 0, 1))
    _, expected = step(module(), student, teacher, found=high)
    assert seen == [low]
    assert mined.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mining", [True, False])
def test_images_without_candidates_cost_nothing(mining: bool):
    student, teacher = detector(), detector(1).eval()
    consistency = module(mining=CostMining() if mining else None)
    predictions, loss = step(consistency, student, teacher, found=candidates([], (0, 0, 0)))
    assert loss.item() == 0
    plain = copy.deepcopy(student)
    expected = plain(IMAGES, (SIZE,) * 3)["decoder"]
    assert torch.allclose(predictions["decoder"].pred_boxes, expected.pred_boxes, atol=1e-5)
    (loss + predictions["decoder"].pred_boxes.sum()).backward()


def test_the_students_own_predictions_are_those_without_consistency():
    student, teacher = detector().eval(), detector(1).eval()
    found = candidates([0.9, 0.5, 0.7], (2, 0, 1))
    predictions, _ = step(module(), student, teacher, found=found)
    expected = student(IMAGES, (SIZE,) * 3)["decoder"]
    assert torch.allclose(predictions["decoder"].pred_logits, expected.pred_logits, atol=1e-5)


def test_mining_takes_no_gradient_away_under_mixed_precision():
    unreached = []
    for mining in (None, CostMining()):
        student, teacher = detector(), detector(1).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predictions, loss = step(
                module(mining=mining), student, teacher, found=candidates([0.9, 0.5, 0.7], (2, 0, 1))
            )
        found = predictions["decoder"]
        (loss + found.pred_boxes.sum() + found.pred_logits.sum()).backward()
        unreached.append({name for name, p in student.named_parameters() if p.grad is None})
    assert unreached[1] == unreached[0]
