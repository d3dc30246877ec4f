"""The machine a run trains on: threads, devices, and four traps that cost more than most optimisations gain."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from detbench.core.distributed import num_processes
from detbench.errors import RecipeError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # numbers of glibc's malloc.h


def prepare(*, threads: int, device: str) -> torch.device:
    """Sets this process up for training and returns its device.

    Args:
        threads: of torch's operators.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        RecipeError: there is no such device.
    """
    torch.set_num_threads(threads)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices here; use auto, cpu, or fewer "
            "processes, which take a device each"
        )
    # Same seed, same hardware, same thread count: bit-identical. Operators without a deterministic form only warn.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Uninitialised memory is filled by default in deterministic mode; no result of ours reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # what several processes exchange goes through it
    if chosen.type == "cpu":
        _keep_pages()
        _touch_log1p()
        _fast_matmul()
    return chosen


def describe(device: torch.device, *, threads: int) -> dict[str, Any]:
    """What a result says about where it was obtained."""
    import numpy
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(terse=True),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "processes": num_processes(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "matmul": torch.get_float32_matmul_precision(),
        "code": _code_digest(),
    }


def _keep_pages() -> None:
    """Trap 1, fresh pages: glibc returns large blocks at once and maps them anew, zeroed page by page, at every
    temporary. Keeping them saves 1.2-1.4x of a training step."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (_M_MMAP_THRESHOLD, 1 << 30),
            (_M_TRIM_THRESHOLD, 1 << 30),
            (_M_TOP_PAD, 1 << 26),
        ):
            mallopt(option, value)


def _fast_matmul() -> None:
    """Trap 2, MKL on other makers' CPUs: "medium" routes float32 products to oneDNN, about twice as fast there and
    still float32. On CPUs with bfloat16 tiles it means bfloat16 arithmetic, so it is switched on only where a
    product agrees with float64 to float32's accuracy."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = ((a @ b).double() - exact).abs().max() / exact.abs().max()
    if error > 1e-5:
        torch.set_float32_matmul_precision(before)


def _touch_log1p() -> None:
    """Trap 3, slow log1p: the vector code inside softplus and every focal loss reads a rare constant under a mask;
    until its page is mapped each call takes an assist, 20 times slower. One call that needs it maps the page."""
    torch.log1p(torch.full((64,), -0.0))


def _code_digest() -> str:
    """Twelve hex digits over the package's source: two results with the same ones came from the same code."""
    package = Path(__file__).resolve().parent.parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return code.hexdigest()[:12]


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no file of ours
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
