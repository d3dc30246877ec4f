"""What a detector costs: parameters and multiply-accumulates, counted without computing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

from detbench.core.detectors import Detector


@dataclass(frozen=True, slots=True)
class Cost:
    """Size and work of a detector.

    Attributes:
        parameters: trainable ones; a frozen stem or norm doesn't count (spec 1.3).
        macs: multiply-accumulates for one image, which papers call "FLOPs": those of convolutions and matrix
            products, two for each value a norm gives and one for each value a ReLU gives, as mmdetection's
            tool counts and the papers print.
    """

    parameters: int
    macs: int


def count(detector: Detector, *, height: int, width: int, branches: Sequence[str] | None = None) -> Cost:
    """The cost of one image of this size, postprocessing excluded.

    Args:
        detector: on any device; its weights aren't touched.
        height: of the padded image.
        width: of the padded image.
        branches: those that are predicted; None for all, which is the cost of training.
    """
    elementwise = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal elementwise
        elementwise += output.numel() * (1 if isinstance(module, nn.ReLU) else 2)

    counted = (nn.ReLU, nn.GroupNorm, nn.BatchNorm2d, FrozenBatchNorm2d)
    hooks = [m.register_forward_hook(add) for m in detector.modules() if isinstance(m, counted)]
    state = {k: v.detach().to("meta") for k, v in [*detector.named_parameters(), *detector.named_buffers()]}
    image = torch.empty(1, 3, height, width, device="meta", dtype=next(detector.neck.parameters()).dtype)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(detector, state, (image, ((height, width),), None, branches))
    finally:
        for hook in hooks:
            hook.remove()
    trainable = sum(p.numel() for p in detector.parameters_of(branches) if p.requires_grad)
    return Cost(parameters=trainable, macs=counter.get_total_flops() // 2 + elementwise)
