"""Everything that is wrong or odd about a data set in a folder, not only the first of it. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from detbench.data.annotations import SPLITS, Annotations, Layout
from detbench.data.images import Trait, read_image, traits
from detbench.data.sources import find_layout, inspect
from detbench.errors import DataError
from detbench.metrics.crowd import survives_nms
from detbench.parts.data import CrowdHuman, Data, source_in

# Annotators and rounding leave boxes a little outside; only beyond this many pixels it is worth a word.
_SLACK = 1.0

# A share of boxes that reach out of their image which no care of annotators explains.
_MANY = 0.2

# Thresholds of NMS in use: torchvision's and mmdetection's FCOS and RetinaNet; DeFCN's.
_NMS_THRESHOLDS = (0.5, 0.6)

# COCO's metrics count this many detections of an image.
_MAX_DETECTIONS = 100

# Image files that aren't taken over as they stand: what they are, and what becomes of them.
_TRAITS: dict[Trait, tuple[Literal["warning", "note"], str, str]] = {
    "not turned": (
        "warning",
        "images with an EXIF orientation that is not applied",
        "Boxes are taken to be those of the picture as stored, as by pycocotools and torchvision; "
        "`detbench data view` shows whether they fit.",
    ),
    "turned": ("note", "images turned by their EXIF orientation", "Only so they have the annotated size."),
    "gray": ("note", "grayscale images", "Red, green and blue get the same values."),
    "16-bit": ("note", "images of 16 bits", "The high byte is used."),
    "cmyk": ("note", "images in CMYK", "They become RGB without a colour profile."),
    "transparent": ("note", "images with transparency", "It is dropped."),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        severity: "error": can't be used so; "warning": is used, perhaps not as meant; "note": good to know.
        where: file and record.
        what: what was found.
        advice: what to do, or what is done with it; may be empty.
        kind: what it has in common with others that may be many; empty where it stands for itself.
    """

    severity: Literal["error", "warning", "note"]
    where: str
    what: str
    advice: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one split holds.

    Attributes:
        images: number of images.
        empty_images: those without annotations.
        boxes: number of boxes that are not iscrowd.
        crowds: number of iscrowd boxes.
        sizes: boxes that COCO counts as small, medium and large.
        classes: boxes of each class by name, iscrowd left out.
        sides: least and greatest image side in pixels.
        densest: the most boxes in one image, iscrowd left out.
        under_nms: the percentage of boxes that class-wise NMS at IoU 0.5 and 0.6 would leave over, were they
            the detections: no detector with that NMS has a higher recall.
    """

    images: int
    empty_images: int
    boxes: int
    crowds: int
    sizes: tuple[int, int, int]
    classes: dict[str, int]
    sides: tuple[int, int]
    densest: int
    under_nms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found: findings, errors first, and a summary of each split that could be read."""

    findings: tuple[Finding, ...]
    summaries: dict[str, Summary] = field(default_factory=dict)

    def summary_lines(self) -> list[str]:
        """The summaries as text, a line for each split."""
        return [
            f"{split}: {s.images} images of {s.sides[0]} to {s.sides[1]} pixels, {s.empty_images} of them "
            f"empty; {s.boxes} boxes ({s.sizes[0]} small, {s.sizes[1]} medium, {s.sizes[2]} large; up to "
            f"{s.densest} in an image) and {s.crowds} iscrowd; {sum(n > 0 for n in s.classes.values())} of "
            f"{len(s.classes)} classes occur; recall of the boxes themselves under NMS is "
            + ", ".join(f"{r:.1f} at IoU {t}" for t, r in zip(_NMS_THRESHOLDS, s.under_nms, strict=True))
            for split, s in self.summaries.items()
        ]


def check(root: Path, *, splits: Sequence[str] = SPLITS) -> Report:
    """Lists what is wrong or odd about a data set in COCO's or CrowdHuman's format, opening every image file.

    Args:
        root: the data set's folder.
        splits: which of "train" and "val" to look at.
    """
    source = source_in(str(root))
    try:
        layout = find_layout(source)
    except DataError as error:
        return Report((Finding("error", str(root), _what(error, root)),))
    findings: list[Finding] = []
    read: dict[str, Annotations] = {}
    for split in splits:
        path = layout[split].annotations
        try:
            read[split], problems = inspect(source, layout[split])
        except DataError as error:
            findings.append(Finding("error", str(path), _what(error, path)))
            continue
        findings += [
            Finding("error", f"{path}: {p.record}", p.what, kind=f"{path}: records at fault")
            for p in problems
        ]
        findings += _odd_boxes(read[split], whole_bodies=isinstance(source, CrowdHuman))
        findings += _odd_images(read[split])
        findings += _odd_files(read[split], layout[split].images)
    findings += _nothing_to_do(read)
    if len(read) == len(SPLITS):
        findings += _odd_splits(read["train"], read["val"], layout)
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Report(tuple(findings), {split: _summary(annotations) for split, annotations in read.items()})


