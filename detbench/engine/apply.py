"""A finished run's model, or a published one, on images that are not its own: a data set (eval), files (predict)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from detbench.data.batch import Batch, Sample, collate
from detbench.data.dataset import DetectionData, OpenData
from detbench.data.images import read_image
from detbench.data.loader import test_batches
from detbench.data.pictures import Box, save, with_boxes
from detbench.data.sources import Splits, read_splits
from detbench.data.transforms import transformed
from detbench.engine.evaluate import detect_in, measure, percent, percent_per_class, require_measurable
from detbench.engine.weights import build, read_about, read_about_run
from detbench.errors import DataError, StoreError
from detbench.metrics.tables import DetectionTable
from detbench.parts.data import source_in
from detbench.parts.experiment import Experiment
from detbench.results import read_result
from detbench.store import STUDENT, WEIGHTS, Store

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""Endings of the files that a folder of images is searched for."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run or a published detector, ready to look at images.

    Attributes:
        name: "digest/seed", or the weights' file name.
        experiment: what was run.
        model: with its weights.
        class_names: by class index.
        device: where the model is.
    """

    name: str
    experiment: Experiment
    model: nn.Module
    class_names: tuple[str, ...]
    device: torch.device


@dataclass(frozen=True)
class Evaluated:
    """What a model reaches on a data set that it wasn't trained for.

    Attributes:
        run: the model's name, "digest/seed" of a run.
        data: the folder.
        num_images: of its validation split.
        metrics: in percent, as of a run.
        per_class: the same of each class of the data.
        not_in_data: classes of the model that the data lacks; their detections don't count.
    """

    run: str
    data: str
    num_images: int
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    not_in_data: tuple[str, ...]


def load(folder: Path, *, device: torch.device) -> Trained:
    """The model of a finished run.

    Raises:
        StoreError: the run isn't finished, or its weights are missing or damaged.
        RecipeError: its experiment is none that this version knows.
        DataError: its classes stand in its data alone, which can't be read.
    """
    experiment, names = read_about_run(folder)
    weights = folder / (STUDENT if experiment.test.student else WEIGHTS)
    try:
        return _ready(read_result(folder).name, experiment, names, weights, device)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StoreError(
            f"{weights}: can't be used as the run's weights ({str(error).splitlines()[0]}); run it again with --force"
        ) from None


def load_weights(path: Path, *, device: torch.device) -> Trained:
    """The model of a file that `weights import` wrote, or that lies in a finished run's folder.

    Raises:
        DataError: the file is another, or damaged.
        RecipeError: its experiment is none that this version knows.
        StoreError: the run's result is damaged.
    """
    experiment, names = read_about(path)
    try:
        return _ready(path.name, experiment, names, path, device)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{path}: can't be used as weights ({str(error).splitlines()[0]}); import or train them again"
        ) from None


def load_named(name: str, store: Store, *, device: torch.device) -> Trained:
    """The model that a user calls by a run's name or by the path of a file of weights.

    Raises:
        StoreError, DataError, RecipeError: as `load` and `load_weights`.
    """
    if name.endswith(".safetensors"):
        return load_weights(Path(name), device=device)
    return load(store.get(name), device=device)


def evaluate(trained: Trained, folder: Path, *, cache: Path, workers: int) -> Evaluated:
    """Tests a model on the validation split of another data set; classes go by their names.

    Args:
        trained: the model.
        folder: a data set in COCO's or CrowdHuman's format.
        cache: for annotation indices.
        workers: processes that load images.

    Raises:
        DataError: the data can't be read, or has a class that the model doesn't know.
    """
    splits = read_splits(source_in(str(folder)), cache)
    place_of = {name: place for place, name in enumerate(splits.val.category_names)}
    unknown = [name for name in place_of if name not in trained.class_names]
    if unknown:
        raise DataError(
            f"{splits.val.path}: has classes that {trained.name} doesn't know ({_some(unknown)}); it knows "
            f"{_some(trained.class_names)}. Rename them, or leave them out"
        )
    data = _data(splits)
    metrics = trained.experiment.test.metrics
    require_measurable(data, metrics)
    batches = test_batches(
        data.val, trained.experiment.data, batch=trained.experiment.test.batch, workers=workers
    )
    table = detect_in(batches, trained.model, trained.experiment, device=trained.device)
    place = np.array([place_of.get(name, -1) for name in trained.class_names])[table.label]
    kept = place >= 0
    table = DetectionTable(
        image=table.image[kept],
        label=place[kept],
        boxes_xywh=table.boxes_xywh[kept],
        scores=table.scores[kept],
    )
    measured = measure(table, splits.val, metrics)
    return Evaluated(
        run=trained.name,
        data=str(folder),
        num_images=splits.val.num_images,
        metrics=percent(measured),
        per_class=percent_per_class(measured, splits.val.category_names),
        not_in_data=tuple(name for name in trained.class_names if name not in place_of),
    )


