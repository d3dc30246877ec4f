"""A training step of our FCOS and RetinaNet (ResNet-50, FPN) beside torchvision's own models.

    python benchmarks/dense_step.py [--size 256] [--batch 2] [--repeats 7]

Forward, loss, backward and optimiser, one thread, float32, one process, the three contenders taking turns;
printed are medians of CPU time and their ratios.

Equal on all sides: the input (size, images, objects, 80 classes, already normalised: torchvision's resize
is skipped, its normalisation of 2 MB isn't); ResNet-50 with stride in the 3x3 convolution, frozen
BatchNorm, stem and layer1 frozen; FPN of 256 channels on C3 to C5 with P6 and P7; two towers of four 3x3
convolutions with 256 channels; nine anchors a cell in RetinaNet; centre-ness read from the box tower and
centre sampling of 1.5 strides in FCOS; fused AdamW.

Different: our towers have GroupNorm in both detectors, torchvision's only in FCOS, so our RetinaNet does
more; our head scales boxes by a learned factor a level; FCOS's box loss is -ln IoU here and GIoU there; we
fold frozen norms into the convolutions and keep tensors in channels_last. "torchvision cl" is torchvision's
model and input in channels_last too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from racing import canary, race
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detbench.core.supervise import supervise
from detbench.core.types import Targets
from detbench.parts.assigners import FcosRule, MaxIou
from detbench.parts.backbones import ResNet
from detbench.parts.branches import AnchorPredictor, Branch, FcosPredictor
from detbench.parts.detectors import Dense
from detbench.parts.losses import Centerness, DeltaL1, Focal, LogIou

NUM_CLASSES = 80
BRANCHES = {
    "fcos": Branch(
        predictor=FcosPredictor(centerness_from="box"),
        assigner=FcosRule(center_radius=1.5),
        losses={"class": Focal(), "box": LogIou(), "centerness": Centerness()},
    ),
    "retinanet": Branch(
        predictor=AnchorPredictor(),
        assigner=MaxIou(),
        losses={"class": Focal(divide_by="positives_local"), "box": DeltaL1()},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    # PyTorch's log1p can be 20x slower until the page with one of its constants is touched; this touches it.
    torch.log1p(torch.full((64,), -0.0))
    print(canary())

    images, targets = batch(args.size, args.batch)
    for name in BRANCHES:
        contenders = {
            "detbench": our_step(name, images, targets),
            "torchvision": their_step(name, images, targets, torch.contiguous_format),
            "torchvision cl": their_step(name, images, targets, torch.channels_last),
        }
        times = race(contenders, args.repeats)
        line = ", ".join(f"{who} {1e3 * t:.0f} ms" for who, t in times.items())
        ratios = [times[who] / times["detbench"] for who in ("torchvision", "torchvision cl")]
        print(f"{name:10s} {line}; torchvision/detbench {ratios[0]:.2f}, channels_last {ratios[1]:.2f}")


def batch(size: int, num_images: int) -> tuple[Tensor, Targets]:
    """Random images with seven objects each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, size, size, generator=generator)
    labels = [torch.randint(0, NUM_CLASSES, (7,), generator=generator) for _ in range(num_images)]
    boxes = []
    for _ in range(num_images):
        corner = torch.rand(7, 2, generator=generator) * size * 0.6
        side = torch.rand(7, 2, generator=generator) * size * 0.3 + size * 0.05
        boxes.append(torch.cat([corner, corner + side], 1))
    return images, Targets.of(labels, boxes, [(size, size)] * num_images)


def our_step(name: str, images: Tensor, targets: Targets) -> Callable[[], None]:
    torch.manual_seed(0)
    branch = BRANCHES[name]
    model = Dense(backbone=ResNet()).build(branches={name: branch}, num_classes=NUM_CLASSES)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)
    return stepper(model, lambda: supervise(branch, model(images)[name], targets))


def their_step(
    name: str, images: Tensor, targets: Targets, layout: torch.memory_format
) -> Callable[[], None]:
    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(
        resnet50(norm_layer=FrozenBatchNorm2d),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    if name == "fcos":
        model = FCOS(backbone, NUM_CLASSES)
    else:
        sizes = tuple(tuple(int(s * 2 ** (k / 3)) for k in range(3)) for s in (32, 64, 128, 256, 512))
        model = RetinaNet(backbone, NUM_CLASSES, AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5))
    model.transform._skip_resize = True
    model = model.to(memory_format=layout).train()
    split_boxes = targets.boxes.split(targets.counts)
    split_labels = targets.labels.split(targets.counts)
    listed = [{"boxes": b, "labels": c} for b, c in zip(split_boxes, split_labels, strict=True)]
    inputs = list(images.contiguous(memory_format=layout))
    return stepper(model, lambda: model(inputs, listed))


def stepper(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    """One training step of a model as a function of nothing."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        sum(losses().values(), torch.zeros(())).backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    main()
