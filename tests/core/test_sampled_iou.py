"""Faster R-CNN's rule: what torchvision calls positive, and how the sample is drawn (spec 7)."""

from __future__ import annotations

import pytest
import torch
from scenes import SIZE, grid, some_predictions, some_targets
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from detbench.core.assign.max_iou import max_iou_owner
from detbench.core.assign.sampled_iou import sampled_owner
from detbench.core.assign.sampling import random_sample
from detbench.parts.assigners import SampledIou

COUNTS = (4, 0, 6)
RPN = SampledIou(positive=0.7, negative=0.3, low_quality=0.3, sample=256, most_positive=0.5)
RCNN = SampledIou(positive=0.5, negative=0.5, sample=512, most_positive=0.25)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_positives_and_the_band_are_those_of_torchvision(seed: int, low_quality: bool) -> None:
    anchors, targets = grid(), some_targets(COUNTS, seed)
    owner, ignored = max_iou_owner(
        anchors.boxes,
        torch.ones(3, len(anchors.boxes), dtype=torch.bool),
        targets.boxes,
        targets.image_idx,
        positive=0.7,
        negative=0.3,
        low_quality=0.0 if low_quality else None,
    )
    first = 0
    for i, count in enumerate(COUNTS):
        if count:
            iou = box_iou(targets.boxes[first : first + count], anchors.boxes)
            theirs = Matcher(0.7, 0.3, allow_low_quality_matches=low_quality)(iou)
            assert torch.equal(owner[i] >= 0, theirs >= 0)
            assert torch.equal(ignored[i], theirs == Matcher.BETWEEN_THRESHOLDS)
            # Torchvision gives a low-quality match to the object it overlaps most; Faster R-CNN's own goes by object.
            sure = (theirs >= 0) & (iou.amax(0) >= 0.7) & ~(iou == iou.amax(1, keepdim=True)).any(0)
            assert torch.equal(owner[i][sure], theirs[sure] + first)
        first += count


def test_each_image_may_have_candidates_of_its_own() -> None:
    targets = some_targets(COUNTS, 0)
    boxes = torch.stack([some_targets((30,), seed).boxes for seed in range(3)])
    valid = torch.rand(3, 30) < 0.8
    settings = {"positive": 0.3, "negative": 0.2, "low_quality": 0.1}
    owner, ignored = max_iou_owner(boxes, valid, targets.boxes, targets.image_idx, **settings)
    for i in range(3):
        alone = max_iou_owner(boxes[i], valid, targets.boxes, targets.image_idx, **settings)
        assert torch.equal(owner[i], alone[0][i])
        assert torch.equal(ignored[i], alone[1][i])
    assert (owner >= 0).any()


@pytest.mark.parametrize(
    ("num_positive", "num_negative", "expected"),
    [(20, 100, (4, 12)), (2, 100, (2, 14)), (20, 3, (4, 3)), (0, 5, (0, 5)), (1, 0, (1, 0))],
)
def test_a_sample_has_so_many_positives_and_negatives(
    num_positive: int, num_negative: int, expected: tuple[int, int]
) -> None:
    positive = torch.arange(130) < num_positive
    negative = torch.arange(130) >= 130 - num_negative
    shuffled = torch.randperm(130)
    positive, negative = positive[shuffled], negative[shuffled]
    drawn = random_sample(positive[None], negative[None], size=16, most_positive=4)[0]
    assert not (drawn & ~positive & ~negative).any()
    assert (int((drawn & positive).sum()), int((drawn & negative).sum())) == expected
    label = [torch.where(positive, 1.0, torch.where(negative, 0.0, -1.0))]
    theirs = BalancedPositiveNegativeSampler(16, 0.25)(label)
    assert (int(theirs[0][0].sum()), int(theirs[1][0].sum())) == expected


def test_every_candidate_has_the_same_chance() -> None:
    torch.manual_seed(0)
    positive = torch.tensor([[True] * 4 + [False] * 8]).expand(4000, -1)
    drawn = random_sample(positive, ~positive, size=6, most_positive=2).float().mean(0)
    assert drawn[:4].tolist() == pytest.approx([2 / 4] * 4, abs=0.03)
    assert drawn[4:].tolist() == pytest.approx([4 / 8] * 8, abs=0.03)


def test_a_draw_repeats_with_torchs_seed_and_only_then() -> None:
    predictions, targets = some_predictions(grid(), 3, 0), some_targets(COUNTS, 0)
    rule = SampledIou(positive=0.7, negative=0.3, low_quality=0.3, sample=20, most_positive=0.5)
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(rule(predictions, targets).ignored)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("seed", range(3))
def test_whatever_isnt_sampled_is_ignored_and_positives_lie_in_the_image(seed: int) -> None:
    predictions = some_predictions(grid(), 3, seed)
    targets = some_targets(COUNTS, seed, sizes=[SIZE, (40, 60), (64, 50)])
    matches = RPN(predictions, targets)
    assert matches.ignored is not None
    assert (~matches.ignored).sum(1).tolist() == [256] * 3
    assert not matches.ignored[matches.image_idx, matches.pred_idx].any()
    assert torch.equal(targets.image_idx[matches.target_idx], matches.image_idx)
    of_image = torch.bincount(matches.image_idx, minlength=3)
    assert (of_image <= 128).all()
    assert (of_image[torch.tensor([0, 2])] > 0).all()
    taken = predictions.anchors.centers.expand(3, -1, -1)[~matches.ignored].view(3, 256, 2)
    assert (taken < targets.whwh[:, None, :2]).all()


def test_an_object_among_the_candidates_answers_for_itself() -> None:
    targets = some_targets((3,), 0)
    boxes = torch.cat([targets.boxes, targets.boxes + 200])[None]
    owner, sampled = sampled_owner(RCNN, boxes, torch.ones(1, 6, dtype=torch.bool), targets)
    assert owner.tolist() == [[0, 1, 2, -1, -1, -1]]
    assert sampled.all()
