"""Weights that others published, written once as files of our own that say what they are: `weights import`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from detbench import __version__
from detbench.core.weights import detectors, resnets
from detbench.core.weights.files import Checkpoint, read_checkpoint
from detbench.core.weights.layout import ClassRows, Layout, Translation, translate
from detbench.data import coco_classes
from detbench.engine.weights import ABOUT, shapes_of
from detbench.errors import DataError, RecipeError
from detbench.parts.experiment import Experiment
from detbench.parts.part import closest, plain
from detbench.store import sha256_of, whole_file

LAYOUTS = {layout.name: layout for layout in (*detectors.LAYOUTS, *resnets.LAYOUTS)}
"""Every code base whose names are known, by the name the command line gives it."""


@dataclass(frozen=True)
class Imported:
    """What became of a published checkpoint.

    Attributes:
        source: the file.
        source_sha256: of it.
        layout: by which it was read.
        title: whose files these are.
        entry: of the source's entries the one taken; "" for the whole file.
        other_entries: those that hold weights too and weren't taken.
        file: what was written.
        sha256: of it.
        tensors: in it.
        parameters: numbers in them.
        class_names: by index; empty for a body alone.
        left_out: how many tensors of the source weren't needed, by reason.
    """

    source: str
    source_sha256: str
    layout: str
    title: str
    entry: str
    other_entries: tuple[str, ...]
    file: str
    sha256: str
    tensors: int
    parameters: int
    class_names: tuple[str, ...]
    left_out: dict[str, int]


def import_weights(
    source: Path,
    out: Path,
    experiment: Experiment,
    *,
    row: str,
    layout: str | None = None,
    entry: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Imported:
    """Writes a published checkpoint under our names, with the experiment that it is to be tested by.

    Args:
        source: the checkpoint, see `read_checkpoint`: of a whole detector, or of a ResNet alone.
        out: .safetensors file to write.
        experiment: whose detector it is.
        row: what messages call that.
        layout: key of `LAYOUTS`; None for the one that fits.
        entry: of the checkpoint; None for the usual one.
        class_names: by index of the head's outputs; None for those the file says, else COCO's.

    Raises:
        DataError: the file can't be read, isn't that detector's, or doesn't say its classes.
        RecipeError: the file is the detector's, but the code it is from computes otherwise than the experiment; or
            there is no such layout.
        StoreError: the file can't be written.
    """
    if out.suffix != ".safetensors":
        raise RecipeError(f"{out}: weights are written as .safetensors; choose a name that ends so")
    if layout is not None and layout not in LAYOUTS:
        raise RecipeError(f"--layout {layout}: no such layout{closest(layout, list(LAYOUTS))}")
    checkpoint = read_checkpoint(source, entry=entry)
    layouts = list(LAYOUTS.values()) if layout is None else [LAYOUTS[layout]]
    reading, names = _read(checkpoint, experiment, layouts, class_names, row=row)
    _require_settings(reading.layout, checkpoint, experiment, row=row)
    about = {
        "version": __version__,
        "layout": reading.layout.name,
        "source_sha256": sha256_of(source),
        "class_names": list(names),
        "experiment": plain(experiment),
    }
    with whole_file(out) as file:
        file.write(save(reading.tensors, metadata={ABOUT: json.dumps(about)}))
    return Imported(
        source=str(source),
        source_sha256=about["source_sha256"],
        layout=reading.layout.name,
        title=reading.layout.title,
        entry=checkpoint.entry,
        other_entries=checkpoint.other_entries,
        file=str(out),
        sha256=sha256_of(out),
        tensors=len(reading.tensors),
        parameters=sum(tensor.numel() for tensor in reading.tensors.values()),
        class_names=names,
        left_out=reading.left_out,
    )


def _read(
    checkpoint: Checkpoint,
    experiment: Experiment,
    layouts: Sequence[Layout],
    class_names: Sequence[str] | None,
    *,
    row: str,
) -> tuple[Translation, tuple[str, ...]]:
    """The checkpoint under our names, by the first layout that fits, and its classes."""
    shapes = cache(partial(shapes_of, experiment))
    select_by = getattr(getattr(experiment.detector, "queries", None), "select_by", None)
    readings = [
        _read_by(layout, checkpoint, shapes, class_names, objectness=select_by == "first_class")
        for layout in layouts
        if layout.applies_to(checkpoint.tensors)
    ]
    if not readings:
        raise DataError(
            f"{checkpoint.where}: isn't named as by {layouts[0].title} (--layout {layouts[0].name})."
        )
    reading, names = max(readings, key=lambda pair: pair[0].closeness)
    if not reading.fits:
        raise DataError(
            f"{checkpoint.where}: isn't the detector of {row}. Closest are the names of {reading.layout.title} "
            f"(--layout {reading.layout.name}), by which of {reading.num_wanted} tensors "
            f"{reading.problems(left_over='left over in the file')}. Name the row, the scale and the overrides of "
            "the model that it was trained as."
        )
    if names is None:
        num_rows = reading.layout.num_class_rows(checkpoint.tensors)
        given = "" if class_names is None else f"; --data has {len(class_names)}"
        raise DataError(
            f"{checkpoint.where}: tells {num_rows} classes apart and doesn't name them{given}. Give --data DIR "
            "with a data set of these classes, in the order of their ids."
        )
    return reading, names


def _read_by(
    layout: Layout,
    checkpoint: Checkpoint,
    shapes: Callable[[int], dict[str, torch.Size]],
    class_names: Sequence[str] | None,
    *,
    objectness: bool,
) -> tuple[Translation, tuple[str, ...] | None]:
    """The checkpoint by one layout; and its classes, none of a body, None where nobody names them."""
    if layout in resnets.LAYOUTS:
        ours = shapes(len(coco_classes.NAMES))
        body = {n.removeprefix("backbone."): shape for n, shape in ours.items() if n.startswith("backbone.")}
        return translate(layout, checkpoint.tensors, body), ()
    num_rows = layout.num_class_rows(checkpoint.tensors)
    names, rows = _classes(num_rows, checkpoint, class_names)
    num_classes = len(coco_classes.NAMES) if num_rows is None or rows is not None else num_rows
    class_rows = ClassRows(rows, objectness)
    return translate(layout, checkpoint.tensors, shapes(num_classes), class_rows=class_rows), names


def _classes(
    num_rows: int | None, checkpoint: Checkpoint, given: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """Names of the classes, None where nobody says them; and their rows in the head, None for all."""
    if given is not None and len(given) == num_rows:
        return tuple(given), None
    if num_rows == coco_classes.NUM_IDS:
        fits = given is None or tuple(given) == coco_classes.NAMES
        return (coco_classes.NAMES if fits else None), coco_classes.IDS
    if given is None and len(checkpoint.class_names) == num_rows:
        return checkpoint.class_names, None
    if given is None and num_rows == len(coco_classes.NAMES):
        return coco_classes.NAMES, None
    return None, None


def _require_settings(layout: Layout, checkpoint: Checkpoint, experiment: Experiment, *, row: str) -> None:
    """Refuses an experiment that computes otherwise than the code which the weights are from."""
    tree = plain(experiment)
    wrong = []
    for path, allowed in layout.settings_of(checkpoint.tensors).items():
        value = _at(tree, path)
        if value is not None and not any(_same(value, one) for one in allowed):
            wrong.append(f"{path} is {json.dumps(value)} there, expected {path}={_as_override(allowed[0])}")
    if wrong:
        raise RecipeError(
            [
                f"{checkpoint.where}: fits {row} by its names, but {layout.title} computes otherwise; give these "
                "overrides, or another row:",
                *(f"  {line}" for line in wrong),
            ]
        )


def _at(tree: Any, path: str) -> Any:
    """A value by its key path; None where the path leads nowhere."""
    for key in path.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _same(value: Any, allowed: object) -> bool:
    return list(value) == list(allowed) if isinstance(allowed, tuple) else bool(value == allowed)


def _as_override(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
