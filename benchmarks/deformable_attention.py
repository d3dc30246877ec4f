"""Multi-scale deformable attention: the form detbench uses on a CPU beside the usual one, level by level.

    python benchmarks/deformable_attention.py [--repeats 9] [--only encoder]

Sampling alone, without projections: forward without gradients, and forward plus backward by value, locations
and weights. One thread, float32, the two forms taking turns on the same inputs; printed are medians of CPU
time, their ratios, and how far each float32 form is from the usual one in float64 (the norm of the
difference over the norm; out for the output, grad for the worst of the gradients). The gradient of a location
jumps at pixel centres, so one that rounding moves to their other side shows in it, in both forms alike.

Points lie around their query as a trained model's do: a normal distribution of two pixels of the level.

Memory is by how much one forward plus backward in a fresh process raises the peak of what the process holds
of the system's memory. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detbench.core.layers.deformable_sampling import deformable_attention, deformable_attention_reference
from detbench.core.layers.tokens import LevelSizes

FORMS: dict[str, Callable[[Tensor, LevelSizes, Tensor, Tensor], Tensor]] = {
    "fast": deformable_attention,
    "usual": deformable_attention_reference,
}
_VGA: LevelSizes = ((60, 80), (30, 40), (15, 20), (8, 10))  # 480 x 640 pixels, strides 8 to 64


@dataclass(frozen=True)
class Case:
    """A call's shape; as many queries as pixels if `queries` is None, as in an encoder."""

    name: str
    batch: int
    queries: int | None = None
    sizes: LevelSizes = _VGA
    heads: int = 8
    channels: int = 32
    points: int = 4

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        cells = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
            for h, w in self.sizes
        ]
        centers = torch.cat(cells)
        value = torch.randn(self.batch, len(centers), self.heads, self.channels, generator=generator)
        if self.queries is not None:
            centers = torch.rand(self.queries, 2, generator=generator)
        samples = (self.batch, len(centers), self.heads, len(self.sizes), self.points)
        offsets = 2 * torch.randn(*samples, 2, generator=generator)
        locations = centers[:, None, None, None] + offsets / torch.tensor(self.sizes).flip(1)[:, None]
        weights = torch.randn(samples, generator=generator).flatten(3).softmax(-1).view(samples)
        leaves = [x.to(dtype).requires_grad_() for x in (value, locations, weights)]
        return leaves[0], leaves[1], leaves[2]


CASES = (
    Case("encoder 480x640, batch 1", 1),
    Case("encoder 480x640, batch 2", 2),
    Case("decoder 300 queries, batch 2", 2, 300),
    Case("decoder 900 queries, batch 2", 2, 900),
    Case("tiny encoder 128x128, batch 4", 4, sizes=((16, 16), (8, 8), (4, 4)), heads=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    args = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{'':<36}{'forward ms':>11}{'fwd+bwd ms':>12}{'peak MB':>9}{'error out':>11}{'grad':>9}")
    for case in CASES:
        if args.only not in case.name:
            continue
        forward, both = race(case, args.repeats, False), race(case, args.repeats, True)
        print(f"{case.name}")
        for form in FORMS:
            out, grad = errors(case, form)
            times = f"{1e3 * forward[form]:>11.1f}{1e3 * both[form]:>12.1f}{peak(case, form):>9.0f}"
            print(f"    {form:<32}{times}{out:>11.0e}{grad:>9.0e}")
        ratios = [t["usual"] / t["fast"] for t in (forward, both)]
        print(f"    {'usual / fast':<32}{ratios[0]:>10.1f}x{ratios[1]:>11.1f}x", flush=True)


def call(case: Case, form: str, inputs: tuple[Tensor, Tensor, Tensor], backward: bool) -> list[Tensor]:
    """The output and, after a backward, the three gradients."""
    value, locations, weights = inputs
    with torch.set_grad_enabled(backward):
        out = FORMS[form](value, case.sizes, locations, weights)
    return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))] if backward else [out]


def race(case: Case, repeats: int, backward: bool) -> dict[str, float]:
    """Median CPU seconds of each form, taking turns."""
    inputs = case.inputs()
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for turn in range(repeats + 1):
        for form, kept in times.items():
            start = time.process_time()
            call(case, form, inputs, backward)
            if turn:  # the first turn warms up
                kept.append(time.process_time() - start)
    return {form: statistics.median(kept) for form, kept in times.items()}


def errors(case: Case, form: str) -> tuple[float, float]:
    """Of a form's output and its worst gradient, against the usual form in float64."""
    got = call(case, form, case.inputs(), True)
    wanted = call(case, "usual", case.inputs(torch.float64), True)
    each = [((a - b).norm() / b.norm()).item() for a, b in zip(got, wanted, strict=True)]
    return each[0], max(each[1:])


def peak(case: Case, form: str) -> float:
    """Megabytes by which forward plus backward raise the peak of a process of their own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (case, form))


def _peak(case: Case, form: str) -> float:
    torch.set_num_threads(1)
    small = Case("small", 1, sizes=((2, 2),), heads=1)
    call(small, form, small.inputs(), True)  # loads what is loaded on first use
    inputs = case.inputs()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _resident("VmRSS")
    call(case, form, inputs, True)
    return _resident("VmHWM") - before


def _resident(line: str) -> float:
    """Megabytes of /proc/self/status: VmRSS now, VmHWM at the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
