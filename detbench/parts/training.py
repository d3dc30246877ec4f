"""How an experiment is optimised, for how long, and in which arithmetic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detbench.parts.part import Count, Fraction, NonNegative, OneOf, Positive, part


@part
class AdamW:
    """AdamW (arXiv:1711.05101) with one rate for the body and one for the rest.

    Attributes:
        lr: peak rate.
        backbone_factor: the backbone's rate over `lr`.
        offsets_factor: the rate of sampling offsets and reference points over `lr` (Deformable-DETR: 0.1; spec 1.9).
        decay_norms: whether weight decay reaches the norm layers (detrex: no; spec 1.9).
        clip_norm: largest global norm of the gradient; None for no clipping.
    """

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 4e-4
    weight_decay: NonNegative = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Positive = 1e-8
    backbone_factor: NonNegative = 0.1
    offsets_factor: NonNegative = 1.0
    decay_norms: bool = True
    clip_norm: Positive | None = 0.1


@part
class Sgd:
    """Stochastic gradient descent with momentum; `backbone_factor` and `clip_norm` as in AdamW."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    weight_decay: NonNegative = 1e-4
    momentum: Fraction = 0.9
    backbone_factor: NonNegative = 1.0
    clip_norm: Positive | None = None


@part
class Drops:
    """Multiply the rate by `factor` when each fraction `at` of the schedule is reached."""

    kind: Literal["drops"] = "drops"
    at: tuple[Fraction, ...] = (8 / 12, 11 / 12)
    factor: Positive = 0.1


@part
class Cosine:
    """Half a cosine from the peak to `floor` times the peak over the whole schedule."""

    kind: Literal["cosine"] = "cosine"
    floor: Fraction = 0.01


@part
class Constant:
    """The peak rate throughout."""

    kind: Literal["constant"] = "constant"


@part
class Schedule:
    """How long, and how the learning rate goes.

    Attributes:
        length: in `unit`.
        unit: epochs over the training images, or optimiser steps.
        times: multiplies the length, so that a paper's 3x row stays three times as long at every scale.
        warmup_steps: linear warm-up from warmup_factor * lr.
        warmup_factor: where the warm-up starts.
        decay: the rate after the warm-up.
    """

    length: Positive
    unit: Literal["epochs", "steps"] = "epochs"
    times: Positive = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    warmup_factor: Fraction = 0.001
    decay: OneOf[Drops | Cosine | Constant] = Drops()


@part
class Training:
    """The loop's settings.

    Attributes:
        batch: images in one optimiser step, over all processes and accumulated parts.
        accumulate: parts the batch is computed in, one after another. Each part's losses are divided by that part's
            own positives and the parts averaged, so more parts are not exactly the same training.
        precision: "fp32", or automatic mixed precision in "bf16" or "fp16" (with loss scaling).
        ema: decay of an exponential moving average of the weights, evaluated in place of them; None for none.
        compile: run the detector through torch.compile.
        evaluations: how often the model is evaluated in the course of training, evenly spread; the last one is
            the result.
    """

    batch: Count = 16
    accumulate: Count = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: Fraction | None = None
    compile: bool = False
    evaluations: Count = 12
