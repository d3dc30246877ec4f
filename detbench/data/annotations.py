"""What every annotation format is read into, and how that is kept on disk. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detbench.errors import DataError

SPLITS = ("train", "val")

# A cached file of another version is built anew.
_CACHE_VERSION = 2

# What NumPy and zipfile raise for a damaged archive, depending on where the damage is.
_DAMAGED = (OSError, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """Where one split lies.

    Attributes:
        annotations: the JSON file.
        images: the folder its file names start from.
    """

    annotations: Path
    images: Path


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a data set keeps its two splits."""

    train: SplitFiles
    val: SplitFiles

    def __getitem__(self, split: str) -> SplitFiles:
        return {"train": self.train, "val": self.val}[split]


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that can't be used.

    Attributes:
        record: its place in the file, such as "annotations[17] (id 123)".
        what: what was found and what was expected.
    """

    record: str
    what: str


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """An annotation file as columns: I images by ascending id, A annotations image after image.

    The orders are those in which pycocotools evaluates: images by id, the annotations of one image as the
    file has them, classes by ascending category id. Ids are numbers where all of a kind are, otherwise text.

    Attributes:
        path: the file.
        sha256: of the file's bytes, hexadecimal.
        image_ids: (I,) int64 or text.
        file_names: (I,) UTF-8 bytes, paths below the image folder; `file_name` gives one as text.
        widths: (I,) int64 pixels.
        heights: (I,) int64 pixels.
        offsets: (I + 1,) int64; image i owns annotations offsets[i] to offsets[i + 1].
        annotation_ids: (A,) int64 or text.
        boxes: (A, 4) float64 xywh pixels, as in the file: neither clipped nor cleared of empty boxes.
        labels: (A,) int32 class indices from 0: one for every box of the data, kept as long as it is open.
        areas: (A,) float64 square pixels; the box's area where the file gives none.
        iscrowd: (A,) bool.
        category_ids: (C,) int64 or text, of each class.
        category_names: C names.
    """

    path: Path
    sha256: str
    image_ids: NDArray[Any]
    file_names: NDArray[np.bytes_]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    offsets: NDArray[np.int64]
    annotation_ids: NDArray[Any]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int32]
    areas: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    category_ids: NDArray[Any]
    category_names: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.file_names)

    @property
    def image_idx(self) -> NDArray[np.int64]:
        """(A,) int64: the image of each annotation."""
        return np.repeat(np.arange(self.num_images), np.diff(self.offsets))

    def file_name(self, index: int) -> str:
        """The path of one image below the image folder."""
        return bytes(self.file_names[index]).decode()

    def of_image(self, index: int) -> slice:
        """The annotations of one image."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of one image."""
        return int(self.heights[index]), int(self.widths[index])


def kept_columns(
    path: Path,
    read: Callable[[], Annotations],
    *,
    cache: Path | None,
    variant: str = "",
    also: Sequence[Path] = (),
) -> Annotations:
    """What `read` makes of an annotation file, kept in the cache folder for the next call.

    Args:
        path: the annotation file.
        read: reads it.
        cache: folder for the columns; None to keep nothing.
        variant: tells ways apart in which the same file can be read.
        also: other files and folders that decide what is read.

    Raises:
        DataError: one of the files can't be read; and what `read` raises.
    """
    if cache is None:
        return read()
    stamp = " ".join([str(_CACHE_VERSION), variant, *map(_stamp, (path, *also))])
    name = hashlib.sha256(f"{path.resolve()} {variant}".rstrip().encode()).hexdigest()[:16]
    kept = cache / "annotations" / f"{name}.npz"
    annotations = _load(kept, stamp, path)
    if annotations is None:
        annotations = read()
        _save(kept, stamp, annotations)
    return annotations


def without_problems(annotations: Annotations, problems: Sequence[Problem]) -> Annotations:
    """The annotations of a file all of whose records can be used.

    Raises:
        DataError: one can't; names the first.
    """
    if problems:
        more = f" And {len(problems) - 1} more of its records are at fault." if len(problems) > 1 else ""
        raise DataError(
            f"{annotations.path}: {problems[0].record}: {problems[0].what}.{more} "
            "`detbench data check` lists all that is wrong with a data set."
        )
    return annotations


def read_bytes(path: Path) -> bytes:
    """The content of an annotation file.

    Raises:
        DataError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def is_number(value: Any) -> bool:
    """True for a finite number; JSON's true and false are none."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_text(value: str) -> bool:
    """False for halves of characters, which JSON can spell but no file can have in its name."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A JSON value as a message quotes it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: can't be read ({error.strerror}). Expected an annotation file.")


def _stamp(path: Path) -> str:
    """What changes when the file does, without reading it."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _load(kept: Path, stamp: str, path: Path) -> Annotations | None:
    """The columns kept of a file; None if there are none, or of another state of it, or damaged ones."""
    try:
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if _text(arrays["stamp"]) != stamp:
                return None
            values = {field.name: arrays[field.name] for field in fields(Annotations) if field.name != "path"}
    except _DAMAGED:
        return None
    values["category_names"] = tuple(json.loads(_text(values["category_names"])))
    values["sha256"] = _text(values["sha256"])
    return Annotations(path=path, **values)


def _save(kept: Path, stamp: str, annotations: Annotations) -> None:
    arrays: dict[str, Any] = {"stamp": _bytes(stamp)}
    for field in fields(Annotations):
        value = getattr(annotations, field.name)
        if isinstance(value, tuple):
            value = json.dumps(value)
        if not isinstance(value, Path):
            arrays[field.name] = _bytes(value) if isinstance(value, str) else value
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".{kept.stem}-{os.getpid()}.npz")
    np.savez(partial, **arrays)
    partial.replace(kept)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _text(array: NDArray[np.uint8]) -> str:
    return array.tobytes().decode()