def _nothing_to_do(read: Mapping[str, Annotations]) -> Iterator[Finding]:
    """Splits that there is nothing in to train on or to test with."""
    for split, a in read.items():
        if not a.num_images:
            yield Finding("error", str(a.path), "no images")
        elif split == "train" and a.iscrowd.all():
            yield Finding("error", str(a.path), "no box to train on")
        elif a.iscrowd.all():
            yield Finding("warning", str(a.path), "no box to be found", "Metrics will have no value.")


def _odd_boxes(a: Annotations, *, whole_bodies: bool) -> Iterator[Finding]:
    """What is odd about single annotations and classes.

    Args:
        whole_bodies: boxes are meant to go on where a body leaves the image.
    """
    limits = np.stack([a.widths, a.heights], axis=1)[a.image_idx]
    fractions = len(a.boxes) > 0 and bool((a.boxes <= 1).all())
    if fractions:
        yield Finding(
            "error",
            str(a.path),
            "no box reaches beyond the first pixel: they look like fractions of the image's sides",
            "Write bbox in pixels: left, top, width, height.",
        )
    low, sides = a.boxes[:, :2], a.boxes[:, 2:]
    high = low + sides
    degenerate = (sides <= 0).any(axis=1)
    thin = ~degenerate & (sides < Data.min_box_side).any(axis=1) & (not fractions)
    outside = ~degenerate & ((high <= 0) | (low >= limits)).any(axis=1)
    beyond = ~degenerate & ~outside & ((low < -_SLACK) | (high > limits + _SLACK)).any(axis=1)
    if whole_bodies and beyond.any():
        what = f"{beyond.sum()} boxes go on beyond their image, as boxes of whole bodies do"
        yield Finding("note", str(a.path), what, "Training and CrowdHuman's metrics clip them.")
        beyond = np.zeros_like(beyond)
    if beyond.sum() > _MANY * len(a.boxes) and (sides > low).all() and (sides <= limits + _SLACK).all():
        yield Finding(
            "warning",
            str(a.path),
            f"{beyond.sum()} of {len(a.boxes)} boxes reach out of their image, and of all boxes the last two "
            "numbers are the greater ones: they look like corners",
            "bbox is left, top, width, height; `detbench data view` shows whether they fit.",
        )
        beyond = np.zeros_like(beyond)
    _, first = np.unique(np.column_stack([a.image_idx, a.labels, a.boxes]), axis=0, return_index=True)
    repeated = np.ones(len(a.labels), dtype=bool)
    repeated[first] = False
    left_out = "Training leaves it out; evaluation keeps it, as pycocotools does."
    for odd, what, advice in (
        (degenerate, "has no area", left_out),
        (thin, "is less than a pixel wide or high", left_out),
        (outside, "lies wholly outside its image", left_out),
        (beyond, "reaches out of its image", "Training clips it; evaluation keeps it, as pycocotools does."),
        (repeated, "repeats another box of its image and class", "Remove one of them."),
    ):
        for i in np.flatnonzero(odd):
            box = ", ".join(f"{v:g}" for v in a.boxes[i])
            yield Finding(
                "warning",
                f"{a.path}: annotation {a.annotation_ids[i]}",
                f"bbox [{box}] {what}",
                advice,
                kind=f"{a.path}: a bbox that {what}",
            )
    absent = [name for name, n in zip(a.category_names, _per_class(a), strict=True) if not n]
    if absent:
        yield Finding("note", str(a.path), f"classes without a box: {len(absent)} ({', '.join(absent)})")
    if (a.annotation_ids == 0).any():
        yield Finding(
            "warning",
            f"{a.path}: annotation 0",
            "pycocotools takes a match with id 0 for a miss",
            "Count annotation ids from 1.",
        )


