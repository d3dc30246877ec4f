"""What a data set is, as one short text: equal for equal content, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from detbench.data.coco import SPLITS, find_layout, read_annotations
from detbench.data.drawn import digest
from detbench.errors import DataError
from detbench.parts.data import Coco, Drawn


def fingerprint(source: Coco | Drawn, cache: Path) -> str:
    """Names the content of a data set.

    Of drawn data nothing need exist. Of a folder, the bytes of both annotation files count, and the names and
    file sizes of the images they list; where it lies does not.

    Args:
        source: the data set.
        cache: folder that keeps parsed annotations, so that a second call only looks up file sizes.

    Raises:
        DataError: the data set can't be read, or lacks an image.
    """
    if isinstance(source, Drawn):
        return f"drawn-{digest(source)}"
    layout = find_layout(Path(source.root))
    total = hashlib.sha256()
    for split in SPLITS:
        annotations = read_annotations(layout[split].annotations, cache=cache)
        total.update(f"{split} {annotations.sha256}\n".encode())
        for index in range(annotations.num_images):
            name = annotations.file_name(index)
            total.update(f"{_file_size(layout[split].images / name)} {name}\n".encode())
    return f"coco-{total.hexdigest()[:16]}"


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise DataError(f"{path}: no such image file, but the annotations name it.") from None
