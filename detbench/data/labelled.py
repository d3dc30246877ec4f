"""Which images of a training split count as labelled where only some do: COCO-partial, of any COCO data. No torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detbench.data import coco
from detbench.errors import DataError
from detbench.parts.data import Labelled

RULE = (
    "fold f: numpy.random.RandomState(f + offset).choice(num_images, num_labelled, replace=False), with "
    "num_labelled = floor(percent / 100 * num_images), draws places in the annotation file's list of images, "
    "counted from 0. They are labelled, all others unlabelled. The ids stand in the file's order."
)


@dataclass(frozen=True, slots=True)
class Folds:
    """Several draws of labelled images from one annotation file (Semi-DETR; spec 8.1).

    Attributes:
        annotations: the file's name.
        sha256: of its bytes, hexadecimal: the draw means this file and no other.
        num_images: in it.
        percent: of its images are labelled, rounded down to whole images.
        offset: added to the number of a fold for its seed.
        labelled: image ids in the file's order, for fold 1, 2, ...; all other images are unlabelled.
    """

    annotations: str
    sha256: str
    num_images: int
    percent: float
    offset: int
    labelled: tuple[tuple[int | str, ...], ...]

    def tree(self) -> dict[str, Any]:
        """The folds as JSON has them, with the rule in words."""
        return {
            "rule": RULE,
            "annotations": self.annotations,
            "sha256": self.sha256,
            "num_images": self.num_images,
            "percent": self.percent,
            "offset": self.offset,
            "num_labelled": len(self.labelled[0]),
            "folds": [
                {"fold": fold, "seed": fold + self.offset, "labelled": list(ids)}
                for fold, ids in enumerate(self.labelled, start=1)
            ],
        }


def draw_folds(folder: Path, *, percent: float, folds: int, offset: int = 0) -> Folds:
    """Labelled images of a data set's training split, drawn once for each fold by spec 8.1's rule.

    The authors' own offset was a random number that nobody wrote down, so their folds can't be had.

    Args:
        folder: a data set in COCO's format.
        percent: of the training images to be labelled.
        folds: how many draws, each of the whole split.
        offset: another one gives other folds.

    Raises:
        DataError: the data can't be read, or some images can't be labelled and others not.
    """
    path = coco.find_layout(folder).train.annotations
    annotations, ids = coco.read_in_file_order(path)
    if not 0 < percent < 100:
        raise DataError(f"{percent:g} percent labelled: expected more than 0 and less than 100.")
    _require_one(path, len(ids), percent)
    drawn = (draw(len(ids), percent=percent, seed=fold + offset) for fold in range(1, folds + 1))
    return Folds(
        annotations=path.name,
        sha256=annotations.sha256,
        num_images=len(ids),
        percent=percent,
        offset=offset,
        labelled=tuple(tuple(ids[place] for place in places) for places in drawn),
    )


def labelled_indices(path: Path, labelled: Labelled) -> NDArray[np.int64]:
    """(n,) ascending places, in the annotations as `coco` reads them, of the images that a recipe calls labelled.

    Raises:
        DataError: the file can't be read, or not even one image is labelled.
    """
    annotations, ids = coco.read_in_file_order(path)
    _require_one(path, len(ids), labelled.percent)
    places = draw(len(ids), percent=labelled.percent, seed=labelled.fold + labelled.offset)
    chosen = {ids[place] for place in places}
    return np.flatnonzero([image in chosen for image in annotations.image_ids.tolist()])


def _require_one(path: Path, num_images: int, percent: float) -> None:
    if num_labelled(num_images, percent) == 0:
        raise DataError(
            f"{path}: {percent:g} percent of its {num_images} images is not even one. Label more of them."
        )


def num_labelled(num_images: int, percent: float) -> int:
    """How many images are labelled: whole ones, rounded down."""
    return math.floor(percent * num_images / 100)


def draw(num_images: int, *, percent: float, seed: int) -> NDArray[np.int64]:
    """(n,) ascending places of the labelled images among all of an annotation file (spec 8.1)."""
    # The authors' rule is of the legacy generator, whose stream NumPy keeps as it is for good.
    generator = np.random.RandomState(seed)
    chosen = generator.choice(num_images, num_labelled(num_images, percent), replace=False)
    return np.sort(chosen).astype(np.int64)


def write(folds: Folds, folder: Path) -> Path:
    """Writes the folds into a folder, which is made where it is missing, as labelled-10.json for 10 percent.

    Raises:
        DataError: there is such a file already, or it can't be written.
    """
    path = folder / f"labelled-{folds.percent:g}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(folds.tree(), ensure_ascii=False) + "\n")
    except FileExistsError as error:
        raise DataError(
            f"{error.filename}: exists already. Name another folder, or remove it first."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}). Name another folder.") from None
    return path
