"""COCO annotation files: where a data set keeps them, and what they hold as NumPy columns. No torch."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

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
from detbench.errors import DataError

_NOT_FOUND = -1

# The polygons of an annotation: most of a file, and of no use to boxes. What stands between the key and the
# next quote or brace is numbers, commas and brackets, so in valid JSON the last bracket closes the outline.
_OUTLINE = re.compile(rb'"segmentation"\s*:\s*\[[^"{}]*\]')


def find_layout(root: Path) -> Layout:
    """Where the data set in a folder keeps its splits: in COCO's own layout or the plain one.

    Raises:
        DataError: neither fits.
    """
    layouts = [
        Layout(
            *(SplitFiles(root / f"annotations/instances_{s}2017.json", root / f"{s}2017") for s in SPLITS)
        ),
        Layout(*(SplitFiles(root / f"annotations/instances_{s}.json", root / "images") for s in SPLITS)),
    ]
    missing = []
    for layout in layouts:
        wanted = dict.fromkeys(
            path for s in SPLITS for path in (layout[s].annotations, layout[s].images)
        )  # the plain layout's image folder serves both splits
        absent = [path.relative_to(root).as_posix() for path in wanted if not path.exists()]
        if not absent:
            return layout
        missing.append(", ".join(absent))
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder. Expected a data set in COCO format; name one with --data DIR, or use "
            "--scale cpu, which draws its own images."
        )
    raise DataError(
        f"{root}: not a COCO data set. For COCO's own layout it lacks {missing[0]}; for the plain one "
        f"{missing[1]}."
    )


def read_annotations(path: Path, *, cache: Path | None) -> Annotations:
    """The annotations of a COCO file.

    The columns are kept in the cache folder, so that the next call need not parse the file.

    Args:
        path: the JSON file.
        cache: folder for the columns; None to keep nothing.

    Raises:
        DataError: the file can't be read as COCO annotations; names the first record at fault.
    """
    return kept_columns(path, lambda: without_problems(*inspect_annotations(path)), cache=cache)


def inspect_annotations(path: Path) -> tuple[Annotations, list[Problem]]:
    """The usable annotations of a COCO file, and what is wrong with the others.

    Raises:
        DataError: there is no such file, it isn't JSON, or it lacks images, annotations or categories.
    """
    with _no_collection():
        return _inspected(path, *_parsed(path))


def find_unlabelled(root: Path) -> SplitFiles:
    """Where a data set keeps images without annotations: COCO's own unlabelled ones, else its training split.

    Raises:
        DataError: it has neither.
    """
    files = SplitFiles(root / "annotations/image_info_unlabeled2017.json", root / "unlabeled2017")
    if files.annotations.is_file():
        return files
    return find_layout(root).train


def read_images(path: Path, *, cache: Path | None) -> Annotations:
    """The images that a COCO file lists, without annotations or classes, whatever else is in it.

    The columns are kept in the cache folder, as those of `read_annotations`.

    Args:
        path: the JSON file.
        cache: folder for the columns; None to keep nothing.

    Raises:
        DataError: the file can't be read as a list of images; names the first record at fault.
    """
    return kept_columns(
        path, lambda: without_problems(*_inspected_images(path)), cache=cache, variant="images"
    )


def _inspected_images(path: Path) -> tuple[Annotations, list[Problem]]:
    with _no_collection():
        sha256, tree = _parsed(path, keys=("images",))
        return _inspected(path, sha256, {"images": tree["images"], "annotations": [], "categories": []})


def read_in_file_order(path: Path) -> tuple[Annotations, list[int | str]]:
    """The annotations of a COCO file, and the ids of its images in the file's own order, for what is drawn by place.

    Raises:
        DataError: the file can't be read as COCO annotations; names the first record at fault.
    """
    with _no_collection():
        sha256, tree = _parsed(path)
        annotations = without_problems(*_inspected(path, sha256, tree))
    # None only of a record that is at fault, and there is none.
    return annotations, cast("list[int | str]", [as_id(record["id"]) for record in tree["images"]])


def _inspected(path: Path, sha256: str, tree: Mapping[str, list[Any]]) -> tuple[Annotations, list[Problem]]:
    problems: list[Problem] = []
    image_index, images = _keyed(tree["images"], "images", _image_problem, problems)
    category_index, categories = _keyed(tree["categories"], "categories", _category_problem, problems)
    columns = _annotation_columns(tree["annotations"], image_index, category_index, problems)
    order = np.argsort(columns["image_idx"], kind="stable")
    counts = np.bincount(columns.pop("image_idx"), minlength=len(images))
    return Annotations(
        path=path,
        sha256=sha256,
        image_ids=_id_column(list(image_index)),
        file_names=np.array([record["file_name"].encode() for record in images], dtype=np.bytes_),
        widths=np.array([record["width"] for record in images], dtype=np.int64),
        heights=np.array([record["height"] for record in images], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        category_ids=_id_column(list(category_index)),
        category_names=tuple(str(record["name"]) for record in categories),
        **{name: column[order] for name, column in columns.items()},
    ), problems


def _parsed(
    path: Path, keys: Sequence[str] = ("images", "annotations", "categories")
) -> tuple[str, Mapping[str, list[Any]]]:
    """SHA-256 of a file, hexadecimal, and its lists."""
    content = read_bytes(path)
    try:
        try:
            tree = _loads(_OUTLINE.sub(b'"segmentation":0', content))
        except ValueError:
            tree = _loads(content)  # as it is, so that the place of the fault is the file's
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is no UTF-8. Expected a COCO annotation file, JSON in UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} (character {error.pos} of "
            f"{len(error.doc)}): {error.msg}. If the file was cut off on its way here, fetch it again."
        ) from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for JSON. Expected a COCO annotation file.") from None
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key), list) for key in keys):
        found = ", ".join(tree) if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise DataError(
            f"{path}: no COCO annotation file. Expected an object with {_lists(keys)}, "
            f"found {found or 'an empty object'}."
        )
    return hashlib.sha256(content).hexdigest(), tree


def _lists(keys: Sequence[str]) -> str:
    return f"the lists {', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else f"the list {keys[0]}"


def _loads(content: bytes) -> Any:
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_slim)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: it would walk the millions of fresh objects again and again, and free none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _slim(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object on its way in; of an annotation only what boxes need."""
    record = dict(pairs)
    if "bbox" not in record:
        return record
    get = record.get
    return get("id"), get("image_id"), get("category_id"), record["bbox"], get("iscrowd"), get("area")


