"""`detbench doctor`: what this machine is, and whether the known traps are sprung on it."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from detbench.engine import machine
from detbench.workers import cores


def examine() -> dict[str, Any]:
    """Versions, hardware, and a number for each trap of engine/machine.py, before and after it is handled."""
    torch.set_num_threads(1)
    before = {"log1p": _log1p_ns(), "matmul": _matmul_gflops(), "clone": _clone_gb_s()}
    device = machine.prepare(threads=1, device="auto")
    after = {"log1p": _log1p_ns(), "matmul": _matmul_gflops(), "clone": _clone_gb_s()}
    return machine.describe(device, threads=1) | {
        "cores": cores(),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "OpenMP settings": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "KMP_"))}
        or "none",
        "float32 matmul, GFLOP/s": f"{before['matmul']:.0f} as found, {after['matmul']:.0f} as detbench sets it",
        "log1p, ns an element": f"{before['log1p']:.2f} as found, {after['log1p']:.2f} after its page is mapped",
        "clone of 64 MB, GB/s": f"{before['clone']:.1f} as found, {after['clone']:.1f} with pages kept",
    }


def _matmul_gflops() -> float:
    a, b = torch.rand(512, 512), torch.rand(512, 512)
    return 2 * 512**3 / _best_seconds(lambda: a @ b) / 1e9


def _log1p_ns() -> float:
    x = torch.rand(200_000)
    return _best_seconds(lambda: torch.log1p(x)) / x.numel() * 1e9


def _clone_gb_s() -> float:
    x = torch.rand(16 << 20)
    return x.numel() * 4 / _best_seconds(lambda: x.clone()) / 1e9


def _best_seconds(work: Any) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
