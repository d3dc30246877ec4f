"""Data sets on their way to disk: a new folder appears whole or not at all. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detbench.errors import DataError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which gets its name when the block ends well.

    Only a killed process leaves it behind.

    Args:
        folder: the new folder, which must not exist.

    Raises:
        DataError: the folder exists.
    """
    folder = folder.absolute()
    if folder.exists():
        raise DataError(f"{folder}: exists already. Name a new folder, or remove it first.")
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            raise DataError(f"{folder}: another process made it meanwhile; nothing was written.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
