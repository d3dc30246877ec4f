"""Proposals after suppression, against a loop over boxes (spec 6.4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detbench.core.queries.proposal_nms import select_after_nms
from detbench.parts.detectors import ProposalNms

LEVEL_SIZES = (40, 15, 5)


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two normalised cxcywh boxes, each cut to the image."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        [min(max(v, 0.0), 1.0) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)] for x, y, w, h in (a, b)
    )
    common = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    return common / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common)


def plain(rule: ProposalNms, scores: list[float], boxes: list[list[float]], num: int) -> list[int]:
    by_score = sorted(range(len(scores)), key=lambda i: -scores[i])
    left: list[int] = []
    start = 0
    for size in LEVEL_SIZES:
        mine = [i for i in by_score if start <= i < start + size][: rule.per_level]
        kept: list[int] = []
        for i in mine:
            if all(overlap(boxes[i], boxes[j]) <= rule.iou_threshold for j in kept):
                kept.append(i)
        left += kept
        start += size
    if len(left) < num:
        return by_score[:num]
    share = num // len(LEVEL_SIZES)
    left.sort(key=lambda i: -scores[i])
    level = [sum(i >= end for end in (40, 55)) for i in range(60)]
    seen = [0, 0, 0]
    first = []
    for i in left:
        seen[level[i]] += 1
        if seen[level[i]] <= share:
            first.append(i)
    others = [i for i in left if i not in first]
    return sorted(first + others[: num - len(first)], key=lambda i: -scores[i])


def tokens(seed: int, num_images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_images, sum(LEVEL_SIZES), generator=generator)
    boxes = torch.rand(num_images, sum(LEVEL_SIZES), 4, generator=generator) * 0.3 + 0.4
    return scores, boxes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("rule", "num"),
    [
        (ProposalNms(), 12),
        (ProposalNms(iou_threshold=0.6), 12),
        (ProposalNms(iou_threshold=0.6, per_level=10), 7),
        (ProposalNms(iou_threshold=0.5), 25),  # some images have too few survivors
        (ProposalNms(per_level=2), 9),  # fewer candidates than queries
    ],
)
def test_what_is_chosen_agrees_with_a_loop_over_boxes(rule: ProposalNms, num: int, seed: int) -> None:
    scores, boxes = tokens(seed)
    chosen = select_after_nms(rule, scores, boxes, LEVEL_SIZES, num)
    wanted = [plain(rule, s, b, num) for s, b in zip(scores.tolist(), boxes.tolist(), strict=True)]
    assert chosen.tolist() == wanted


def test_a_small_level_keeps_its_share_however_low_its_scores() -> None:
    scores, boxes = tokens(0)
    scores[:, 55:] -= 100
    chosen = select_after_nms(ProposalNms(), scores, boxes, LEVEL_SIZES, 12)
    assert ((chosen >= 55).sum(1) == 4).all()


def test_images_of_a_batch_do_not_suppress_each_other() -> None:
    scores, boxes = tokens(1)
    boxes[:] = boxes[:1]
    rule = ProposalNms(iou_threshold=0.6)
    together = select_after_nms(rule, scores, boxes, LEVEL_SIZES, 12)
    alone = [select_after_nms(rule, scores[i : i + 1], boxes[i : i + 1], LEVEL_SIZES, 12) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_boxes_overlap_as_far_as_they_lie_in_the_image() -> None:
    """Cut to the image the first two of a level are the same box; uncut they overlap by a half."""
    boxes = torch.tensor(
        [[[0.0, 0.5, 0.4, 0.4], [0.1, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]]]
    )
    rule = ProposalNms(per_level=4, iou_threshold=0.9)
    assert select_after_nms(rule, torch.tensor([[4.0, 3, 2, 1]]), boxes, (4,), 3).tolist() == [[0, 2, 3]]
