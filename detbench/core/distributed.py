"""What the core needs to know of other processes: averages over them, and values of all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_processes(x: Tensor) -> Tensor:
    """`x` averaged over all data-parallel processes; `x` itself where there is only one."""
    if not _has_peers():
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gather_over_processes(x: Tensor) -> Tensor:
    """(K,) values of each data-parallel process, whatever its K, end to end in the order of processes."""
    if not _has_peers():
        return x
    world = dist.get_world_size()
    length = torch.tensor([len(x)], device=x.device)
    lengths = [torch.zeros_like(length) for _ in range(world)]
    dist.all_gather(lengths, length)
    counts = [int(count) for count in lengths]
    padded = x.new_zeros(max(counts))
    padded[: len(x)] = x
    gathered = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    return torch.cat([values[:count] for values, count in zip(gathered, counts, strict=True)])


def _has_peers() -> bool:
    return dist.is_available() and dist.is_initialized()
