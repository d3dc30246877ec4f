"""Box arithmetic against hand-worked values, its own inverses and torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops as reference
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detbench.core import boxes as ours


def some_boxes(num: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=generator, dtype=torch.float64) * 80
    side = torch.rand(num, 2, generator=generator, dtype=torch.float64) * 60 + 1
    return torch.cat([corner, corner + side], 1)


@given(st.integers(0, 2**16))
def test_iou_of_every_pair_agrees_with_torchvision(seed: int) -> None:
    a, b = some_boxes(7, seed), some_boxes(5, seed + 1)
    assert torch.allclose(ours.pairwise_iou(a, b, eps=1e-6), reference.box_iou(a, b), atol=1e-9)


@given(st.integers(0, 2**16))
def test_giou_of_every_pair_agrees_with_torchvision(seed: int) -> None:
    a, b = some_boxes(7, seed), some_boxes(5, seed + 1)
    theirs = reference.generalized_box_iou(a, b)
    assert torch.allclose(ours.box_giou(a[:, None], b[None], eps=1e-7), theirs, atol=1e-9)


def test_overlaps_of_two_boxes_by_hand() -> None:
    # 10 x 10 at (0,0) and at (5,5): intersection 25, union 175, enclosing 225.
    a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 5, 15, 15])
    assert ours.box_iou(a, b, eps=1e-6).item() == pytest.approx(25 / 175)
    assert ours.box_giou(a, b, eps=1e-6).item() == pytest.approx(25 / 175 - 50 / 225)


def test_the_smallest_union_is_eps() -> None:
    # 0.5 x 1 over itself: 0.5 by the union's clamp at 1 instead of 1.
    a = torch.tensor([0.0, 0.0, 0.5, 1.0])
    assert ours.box_iou(a, a, eps=1.0).item() == pytest.approx(0.5)
    # GIoU: 0.5 / 1 - (max(0.5, 1) - 1) / 1.
    assert ours.box_giou(a, a, eps=1.0).item() == pytest.approx(0.5)


def test_two_empty_boxes_overlap_by_nothing() -> None:
    point = torch.tensor([3.0, 3.0, 3.0, 3.0])
    assert ours.box_iou(point, point, eps=1e-6).item() == 0


@given(st.integers(0, 2**16))
def test_formats_are_inverse_to_each_other(seed: int) -> None:
    a = some_boxes(5, seed)
    assert torch.allclose(ours.cxcywh_to_xyxy(ours.xyxy_to_cxcywh(a)), a)


@given(st.integers(0, 2**16))
def test_applying_the_deltas_to_the_anchors_gives_the_boxes_back(seed: int) -> None:
    anchors, boxes = some_boxes(5, seed), some_boxes(5, seed + 1)
    ratio = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    boxes = boxes[(ratio.log().abs() < ours.MAX_LOG_RATIO).all(1)]
    anchors = anchors[(ratio.log().abs() < ours.MAX_LOG_RATIO).all(1)]
    assert torch.allclose(ours.decode_deltas(anchors, ours.encode_deltas(anchors, boxes)), boxes)


def test_deltas_by_hand() -> None:
    # Anchor 10 x 20 at (5,10); box 20 x 20 at (10,10): shifted by half a width, twice as wide.
    anchor, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([0.0, 0, 20, 20])
    assert ours.encode_deltas(anchor, box).tolist() == pytest.approx([0.5, 0, math.log(2), 0])


def test_a_decoded_side_is_within_a_factor_of_its_anchors() -> None:
    anchor = torch.tensor([0.0, 0, 16, 16])
    big = ours.decode_deltas(anchor, torch.tensor([0.0, 0, 99, -99]))
    # 16 * 1000/16 = 1000 wide, 16 * 16/1000 = .256 high, around (8, 8).
    assert big.tolist() == pytest.approx([-492, 7.872, 508, 8.128], abs=1e-3)


def test_distances_are_inverse_to_boxes() -> None:
    center, box = torch.tensor([4.0, 5.0]), torch.tensor([1.0, 3.0, 10.0, 20.0])
    distances = ours.boxes_to_distances(center, box)
    assert distances.tolist() == [3, 2, 6, 15]
    assert torch.equal(ours.distances_to_boxes(center, distances), box)


def test_boxes_are_cut_to_the_image() -> None:
    box = torch.tensor([-3.0, 2.0, 50.0, 70.0])
    assert ours.clip_boxes(box, torch.tensor([40.0, 30, 40, 30])).tolist() == [0, 2, 40, 30]
