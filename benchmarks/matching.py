"""Matching and losses of a decoder's layers: ours, all at once, beside the usual way, layer by layer.

    python benchmarks/matching.py [--repeats 9]

One thread, float32, one process, contenders taking turns; printed are medians of CPU time and their ratios.
Both sides find the same pairs, the same losses and the same gradients, which is checked first.

The usual way is what criteria of the DETR family share (spec 1.8): for each layer the focal, L1 and GIoU cost of
all queries of the batch with all objects of the batch, whole class dimension included, moved to the host, cut into
images and solved; then losses over one-hot class targets and gathered boxes. It is written here with
torchvision's focal loss and GIoU, so that its operators are as good as anybody's.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from racing import canary, race
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from detbench.core.supervise import supervise
from detbench.core.types import QueryPredictions, Targets
from detbench.engine import machine
from detbench.parts.assigners import QueryHungarian
from detbench.parts.branches import Branch, DecoderOutput
from detbench.parts.losses import BoxL1, Focal, QueryGiou

NUM_CLASSES = 80
BRANCH = Branch(
    predictor=DecoderOutput(),
    assigner=QueryHungarian(),
    losses={
        "cls": Focal(weight=2.0, divide_by="objects"),
        "bbox": BoxL1(weight=5.0, divide_by="objects"),
        "giou": QueryGiou(weight=2.0, divide_by="objects"),
    },
)
SHAPES = ((6, 8, 300), (6, 16, 300), (6, 32, 300), (7, 16, 900), (1, 32, 300))  # layers, images, queries

Pairs = list[tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()

    machine.prepare(threads=1, device="cpu")
    print(canary())
    print(f"{'layers x images x queries':26s} {'matching':>34s} {'matching + losses + backward':>38s}")
    for num_layers, num_images, num_queries in SHAPES:
        predictions, targets = batch(num_layers, num_images, num_queries)
        check(predictions, targets)
        matching = race(
            {
                "ours": lambda p=predictions, t=targets: match(p, t),
                "usual": lambda p=predictions, t=targets: usual(p, t),
            },
            args.repeats,
        )
        whole = race(
            {
                "ours": lambda p=predictions, t=targets: our_step(p, t),
                "usual": lambda p=predictions, t=targets: usual_step(p, t),
            },
            args.repeats,
        )
        columns = [
            f"{1e3 * t['ours']:7.2f} ms, usual {1e3 * t['usual']:7.1f}, {t['usual'] / t['ours']:5.1f}x"
            for t in (matching, whole)
        ]
        print(f"{num_layers} x {num_images} x {num_queries:<18} {columns[0]:>34s} {columns[1]:>38s}")


def batch(num_layers: int, num_images: int, num_queries: int) -> tuple[QueryPredictions, Targets]:
    """Random predictions; seven objects an image on average, exponentially distributed."""
    generator = torch.Generator().manual_seed(0)
    counts = (-7 * torch.rand(num_images, generator=generator).log()).round().int().tolist()
    labels, boxes = [], []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 400
        boxes.append(torch.cat([corner, corner + 20 + 200 * torch.rand(count, 2, generator=generator)], 1))
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
    targets = Targets.of(labels, boxes, [(640, 640)] * num_images)
    rows = num_layers * num_images
    logits = torch.randn(rows, num_queries, NUM_CLASSES, generator=generator) - 3
    return QueryPredictions(
        logits.requires_grad_(),
        torch.rand(rows, num_queries, 4, generator=generator).mul_(0.5).add_(0.1).requires_grad_(),
        num_layers=num_layers,
    ), targets


# ---- ours


def match(predictions: QueryPredictions, targets: Targets) -> None:
    QueryHungarian()(predictions, targets.repeat(predictions.num_layers))


def our_step(predictions: QueryPredictions, targets: Targets) -> Tensor:
    return backward(predictions, sum(supervise(BRANCH, predictions, targets).values(), torch.zeros(())))


def backward(predictions: QueryPredictions, loss: Tensor) -> Tensor:
    predictions.pred_logits.grad = predictions.pred_boxes.grad = None
    loss.backward()
    return loss.detach()


# ---- the usual way


@torch.no_grad()
def match_layer(logits: Tensor, boxes: Tensor, targets: Targets) -> Pairs:
    """Of each image its matched queries and objects; the objects counted from the image's first."""
    num_images, num_queries = logits.shape[:2]
    prob = logits.flatten(0, 1).sigmoid()
    boxes = boxes.flatten(0, 1)
    negative = 0.75 * prob**2 * -(1 - prob + 1e-8).log()
    positive = 0.25 * (1 - prob) ** 2 * -(prob + 1e-8).log()
    class_cost = positive[:, targets.labels] - negative[:, targets.labels]
    bbox_cost = torch.cdist(boxes, targets.cxcywh, p=1)
    giou = generalized_box_iou(xyxy(boxes), xyxy(targets.cxcywh))
    cost = (2 * class_cost + 5 * bbox_cost - 2 * giou).view(num_images, num_queries, -1).cpu()
    of_images = cost.split(targets.counts, -1)
    solved = [linear_sum_assignment(of_image[i]) for i, of_image in enumerate(of_images)]
    return [(torch.as_tensor(query), torch.as_tensor(nth)) for query, nth in solved]


