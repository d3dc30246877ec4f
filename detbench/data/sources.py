"""Which reader goes with which source: the two splits of any data set as columns. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detbench.data import coco, odgt
from detbench.data.annotations import SPLITS, Annotations, Layout, Problem, SplitFiles
from detbench.data.drawn import materialise
from detbench.parts.data import Coco, CrowdHuman, Drawn, Source, source_in

Folder = Coco | CrowdHuman


@dataclass(frozen=True, slots=True)
class Splits:
    """Both splits of a data set.

    Attributes:
        root: the folder that holds it.
        layout: where in it the splits lie.
        train: annotations of the training images.
        val: annotations of the validation images.
    """

    root: Path
    layout: Layout
    train: Annotations
    val: Annotations


def read_splits(source: Source, cache: Path, *, progress: Callable[[int, int], None] | None = None) -> Splits:
    """Reads the annotations of a source; drawn data is written first where it isn't yet.

    Args:
        source: the data set.
        cache: folder for parsed annotations and drawn images.
        progress: told the images drawn and their total after each.

    Raises:
        DataError: the data can't be read.
    """
    folder = _folder(source, cache, progress)
    layout = find_layout(folder)
    return Splits(Path(folder.root), layout, *(_read(folder, layout[split], cache) for split in SPLITS))


def read_unlabelled(
    source: Source, cache: Path, *, progress: Callable[[int, int], None] | None = None
) -> tuple[Annotations, Path]:
    """The images of a source that count as unlabelled, and their folder; arguments as for `read_splits`.

    They are COCO's own unlabelled ones where its data set has them, the training images otherwise.

    Raises:
        DataError: the data can't be read.
    """
    folder = _folder(source, cache, progress)
    if isinstance(folder, CrowdHuman):
        files = find_layout(folder).train
        return _read(folder, files, cache), files.images
    files = coco.find_unlabelled(Path(folder.root))
    return coco.read_images(files.annotations, cache=cache), files.images


def find_layout(source: Folder) -> Layout:
    """Where a source's splits lie.

    Raises:
        DataError: the folder isn't what the source says.
    """
    root = Path(source.root)
    return odgt.find_layout(root) if isinstance(source, CrowdHuman) else coco.find_layout(root)


def inspect(source: Folder, files: SplitFiles) -> tuple[Annotations, list[Problem]]:
    """The usable annotations of one split, and what is wrong with the others.

    Raises:
        DataError: nothing of the file can be used.
    """
    if isinstance(source, CrowdHuman):
        return odgt.inspect_annotations(files, boxes=source.boxes)
    return coco.inspect_annotations(files.annotations)


def _folder(source: Source, cache: Path, progress: Callable[[int, int], None] | None) -> Folder:
    """A source as it lies on disk; drawn data is written first where it isn't yet."""
    if isinstance(source, Drawn):
        return source_in(str(materialise(source, cache, progress=progress)))
    return source


def _read(source: Folder, files: SplitFiles, cache: Path) -> Annotations:
    if isinstance(source, CrowdHuman):
        return odgt.read_annotations(files, boxes=source.boxes, cache=cache)
    return coco.read_annotations(files.annotations, cache=cache)
