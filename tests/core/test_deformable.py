"""Deformable attention: the flat form against grid_sample, both against loops and numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from detbench.core.layers import deformable_sampling, deformable_table
from detbench.core.layers.deformable import DeformableAttention
from detbench.core.layers.deformable_sampling import deformable_attention, deformable_attention_reference
from detbench.core.layers.tokens import LevelSizes

PYRAMID = ((5, 7), (3, 4), (1, 2))


def some_inputs(
    sizes: LevelSizes, *, batch: int = 2, queries: int = 3, heads: int = 2, channels: int = 4, points: int = 2,
    reach: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Value, locations up to `reach` maps beyond the border, weights; all want gradients."""
    generator = torch.Generator().manual_seed(seed)
    pixels = sum(h * w for h, w in sizes)
    value = torch.randn(batch, pixels, heads, channels, generator=generator, dtype=dtype)
    samples = (batch, queries, heads, len(sizes), points)
    locations = torch.rand(*samples, 2, generator=generator, dtype=dtype) * (1 + 2 * reach) - reach
    weights = torch.randn(samples, generator=generator, dtype=dtype)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return torch.autograd.grad(out, inputs, direction)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest value."""
    scale = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * max(scale, 1.0))


def sample_in_a_loop(image: Tensor, x: float, y: float) -> Tensor:
    """The bilinear value of an image (h, w, D) at (x, y) in [0, 1], one pixel after the other."""
    height, width, channels = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    out = image.new_zeros(channels)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                out = out + image[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return out


levels = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    sizes=levels, batch=st.integers(0, 3), queries=st.integers(0, 5), heads=st.integers(1, 3),
    channels=st.integers(1, 17), points=st.integers(1, 5), reach=st.sampled_from([0.0, 0.3, 2.0, 1e6]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_the_flat_form_gives_what_the_reference_gives(
    sizes: LevelSizes,
    batch: int,
    queries: int,
    heads: int,
    channels: int,
    points: int,
    reach: float,
    seed: int,
) -> None:
    assume(any(h * w for h, w in sizes))  # without a pixel the reference has nothing to differentiate
    inputs = some_inputs(
        sizes, batch=batch, queries=queries, heads=heads, channels=channels, points=points, reach=reach, seed=seed,
        dtype=torch.float64,
    )  # fmt: skip
    got = deformable_attention(inputs[0], sizes, *inputs[1:])
    wanted = deformable_attention_reference(inputs[0], sizes, *inputs[1:])
    assert_near(got, wanted, 1e-9)
    for mine, theirs in zip(gradients(got, inputs), gradients(wanted, inputs), strict=True):
        assert_near(mine, theirs, 1e-6 if reach > 10 else 1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), reach=st.sampled_from([0.0, 0.3]))
def test_in_float32_the_forms_differ_by_rounding_only(seed: int, reach: float) -> None:
    sizes = ((20, 31), (10, 16), (5, 8), (3, 4))
    inputs = some_inputs(sizes, queries=9, channels=32, points=4, reach=reach, seed=seed)
    got = deformable_attention(inputs[0], sizes, *inputs[1:])
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = deformable_attention_reference(exact[0], sizes, *exact[1:])
    assert_near(got.double(), wanted, 1e-5)
    reference = deformable_attention_reference(inputs[0], sizes, *inputs[1:])
    assert_near(got, reference, 1e-5)
    for mine, theirs in zip(gradients(got, inputs), gradients(reference, inputs), strict=True):
        assert_near(mine, theirs, 2e-5)


@pytest.mark.parametrize("sizes", [PYRAMID, ((3, 4), (0, 5), (2, 2)), ((1, 1),)])
@pytest.mark.parametrize("queries", [0, 1, 4])
def test_the_backward_for_other_devices_is_the_references(sizes: LevelSizes, queries: int) -> None:
    value, locations, weights = some_inputs(sizes, queries=queries, dtype=torch.float64)
    out = deformable_attention_reference(value, sizes, locations, weights)
    wanted = gradients(out, (value, locations, weights))
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    with torch.no_grad():
        got = deformable_sampling._grid_backward(direction, value, sizes, locations, weights)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.is_contiguous()
        assert_near(mine, theirs, 1e-12)


@pytest.mark.parametrize("form", [deformable_attention, deformable_attention_reference])
def test_a_map_of_two_by_two_by_hand(form: Callable[..., Tensor]) -> None:
    # 1 2    Pixel centres at 0.25 and 0.75. The middle is the mean, 2.5; (0.25, 0.75) is the pixel 3; the
    # 3 4    corner (0, 0) lies half a pixel outside both ways and gets a quarter of 1; (-1, 0.5) gets nothing.
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    locations = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 0.0], [-1.0, 0.5]]).view(1, 2, 1, 1, 2, 2)
    weights = torch.tensor([1.0, 10, 1, 10]).view(1, 2, 1, 1, 2)
    out = form(value, ((2, 2),), locations, weights)
    assert out.flatten().tolist() == pytest.approx([2.5 + 30, 0.25])


def test_gradients_are_those_of_finite_differences() -> None:
    sizes = ((3, 4), (2, 3))
    value, _, weights = some_inputs(sizes, queries=2, dtype=torch.float64)
    # Bilinear sampling has a kink at pixel centres: place points at least 0.2 pixels off, some outside.
    generator = torch.Generator().manual_seed(2)
    pixel = torch.randint(-2, 5, (*weights.shape, 2), generator=generator)
    off = 0.2 + 0.6 * torch.rand(pixel.shape, generator=generator, dtype=torch.float64)
    size = torch.tensor([(4.0, 3), (3, 2)], dtype=torch.float64)[:, None]
    locations = ((pixel + off + 0.5) / size).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, x, w: deformable_attention(v, sizes, x, w), (value, locations, weights)
    )


def test_points_far_outside_give_nothing_and_move_nothing() -> None:
    value, locations, weights = some_inputs(PYRAMID)
    far = (locations.detach().sign() * 1e30).requires_grad_()
    out = deformable_attention(value, PYRAMID, far, weights)
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients(out, (value, far, weights)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_location_that_is_not_finite_spoils_its_own_query_at_most(bad: float) -> None:
    value, locations, weights = some_inputs(PYRAMID)
    with torch.no_grad():
        wanted = deformable_attention(value, PYRAMID, locations, weights)
        locations[0, 1] = bad
    out = deformable_attention(value, PYRAMID, locations, weights)
    assert out[0, 1].isnan().all() if math.isnan(bad) else not out[0, 1].any()
    out[0, 1] = wanted[0, 1]
    assert torch.equal(out, wanted)
    out.sum().backward()  # reads and writes inside its tables


def test_bfloat16_is_computed_in_float32() -> None:
    value, locations, weights = (x.detach().bfloat16().requires_grad_() for x in some_inputs(PYRAMID))
    out = deformable_attention(value, PYRAMID, locations, weights)
    wanted = deformable_attention_reference(value.float(), PYRAMID, locations.float(), weights.float())
    assert out.dtype == torch.bfloat16
    assert_near(out, wanted.bfloat16(), 0.01)
    assert {g.dtype for g in gradients(out, (value, locations, weights))} == {torch.bfloat16}


def test_autocast_changes_nothing() -> None:
    value, locations, weights = some_inputs(PYRAMID)
    wanted = deformable_attention(value, PYRAMID, locations, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(deformable_attention(value, PYRAMID, locations, weights), wanted)


def test_heads_and_queries_laid_out_otherwise_in_memory_change_nothing() -> None:
    value, locations, weights = some_inputs(PYRAMID)
    wanted = deformable_attention(value, PYRAMID, locations, weights)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (value, locations, weights)]
    assert not strided[0].is_contiguous()
    out = deformable_attention(strided[0], PYRAMID, *strided[1:])
    assert torch.equal(out, wanted)
    inputs = (value, locations, weights)
    for mine, theirs in zip(gradients(out, inputs), gradients(wanted, inputs), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_a_gradient_that_is_one_number_everywhere_is_taken(queries: int) -> None:
    inputs = some_inputs(PYRAMID, heads=1, queries=queries)
    got = torch.autograd.grad(deformable_attention(inputs[0], PYRAMID, *inputs[1:]).sum(), inputs)
    reference = deformable_attention_reference(inputs[0], PYRAMID, *inputs[1:])
    for mine, theirs in zip(got, torch.autograd.grad(reference.sum(), inputs), strict=True):
        assert_near(mine, theirs, 1e-5)


def test_several_passes_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = some_inputs(PYRAMID, batch=3)
    wanted = deformable_attention(inputs[0], PYRAMID, *inputs[1:])
    gradients_wanted = gradients(wanted, inputs)
    monkeypatch.setattr(deformable_table, "_READS_IN_A_PASS", 1)
    got = deformable_attention(inputs[0], PYRAMID, *inputs[1:])
    assert torch.equal(got, wanted)
    for mine, theirs in zip(gradients(got, inputs), gradients_wanted, strict=True):
        assert torch.equal(mine, theirs)


def test_every_sampled_point_counts_five_multiply_accumulates_a_channel() -> None:
    batch, queries, heads, channels, points = 2, 3, 2, 4, 2
    macs = batch * queries * heads * len(PYRAMID) * points * 5 * channels
    for device in ("cpu", "meta"):
        inputs = [x.detach().to(device).requires_grad_() for x in some_inputs(PYRAMID)]
        with FlopCounterMode(display=False) as counter:
            out = deformable_attention(inputs[0], PYRAMID, *inputs[1:])
        assert counter.get_total_flops() == 2 * macs
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        assert counter.get_total_flops() == 2 * 2 * macs


def some_layer(dtype: torch.dtype = torch.float32) -> DeformableAttention:
    """A layer whose points and weights depend on the query, as those of a fresh one don't."""
    torch.manual_seed(0)
    layer = DeformableAttention(8, num_heads=2, num_levels=len(PYRAMID), num_points=2).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def some_queries(
    coordinates: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, reference, memory and padding mask of two images."""
    generator = torch.Generator().manual_seed(3)
    pixels = sum(h * w for h, w in PYRAMID)
    query = torch.randn(2, 3, 8, generator=generator, dtype=dtype)
    reference = torch.rand(2, 3, len(PYRAMID), coordinates, generator=generator, dtype=dtype)
    memory = torch.randn(2, pixels, 8, generator=generator, dtype=dtype)
    return query, reference, memory, torch.rand(2, pixels, generator=generator) < 0.3


@torch.no_grad()
@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_layer_is_a_loop_over_queries_heads_levels_and_points(coordinates: int) -> None:
    layer = some_layer(torch.float64)
    query, reference, memory, padding = some_queries(coordinates, torch.float64)
    out = layer(query, reference, memory, PYRAMID, padding)
    heads, points, channels = 2, 2, 4
    for b in range(2):
        value = layer.value_proj(memory[b])
        value[padding[b]] = 0
        maps = [
            pixels.view(h, w, heads, channels)
            for pixels, (h, w) in zip(value.split([h * w for h, w in PYRAMID]), PYRAMID, strict=True)
        ]
        for q in range(3):
            offsets = layer.sampling_offsets(query[b, q]).view(heads, len(PYRAMID), points, 2)
            scores = layer.attention_weights(query[b, q]).view(heads, -1)
            read = []
            for head in range(heads):
                weights = (scores[head].exp() / scores[head].exp().sum()).view(len(PYRAMID), points)
                total = torch.zeros(channels, dtype=torch.float64)
                for level, (h, w) in enumerate(PYRAMID):
                    ref = reference[b, q, level]
                    for p in range(points):
                        dx, dy = offsets[head, level, p]
                        if coordinates == 2:
                            x, y = ref[0] + dx / w, ref[1] + dy / h
                        else:
                            x, y = ref[0] + dx / points * ref[2] * 0.5, ref[1] + dy / points * ref[3] * 0.5
                        total += weights[level, p] * sample_in_a_loop(
                            maps[level][:, :, head], float(x), float(y)
                        )
                read.append(total)
            assert_near(out[b, q], layer.output_proj(torch.cat(read)), 1e-12)


def test_a_fresh_layer_looks_around_its_reference_with_equal_weights() -> None:
    layer = DeformableAttention(32, num_heads=8, num_levels=2, num_points=3)
    offsets = layer.sampling_offsets(torch.randn(1, 32)).view(8, 2, 3, 2)
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for point in range(3):
        wanted = torch.tensor(around, dtype=torch.float32) * (point + 1)
        for level in range(2):
            torch.testing.assert_close(offsets[:, level, point], wanted, atol=1e-5, rtol=0)
    assert not layer.attention_weights(torch.randn(1, 32)).any()
    assert not layer.value_proj.bias.any()
    assert not layer.output_proj.bias.any()


def test_resetting_brings_a_fresh_layer_back() -> None:
    layer, fresh = some_layer(), DeformableAttention(8, num_heads=2, num_levels=len(PYRAMID), num_points=2)
    for each in (layer, fresh):
        torch.manual_seed(5)
        each.reset_parameters()
    for mine, theirs in zip(layer.parameters(), fresh.parameters(), strict=True):
        assert mine.requires_grad
        assert torch.equal(mine, theirs)


def test_memory_that_is_padding_is_never_seen() -> None:
    layer = some_layer()
    query, reference, memory, padding = some_queries(2)
    out = layer(query, reference, memory, PYRAMID, padding)
    memory[padding] = 1e6
    assert torch.equal(layer(query, reference, memory, PYRAMID, padding), out)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_a_compiled_layer_gives_the_same(coordinates: int) -> None:
    layer = some_layer()
    query, reference, memory, padding = some_queries(coordinates)
    wanted = layer(query, reference, memory, PYRAMID, padding)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got = compiled(query, reference, memory, PYRAMID, padding)
    torch.testing.assert_close(got, wanted)
    parameters = tuple(layer.parameters())
    for mine, theirs in zip(gradients(got, parameters), gradients(wanted, parameters), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_layer_trains_under_autocast() -> None:
    layer = some_layer()
    query, reference, memory, padding = some_queries(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(query, reference, memory, PYRAMID, padding)
    out.float().sum().backward()
    assert_near(out.float(), layer(query, reference, memory, PYRAMID, padding), 0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_layer_trains_after_its_first_use_in_inference_mode() -> None:
    layer = some_layer()
    sizes = ((4, 3), (2, 2), (1, 1))  # of no other test: what is kept for them is made here
    query, reference, memory, _ = some_queries(2)
    memory = memory[:, : 12 + 4 + 1]
    with torch.inference_mode():
        wanted = layer(query, reference, memory, sizes)
    out = layer(query, reference, memory, sizes)
    out.sum().backward()
    assert torch.equal(out, wanted)
