"""CrowdHuman's .odgt files: each line is a JSON object, an image with its boxes. No torch."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detbench.data.annotations import (
    SPLITS,
    Annotations,
    Layout,
    Problem,
    SplitFiles,
    is_number,
    is_text,
    kept_columns,
    read_bytes,
    shown,
    without_problems,
)
from detbench.data.images import image_size
from detbench.errors import DataError

BoxKind = Literal["full", "visible"]

# Every object is of this class; the other tag stands for crowds, reflections and what only looks like people.
PERSON, MASK = "person", "mask"

_KEYS: dict[BoxKind, str] = {"full": "fbox", "visible": "vbox"}

# A line names its image without suffix; CrowdHuman's own are all JPEG.
SUFFIXES = (".jpg", ".jpeg", ".png")


def find_layout(root: Path) -> Layout:
    """Where the data set in a folder keeps its splits: annotation_{train,val}.odgt beside Images/ or images/.

    Raises:
        DataError: something of it is missing.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Expected a data set in CrowdHuman's format.")
    images = next((root / name for name in ("Images", "images") if (root / name).is_dir()), None)
    files = [root / f"annotation_{split}.odgt" for split in SPLITS]
    missing = [path.name for path in files if not path.is_file()] + ["Images/"] * (images is None)
    if missing or images is None:
        raise DataError(
            f"{root}: not a data set in CrowdHuman's format, it lacks {' and '.join(missing)}. Expected "
            "annotation_train.odgt, annotation_val.odgt and one folder, Images, with the images of both."
        )
    return Layout(*(SplitFiles(path, images) for path in files))


def read_annotations(files: SplitFiles, *, boxes: BoxKind, cache: Path | None) -> Annotations:
    """The annotations of an .odgt file, as `inspect_annotations` reads them.

    The columns are kept in the cache folder, so that the next call need neither parse nor open an image.

    Args:
        files: the .odgt file and its images' folder.
        boxes: whole bodies, which may reach beyond the image, or what can be seen of them.
        cache: folder for the columns; None to keep nothing.

    Raises:
        DataError: the file can't be used; names the first line at fault.
    """
    return kept_columns(
        files.annotations,
        lambda: without_problems(*inspect_annotations(files, boxes=boxes)),
        cache=cache,
        variant=boxes,
        also=(files.images,),
    )


def inspect_annotations(files: SplitFiles, *, boxes: BoxKind) -> tuple[Annotations, list[Problem]]:
    """The usable annotations of an .odgt file, and what is wrong with the others.

    The one class is "person". `iscrowd` marks what is to be ignored: extra.ignore of 1, or the tag "mask"
    (spec 5.1). Image ids are the lines' IDs, annotation ids count boxes from 1 in the order of the file. An
    image's size is read from its file unless the line gives width and height.

    Args:
        files: the .odgt file and its images' folder.
        boxes: as for `read_annotations`.

    Raises:
        DataError: the file or the folder can't be read.
    """
    content = read_bytes(files.annotations)
    reader = _Reader(files, _KEYS[boxes])
    images = sorted(reader.images(content), key=lambda image: image.key)
    objects = [found for image in images for found in image.objects]
    columns = np.array([found.box for found in objects], dtype=np.float64).reshape(-1, 4)
    return Annotations(
        path=files.annotations,
        sha256=hashlib.sha256(content).hexdigest(),
        image_ids=np.array([image.key for image in images], dtype=np.str_),
        file_names=np.array([image.file_name.encode() for image in images], dtype=np.bytes_),
        widths=np.array([image.width for image in images], dtype=np.int64),
        heights=np.array([image.height for image in images], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum([len(image.objects) for image in images])]).astype(np.int64),
        annotation_ids=np.array([found.number for found in objects], dtype=np.int64),
        boxes=columns,
        labels=np.zeros(len(objects), dtype=np.int32),
        areas=columns[:, 2] * columns[:, 3],
        iscrowd=np.array([found.ignored for found in objects], dtype=np.bool_),
        category_ids=np.array([1]),
        category_names=(PERSON,),
    ), reader.problems


