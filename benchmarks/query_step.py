"""Deformable-DETR (ResNet-50, 300 queries, 6 + 6 layers) beside HuggingFace transformers' own model.

    python benchmarks/query_step.py [--form plain] [--height 480 --width 640] [--batch 2] [--dropout 0] [--repeats 5]
    python benchmarks/query_step.py --memory [...]

Training step (forward, matching, losses of all layers, backward, fused AdamW) and inference: one thread, float32, one
process, contenders taking turns; printed are medians of CPU time and their ratios. `--memory` measures the peak of
each side's training step in a process of its own instead.

Equal on all sides: input, objects, configuration, weights (copied over; the greatest difference of logits, boxes
and loss is printed), what is trained (all but stem, layer1 and norms), dropout's places (they have one more, on the
encoder's input). The process is set up as a run of ours sets it up (`machine.prepare`), which speeds them up too.
"transformers as shipped" is their model with what PyTorch and glibc do without that: products by MKL, large
blocks given back at once. Our model and its images are in channels_last, as in our runs.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from hf_deformable_detr import copy_weights, our_branches, our_part, pixel_mask, their_labels, their_model
from racing import canary, race
from torch import Tensor, nn
from transformers import DeformableDetrForObjectDetection

from detbench.core.detectors.query import QueryDetector
from detbench.core.supervise import supervise
from detbench.core.types import Targets
from detbench.engine import machine

NUM_CLASSES = 80
SIDES = ("detbench", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--form", choices=("plain", "refined", "two_stage"), default="plain")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()

    machine.prepare(threads=1, device="cpu")
    if args.only:
        print(peak_of_step(args))
    elif args.memory:
        peaks = {side: in_own_process(side) for side in SIDES}
        line = ", ".join(f"{side} {peak:.0f} MB" for side, peak in peaks.items())
        print(
            f"peak above the model in a training step: {line}; ratio {peaks[SIDES[0]] / peaks[SIDES[1]]:.2f}"
        )
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    print(canary())
    precision = torch.get_float32_matmul_precision()
    images, targets = batch(args)
    ours, theirs = models(args)
    print(differences(ours, theirs, images, targets))

    def as_shipped(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            torch.set_float32_matmul_precision("highest")
            limit_heap(mmap_threshold=32 << 20, trim_threshold=64 << 20)
            step()
            limit_heap(mmap_threshold=1 << 30, trim_threshold=1 << 30)
            torch.set_float32_matmul_precision(precision)

        return run

    def report(what: str, our: Callable[[], object], their: Callable[[], object]) -> None:
        contenders = {"detbench": our, "transformers": their, "transformers as shipped": as_shipped(their)}
        times = race(contenders, args.repeats)
        line = ", ".join(f"{who} {1e3 * t:.0f} ms" for who, t in times.items())
        ratios = [f"{times[who] / times['detbench']:.2f}" for who in list(contenders)[1:]]
        print(f"{what:14s} {line}; ratios {', '.join(ratios)}", flush=True)

    labels, mask = their_labels(targets), pixel_mask(targets.sizes, (args.height, args.width))
    plain = images.contiguous()
    ours.eval()
    theirs.eval()
    with torch.inference_mode():
        report(
            "inference",
            lambda: ours(images, targets.sizes),
            lambda: theirs(plain, pixel_mask=mask),
        )
    ours.train()
    theirs.train()
    report(
        "training step",
        stepper(ours, lambda: our_loss(args, ours, images, targets)),
        stepper(theirs, lambda: theirs(plain, pixel_mask=mask, labels=labels).loss),
    )


def limit_heap(*, mmap_threshold: int, trim_threshold: int) -> None:
    """Bytes from which glibc maps a block by itself, and that it keeps on top (its own limits: 32 and 64 MB)."""
    for option, value in ((-3, mmap_threshold), (-1, trim_threshold)):  # numbers of malloc.h
        ctypes.CDLL(None).mallopt(option, value)


def batch(args: argparse.Namespace) -> tuple[Tensor, Targets]:
    """Random images with seven objects each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, args.height, args.width, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels, boxes = [], []
    for _ in range(args.batch):
        corner = torch.rand(7, 2, generator=generator) * 0.6
        box = torch.cat([corner, corner + 0.05 + 0.3 * torch.rand(7, 2, generator=generator)], 1)
        boxes.append(box * torch.tensor([args.width, args.height, args.width, args.height]))
        labels.append(torch.randint(0, NUM_CLASSES, (7,), generator=generator))
    return images, Targets.of(labels, boxes, [(args.height, args.width)] * args.batch)


def models(args: argparse.Namespace) -> tuple[QueryDetector, DeformableDetrForObjectDetection]:
    torch.manual_seed(0)
    part = our_part(
        args.form,
        depth=50,
        channels=256,
        num_layers=6,
        num_heads=8,
        dim_feedforward=1024,
        num_queries=300,
        dropout=args.dropout,
    )
    theirs = their_model(part, num_classes=NUM_CLASSES)
    # Theirs has no loss on the encoder's proposals.
    branches = {"decoder": our_branches(args.form)["decoder"]}
    ours = part.build(branches=branches, num_classes=NUM_CLASSES)
    copy_weights(theirs, ours)
    return ours.to(memory_format=torch.channels_last), theirs  # type: ignore[call-overload]


def our_loss(args: argparse.Namespace, ours: QueryDetector, images: Tensor, targets: Targets) -> Tensor:
    predictions = ours(images, targets.sizes, targets)["decoder"]
    losses = supervise(our_branches(args.form)["decoder"], predictions, targets)
    return sum(losses.values(), torch.zeros(()))


@torch.no_grad()
def differences(
    ours: QueryDetector, theirs: DeformableDetrForObjectDetection, images: Tensor, targets: Targets
) -> str:
    """How far the two are apart, without dropout."""
    ours.eval()
    theirs.eval()
    mine = ours(images, targets.sizes)["decoder"]
    mask = pixel_mask(targets.sizes, (images.shape[2], images.shape[3]))
    other = theirs(images, pixel_mask=mask, labels=their_labels(targets))
    loss = sum(supervise(our_branches("plain")["decoder"], mine, targets).values(), torch.zeros(()))
    logits = (mine.last.pred_logits - other.logits).abs().max()
    boxes = (mine.last.pred_boxes - other.pred_boxes).abs().max()
    return (
        f"greatest difference: logits {logits:.1e} (of {other.logits.abs().max():.1f}), boxes {boxes:.1e}, "
        f"loss {abs(loss - other.loss) / other.loss:.1e} relative"
    )


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One training step of a model as a function of nothing."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-6, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    return step


def in_own_process(side: str) -> float:
    command = [sys.executable, *sys.argv, "--only", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_step(args: argparse.Namespace) -> float:
    """Megabytes that two training steps add to what is there before; one side's model is gone by then."""
    images, targets = batch(args)
    ours, theirs = models(args)
    if args.only == "detbench":
        del theirs
        step = stepper(ours, lambda: our_loss(args, ours, images, targets))
    else:
        del ours
        labels, mask = their_labels(targets), pixel_mask(targets.sizes, (args.height, args.width))
        plain = images.contiguous()
        step = stepper(theirs, lambda: theirs(plain, pixel_mask=mask, labels=labels).loss)
    before = resident()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def resident() -> float:
    """Megabytes this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