def _keyed(
    records: list[Any], what: str, problem_of: Callable[[Any], str | None], problems: list[Problem]
) -> tuple[dict[Hashable, int], list[dict[str, Any]]]:
    """The records without fault by ascending id, and the place of each id among them."""
    good: dict[Any, dict[str, Any]] = {}
    for i, record in enumerate(records):
        fault = problem_of(record)
        if fault is None and as_id(record["id"]) in good:
            fault = "another record has the same id"
        if fault is None:
            good[as_id(record["id"])] = record
        else:
            problems.append(Problem(_place(what, i, record), fault))
    ids = sorted(good, key=lambda key: (isinstance(key, str), key))
    return {key: i for i, key in enumerate(ids)}, [good[key] for key in ids]


def _image_problem(record: Any) -> str | None:
    fault = _missing(record, ("id", "file_name", "width", "height"))
    if fault:
        return fault
    name = record["file_name"]
    if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
        return f"file_name is {shown(name)}, expected a file's name"
    for side in ("width", "height"):
        if not (is_number(record[side]) and record[side] >= 1 and record[side] == int(record[side])):
            return f"{side} is {shown(record[side])}, expected a whole number of pixels"
    return None


def _category_problem(record: Any) -> str | None:
    fault = _missing(record, ("id", "name"))
    if fault:
        return fault
    if not isinstance(record["name"], str):
        return f"name is {shown(record['name'])}, expected text"
    return None


def _missing(record: Any, keys: Sequence[str]) -> str | None:
    """Faults that images and categories share."""
    if not isinstance(record, dict):
        return f"found {shown(record)}, expected an object with {', '.join(keys)}"
    absent = [key for key in keys if record.get(key) is None]
    if absent:
        return f"has no {' and no '.join(absent)}"
    if as_id(record["id"]) is None:
        return f"id is {shown(record['id'])}, expected a number or text"
    return None


def _annotation_columns(
    records: list[Any],
    image_index: Mapping[Hashable, int],
    category_index: Mapping[Hashable, int],
    problems: list[Problem],
) -> dict[str, NDArray[Any]]:
    """Columns of the annotations without fault, in the file's order.

    All are checked in bulk. Only if that fails are they looked at one by one, to name those at fault.
    """
    columns = _bulk_columns(records, image_index, category_index)
    if columns is not None:
        return columns
    good, seen = [], set()
    for i, record in enumerate(records):
        fault = _annotation_problem(record, image_index, category_index)
        if fault is None and as_id(record[0]) in seen:
            fault = "another annotation has the same id"
        if fault is None:
            seen.add(as_id(record[0]))
            good.append(record)
        else:
            problems.append(Problem(_place("annotations", i, record), fault))
    columns = _bulk_columns(good, image_index, category_index)
    assert columns is not None
    return columns