@dataclass(frozen=True, slots=True)
class _Object:
    number: int
    box: list[float]
    ignored: bool


@dataclass(frozen=True, slots=True)
class _Image:
    key: str
    file_name: str
    height: int
    width: int
    objects: list[_Object]


class _Reader:
    """Goes through a file line by line, and notes what it can't use."""

    def __init__(self, files: SplitFiles, box_key: str) -> None:
        self.problems: list[Problem] = []
        self._folder = files.images
        self._box_key = box_key
        self._lines: dict[str, int] = {}
        self._boxes = 0
        try:
            self._names = {path.name for path in files.images.iterdir()}
        except OSError as error:
            raise DataError(f"{files.images}: can't be read ({error.strerror}). Expected images.") from None

    def images(self, content: bytes) -> Iterator[_Image]:
        for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
            if line.strip():
                try:
                    yield self._image(number, _parsed(line))
                except _FaultError as fault:
                    self.problems.append(Problem(f"line {number}", str(fault)))

    def _image(self, number: int, record: dict[str, Any]) -> _Image:
        key = record["ID"]
        if key in self._lines:
            raise _FaultError(f"ID {shown(key)} is that of line {self._lines[key]} too")
        file_name = next((key + suffix for suffix in SUFFIXES if key + suffix in self._names), None)
        if file_name is None:
            raise _FaultError(f"no image {key}{SUFFIXES[0]} in {self._folder.name}/")
        height, width = self._size(record, file_name)
        self._lines[key] = number
        return _Image(key, file_name, height, width, list(self._objects(number, record)))

    def _size(self, record: dict[str, Any], file_name: str) -> tuple[int, int]:
        if "width" not in record and "height" not in record:
            try:
                return image_size(self._folder / file_name)
            except DataError as error:
                raise _FaultError(str(error).rstrip(".")) from None
        return _side(record, "height"), _side(record, "width")

    def _objects(self, line: int, record: dict[str, Any]) -> Iterator[_Object]:
        for i, found in enumerate(record["gtboxes"]):
            self._boxes += 1
            fault = _object_problem(found, self._box_key)
            if fault is None:
                ignored = found["tag"] == MASK or found.get("extra", {}).get("ignore", 0) == 1
                yield _Object(self._boxes, found[self._box_key], ignored)
            else:
                self.problems.append(Problem(f"line {line} (ID {shown(record['ID'])}), gtboxes[{i}]", fault))


class _FaultError(Exception):
    """What is wrong with a line, so that none of it can be used."""


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _FaultError(f"byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise _FaultError(f"not valid JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(record, dict) or "ID" not in record or not isinstance(record.get("gtboxes"), list):
        raise _FaultError(f"found {shown(record)}, expected an object with ID and the list gtboxes")
    key = record["ID"]
    if not isinstance(key, str) or not key or "\0" in key or not is_text(key):
        raise _FaultError(f"ID is {shown(key)}, expected an image's name without suffix")
    return record


def _side(record: dict[str, Any], name: str) -> int:
    value: Any = record.get(name)
    if not (is_number(value) and value >= 1 and value == int(value)):
        raise _FaultError(f"{name} is {shown(value)}, expected a whole number of pixels")
    return int(value)


def _object_problem(found: Any, box_key: str) -> str | None:
    if not isinstance(found, dict):
        return f"found {shown(found)}, expected an object with tag and {box_key}"
    if found.get("tag") not in (PERSON, MASK):
        return f"tag is {shown(found.get('tag'))}, expected {shown(PERSON)} or {shown(MASK)}"
    box = found.get(box_key)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"{box_key} is {shown(box)}, expected four finite numbers"
    extra = found.get("extra", {})
    if not isinstance(extra, dict):
        return f"extra is {shown(extra)}, expected an object"
    ignore = extra.get("ignore", 0)
    if type(ignore) not in (int, bool) or ignore not in (0, 1):
        return f"extra.ignore is {shown(ignore)}, expected 0 or 1"
    return None
