"""Faster R-CNN's stages and the ATSS head against torchvision's pieces and loops (spec 7)."""

from __future__ import annotations

import pytest
import torch
from scenes import LEVELS, SIZE, STRIDES, grid, some_predictions, some_targets
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, roi_align
from torchvision.ops.poolers import LevelMapper

from detbench.core.detectors.atss_head import AtssHead
from detbench.core.detectors.rcnn import RcnnHead, sample_regions
from detbench.core.detectors.rpn import RpnHead, propose
from detbench.core.layers.roi import roi_features
from detbench.core.types import DensePredictions, Targets
from detbench.parts.assigners import SampledIou
from detbench.parts.auxiliary import AtssPredictor, RcnnPredictor, RpnPredictor

CHANNELS, NUM_CLASSES = 8, 3
COUNTS = (3, 0, 2)
SIZES = [SIZE, (64, 96), (90, 70)]
MAPS = [torch.randn(3, CHANNELS, h, w, generator=torch.Generator().manual_seed(h)) for h, w in LEVELS]


def one_class(seed: int) -> DensePredictions:
    p = some_predictions(grid(), 3, seed)
    return DensePredictions(p.pred_logits[..., :1], p.pred_boxes, p.anchors, p.pred_deltas)


# ---- first stage


def test_the_first_stage_orders_its_outputs_as_its_anchors() -> None:
    torch.manual_seed(0)
    head = RpnHead(RpnPredictor(), CHANNELS, strides=STRIDES)
    found = head(MAPS)
    assert found.pred_logits.shape == (3, len(found.anchors.boxes), 1)
    hidden = F.relu(head.conv(MAPS[1]))
    row, column, anchor = 2, 5, 7
    q = LEVELS[0][0] * LEVELS[0][1] * 9 + (row * LEVELS[1][1] + column) * 9 + anchor
    logits, deltas = head.logits(hidden)[1, :, row, column], head.deltas(hidden)[1, :, row, column]
    assert found.pred_logits[1, q, 0].item() == pytest.approx(logits[anchor].item(), abs=1e-6)
    assert torch.allclose(found.pred_deltas[1, q], deltas[4 * anchor : 4 * anchor + 4], atol=1e-6)


def test_its_boxes_are_those_of_torchvisions_coder() -> None:
    p = one_class(0)
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(p.pred_deltas[0], p.anchors.boxes)
    assert torch.allclose(p.pred_boxes[0], theirs, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("per_level", "num_proposals"), [(50, 40), (4000, 100), (30, 1000)])
def test_proposals_are_what_suppression_leaves_of_each_image_alone(
    seed: int, per_level: int, num_proposals: int
) -> None:
    p = one_class(seed)
    whwh = some_targets(COUNTS, 0, sizes=SIZES).whwh
    part = RpnPredictor(per_level=per_level, num_proposals=num_proposals)
    boxes, present = propose(part, p, whwh)
    for i in range(3):
        kept, scores, levels, start = [], [], [], 0
        for level, size in enumerate(p.anchors.level_sizes):
            score, place = p.pred_logits[i, start : start + size, 0].topk(min(per_level, size))
            kept.append(p.pred_boxes[i, start + place])
            scores.append(score)
            levels.append(torch.full_like(place, level))
            start += size
        candidates = torch.minimum(torch.cat(kept).clamp(min=0), whwh[i])
        usable = ((candidates[:, 2:] - candidates[:, :2]) > 0).all(1)
        candidates, score, level = candidates[usable], torch.cat(scores)[usable], torch.cat(levels)[usable]
        best = batched_nms(candidates, score, level, 0.7)[:num_proposals]
        assert int(present[i].sum()) == len(best)
        assert present[i, : len(best)].all()
        assert torch.allclose(boxes[i, : len(best)], candidates[best], atol=1e-4)


def test_proposals_are_no_part_of_a_graph() -> None:
    p = one_class(0)
    p.pred_boxes.requires_grad_()
    boxes, _ = propose(RpnPredictor(), p, some_targets(COUNTS, 0).whwh)
    assert not boxes.requires_grad


# ---- second stage


