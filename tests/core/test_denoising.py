"""Contrastive denoising, against loops that draw the same random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from query_scenes import some_objects

from detbench.core.queries.denoising import DenoisingQueries, noisy_objects
from detbench.core.queries.visibility import visibility
from detbench.core.types import Targets
from detbench.parts.branches import DenoisingOutput

CPU = torch.device("cpu")


def queries(num_queries: int = 10, **kwargs: float) -> DenoisingQueries:
    part = DenoisingOutput(num_queries=num_queries, **kwargs)
    return DenoisingQueries(part, num_classes=3, hidden_dim=8, logit_eps=1e-3)


def slow_noise(
    targets: Targets, num_groups: int, label_noise: float, box_noise: float
) -> tuple[list[list[list[int]]], list[list[list[list[float]]]]]:
    """Spec 2.8, one number at a time."""
    shape = (num_groups, 2, len(targets.labels))
    redrawn, drawn = torch.rand(shape), torch.randint(3, shape)
    sign, amount = torch.randint(2, (*shape, 4)), torch.rand(*shape, 4)
    labels, boxes = [], []
    for g in range(num_groups):
        labels.append([[], []])
        boxes.append([[], []])
        for negative in (0, 1):
            for m in range(len(targets.labels)):
                flip = redrawn[g, negative, m] < label_noise / 2
                labels[g][negative].append(int(drawn[g, negative, m] if flip else targets.labels[m]))
                height, width = targets.sizes[int(targets.image_idx[m])]
                x1, y1, x2, y2 = (float(v) for v in targets.boxes[m])
                corners = [x1 / width, y1 / height, x2 / width, y2 / height]
                half = [(corners[2] - corners[0]) / 2, (corners[3] - corners[1]) / 2] * 2
                for i in range(4):
                    direction = 1 if sign[g, negative, m, i] else -1
                    u = float(amount[g, negative, m, i]) + negative
                    corners[i] = min(max(corners[i] + direction * u * half[i] * box_noise, 0.0), 1.0)
                a, b, c, d = corners
                boxes[g][negative].append([(a + c) / 2, (b + d) / 2, c - a, d - b])
    return labels, boxes


@pytest.mark.parametrize(("label_noise", "box_noise"), [(0.5, 1.0), (1.0, 0.4), (0.0, 0.0)])
def test_noise_is_that_of_the_specification(label_noise: float, box_noise: float):
    targets = some_objects((2, 0, 3), seed=0)
    torch.manual_seed(1)
    labels, boxes = noisy_objects(targets, 4, num_classes=3, label_noise=label_noise, box_noise=box_noise)
    torch.manual_seed(1)
    slow_labels, slow_boxes = slow_noise(targets, 4, label_noise, box_noise)
    assert labels.tolist() == slow_labels
    assert torch.allclose(boxes, torch.tensor(slow_boxes), atol=1e-6)


def test_a_positive_stays_near_its_object_and_a_negative_does_not():
    side = torch.tensor([[400.0, 400, 600, 600]])
    targets = Targets.of([torch.tensor([0])], [side], [(1000, 1000)])
    torch.manual_seed(0)
    _, boxes = noisy_objects(targets, 200, num_classes=3, label_noise=0.5, box_noise=1.0)
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    moved = (corners - side / 1000).abs().flatten(2).squeeze(-1) / 0.1
    assert moved[:, 0].max() <= 1 + 1e-5
    assert moved[:, 1].min() >= 1 - 1e-5
    assert (boxes[:, 1, :, 2:] < 0).any()  # a negative's corners may change places


def test_noise_does_not_take_a_corner_out_of_the_image():
    boxes = torch.tensor([[0.0, 0, 100, 100], [900.0, 900, 1000, 1000]])
    targets = Targets.of([torch.tensor([0, 1])], [boxes], [(1000, 1000)])
    torch.manual_seed(0)
    _, noisy = noisy_objects(targets, 50, num_classes=3, label_noise=0.5, box_noise=1.0)
    corners = torch.cat([noisy[..., :2] - noisy[..., 2:] / 2, noisy[..., :2] + noisy[..., 2:] / 2], -1)
    assert corners.min() == pytest.approx(0, abs=1e-6)
    assert corners.max() == pytest.approx(1, abs=1e-6)


def test_labels_are_redrawn_with_half_the_label_noise():
    targets = some_objects((40,), seed=0)
    torch.manual_seed(0)
    labels, _ = noisy_objects(targets, 200, num_classes=3, label_noise=0.5, box_noise=1.0)
    for kind in (0, 1):  # of a quarter redrawn, a third fall on the true class again
        changed = (labels[:, kind] != targets.labels).float().mean().item()
        assert changed == pytest.approx(0.25 * 2 / 3, abs=0.015)


def test_each_object_has_a_slot_in_both_halves_of_every_group_and_the_rest_is_empty():
    targets = some_objects((2, 0, 3), seed=0)
    denoising = queries(num_queries=10)
    torch.manual_seed(5)
    noisy = denoising(targets)
    assert (noisy.num_groups, noisy.most_objects) == (3, 3)  # 10 // 3
    torch.manual_seed(5)
    labels, boxes = noisy_objects(targets, 3, num_classes=3, label_noise=0.5, box_noise=1.0)
    first = [0, 2, 2]
    for image, count in enumerate(targets.counts):
        for g in range(3):
            for half in range(2):
                for j in range(3):
                    slot = g * 6 + half * 3 + j
                    content, reference = noisy.content[image, slot], noisy.reference[image, slot]
                    if j >= count:
                        assert not content.any()
                        assert (reference == 0.5).all()
                        continue
                    m = first[image] + j
                    assert torch.equal(content, denoising.label_embed.weight[labels[g, half, m]])
                    for x, found in zip(boxes[g, half, m].tolist(), reference.tolist(), strict=True):
                        x = min(max(x, 0.0), 1.0)
                        logit = math.log(max(x, 1e-3) / max(1 - x, 1e-3))
                        assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_pairs_name_the_positives_of_every_layer():
    targets = some_objects((2, 0, 3), seed=0)
    matches = queries(num_queries=7)(targets).pairs(targets, 2)
    assert matches.copies == 2  # 7 // 3 groups
    repeated = targets.repeat(2)
    expected = [
        (layer * 3 + image, group * 6 + j, layer * 5 + first + j)
        for layer in range(2)
        for group in range(2)
        for image, first, count in ((0, 0, 2), (2, 2, 3))
        for j in range(count)
    ]
    found = list(
        zip(matches.image_idx.tolist(), matches.pred_idx.tolist(), matches.target_idx.tolist(), strict=True)
    )
    assert found == expected
    assert torch.equal(repeated.image_idx[matches.target_idx], matches.image_idx)


@pytest.mark.parametrize(("counts", "num_groups"), [((1, 0), 10), ((10,), 1), ((13, 2), 1), ((4, 5), 2)])
def test_the_image_with_most_objects_sets_the_number_of_groups(counts: tuple[int, ...], num_groups: int):
    noisy = queries(num_queries=10)(some_objects(counts, seed=0))
    assert noisy.num_groups == num_groups
    assert noisy.content.shape == (len(counts), 2 * num_groups * max(counts), 8)


def test_a_batch_without_objects_has_no_query_and_one_copy():
    targets = some_objects((0, 0), seed=0)
    denoising = queries()
    state = torch.get_rng_state()
    noisy = denoising(targets)
    assert torch.equal(torch.get_rng_state(), state)
    assert noisy.content.shape == (2, 0, 8)
    assert noisy.reference.shape == (2, 0, 4)
    matches = noisy.pairs(targets, 3)
    assert matches.copies == 1
    assert len(matches.image_idx) == len(matches.pred_idx) == len(matches.target_idx) == 0
    noisy.content.sum().backward()  # the embedding stays in the graph: every process has a gradient to share
    assert not denoising.label_embed.weight.grad.any()


def test_queries_see_what_the_specification_lets_them_see():
    visible = visibility(groups=(4, 4, 4), num_one_to_one=5, num_one_to_many=2, device=CPU)
    assert visible is not None

    def kind(i: int) -> str:
        if i < 12:
            return f"group {i // 4}"
        return "one_to_one" if i < 17 else "one_to_many"

    for row in range(19):
        for column in range(19):
            same = kind(row) == kind(column)
            noisy_looks_at_matching = row < 12 and kind(column) == "one_to_one"
            assert visible[row, column].item() == (same or noisy_looks_at_matching)


def test_queries_of_one_kind_need_no_mask():
    assert visibility(groups=(0,), num_one_to_one=5, num_one_to_many=0, device=CPU) is None
