"""Layers and draws of a batch that two processes share, held to those of one: with real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from detbench.core.distributed import most_over_processes, part_of_draw, sum_over_processes
from detbench.core.layers.attention import SelfAttention
from detbench.core.layers.dropout import Dropout
from detbench.core.layers.norm import BatchNorm2d, batch_norm
from detbench.engine.processes import add_up_gradients

SHARES = {"uneven": (slice(0, 2), slice(2, 6)), "one is empty": (slice(0, 6), slice(6, 6))}


def normalised(share: slice) -> dict[str, Tensor]:
    """A batch norm's output, gradients and running statistics on a share of six images."""
    torch.manual_seed(0)
    x = (7 + 3 * torch.randn(6, 5, 4, 3))[share].requires_grad_()
    grad = torch.randn(6, 5, 4, 3)[share]
    norm = BatchNorm2d(5)
    torch.nn.init.uniform_(norm.weight)
    y = norm(x)
    y.backward(grad)
    assert x.grad is not None
    add_up_gradients(list(norm.parameters()))
    return {
        "share y": y.detach(), "share gradient": x.grad, "mean": norm.running_mean, "var": norm.running_var,
        "weight": norm.weight.grad, "bias": norm.bias.grad, "batches": norm.num_batches_tracked,
    }  # type: ignore[dict-item]  # fmt: skip


def drawn(share: slice) -> dict[str, Tensor]:
    """What is drawn for, and dropped of, a share of six images."""
    torch.manual_seed(0)
    attention = SelfAttention(8, num_heads=2, dropout=0.3)
    x = torch.randn(6, 4, 8)[share]
    number = x.shape[0]
    return {
        "share rows": part_of_draw(torch.rand, (number, 3)),
        "share columns": part_of_draw(torch.rand, (2, number), dim=1).T,
        "share dropout": Dropout(0.5)(x),
        "share attention": attention(x, torch.zeros_like(x), torch.ones(4, 4).tril().bool()).detach(),
        "after": torch.rand(1),
    }


def take_part(index: int, root: Path) -> None:
    """What each of two processes does."""
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=index, world_size=2)
    out: dict[str, Any] = {
        f"{what.__name__} {name}": what(shares[index])
        for what in (normalised, drawn)
        for name, shares in SHARES.items()
    }
    x = torch.tensor([1.0 + index], requires_grad=True)
    (sum_over_processes(x) ** 2 * (index + 1)).sum().backward()
    parameters = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    parameters[0].grad = torch.ones(2)
    if index:
        parameters[1].grad = torch.ones(2)
    add_up_gradients(parameters)
    out |= {"sum": x.grad, "most": most_over_processes(index + 4), "gradients": [p.grad for p in parameters]}
    torch.save(out, root / str(index))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two came to."""
    root = tmp_path_factory.mktemp("both")
    torch.multiprocessing.spawn(take_part, (root,), nprocs=2)
    return [torch.load(root / str(index)) for index in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("what", [normalised, drawn], ids=lambda what: what.__name__)
def test_a_shared_batch_gives_what_the_whole_one_does(
    both: list[dict[str, Any]], what: Any, shares: str
) -> None:
    first, second = (out[f"{what.__name__} {shares}"] for out in both)
    for name, whole in what(slice(0, 6)).items():
        if name.startswith("share"):
            torch.testing.assert_close(torch.cat([first[name], second[name]]), whole, rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(first[name], whole, rtol=1e-5, atol=1e-6)
            assert torch.equal(first[name], second[name])


@pytest.mark.slow
def test_sums_and_their_gradients_are_of_both(both: list[dict[str, Any]]) -> None:
    # (1 + 2)^2, once in the one's loss and twice in the other's.
    assert [out["sum"].item() for out in both] == [18, 18]
    assert [out["most"] for out in both] == [5, 5]


@pytest.mark.slow
def test_a_gradient_that_one_process_has_is_everybodys_and_one_that_none_has_nobodys(
    both: list[dict[str, Any]],
) -> None:
    for out in both:
        added, of_one, none = out["gradients"]
        assert added.tolist() == [2, 2]
        assert of_one.tolist() == [1, 1]
        assert none is None


def test_alone_a_batch_norm_is_torchs_to_the_bit() -> None:
    x, weight, bias = torch.randn(3, 4, 2, 2), torch.rand(4), torch.rand(4)
    found = batch_norm(x, None, None, weight, bias, training=True)
    assert torch.equal(found, F.batch_norm(x, None, None, weight, bias, training=True))
