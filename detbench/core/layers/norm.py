"""Batch normalisation (arXiv:1502.03167) over the whole batch, whichever process holds which of its images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detbench.core.distributed import num_processes, sum_over_processes


class BatchNorm2d(nn.BatchNorm2d):
    """torch's own, except that processes share their statistics while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) of this process to the same."""
        if not self.training or num_processes() == 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        return batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=True,
            momentum=self.momentum, eps=self.eps,
        )  # fmt: skip


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`; in training with the mean and variance of all processes' values (N may differ, and be 0)."""
    if not training or num_processes() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    assert running_mean is not None
    assert running_var is not None
    y: Tensor
    y, mean, var, count = _SharedNorm.apply(x, weight, bias, eps)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (count / (count - 1)), momentum)
    return y


class _SharedNorm(torch.autograd.Function):
    """torch's SyncBatchNorm does the same on accelerators alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.float()
        number = weight.new_tensor([float(x.numel() // x.shape[1])])
        total = sum_over_processes(torch.cat([_by_channel(values), number]))
        count = total[-1]
        mean = total[:-1] / count
        # Of differences, not of squares: these would cancel.
        var = sum_over_processes(_by_channel((values - _spread(mean, x)).square())) / count
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, var, count)
        normal = (values - _spread(mean, x)) * _spread(scale * weight, x)
        return (normal + _spread(bias, x)).to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        grad = grad.float()
        normal = (x.float() - _spread(mean, x)) * _spread(scale, x)
        own = torch.stack([_by_channel(grad * normal), _by_channel(grad)])
        # Every value moves the mean and the variance that all processes' values are normalised by.
        of_weight, of_bias = sum_over_processes(own) / count
        of_x = grad - normal * _spread(of_weight, x) - _spread(of_bias, x)
        return (of_x * _spread(scale * weight, x)).to(x.dtype), own[0], own[1], None


def _by_channel(x: Tensor) -> Tensor:
    """(C,) sums."""
    return x.sum([dim for dim in range(x.dim()) if dim != 1])


def _spread(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) beside (N, C, ...)."""
    return channels.view(-1, *[1] * (x.dim() - 2))
