"""Which images, and what is done to them before the network sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from detbench.parts.part import Count, Fraction, NonNegative, OneOf, part


@part
class Coco:
    """A COCO-format data set in a folder.

    Attributes:
        root: the folder. Either COCO's own layout (annotations/instances_train2017.json, train2017/) or the
            plain one (annotations/instances_train.json, images/). Where it lies is no part of an experiment's
            identity: what counts is the fingerprint of what is in it.
    """

    kind: Literal["coco"] = "coco"
    root: str = "data/coco"


@part
class CrowdHuman:
    """A data set in CrowdHuman's format in a folder: annotation_train.odgt, annotation_val.odgt, Images/.

    Attributes:
        root: the folder, as for `Coco`.
        boxes: "full" bodies, which may reach beyond the image (DATE, OneNet and DeFCN take these), or what is
            "visible" of them.
    """

    kind: Literal["crowdhuman"] = "crowdhuman"
    root: str = "data/crowdhuman"
    boxes: Literal["full", "visible"] = "full"


@part
class Drawn:
    """Drawn shapes on textured backgrounds, written once to files and read like any other data.

    Attributes:
        preset: "shapes" (1 to 10 objects; in COCO form) or "crowd" (one class, many heavily overlapping
            objects; in COCO's and CrowdHuman's form).
        size: side of the square images in pixels.
        num_train: training images.
        num_val: validation images.
        seed: every image is a function of (preset, size, seed, split, index).
    """

    kind: Literal["drawn"] = "drawn"
    preset: Literal["shapes", "crowd"] = "shapes"
    size: Count = 128
    num_train: Count = 3000
    num_val: Count = 2000
    seed: int = 0


Source = Coco | CrowdHuman | Drawn


def source_in(folder: str) -> Coco | CrowdHuman:
    """The source in a user's folder: CrowdHuman's where annotation_train.odgt lies in it, else COCO's."""
    if Path(folder, "annotation_train.odgt").is_file():
        return CrowdHuman(root=folder)
    return Coco(root=folder)


@part
class FixedResize:
    """Scale an image so that its short side is `short`, unless its long side would pass `long`.

    Attributes:
        short: pixels.
        long: pixels.
        flip: probability of a horizontal flip.
    """

    kind: Literal["fixed"] = "fixed"
    short: Count = 800
    long: Count = 1333
    flip: Fraction = 0.5


@part
class DetrResize:
    """DETR's training transform: flip, then with equal chance resize, or resize, crop and resize (spec 4.4).

    Attributes:
        shorts: short sides of the last resize, one drawn per image.
        long: limit of the last resize.
        crop_shorts: short sides of the resize before the crop.
        crop_long: limit of the resize before the crop.
        crop_min: least side of the crop (the image's own side where that is less).
        crop_max: greatest side of the crop.
        crop_probability: chance of the second way.
        flip: probability of a horizontal flip.
    """

    kind: Literal["detr"] = "detr"
    shorts: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    long: Count = 1333
    crop_shorts: tuple[int, ...] = (400, 500, 600)
    crop_long: Count = 1333
    crop_min: Count = 384
    crop_max: Count = 600
    crop_probability: Fraction = 0.5
    flip: Fraction = 0.5


Transform = FixedResize | DetrResize


@part
class Pixels:
    """How pixel values enter the network: (value - mean) / std, channel by channel.

    Attributes:
        order: channel order; mean and std are given in it.
        mean: on the 0 to 255 scale.
        std: on the 0 to 255 scale.
        pad_multiple: the padded batch's sides are multiples of this; padding is zero after normalisation.
    """

    order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pad_multiple: Count = 32


@part
class Labelled:
    """Only some training images count as labelled (COCO-partial; spec 8.1, `detbench.data.labelled`).

    Attributes:
        percent: of all images of the annotation file, rounded down to whole ones.
        fold: number of the draw, from 1.
        offset: added to the fold's number for its seed.
    """

    percent: Annotated[float, Field(gt=0, lt=100)]
    fold: Count = 1
    offset: Annotated[int, Field(ge=0)] = 0


@part
class Data:
    """The data of an experiment.

    Attributes:
        source: where images and annotations come from.
        train: transform of training images.
        test: transform of validation images (its flip must be 0).
        pixels: normalisation and padding.
        drop_empty: leave training images without objects out.
        min_image_side: leave training images with a smaller side out.
        min_box_side: annotated boxes smaller than this, in pixels of the file's image, are left out in training.
        labelled: which training images are labelled; None for all. The others are a teacher's, without their
            annotations; without a teacher nobody sees them.
        unlabelled: another source whose training images a teacher labels; its annotations are not read (COCO-full).
    """

    source: OneOf[Source] = Drawn()
    train: OneOf[Transform] = FixedResize()
    test: FixedResize = FixedResize(flip=0.0)
    pixels: Pixels = Pixels()
    drop_empty: bool = True
    min_image_side: int = 32
    min_box_side: NonNegative = 1.0
    labelled: Labelled | None = None
    unlabelled: OneOf[Source] | None = None
