"""What a data set is, as one short text: equal for equal content, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from detbench.data.annotations import SPLITS, Annotations
from detbench.data.drawn import digest
from detbench.data.sources import read_splits, read_unlabelled
from detbench.errors import DataError
from detbench.parts.data import CrowdHuman, Drawn, Source


def fingerprint(source: Source, cache: Path, *, unlabelled: Source | None = None) -> str:
    """Names the content of a data set, and of the one that its unlabelled images come from.

    Of drawn data nothing need exist. Of a folder, the bytes of both annotation files count, which boxes are
    read from them, and the names and file sizes of the images they list; where it lies does not.

    Args:
        source: the data set.
        cache: folder that keeps parsed annotations, so that a second call only looks up file sizes.
        unlabelled: where further images come from; None for nowhere.

    Raises:
        DataError: a data set can't be read, or lacks an image.
    """
    if unlabelled is not None:
        return f"{fingerprint(source, cache)}+{_of_unlabelled(unlabelled, cache)}"
    if isinstance(source, Drawn):
        return f"drawn-{digest(source)}"
    splits = read_splits(source, cache)
    total = hashlib.sha256()
    for split, read in zip(SPLITS, (splits.train, splits.val), strict=True):
        _add(total, split, read, splits.layout[split].images)
    form = f"{source.kind}-{source.boxes}" if isinstance(source, CrowdHuman) else source.kind
    return f"{form}-{total.hexdigest()[:16]}"


def _of_unlabelled(source: Source, cache: Path) -> str:
    if isinstance(source, Drawn):
        return f"drawn-{digest(source)}"
    total = hashlib.sha256()
    _add(total, "unlabelled", *read_unlabelled(source, cache))
    return f"{source.kind}-{total.hexdigest()[:16]}"


def _add(total: hashlib._Hash, split: str, read: Annotations, images: Path) -> None:
    total.update(f"{split} {read.sha256}\n".encode())
    for index in range(read.num_images):
        name = read.file_name(index)
        total.update(f"{_file_size(images / name)} {name}\n".encode())


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise DataError(f"{path}: no such image file, but the annotations name it.") from None