def _odd_images(a: Annotations) -> Iterator[Finding]:
    """What is odd about image records."""
    counts = np.bincount(a.image_idx[~a.iscrowd], minlength=a.num_images)
    empty = np.flatnonzero(np.diff(a.offsets) == 0)
    if len(empty):
        yield Finding(
            "note",
            str(a.path),
            f"images without annotations: {len(empty)}, the first is {a.file_name(int(empty[0]))}",
            "Training leaves them out unless told otherwise; evaluation keeps them.",
        )
    crowded = np.flatnonzero(counts > _MAX_DETECTIONS)
    if len(crowded):
        yield Finding(
            "note",
            str(a.path),
            f"images of more than {_MAX_DETECTIONS} boxes: {len(crowded)}, up to {counts.max()}",
            f"COCO's metrics count the best {_MAX_DETECTIONS} detections of an image, so AP can't reach 100.",
        )
    short = np.flatnonzero(np.minimum(a.widths, a.heights) < Data.min_image_side)
    if len(short):
        yield Finding(
            "note",
            str(a.path),
            f"images with a side below {Data.min_image_side} pixels: {len(short)}, the first is "
            f"{a.file_name(int(short[0]))}",
            "Training leaves them out unless told otherwise; evaluation keeps them.",
        )
    for name, count in Counter(_names(a)).items():
        if count > 1:
            yield Finding(
                "warning",
                f"{a.path}: {name}",
                f"{count} image records name this file",
                "Merge them.",
                kind=f"{a.path}: files named by several image records",
            )


def _odd_files(a: Annotations, folder: Path) -> Iterator[Finding]:
    """Image files that can't be read, and those that aren't taken over as they stand."""

    def looked_at(index: int) -> str | list[Trait]:
        path, size = folder / a.file_name(index), a.size(index)
        try:
            read_image(path, size)
        except DataError as error:
            return _what(error, path)
        return traits(path, size)

    having: dict[Trait, list[str]] = {trait: [] for trait in _TRAITS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside the interpreter's lock
        for index, found in enumerate(pool.map(looked_at, range(a.num_images))):
            name = a.file_name(index)
            if isinstance(found, str):
                yield Finding("error", str(folder / name), found, kind=f"{folder}: images that can't be read")
                continue
            for trait in found:
                having[trait].append(name)
    for trait, names in having.items():
        if names:
            severity, what, advice = _TRAITS[trait]
            yield Finding(severity, str(a.path), f"{what}: {len(names)}, the first is {names[0]}", advice)


def _odd_splits(train: Annotations, val: Annotations, layout: Layout) -> Iterator[Finding]:
    if (train.category_ids.tolist(), train.category_names) != (val.category_ids.tolist(), val.category_names):
        yield Finding(
            "error",
            str(val.path),
            f"its categories differ from those of {train.path.name}",
            "Give both the same.",
        )
    if layout.train.images == layout.val.images:
        for name in sorted(set(_names(train)) & set(_names(val))):
            yield Finding(
                "warning",
                f"{val.path}: {name}",
                "is a training image too",
                "What it scores says little.",
                kind=f"{val.path}: training images",
            )


def _what(error: DataError, path: Path) -> str:
    """A data error without the place it opens with."""
    return str(error).removeprefix(f"{path}: ").removesuffix(".")


def _names(a: Annotations) -> list[str]:
    return [a.file_name(index) for index in range(a.num_images)]


def _per_class(a: Annotations) -> list[int]:
    """Boxes of each class, iscrowd left out."""
    counts: list[int] = np.bincount(a.labels[~a.iscrowd], minlength=len(a.category_names)).tolist()
    return counts


def _summary(a: Annotations) -> Summary:
    boxes = ~a.iscrowd
    areas = a.areas[boxes]
    small, large = int((areas < 32**2).sum()), int((areas >= 96**2).sum())
    sides = np.concatenate([a.widths, a.heights]) if a.num_images else np.zeros(1, dtype=np.int64)
    return Summary(
        images=a.num_images,
        empty_images=int((np.diff(a.offsets) == 0).sum()),
        boxes=int(boxes.sum()),
        crowds=int(a.iscrowd.sum()),
        sizes=(small, len(areas) - small - large, large),
        classes=dict(zip(a.category_names, _per_class(a), strict=True)),
        sides=(int(sides.min()), int(sides.max())),
        densest=int(np.bincount(a.image_idx[boxes], minlength=1).max()),
        under_nms=tuple(_recall_under_nms(a, threshold) for threshold in _NMS_THRESHOLDS),
    )


def _recall_under_nms(a: Annotations, iou_threshold: float) -> float:
    """In percent; 100 where there is nothing to find."""
    objects = np.flatnonzero(~a.iscrowd)
    image = a.image_idx[objects]
    left = survives_nms(
        a.boxes[objects],
        image * len(a.category_names) + a.labels[objects],
        np.stack([a.widths, a.heights], axis=1)[image],
        iou_threshold=iou_threshold,
    )
    return 100.0 * float(left.mean()) if len(left) else 100.0
