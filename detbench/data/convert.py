"""Data sets from one annotation format into another, and what the new one can't say. No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from detbench.data import coco, odgt, voc
from detbench.data.annotations import SPLITS, Annotations
from detbench.data.folders import new_folder
from detbench.errors import DataError
from detbench.parts.data import CrowdHuman, source_in

Format = Literal["coco", "voc", "odgt"]

# What an .odgt box says beside its tag and full box; COCO files keep it under the same names.
_ODGT_KEYS = ("vbox", "hbox", "head_attr", "extra")

# An area that differs by more square pixels is that of an outline, not of the box.
_SAME_AREA = 0.01

# Of a COCO record, what every format says in its own way.
_COCO_IMAGE_KEYS = {"id", "file_name", "width", "height"}
_COCO_BOX_KEYS = {"id", "image_id", "category_id", "bbox", "iscrowd"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted.

    Attributes:
        found: the format the data set was in.
        images: number of images of each split.
        boxes: number of boxes of each split, those to be ignored included.
        notes: what the new format can't say and is lost, and what it says in another way.
    """

    found: Format
    images: dict[str, int]
    boxes: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Box:
    """One object; `extra` is what its format says of it beyond class, box and whether to ignore it."""

    name: str
    xywh: tuple[float, float, float, float]
    ignored: bool
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Image:
    """One image with its objects; `extra` names what else its format says of it."""

    file: Path
    name: str
    size: tuple[int, int]
    boxes: list[_Box]
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _DataSet:
    """A data set in no format; `notes` is what was left behind on reading."""

    images: dict[str, list[_Image]]
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    def boxes(self) -> Iterator[_Box]:
        """All of all splits."""
        return (box for split in SPLITS for image in self.images[split] for box in image.boxes)


def convert(folder: Path, target: Path, *, to: Format, link: bool = False) -> Conversion:
    """Writes a data set anew in another format, with its images.

    The format it is in shows in its files: annotation_train.odgt, ImageSets/Main, or else COCO's. Its train and
    val splits are converted. What the new format has no place for is listed.

    Args:
        folder: the data set.
        target: the new folder, which must not exist.
        to: the format to write: COCO in the plain layout, VOC, or CrowdHuman's.
        link: give the same image files a second name (a hard link, which needs no room) instead of copying.

    Raises:
        DataError: the data set can't be read, is in that format already, or can't be said in it.
    """
    found = _format_of(folder)
    if found == to:
        raise DataError(f"{folder}: is in this format already ({to}); nothing to convert.")
    data = {"coco": _read_coco, "voc": _read_voc, "odgt": _read_odgt}[found](folder)
    _require_names(data, folder, to)
    with new_folder(target) as partial:
        notes = {"coco": _write_coco, "voc": _write_voc, "odgt": _write_odgt}[to](data, partial)
        images = partial / {"coco": "images", "voc": "JPEGImages", "odgt": "Images"}[to]
        images.mkdir(exist_ok=True)
        for split in SPLITS:
            for image in data.images[split]:
                _transfer(image.file, images / image.name, link=link)
    return Conversion(
        found=found,
        images={split: len(images) for split, images in data.images.items()},
        boxes={split: sum(len(image.boxes) for image in images) for split, images in data.images.items()},
        notes=(*data.notes, *notes),
    )


def _format_of(folder: Path) -> Format:
    if voc.is_voc(folder):
        return "voc"
    return "odgt" if isinstance(source_in(str(folder)), CrowdHuman) else "coco"


def _require_names(data: _DataSet, folder: Path, to: Format) -> None:
    """All images share one folder in the end, and VOC and .odgt know them without suffix."""
    seen: dict[str, Path] = {}
    for split in SPLITS:
        for image in data.images[split]:
            key = image.name if to == "coco" else Path(image.name).stem
            if key in seen:
                raise DataError(
                    f"{folder}: {image.file} and {seen[key]} would both be called {key} in one folder. "
                    "Rename one of them, or list it once."
                )
            seen[key] = image.file


def _transfer(file: Path, target: Path, *, link: bool) -> None:
    try:
        if link:
            os.link(file, target)
        else:
            shutil.copyfile(file, target)
    except FileNotFoundError:
        raise DataError(f"{file}: no such image file, but the annotations name it.") from None
    except OSError as error:
        advice = " Leave --link out to copy it." if link else ""
        raise DataError(f"{file}: can't be put into the new data set ({error.strerror}).{advice}") from None


# ------------------------------------------------------------------ COCO


