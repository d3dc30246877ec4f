"""Where predictions stand, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from scenes import grid, points

from detbench.core.anchors import point_anchors


def test_points_stand_in_the_middle_of_cells_row_by_row() -> None:
    anchors = points()
    assert anchors.level_sizes == (192, 48, 12, 4, 1)
    assert anchors.centers[:2].tolist() == [[4, 4], [12, 4]]
    assert anchors.centers[16].tolist() == [4, 12]  # the second row of 16
    assert anchors.centers[192].tolist() == [8, 8]  # the first of stride 16
    assert anchors.boxes[192].tolist() == [0, 0, 16, 16]
    assert anchors.strides[[0, 191, 192, 256]].tolist() == [8, 8, 16, 128]


def test_anchors_stand_on_the_corners_of_cells_ratio_by_ratio() -> None:
    # Stride 8, side 4 * 8 = 32; scales 1, 2^(1/3), 2^(2/3) inside ratios (h/w) 1/2, 1, 2.
    anchors = grid()
    first = anchors.boxes[:9]
    assert anchors.centers[9].tolist() == [8, 0]
    assert first[3].tolist() == pytest.approx([-16, -16, 16, 16])
    width, height = (first[:, 2:] - first[:, :2]).unbind(1)
    assert width[:3].tolist() == pytest.approx([45.2548, 57.0175, 71.8376], abs=1e-3)  # 32 sqrt 2 * 2^(k/3)
    assert (height / width).tolist() == pytest.approx([0.5] * 3 + [1.0] * 3 + [2.0] * 3)
    assert (width * height).sqrt().tolist() == pytest.approx([32, 40.3175, 50.7968] * 3, abs=1e-3)
    assert torch.allclose(anchors.boxes[9:18] - first, torch.tensor([8.0, 0, 8, 0]), atol=1e-4)


def test_anchors_first_made_at_test_time_serve_training() -> None:
    size = ((3, 7),)
    with torch.inference_mode():
        made = point_anchors(size, (8,), device=torch.device("cpu"), dtype=torch.float32)
    again = point_anchors(size, (8,), device=torch.device("cpu"), dtype=torch.float32)
    assert again is made
    x = torch.ones(21, requires_grad=True)
    (x * again.strides).sum().backward()
    assert x.grad is not None
