"""Optimisers with their parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from detbench.parts.training import AdamW, Constant, Cosine, Drops, Schedule, Sgd


def build_optimizer(optim: AdamW | Sgd, detector: nn.Module) -> torch.optim.Optimizer:
    """An optimiser with two groups: the backbone, at `backbone_factor` of the rate, and all the rest.

    Each group carries `peak_lr`, which `set_lr` scales. Frozen parameters are left out.
    """
    body: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            (body if name.startswith("backbone.") else rest).append(parameter)
    groups = [
        {"params": parameters, "lr": optim.lr * factor, "peak_lr": optim.lr * factor}
        for parameters, factor in ((body, optim.backbone_factor), (rest, 1.0))
        if parameters
    ]
    if isinstance(optim, AdamW):
        return torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
    return torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )


def total_steps(schedule: Schedule, *, num_images: int, batch: int) -> int:
    """Optimiser steps of a schedule: an epoch is num_images / batch steps, fractions carried over."""
    length = schedule.length * schedule.times
    steps = length if schedule.unit == "steps" else length * num_images / batch
    return max(1, math.ceil(steps - 1e-9))


def lr_factor(schedule: Schedule, *, step: int, total: int) -> float:
    """The rate at a step (from 0) over its peak: decay times a linear warm-up from `warmup_factor`."""
    factor = _decay(schedule, step / total)
    if step < schedule.warmup_steps:
        factor *= schedule.warmup_factor + (1 - schedule.warmup_factor) * step / schedule.warmup_steps
    return factor


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scales every group's peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _decay(schedule: Schedule, progress: float) -> float:
    match schedule.decay:
        case Drops(at=at, factor=factor):
            return factor ** sum(progress >= point for point in at)
        case Cosine(floor=floor):
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
        case Constant():
            return 1.0
