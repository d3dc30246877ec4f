"""Sine encodings and the places of tokens, against loops that follow the text of the specification."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from detbench.core.layers.position import box_positions, token_positions
from detbench.core.layers.tokens import Layout, TokenGrid, lay_out, unpadded_cells

LAYOUT = Layout(hidden_dim=16, temperature=10000.0, offset=-0.5)


def grid(level_sizes, sizes, padded_size, layout: Layout = LAYOUT) -> TokenGrid:
    return lay_out(
        layout,
        level_sizes,
        sizes=sizes,
        padded_size=padded_size,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )


def wave(x: float, k: int, num_features: int, temperature: float) -> float:
    angle = x / temperature ** (2 * (k // 2) / num_features)
    return math.sin(angle) if k % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize(("temperature", "offset"), [(10000.0, -0.5), (20.0, 0.0)])
def test_a_token_is_encoded_by_its_row_then_its_column(temperature: float, offset: float):
    height, width, rows, columns, half = 5, 7, 4, 6, 8
    unpadded = torch.zeros(1, height, width, dtype=torch.bool)
    unpadded[:, :rows, :columns] = True
    found = token_positions(
        [unpadded], 2 * half, temperature=temperature, offset=offset, dtype=torch.float64
    ).view(height, width, 2 * half)
    for i in range(rows):
        for j in range(columns):
            y = (i + 1 + offset) / (rows + 1e-6) * 2 * math.pi
            x = (j + 1 + offset) / (columns + 1e-6) * 2 * math.pi
            expected = [wave(y, k, half, temperature) for k in range(half)]
            expected += [wave(x, k, half, temperature) for k in range(half)]
            assert found[i, j].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("order", "numbers"), [("xywh", (0, 1, 2, 3)), ("yxwh", (1, 0, 2, 3))])
def test_a_box_is_encoded_number_by_number(order: str, numbers: tuple[int, ...]):
    box = torch.tensor([0.3, 0.6, 0.1, 0.9], dtype=torch.float64)
    expected = [wave(box[i].item() * 2 * math.pi, k, 8, 10000.0) for i in numbers for k in range(8)]
    assert box_positions(box, 16, order=order).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("padded", [63, 64, 97, 128, 333, 800, 1333])
def test_padded_cells_are_those_of_a_nearest_neighbour_resize(padded: int):
    for stride in (8, 16, 32, 64):
        cells = math.ceil(padded / stride)
        for unpadded in range(1, padded + 1, 7):
            mask = (torch.arange(padded) >= unpadded).float()
            resized = F.interpolate(mask[None, None], size=cells)[0, 0].bool()
            assert unpadded_cells(unpadded, padded, cells) == int((~resized).sum())


def test_a_batch_without_padding_has_no_mask_and_is_laid_out_once():
    levels = ((8, 6), (4, 3))
    first = grid(levels, [(64, 48)] * 2, (64, 48))
    assert first.padding_mask is None
    assert first.valid_ratios is None
    assert grid(levels, [(64, 48)] * 5, (64, 48)) is first
    points = torch.rand(2, 3, 2)
    assert torch.equal(first.on_levels(points), points[:, :, None].expand(2, 3, 2, 2))


def test_centers_and_ratios_are_those_of_the_unpadded_part():
    levels, sizes = ((8, 6), (4, 3)), [(64, 48), (40, 24)]
    laid = grid(levels, sizes, (64, 48))
    assert laid.padding_mask is not None
    assert laid.valid_ratios is not None
    start = 0
    for level, (h, w) in enumerate(levels):
        for image, (height, width) in enumerate(sizes):
            mask = F.interpolate(
                (
                    (torch.arange(64)[:, None] >= height) | (torch.arange(48)[None] >= width)
                ).float()[None, None],
                size=(h, w),
            )[0, 0].bool()  # fmt: skip
            found = laid.padding_mask[image, start : start + h * w].view(h, w)
            assert torch.equal(found, mask)
            columns, rows = int((~mask[0]).sum()), int((~mask[:, 0]).sum())
            assert laid.valid_ratios[image, level].tolist() == [columns / w, rows / h]
            for i in range(h):
                for j in range(w):
                    center = [(j + 0.5) / columns, (i + 0.5) / rows]
                    assert laid.centers[image, start + i * w + j].tolist() == pytest.approx(center)
        start += h * w


def test_references_are_carried_to_each_padded_level():
    laid = grid(((8, 6), (4, 3)), [(64, 48), (40, 24)], (64, 48))
    assert laid.valid_ratios is not None
    boxes = torch.rand(2, 3, 4, dtype=torch.float64)
    found = laid.on_levels(boxes)
    assert found.shape == (2, 3, 2, 4)
    for image in range(2):
        for level in range(2):
            x, y = laid.valid_ratios[image, level]
            assert torch.allclose(
                found[image, :, level], boxes[image] * torch.stack([x, y, x, y]), rtol=0, atol=1e-15
            )


def test_a_layout_made_in_inference_serves_training():
    layout = Layout(hidden_dim=16, temperature=123.0, offset=0.0)
    with torch.inference_mode():
        grid(((4, 4),), [(32, 32)], (32, 32), layout)
    made = grid(((4, 4),), [(32, 32)], (32, 32), layout)
    weight = torch.ones(16, dtype=torch.float64, requires_grad=True)
    (made.positions * weight).sum().backward()
    assert torch.allclose(weight.grad, made.positions.sum((0, 1)))