def _bulk_columns(
    records: list[Any], image_index: Mapping[Hashable, int], category_index: Mapping[Hashable, int]
) -> dict[str, NDArray[Any]] | None:
    """Columns of well-formed annotations; None if one of them is not."""
    if not _all_of(records, tuple):
        return None
    ids, image_ids, category_ids, boxes, crowds, areas = zip(*records, strict=True) if records else ((),) * 6
    if not (
        _all_of(boxes, list)
        and set(map(len, boxes)) <= {4}
        and _all_of(chain.from_iterable(boxes), int, float)
        and _all_of(areas, int, float, type(None))
        and _all_of(crowds, int, bool, type(None))
        and set(crowds) <= {0, 1, None}
    ):
        return None
    keys = _as_ids(ids)
    image_idx = _looked_up(image_ids, image_index)
    labels = _looked_up(category_ids, category_index)
    try:
        flat = np.fromiter(chain.from_iterable(boxes), np.float64, count=4 * len(boxes)).reshape(-1, 4)
        given = np.array([np.nan if a is None else a for a in areas], dtype=np.float64)
    except OverflowError:
        return None
    area = np.where([a is None for a in areas], flat[:, 2] * flat[:, 3], given) if None in areas else given
    if (
        None in keys
        or len(set(keys)) < len(keys)
        or _NOT_FOUND in image_idx
        or _NOT_FOUND in labels
        or not np.isfinite(flat).all()
        or not np.isfinite(area).all()
    ):
        return None
    return {
        "image_idx": image_idx,
        "annotation_ids": _id_column(keys),
        "boxes": flat,
        "labels": labels.astype(np.int32),
        "areas": area,
        "iscrowd": np.fromiter(map(bool, crowds), np.bool_, count=len(crowds)),
    }


def _annotation_problem(
    record: Any, image_index: Mapping[Hashable, int], category_index: Mapping[Hashable, int]
) -> str | None:
    if isinstance(record, dict):
        return "has no bbox"
    if not isinstance(record, tuple):
        return f"found {shown(record)}, expected an object"
    key, image_id, category_id, box, crowd, area = record
    for name, value in (("id", key), ("image_id", image_id), ("category_id", category_id)):
        if value is None:
            return f"has no {name}"
        if as_id(value) is None:
            return f"{name} is {shown(value)}, expected a number or text"
    if as_id(image_id) not in image_index:
        return f"image_id {shown(image_id)} is no image of this file"
    if as_id(category_id) not in category_index:
        return f"category_id {shown(category_id)} is no category of this file"
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"bbox is {shown(box)}, expected four finite numbers"
    if not (area is None or is_number(area)):
        return f"area is {shown(area)}, expected a finite number"
    if not (crowd is None or (type(crowd) in (int, bool) and crowd in (0, 1))):
        return f"iscrowd is {shown(crowd)}, expected 0 or 1"
    return None


def as_id(value: Any) -> int | str | None:
    """An id as it is compared: text of digits and whole floats are numbers; None if it can't be an id."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if type(value) is str:
        return value
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 2**63 else None


def _as_ids(values: Sequence[Any]) -> Sequence[Any]:
    # Nearly every file has plain numbers; the largest and smallest of them say whether all fit.
    if _all_of(values, int) and (not values or max(max(values), -min(values)) < 2**63):
        return values
    return [as_id(value) for value in values]


def _looked_up(values: Sequence[Any], index: Mapping[Hashable, int]) -> NDArray[np.int64]:
    keys = _as_ids(values)
    return np.fromiter((index.get(key, _NOT_FOUND) for key in keys), np.int64, count=len(keys))


def _id_column(keys: Sequence[Any]) -> NDArray[Any]:
    """int64 where all ids are numbers, otherwise text."""
    if _all_of(keys, int):
        return np.array(keys, dtype=np.int64)
    return np.array([str(key) for key in keys])


def _all_of(values: Iterable[Any], *types: type) -> bool:
    return set(map(type, values)) <= set(types)


def _place(what: str, i: int, record: Any) -> str:
    key = record.get("id") if isinstance(record, dict) else record[0] if isinstance(record, tuple) else None
    return f"{what}[{i}]" if key is None else f"{what}[{i}] (id {shown(key)})"