def predict(trained: Trained, images: Sequence[Path], *, score: float) -> list[dict[str, Any]]:
    """Detections in image files, of at least some score.

    Args:
        trained: the model.
        images: files and folders of files.
        score: the least.

    Returns:
        For each image "file", "width", "height" and "detections", best first, each with "class", "score" and "box"
        (x, y, width, height in pixels of the file's image).

    Raises:
        DataError: a file is no image, or a folder has none.
    """
    paths = find_images(images)
    table = detect_in(_batches(trained, paths), trained.model, trained.experiment, device=trained.device)
    found = []
    for index, path in enumerate(paths):
        mine = np.flatnonzero((table.image == index) & (table.scores >= score))
        mine = mine[np.argsort(-table.scores[mine], kind="stable")]
        height, width = read_image(path).shape[:2]
        found.append(
            {
                "file": str(path),
                "width": width,
                "height": height,
                "detections": [
                    {
                        "class": trained.class_names[table.label[i]],
                        "score": float(table.scores[i]),
                        "box": table.boxes_xywh[i].tolist(),
                    }
                    for i in mine
                ],
            }
        )
    return found


def draw(found: Sequence[dict[str, Any]], class_names: Sequence[str], folder: Path) -> None:
    """Writes each image with its detections into a folder, under the file's own name.

    Raises:
        DataError: two images have the same name, one is in that folder itself, or one can't be written.
    """
    names = [Path(image["file"]).name for image in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{_some(sorted(twice))}: more than one image has this name; predict them one by one")
    own = [name for image, name in zip(found, names, strict=True) if _is_same(folder / name, image["file"])]
    if own:
        raise DataError(
            f"{folder}: holds the images themselves ({_some(own)}); name another folder for what is drawn"
        )
    for image, name in zip(found, names, strict=True):
        boxes = [
            Box(tuple(one["box"]), class_names.index(one["class"]), f"{one['class']} {one['score']:.2f}")
            for one in reversed(image["detections"])
        ]
        save(with_boxes(read_image(Path(image["file"])), boxes), folder / name)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and the image files of the folders among them.

    Raises:
        DataError: a path leads nowhere, or a folder has no image.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.is_file():
                raise DataError(f"{path}: no such file or folder.")
            found.append(path)
            continue
        inside = [file for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGES]
        if not inside:
            raise DataError(f"{path}: no image in this folder; expected files ending in {', '.join(IMAGES)}.")
        found += inside
    return found


def _ready(
    name: str, experiment: Experiment, class_names: tuple[str, ...], weights: Path, device: torch.device
) -> Trained:
    """The experiment's detector with the weights of a file, which replace all others."""
    model: nn.Module = build(experiment, len(class_names))
    model.load_state_dict(load_file(weights))
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    return Trained(name, experiment, model, class_names, device)


def _data(splits: Splits) -> OpenData:
    """The validation split as a run would see it; nobody trains, so both splits are it."""
    val = splits.val
    indices, is_target = np.arange(val.num_images), np.ones(len(val.labels), dtype=bool)
    split = DetectionData(val, splits.layout.val.images, indices, is_target)
    return OpenData(split, split, val.category_names, "", splits.root)


def _batches(trained: Trained, paths: Sequence[Path]) -> Iterator[Batch]:
    """One batch for each image: they may have any size."""
    data = trained.experiment.data
    nothing = torch.zeros(0, 4)
    for index, path in enumerate(paths):
        pixels = read_image(path)
        # Without a flip the test transform leaves nothing to chance.
        view = transformed(
            data.test, torch.from_numpy(pixels).permute(2, 0, 1), nothing, np.random.default_rng(0)
        )
        sample = Sample(
            image=view.image,
            boxes=view.boxes,
            labels=torch.zeros(0, dtype=torch.int64),
            original_size=(pixels.shape[0], pixels.shape[1]),
            image_index=index,
            name=path.name,
            matrix=view.matrix,
        )
        yield collate([sample], data.pixels.pad_multiple)


def _is_same(path: Path, other: str) -> bool:
    return path.exists() and path.samefile(other)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
