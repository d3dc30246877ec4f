"""Optimisers with their parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from detbench.parts.training import AdamW, Constant, Cosine, Drops, Schedule, Sgd


def build_optimizer(optim: AdamW | Sgd, detector: nn.Module, *others: nn.Module) -> torch.optim.Optimizer:
    """An optimiser with a group for each rate and decay, the backbone's first.

    Each group carries `peak_lr`, which `set_lr` scales. Frozen parameters are left out.

    Args:
        optim: the rule and its rates.
        detector: its parameters' names decide their rates.
        others: what learns beside it.
    """
    modules = (detector, *others)
    norms = {
        parameter
        for module in itertools.chain.from_iterable(x.modules() for x in modules)
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False)
    }
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in itertools.chain.from_iterable(x.named_parameters() for x in modules):
        if parameter.requires_grad:
            decay = optim.weight_decay
            if isinstance(optim, AdamW) and not optim.decay_norms and parameter in norms:
                decay = 0.0
            members.setdefault((_rate_factor(optim, name), decay), []).append(parameter)
    groups = [
        {"params": parameters, "lr": optim.lr * factor, "peak_lr": optim.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in members.items()
    ]
    if isinstance(optim, AdamW):
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=True)


def _rate_factor(optim: AdamW | Sgd, name: str) -> float:
    """The rate of a parameter over `optim.lr`, by its name (spec 1.9)."""
    if name.startswith("backbone."):
        return optim.backbone_factor
    if isinstance(optim, AdamW) and ("sampling_offsets" in name or "reference_points" in name):
        return optim.offsets_factor
    return 1.0


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
