"""A data set opened for training and testing: which images and objects count, and samples of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detbench.data.annotations import Annotations
from detbench.data.batch import Sample
from detbench.data.fingerprint import fingerprint
from detbench.data.images import read_image
from detbench.data.labelled import labelled_indices
from detbench.data.sources import read_splits, read_unlabelled
from detbench.data.transforms import transformed
from detbench.data.views import PLAIN, View
from detbench.errors import DataError
from detbench.parts.data import Data, Transform

# A split whose pixels fit is decoded once and kept (each worker process keeps what it has decoded itself).
_KEEP_BYTES = 1 << 30

# Opens every seed of an augmentation, to share no stream with other uses of a run's seed.
_STREAM = 1


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """One split of a data set.

    Attributes:
        annotations: all its images and annotations, for evaluation.
        images: the folder of its image files.
        indices: (n,) int64 places in `annotations` of the images in use, ascending.
        is_target: (A,) bool, the annotations that are objects to be found in training.
    """

    annotations: Annotations
    images: Path
    indices: NDArray[np.int64]
    is_target: NDArray[np.bool_]
    _decoded: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    _keep: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = self.annotations.heights[self.indices] * self.annotations.widths[self.indices]
        object.__setattr__(self, "_keep", bool(3 * sizes.sum() <= _KEEP_BYTES))

    def __len__(self) -> int:
        return len(self.indices)

    def sample(
        self, index: int, *, epoch: int, seed: int, transform: Transform, view: View = PLAIN
    ) -> Sample:
        """One image, transformed as (seed, epoch, index, view) decide.

        Args:
            index: place in `annotations`.
            epoch: from 0.
            seed: of the run.
            transform: what to do with it.
            view: what to do with it then.

        Raises:
            DataError: the image file is missing, damaged, or not of the annotated size.
        """
        rng = np.random.default_rng([_STREAM, seed, epoch, index, *view.stream])
        owned = self.annotations.of_image(index)
        objects = np.arange(owned.start, owned.stop)[self.is_target[owned]]
        low, sides = np.split(self.annotations.boxes[objects], 2, axis=1)
        boxes = torch.from_numpy(np.concatenate([low, low + sides], axis=1))
        # Bytes stay as decoded, channels last; torch resizes that layout fastest (perf-baselines, section 6).
        image = torch.from_numpy(self._pixels(index)).permute(2, 0, 1)
        result = view(transformed(transform, image, boxes, rng), rng)
        return Sample(
            image=result.image,
            boxes=result.boxes,
            labels=torch.from_numpy(self.annotations.labels[objects]).long()[result.kept],
            original_size=self.annotations.size(index),
            image_index=index,
            name=self.annotations.file_name(index),
            matrix=result.matrix,
        )

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        pixels = self._decoded.get(index)
        if pixels is None:
            path = self.images / self.annotations.file_name(index)
            pixels = read_image(path, self.annotations.size(index))
            if self._keep:
                self._decoded[index] = pixels
        return pixels


@dataclass(frozen=True, slots=True)
class OpenData:
    """Both splits of a data set.

    Attributes:
        train: images that training sees with their objects.
        val: images of the evaluation, all of them.
        class_names: by class index.
        fingerprint: what the data is.
        root: the folder that holds it.
        unlabelled: images without an object, for a teacher to label; None where all images are labelled.
    """

    train: DetectionData
    val: DetectionData
    class_names: tuple[str, ...]
    fingerprint: str
    root: Path
    unlabelled: DetectionData | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)


def open_data(data: Data, cache: Path, *, progress: Callable[[int, int], None] | None = None) -> OpenData:
    """Opens the data of an experiment; drawn data is written first where it isn't yet.

    Args:
        data: the experiment's data part.
        cache: folder for parsed annotations and drawn images.
        progress: told the images drawn and their total after each.

    Raises:
        DataError: the data can't be read, its splits have different classes, no training image is left, there is
            no validation image, or so few are to be labelled that it is not even one.
    """
    splits = read_splits(data.source, cache, progress=progress)
    train, val, layout = splits.train, splits.val, splits.layout
    if _classes(train) != _classes(val):
        differing = sorted(set(_classes(train)) ^ set(_classes(val)), key=str)
        raise DataError(
            f"{val.path}: its categories are not those of {train.path.name}; only one of them has "
            f"{', '.join(f'{key} ({name})' for key, name in differing[:5])}. Give both files the same list."
        )
    is_target = _targets(train, data.min_box_side)
    labelled = np.arange(train.num_images)
    if data.labelled is not None:
        labelled = labelled_indices(layout.train.annotations, data.labelled)
    indices = np.intersect1d(labelled, _trainable(train, is_target, data))
    if not len(indices):
        kind = "images" if data.labelled is None else "labelled images"
        raise DataError(f"{train.path}: none of its {len(labelled)} {kind} has an object to train on.")
    if not val.num_images:
        raise DataError(f"{val.path}: lists no images; expected some to evaluate with.")
    unlabelled = None
    if data.labelled is not None:
        others = np.setdiff1d(np.arange(train.num_images), labelled)
        unlabelled = _without_objects(train, layout.train.images, others)
    elif data.unlabelled is not None:
        images, folder = read_unlabelled(data.unlabelled, cache, progress=progress)
        if images.path.resolve() == train.path.resolve():
            raise DataError(
                f"{splits.root}: it has no unlabelled images beside its labelled ones. Expected "
                "annotations/image_info_unlabeled2017.json and unlabeled2017/, or another folder in data.unlabelled; "
                "data.labelled makes unlabelled images of labelled ones."
            )
        unlabelled = _without_objects(images, folder, np.arange(images.num_images))
    return OpenData(
        train=DetectionData(train, layout.train.images, indices, is_target),
        val=DetectionData(
            val, layout.val.images, np.arange(val.num_images), _targets(val, data.min_box_side)
        ),
        class_names=train.category_names,
        fingerprint=fingerprint(data.source, cache, unlabelled=data.unlabelled),
        root=splits.root,
        unlabelled=unlabelled,
    )


def _without_objects(annotations: Annotations, images: Path, indices: NDArray[np.int64]) -> DetectionData:
    return DetectionData(annotations, images, indices, np.zeros(len(annotations.labels), dtype=np.bool_))


def _classes(annotations: Annotations) -> list[tuple[int | str, str]]:
    return list(zip(annotations.category_ids.tolist(), annotations.category_names, strict=True))


def _targets(annotations: Annotations, min_box_side: float) -> NDArray[np.bool_]:
    """(A,) bool: no crowds, nothing smaller than allowed, nothing wholly outside its image."""
    image_idx = annotations.image_idx
    limits = np.stack([annotations.widths, annotations.heights], axis=1)[image_idx]
    low, sides = annotations.boxes[:, :2], annotations.boxes[:, 2:]
    inside = np.minimum(low + sides, limits) - np.maximum(low, 0)
    result: NDArray[np.bool_] = (
        ~annotations.iscrowd & (sides >= min_box_side).all(axis=1) & (inside > 0).all(axis=1)
    )
    return result


def _trainable(annotations: Annotations, is_target: NDArray[np.bool_], data: Data) -> NDArray[np.int64]:
    """(n,) the images that may be trained on."""
    used = np.minimum(annotations.widths, annotations.heights) >= data.min_image_side
    if data.drop_empty:
        used &= np.bincount(annotations.image_idx[is_target], minlength=annotations.num_images) > 0
    return np.flatnonzero(used)