def usual(predictions: QueryPredictions, targets: Targets) -> list[Pairs]:
    logits, boxes = predictions.pred_logits, predictions.pred_boxes
    num_images = len(targets.counts)
    layers = zip(logits.split(num_images), boxes.split(num_images), strict=True)
    return [match_layer(*layer, targets) for layer in layers]


def usual_step(predictions: QueryPredictions, targets: Targets) -> Tensor:
    num_images, num_objects = len(targets.counts), max(sum(targets.counts), 1)
    labels, objects = targets.labels.split(targets.counts), targets.cxcywh.split(targets.counts)
    layers = zip(
        predictions.pred_logits.split(num_images), predictions.pred_boxes.split(num_images), strict=True
    )
    loss = torch.zeros(())
    for logits, boxes in layers:
        pairs = match_layer(logits, boxes, targets)
        image_idx = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
        query_idx = torch.cat([query for query, _ in pairs])
        matched = torch.cat([of_image[nth] for of_image, (_, nth) in zip(objects, pairs, strict=True)])
        wanted = torch.full(logits.shape[:2], NUM_CLASSES)
        wanted[image_idx, query_idx] = torch.cat(
            [of[nth] for of, (_, nth) in zip(labels, pairs, strict=True)]
        )
        one_hot = F.one_hot(wanted, NUM_CLASSES + 1)[..., :-1].to(logits.dtype)
        predicted = boxes[image_idx, query_idx]
        loss = loss + 2 * sigmoid_focal_loss(logits, one_hot, reduction="sum") / num_objects
        loss = loss + 5 * F.l1_loss(predicted, matched, reduction="sum") / num_objects
        giou_loss = generalized_box_iou_loss(xyxy(predicted), xyxy(matched), reduction="sum")
        loss = loss + 2 * giou_loss / num_objects
    return backward(predictions, loss)


def xyxy(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


# ---- both


def check(predictions: QueryPredictions, targets: Targets) -> None:
    """Both sides agree: pairs exactly, loss and gradients to single precision."""
    repeated = targets.repeat(predictions.num_layers)
    ours = QueryHungarian()(predictions, repeated)
    rows = [pair for layer in usual(predictions, targets) for pair in layer]
    first = torch.tensor(repeated.counts).cumsum(0) - torch.tensor(repeated.counts)
    theirs = {
        (row, query, int(first[row]) + nth)
        for row, pair in enumerate(rows)
        for query, nth in zip(*(column.tolist() for column in pair), strict=True)
    }
    columns = (ours.image_idx, ours.pred_idx, ours.target_idx)
    assert set(zip(*(column.tolist() for column in columns), strict=True)) == theirs
    losses, gradients = [], []
    for step in (our_step, usual_step):
        losses.append(step(predictions, targets))
        gradients.append((predictions.pred_logits.grad, predictions.pred_boxes.grad))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for mine, usual_one in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, usual_one, rtol=1e-3, atol=1e-6)


if __name__ == "__main__":
    main()
