"""What the core needs to know of other processes: averages over them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(x: Tensor) -> Tensor:
    """`x` averaged over all data-parallel processes; `x` itself where there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