def some_regions(seed: int, num: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = 4 * 2 ** (5 * torch.rand(3, num, 2, generator=generator))
    corner = torch.rand(3, num, 2, generator=generator) * torch.tensor([80.0, 60.0])
    return torch.cat([corner, corner + side], -1)


def features_of(maps: list[Tensor], regions: Tensor) -> Tensor:
    image_idx = torch.arange(3).repeat_interleave(regions.shape[1])
    features = roi_features(
        maps, regions.flatten(0, 1), image_idx, strides=STRIDES[: len(maps)], size=7, finest_side=14.0
    )
    return features.unflatten(0, regions.shape[:2])


@pytest.mark.parametrize("seed", range(3))
def test_regions_are_read_as_torchvision_reads_them(seed: int) -> None:
    maps, strides = MAPS[:4], STRIDES[:4]
    regions = some_regions(seed)
    level = LevelMapper(3, 6, canonical_scale=14, canonical_level=3)(list(regions)).view(3, -1)
    assert len(level.unique()) >= 3
    ours = features_of(maps, regions)
    for i in range(3):
        for r, at in enumerate(level[i].tolist()):
            roi = torch.cat([torch.tensor([float(i)]), regions[i, r]])[None]
            expected = roi_align(maps[at], roi, 7, 1 / strides[at], aligned=True)[0]
            assert torch.allclose(ours[i, r], expected, atol=1e-5)


def test_regions_are_the_objects_and_the_proposals_that_there_are() -> None:
    targets = some_targets(COUNTS, 0)
    proposals = some_regions(0, num=20) + 200  # far from all objects
    present = torch.arange(20).expand(3, -1) < torch.tensor([[20], [4], [9]])
    regions, owner, sampled = sample_regions(SampledIou(sample=16), proposals, present, targets)
    assert regions.shape == (3, 16, 4)
    assert sampled.sum(1).tolist() == [16, 4, 11]
    first = 0
    for i, count in enumerate(COUNTS):
        assert sorted(owner[i][owner[i] >= 0].tolist()) == list(range(first, first + count))
        mine = owner[i] >= 0
        assert torch.equal(regions[i][mine], targets.boxes[owner[i][mine]])
        background = regions[i][sampled[i] & ~mine]
        assert (background[:, None] == proposals[i][present[i]]).all(-1).any(1).all()
        first += count


def test_objects_with_the_same_box_each_answer_for_themselves() -> None:
    box = torch.tensor([[10.0, 10.0, 40.0, 50.0]])
    targets = Targets.of([torch.tensor([2, 0])], [box.repeat(2, 1)], [(96, 128)])
    present = torch.ones(1, 1, dtype=torch.bool)
    _, owner, sampled = sample_regions(SampledIou(sample=16), box[None], present, targets)
    assert sampled.all()
    assert sorted(owner[0].tolist()) == [0, 0, 1]  # the proposal is the first one's


def rcnn(rule: SampledIou, seed: int = 0) -> RcnnHead:
    torch.manual_seed(seed)
    part = RcnnPredictor(proposals="rpn", hidden_dim=16, finest_side=14.0)
    head = RcnnHead(part, rule, CHANNELS, NUM_CLASSES, strides=STRIDES)
    with torch.no_grad():
        head.deltas.weight.normal_(std=0.2)
    return head


def test_a_region_is_moved_by_the_deltas_of_its_objects_class() -> None:
    targets = some_targets(COUNTS, 0)
    head = rcnn(SampledIou(sample=12, positive=0.3, negative=0.3))
    regions = some_regions(0)
    found = head(MAPS, regions, torch.ones(3, 40, dtype=torch.bool), targets)
    assert found.pred_logits.shape == (3, 12, NUM_CLASSES + 1)
    pooled = features_of(MAPS, found.regions)
    hidden = F.relu(head.hidden2(F.relu(head.hidden1(pooled.flatten(2)))))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))  # what torchvision divides by: one over the standard deviations
    pairs = found.pairs
    assert len(pairs.pred_idx)
    for i, q, m in zip(pairs.image_idx, pairs.pred_idx, pairs.target_idx, strict=True):
        label = int(targets.labels[m])
        deltas = head.deltas(hidden[i, q])[4 * label : 4 * label + 4]
        box = coder.decode_single(deltas[None], found.regions[i, q][None])
        assert torch.allclose(found.pred_boxes[i, q], box[0], atol=1e-3)


def test_a_second_stage_without_objects_or_proposals_says_nothing_that_counts() -> None:
    targets = some_targets((0, 0, 0), 0)
    found = rcnn(SampledIou(sample=5))(MAPS, some_regions(0), torch.zeros(3, 40, dtype=torch.bool), targets)
    assert found.pairs.ignored is not None
    assert found.pairs.ignored.all()
    assert len(found.pairs.pred_idx) == 0


# ---- ATSS


def test_the_atss_head_stands_on_squares_and_scales_its_deltas() -> None:
    torch.manual_seed(0)
    head = AtssHead(AtssPredictor(), CHANNELS, NUM_CLASSES, strides=STRIDES, groups=4, class_prior=0.01)
    with torch.no_grad():
        head.scales.copy_(torch.arange(1.0, 6.0))
        for conv in head.predictor.convs.values():
            conv.weight.normal_(std=0.3)
    found = head(MAPS)
    level, row, column = 2, 1, 3
    q = 12 * 16 + 6 * 8 + row * 4 + column
    x, y, side = column * 32.0, row * 32.0, 8 * 32.0
    box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2]
    assert found.anchors.boxes[q].tolist() == box
    tops = head.towers.for_box(MAPS[level])
    deltas = head.predictor.convs["deltas"](tops)[1, :, row, column] * head.scales[level]
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(deltas[None], torch.tensor([box]))
    assert torch.allclose(found.pred_boxes[1, q], expected[0], atol=1e-2)
    centerness = head.predictor.convs["centerness"](tops)[1, 0, row, column]
    assert found.pred_centerness[1, q].item() == pytest.approx(centerness.item(), abs=1e-6)
    assert found.pred_logits.shape == (3, len(found.anchors.boxes), NUM_CLASSES)
