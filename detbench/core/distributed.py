"""What the core needs to know of the other processes that share a batch: how many, sums, values and draws of all.

A process's loss is its images' part of the whole batch's: what it is divided by is counted over all processes, and
gradients are added up. Random numbers are drawn as one process would draw them for all images; each takes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def num_processes() -> int:
    """How many data-parallel processes share a batch."""
    return dist.get_world_size() if _is_one_of_several() else 1


def process_index() -> int:
    """Which of them this is; 0 writes files and reports."""
    return dist.get_rank() if _is_one_of_several() else 0


def sum_over_processes(x: Tensor) -> Tensor:
    """`x` added up over all processes, differentiable; `x` itself where there is only one."""
    if not _is_one_of_several():
        return x
    total: Tensor = _Sum.apply(x)
    return total


def gather_over_processes(x: Tensor) -> Tensor:
    """(K,) values of each process, whatever its K, end to end in the order of processes."""
    if not _is_one_of_several():
        return x
    counts = _counts_of_all(len(x))
    padded = x.new_zeros(max(counts))
    padded[: len(x)] = x
    gathered = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([values[:count] for values, count in zip(gathered, counts, strict=True)])


def most_over_processes(number: int) -> int:
    """The greatest of the processes' numbers."""
    return max(_counts_of_all(number)) if _is_one_of_several() else number


def part_of_draw(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], *, dim: int = 0) -> Tensor:
    """This process's part of what one process would draw for the images of all.

    Args:
        draw: makes a random tensor of a shape; torch's generators stand alike in all processes, before and after.
        shape: of this process's part, the same in all processes but along `dim`.
        dim: where images, or objects of one image after another, lie.
    """
    if not _is_one_of_several():
        return draw(shape)
    counts = _counts_of_all(shape[dim])
    whole = draw((*shape[:dim], sum(counts), *shape[dim + 1 :]))
    return whole.narrow(dim, sum(counts[: dist.get_rank()]), shape[dim])


class _Sum(torch.autograd.Function):
    """Every process's loss depends on the sum, and so on what each put in: the gradient is a sum as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _counts_of_all(count: int) -> list[int]:
    """Each process's number. It stays on the CPU, so that no accelerator is waited for."""
    counts = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(count))
    return [int(other) for other in counts]


def _is_one_of_several() -> bool:
    return dist.is_available() and dist.is_initialized()