def _read_coco(folder: Path) -> _DataSet:
    layout = coco.find_layout(folder)
    images: dict[str, list[_Image]] = {}
    above: Counter[str] = Counter()
    names: dict[str, None] = {}
    for split in SPLITS:
        path = layout[split].annotations
        annotations = coco.read_annotations(path, cache=None)
        tree = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_outline)
        names |= dict.fromkeys(annotations.category_names)
        above.update(key for key in tree if key not in ("images", "annotations", "categories"))
        above.update(key for record in tree["categories"] for key in record if key not in ("id", "name"))
        images[split] = _coco_images(annotations, tree, layout[split].images)
    notes = ["ids of images, annotations and categories are lost"]
    notes += [f"{key} of the whole data set or its categories is lost" for key in above]
    used = {box.name for split in SPLITS for image in images[split] for box in image.boxes}
    unused = [name for name in names if name not in used]
    if unused:
        notes.append(f"{len(unused)} classes without a box are lost: {', '.join(unused)}")
    return _DataSet(images, list(names), notes)


def _without_outline(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of an outline only that there is one counts, and outlines are most of a file."""
    record = dict(pairs)
    if record.pop("segmentation", None):
        record["segmentation"] = True
    return record


def _coco_images(annotations: Annotations, tree: Mapping[str, Any], folder: Path) -> list[_Image]:
    """The columns say which records there are and what they mean, the tree what else stands in them."""
    box_records = {str(coco.as_id(record["id"])): record for record in tree["annotations"]}
    image_records = {str(coco.as_id(record["id"])): record for record in tree["images"]}
    found = []
    for index in range(annotations.num_images):
        boxes = []
        owned = annotations.of_image(index)
        for i in range(owned.start, owned.stop):
            x, y, width, height = annotations.boxes[i].tolist()
            record = box_records[str(annotations.annotation_ids[i])]
            extra = {key: value for key, value in record.items() if key not in _COCO_BOX_KEYS}
            if abs(annotations.areas[i] - width * height) <= _SAME_AREA:
                extra.pop("area", None)
            name = annotations.category_names[annotations.labels[i]]
            boxes.append(_Box(name, (x, y, width, height), bool(annotations.iscrowd[i]), extra))
        path = annotations.file_name(index)
        said = image_records[str(annotations.image_ids[index])].keys() - _COCO_IMAGE_KEYS
        found.append(
            _Image(folder / path, PurePosixPath(path).name, annotations.size(index), boxes, tuple(said))
        )
    return found


def _write_coco(data: _DataSet, folder: Path) -> list[str]:
    (folder / "annotations").mkdir()
    category_ids = {name: i for i, name in enumerate(data.classes, start=1)}
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, image in enumerate(data.images[split], start=1):
            height, width = image.size
            images.append({"id": i, "file_name": image.name, "width": width, "height": height})
            for box in image.boxes:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": category_ids[box.name],
                        "bbox": _numbers(box.xywh),
                        "area": box.xywh[2] * box.xywh[3],
                        "iscrowd": int(box.ignored),
                        **box.extra,
                    }
                )
        tree = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    return _notes(data, keeps=None, ignored_as="iscrowd = 1")


# ------------------------------------------------------------------ Pascal VOC


def _read_voc(folder: Path) -> _DataSet:
    images: dict[str, list[_Image]] = {}
    others: Counter[str] = Counter()
    before_first = 0
    for split in SPLITS:
        images[split] = []
        for read in voc.read(folder, split):
            boxes = []
            for found in read.objects:
                others.update(found.others)
                before_first += min(found.box[:2]) < 0
                boxes.append(_Box(found.name, found.box, found.difficult, dict(found.flags)))
            images[split].append(_Image(read.file, read.file.name, read.size, boxes, read.others))
    notes = [f"{name} of {count} boxes is lost" for name, count in others.items()]
    if before_first:
        notes.append(
            f"{before_first} boxes begin before pixel 1, VOC's first: perhaps this data counts from 0, and all "
            "boxes lie one pixel too far to the top left now"
        )
    if (folder / voc.SETS / "test.txt").is_file():
        notes.append("ImageSets/Main/test.txt is left behind: only train and val are converted")
    data = _DataSet(images, [], notes)
    data.classes.extend(sorted({box.name for box in data.boxes()}))
    return data


def _write_voc(data: _DataSet, folder: Path) -> list[str]:
    (folder / "Annotations").mkdir()
    (folder / voc.SETS).mkdir(parents=True)
    for split in SPLITS:
        voc.write(folder, split, map(_as_voc, data.images[split]))
    notes = _notes(data, keeps=voc.FLAGS, ignored_as="difficult = 1")
    fine = sum(any(v != round(v, voc.DECIMALS) for v in box.xywh) for box in data.boxes())
    if fine:
        notes.append(f"coordinates of {fine} boxes are rounded to {voc.DECIMALS} decimals")
    fractions = sum(any(v != int(v) for v in box.xywh) for box in data.boxes())
    if fractions:
        notes.append(f"coordinates of {fractions} boxes are fractions, which VOC's own tools cut off")
    return notes


def _as_voc(image: _Image) -> voc.VocImage:
    objects = tuple(
        voc.VocObject(
            box.name,
            box.xywh,
            box.ignored,
            {flag: box.extra[flag] for flag in voc.FLAGS if flag in box.extra},
        )
        for box in image.boxes
    )
    return voc.VocImage(Path(image.name), image.size, objects)


# ------------------------------------------------------------------ .odgt


def _read_odgt(folder: Path) -> _DataSet:
    layout = odgt.find_layout(folder)
    images: dict[str, list[_Image]] = {}
    for split in SPLITS:
        files = layout[split]
        annotations = odgt.read_annotations(files, boxes="full", cache=None)
        lines = files.annotations.read_text(encoding="utf-8-sig").split("\n")
        records = {record["ID"]: record for record in (json.loads(line) for line in lines if line.strip())}
        images[split] = [
            _Image(
                files.images / annotations.file_name(i),
                annotations.file_name(i),
                annotations.size(i),
                [
                    _Box(odgt.PERSON, tuple(box["fbox"]), bool(ignored), _odgt_extra(box, ignored))
                    for box, ignored in zip(
                        records[str(key)]["gtboxes"],
                        annotations.iscrowd[annotations.of_image(i)],
                        strict=True,
                    )
                ],
            )
            for i, key in enumerate(annotations.image_ids)
        ]
    return _DataSet(images, [odgt.PERSON])


def _odgt_extra(box: Mapping[str, Any], ignored: bool) -> dict[str, Any]:
    kept = {key: box[key] for key in _ODGT_KEYS if key in box}
    kept["extra"] = {key: value for key, value in kept.get("extra", {}).items() if key != "ignore"}
    if ignored and box["tag"] != odgt.MASK:
        kept["tag"] = box["tag"]
    return {key: value for key, value in kept.items() if value}


def _write_odgt(data: _DataSet, folder: Path) -> list[str]:
    used = sorted({box.name for box in data.boxes()})
    if len(used) > 1:
        raise DataError(
            f"CrowdHuman's format knows one class, {odgt.PERSON}; this data set has {len(used)}: "
            f"{', '.join(used[:5])}. Keep one of them, or convert to another format."
        )
    for split in SPLITS:
        with (folder / f"annotation_{split}.odgt").open("w", encoding="utf-8", newline="\n") as file:
            for image in data.images[split]:
                name = Path(image.name)
                if name.suffix not in odgt.SUFFIXES:
                    raise DataError(
                        f"{image.file}: CrowdHuman's format leaves the suffix out and expects one of "
                        f"{', '.join(odgt.SUFFIXES)}. Save the image as one of them."
                    )
                height, width = image.size
                boxes = [_odgt_box(box) for box in image.boxes]
                line = {"ID": name.stem, "width": width, "height": height, "gtboxes": boxes}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    notes = _notes(data, keeps=("tag", *_ODGT_KEYS), ignored_as='extra.ignore = 1, tag "mask"')
    if used and used != [odgt.PERSON]:
        notes.append(f"the class {used[0]} becomes {odgt.PERSON}, the only one there is")
    without = sum("vbox" not in box.extra for box in data.boxes())
    if without:
        notes.append(
            f"{without} boxes have no visible part and no head (vbox, hbox): they can be read as full"
        )
    return notes


def _odgt_box(box: _Box) -> dict[str, Any]:
    kept = {key: box.extra[key] for key in _ODGT_KEYS if key in box.extra}
    kept["extra"] = {**kept.get("extra", {}), "ignore": int(box.ignored)}
    tag = box.extra.get("tag", odgt.MASK) if box.ignored else odgt.PERSON
    return {"tag": tag, "fbox": _numbers(box.xywh), **kept}


def _numbers(values: Sequence[float]) -> list[float]:
    """Whole numbers as such: most tools for CrowdHuman expect them."""
    return [int(value) if float(value).is_integer() else value for value in values]


def _notes(data: _DataSet, *, keeps: tuple[str, ...] | None, ignored_as: str) -> list[str]:
    """What is lost on writing: everything extra that isn't among `keeps` (None: a format that takes all)."""
    of_images = Counter(key for split in SPLITS for image in data.images[split] for key in image.extra)
    notes = [f"{key} of {count} images is lost" for key, count in sorted(of_images.items())]
    of_boxes = Counter(key for box in data.boxes() for key in box.extra)
    if keeps is not None:
        notes += [f"{key} of {n} boxes is lost" for key, n in sorted(of_boxes.items()) if key not in keeps]
    ignored = sum(box.ignored for box in data.boxes())
    if ignored:
        notes.append(f"{ignored} boxes that evaluation is to ignore get {ignored_as}")
    return notes
