"""Pascal VOC's XML files: read and written as they are, one annotation file for each image. No torch.

A VOC box names its first and last pixel, counted from 1: xmin = 1 and xmax = 4 cover the left four columns. By
its edges that is x = xmin - 1 and width = xmax - xmin + 1.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from detbench.data.images import image_size
from detbench.errors import DataError

SETS = Path("ImageSets/Main")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

# Decimals of a written coordinate. VOC's own are whole numbers; most readers take fractions too.
DECIMALS = 4

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Flags that VOC knows beside `difficult`, in the order of its own files.
FLAGS = ("pose", "truncated", "occluded")


@dataclass(frozen=True, slots=True)
class VocObject:
    """One object.

    Attributes:
        name: its class.
        box: xywh pixels, edges of the box, the image's corner at 0.
        difficult: evaluation is to ignore it.
        flags: FLAGS that it has, numbers as such.
        others: names of what else is said of it, such as "part" or "actions".
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    flags: dict[str, int | str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VocImage:
    """One annotation file.

    Attributes:
        file: the image file.
        size: height and width in pixels.
        objects: in the file's order.
        others: names of what else is said of the image, such as "source" or "segmented".
    """

    file: Path
    size: tuple[int, int]
    objects: tuple[VocObject, ...]
    others: tuple[str, ...] = ()


def is_voc(root: Path) -> bool:
    """Whether a folder is laid out as VOC data."""
    return (root / SETS).is_dir()


def read(root: Path, split: str) -> list[VocImage]:
    """The images that ImageSets/Main lists for a split, in its order.

    Raises:
        DataError: the list, an annotation file or an image is missing, or a file can't be used.
    """
    path = root / SETS / f"{split}.txt"
    try:
        names = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}). Expected the names of images.") from None
    return [_image(root, name.strip()) for name in names if name.strip()]


def write(root: Path, split: str, images: Iterable[VocImage]) -> None:
    """Writes annotation files, and their names into ImageSets/Main; image files are the caller's.

    Args:
        root: a folder with Annotations/ and ImageSets/Main/.
        split: "train" or "val".
        images: what to write; of `file` only the name counts.
    """
    names = []
    for image in images:
        names.append(image.file.stem)
        tree = _xml(image)
        ET.indent(tree, "\t")
        text = ET.tostring(tree, encoding="unicode") + "\n"
        (root / "Annotations" / f"{image.file.stem}.xml").write_text(text, encoding="utf-8")
    for listed in (split, "trainval"):
        with (root / SETS / f"{listed}.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in names)


def _image(root: Path, name: str) -> VocImage:
    path = root / "Annotations" / f"{name}.xml"
    try:
        tree = ET.fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}). Expected VOC annotations.") from None
    except ET.ParseError as error:
        raise DataError(f"{path}: not valid XML: {error}.") from None
    folder = root / "JPEGImages"
    named = tree.findtext("filename", "").strip()
    files = [folder / file for file in (named, *(name + suffix for suffix in _SUFFIXES)) if file]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(f"{path}: its image {named or name + _SUFFIXES[0]} isn't in {folder}.")
    objects = tuple(
        _object(found, f"{path}: object {i}") for i, found in enumerate(tree.findall("object"), start=1)
    )
    others = _others(tree, ("folder", "filename", "size", "object"))
    return VocImage(file, _size(tree, path) or image_size(file), objects, others)


def _size(tree: ET.Element, path: Path) -> tuple[int, int] | None:
    """Height and width; None where the file doesn't say, or says 0 as some tools do."""
    sides = [tree.findtext(f"size/{side}", "0").strip() for side in ("height", "width")]
    if not all(side.isdecimal() for side in sides):
        raise DataError(f"{path}: its size is {sides[1]!r} x {sides[0]!r}, expected whole numbers of pixels.")
    height, width = map(int, sides)
    return (height, width) if height and width else None


def _object(found: ET.Element, where: str) -> VocObject:
    name = found.findtext("name", "").strip()
    if not name:
        raise DataError(f"{where}: has no name.")
    corners = []
    for corner in _CORNERS:
        text = found.findtext(f"bndbox/{corner}")
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: {corner} is {text!r}, expected a number.")
        corners.append(value)
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise DataError(f"{where}: its last pixel ({x2:g}, {y2:g}) comes before its first ({x1:g}, {y1:g}).")
    x, y, width, height = x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1
    flags = {flag: found.findtext(flag, "").strip() for flag in FLAGS}
    return VocObject(
        name=name,
        box=(_rounded(x), _rounded(y), _rounded(width), _rounded(height)),
        difficult=found.findtext("difficult", "0").strip() == "1",
        flags={flag: int(text) if text.isdecimal() else text for flag, text in flags.items() if text},
        others=_others(found, ("name", "bndbox", "difficult", *FLAGS)),
    )


def _others(node: ET.Element, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(child.tag for child in node if child.tag not in known))


def _xml(image: VocImage) -> ET.Element:
    root = ET.Element("annotation")
    _leaf(root, "folder", "JPEGImages")
    _leaf(root, "filename", image.file.name)
    size = ET.SubElement(root, "size")
    for side, value in zip(("width", "height", "depth"), (*image.size[::-1], 3), strict=True):
        _leaf(size, side, value)
    for found in image.objects:
        node = ET.SubElement(root, "object")
        _leaf(node, "name", found.name)
        for flag, said in found.flags.items():
            _leaf(node, flag, said)
        _leaf(node, "difficult", int(found.difficult))
        x, y, width, height = found.box
        box = ET.SubElement(node, "bndbox")
        for corner, edge in zip(_CORNERS, (x + 1, y + 1, x + width, y + height), strict=True):
            _leaf(box, corner, _rounded(edge))
    return root


def _leaf(parent: ET.Element, name: str, value: float | str) -> None:
    whole = isinstance(value, float) and value.is_integer()
    ET.SubElement(parent, name).text = str(int(value) if whole else value)


def _rounded(value: float) -> float:
    return round(float(value), DECIMALS)
