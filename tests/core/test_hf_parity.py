"""Deformable-DETR against HuggingFace transformers' with the same weights: outputs, losses, gradients.

Where the two differ (transformers 5.23), and what is done about it here:

* Their default matching cost weighs the class by 1 (official code: 2); set to 2.
* Their loss weighs the class by 1 (official code and our recipe: 2); our branch here does the same.
* They drop the loss of the encoder's proposals; here their criterion is applied to their proposals, every object as
  class 0.
* With refinement but one stage, they tie the class heads of all layers (official code: one each). Their weights
  are copied into each of ours.
* They mean to train the backbone's last three stages but freeze all of their own ResNet, as they look for
  "stage.1" in names that hold "stages.1"; training is switched on here.
* Their dropout of attention probabilities and inside feed-forward is 0 by default (official code: 0.1), and
  they have one more on the encoder's input; it is 0 on both sides here.
* Frozen norms are folded into our convolutions, and our self-attention projects queries and keys in one product:
  the same numbers up to rounding.

Conventions that agree: encodings of padded images, valid ratios, nearest-neighbour masks, GIoU without an epsilon,
inverse sigmoid with 1e-5, proposals ranked by class 0, infinite anchors at tokens that can't be one.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any, get_args

import pytest
import torch

pytest.importorskip("transformers")

from hf_deformable_detr import (
    Form,
    copy_weights,
    our_branches,
    our_part,
    pixel_mask,
    renamed,
    their_labels,
    their_model,
)
from transformers import DeformableDetrForObjectDetection
from transformers.loss.loss_deformable_detr import (
    DeformableDetrHungarianMatcher,
    DeformableDetrImageLoss,
)

from detbench.core.detectors.query import QueryDetector
from detbench.core.supervise import supervise
from detbench.core.types import QueryPredictions, Targets

pytestmark = pytest.mark.slow

NUM_CLASSES, NUM_LAYERS = 5, 3
SIZES = ((75, 101), (91, 65))  # padded to (91, 101): no level's cells fit evenly
BATCHES = {"padded": SIZES, "whole": ((91, 101), (91, 101))}


@cache
def models(form: Form) -> tuple[DeformableDetrForObjectDetection, QueryDetector]:
    """Theirs and ours, with the same weights."""
    part = our_part(
        form,
        depth=18,
        channels=64,
        num_layers=NUM_LAYERS,
        num_heads=4,
        dim_feedforward=48,
        num_queries=11,
        dropout=0.0,
    )
    torch.manual_seed(0)
    theirs = their_model(part, num_classes=NUM_CLASSES)
    ours = part.build(branches=our_branches(form), num_classes=NUM_CLASSES)
    copy_weights(theirs, ours)
    return theirs.train(), ours.train()


class Pair:
    """Both models, what they say about one batch, and its objects."""

    def __init__(self, form: Form, sizes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> None:
        self.theirs, self.ours = (deepcopy(model).to(dtype) for model in models(form))
        padded = (max(h for h, _ in sizes), max(w for _, w in sizes))
        images = torch.randn(len(sizes), 3, *padded, dtype=dtype)
        self.targets = some_objects((4, 2), sizes)
        self.labels = [
            {"class_labels": x["class_labels"], "boxes": x["boxes"].to(dtype)}
            for x in their_labels(self.targets)
        ]
        self.predictions = self.ours(images, sizes, self.targets)
        self.outputs = self.theirs(images, pixel_mask=pixel_mask(sizes, padded), labels=self.labels)


def some_objects(counts: tuple[int, ...], sizes: tuple[tuple[int, int], ...]) -> Targets:
    labels, boxes = [], []
    for count, (height, width) in zip(counts, sizes, strict=True):
        corner = torch.rand(count, 2) * 0.5
        box = torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(count, 2)], 1)
        boxes.append(box * torch.tensor([width, height, width, height]))
        labels.append(torch.randint(0, NUM_CLASSES, (count,)))
    return Targets.of(labels, boxes, sizes)


@pytest.fixture(
    scope="module", params=[(form, batch) for form in get_args(Form) for batch in BATCHES], ids="-".join
)
def single(request: pytest.FixtureRequest) -> Pair:
    form, batch = request.param
    return Pair(form, BATCHES[batch], torch.float32)


@pytest.fixture(scope="module", params=get_args(Form))
def double(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param, SIZES, torch.float64)


def layers_of(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Their (layers * images, Q, ...) logits and boxes."""
    auxiliary = pair.outputs.auxiliary_outputs
    logits = [*(x["logits"] for x in auxiliary), pair.outputs.logits]
    boxes = [*(x["pred_boxes"] for x in auxiliary), pair.outputs.pred_boxes]
    return torch.cat(logits), torch.cat(boxes)


