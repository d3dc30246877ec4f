"""How the benchmarks time: contenders take turns in one process, and what counts is the median of CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def race(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each (one thread, so a busy machine matters less), taking turns."""
    times: dict[str, list[float]] = {who: [] for who in contenders}
    for turn in range(repeats + 1):
        for who, step in contenders.items():
            start = time.process_time()
            step()
            if turn:  # the first turn warms up
                times[who].append(time.process_time() - start)
    return {who: statistics.median(t) for who, t in times.items()}


def canary() -> str:
    """What a log1p takes here: it can be 20 times slower, and everything with a focal loss with it."""
    x = torch.rand(1 << 20)
    out = torch.log1p(x)
    start = time.process_time()
    torch.log1p(x, out=out)  # into memory that is there: a fresh page costs more than a logarithm
    nanoseconds = (time.process_time() - start) * 1e9 / x.numel()
    return f"log1p canary: {nanoseconds:.2f} ns a value (about 0.5 is healthy, 10 is the slow mode)"
