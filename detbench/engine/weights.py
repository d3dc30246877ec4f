"""Files of weights that say which detector they are for: those of finished runs, and what `weights import` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from detbench.core.detectors import Detector
from detbench.core.weights.layout import some
from detbench.data.sources import read_splits
from detbench.errors import DataError
from detbench.parts.detectors import untrained
from detbench.parts.experiment import Experiment, read_experiment
from detbench.results import RESULT, read_result
from detbench.store import Store

ABOUT = "detbench"
"""Key of an imported file's metadata: JSON with its experiment, its classes and where it is from."""


def read_about(path: Path) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment and the class names that a detector's file of weights belongs to.

    Args:
        path: what `weights import` wrote, or a file in a finished run's folder.

    Raises:
        DataError: the file is neither, or holds a body alone.
        RecipeError: its experiment is none that this version knows.
        StoreError: the run's result is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: can't be read as weights ({str(error).splitlines()[0]}).") from None
    if ABOUT in metadata:
        about = json.loads(metadata[ABOUT])
        experiment, names = read_experiment(about["experiment"], where=str(path)), tuple(about["class_names"])
    elif (path.parent / RESULT).is_file():
        experiment, names = read_about_run(path.parent)
    else:
        raise DataError(
            f"{path}: doesn't say which detector it is for and lies in no finished run's folder; bring it in with "
            "`detbench weights import`."
        )
    if not names:
        raise DataError(
            f"{path}: holds the body of a detector alone. Start a run from it with detector.backbone.weights."
        )
    return experiment, names


def read_about_run(folder: Path) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment and the class names of a finished run.

    Raises:
        StoreError: it isn't finished, or its result is damaged.
        RecipeError: its experiment is none that this version knows.
        DataError: its classes stand in its data alone, which can't be read.
    """
    result = read_result(folder)
    experiment = read_experiment(result.experiment, where=str(folder))
    names = tuple(result.per_class)
    if not names:  # CrowdHuman's metrics have none by class
        names = read_splits(experiment.data.source, Store.around(folder).cache).val.category_names
    return experiment, names


def start_from(path: Path, experiment: Experiment, class_names: tuple[str, ...]) -> Detector:
    """An experiment's detector with the weights of a file; class heads are random where its classes differ.

    What the file has beyond the detector's needs is left alone.

    Args:
        path: see `read_about`.
        experiment: what is to be trained.
        class_names: of its data, by index.

    Raises:
        DataError, RecipeError, StoreError: as `read_about`; or the weights don't fit.
    """
    _, their_names = read_about(path)
    detector = build(experiment, len(class_names))
    ours = {name: tensor.shape for name, tensor in detector.state_dict().items()}
    if their_names != class_names:
        one_more = shapes_of(experiment, len(class_names) + 1)
        ours = {name: shape for name, shape in ours.items() if one_more[name] == shape}
    theirs = load_file(path)
    misfits = (
        some("missing", [name for name in ours if name not in theirs]),
        some(
            "of another shape", [n for n, shape in ours.items() if n in theirs and theirs[n].shape != shape]
        ),
    )
    if any(misfits):
        raise DataError(
            f"{path}: doesn't fit this row's detector; {'; '.join(text for text in misfits if text)}. Start from it "
            "a row like the one it was made for, at the same --scale."
        )
    detector.load_state_dict({name: theirs[name] for name in ours}, strict=False)
    return detector


def build(experiment: Experiment, num_classes: int) -> Detector:
    """An experiment's detector with random weights, also where its body would start from some."""
    return untrained(experiment.detector).build(branches=experiment.branches, num_classes=num_classes)


def shapes_of(experiment: Experiment, num_classes: int) -> dict[str, torch.Size]:
    """The shapes of its detector's tensors; nothing is allocated."""
    with torch.device("meta"):
        detector = build(experiment, num_classes)
    return {name: tensor.shape for name, tensor in detector.state_dict().items()}