def check_outputs(pair: Pair, atol: float) -> None:
    ours = pair.predictions["decoder"]
    logits, boxes = layers_of(pair)
    assert ours.num_layers == NUM_LAYERS
    torch.testing.assert_close(ours.pred_logits, logits, rtol=0, atol=atol)
    torch.testing.assert_close(ours.pred_boxes, boxes, rtol=0, atol=atol)
    if "encoder" in pair.predictions:
        encoder = pair.predictions["encoder"]
        torch.testing.assert_close(encoder.pred_logits, pair.outputs.enc_outputs_class, rtol=0, atol=atol)
        their_boxes = pair.outputs.enc_outputs_coord_logits.sigmoid()
        torch.testing.assert_close(encoder.pred_boxes, their_boxes, rtol=0, atol=atol)


def our_losses(pair: Pair, name: str) -> dict[str, torch.Tensor]:
    branches = our_branches("two_stage")
    return supervise(branches[name], pair.predictions[name], pair.targets)


def their_encoder_losses(pair: Pair) -> dict[str, Any]:
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = DeformableDetrImageLoss(matcher, NUM_CLASSES, focal_alpha=0.25, losses=["labels", "boxes"])
    outputs = {
        "logits": pair.outputs.enc_outputs_class,
        "pred_boxes": pair.outputs.enc_outputs_coord_logits.sigmoid(),
    }
    binary = [{**x, "class_labels": torch.zeros_like(x["class_labels"])} for x in pair.labels]
    losses: dict[str, Any] = criterion(outputs, binary)
    return losses


def check_losses(pair: Pair, rel: float) -> None:
    ours = our_losses(pair, "decoder")
    suffixes = ["", *(f"_{layer}" for layer in range(NUM_LAYERS - 1))]
    for mine, name, weight in (("cls", "loss_ce", 1), ("bbox", "loss_bbox", 5), ("giou", "loss_giou", 2)):
        theirs = weight * sum(pair.outputs.loss_dict[name + suffix].item() for suffix in suffixes)
        assert ours[mine].item() == pytest.approx(theirs, rel=rel)
    total = sum(value.item() for value in ours.values())
    assert total == pytest.approx(pair.outputs.loss.item(), rel=rel)
    if "encoder" in pair.predictions:
        first, their_first = our_losses(pair, "encoder"), their_encoder_losses(pair)
        for mine, name, weight in (("cls", "loss_ce", 1), ("bbox", "loss_bbox", 5), ("giou", "loss_giou", 2)):
            assert first[mine].item() == pytest.approx(weight * their_first[name].item(), rel=rel)


def test_logits_and_boxes_of_all_layers_and_of_the_encoder_agree(single: Pair) -> None:
    check_outputs(single, 1e-4)


def test_losses_of_all_layers_and_of_the_encoder_agree(single: Pair) -> None:
    check_losses(single, 1e-4)


def test_predictions_are_not_all_alike(single: Pair) -> None:
    # Else the tests above would say little.
    ours: QueryPredictions = single.predictions["decoder"]
    assert ours.pred_logits.std() > 0.05
    assert ours.pred_boxes.std() > 0.05
    assert (ours.pred_logits[:2] - ours.pred_logits[2:4]).abs().max() > 0.05


def test_in_double_precision_the_two_are_the_same_function(double: Pair) -> None:
    # Single precision is left in our objects and in their encoding of proposals.
    check_outputs(double, 1e-6)
    check_losses(double, 1e-6)


def test_gradients_of_all_weights_agree(double: Pair) -> None:
    sum(our_losses(double, "decoder").values(), torch.zeros(())).backward()
    double.outputs.loss.backward()
    theirs = renamed(
        {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in double.theirs.named_parameters(remove_duplicate=False)
        },
        double.ours,
    )
    ours = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in double.ours.named_parameters()
    }
    assert ours.keys() == theirs.keys()
    if len({id(head.weight) for head in double.theirs.class_embed}) < len(double.ours.heads.class_heads):
        for kind in ("weight", "bias"):
            heads = [
                f"heads.class_heads.{layer}.{kind}" for layer in range(len(double.ours.heads.class_heads))
            ]
            ours[heads[0]] = torch.stack([ours.pop(head) for head in heads]).sum(0)
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-5 * scale + 1e-9)
