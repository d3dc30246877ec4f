"""Drawn data: images of shapes or crowds, each a function of (preset, size, seed, split, index). No torch."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from detbench.data.annotations import SPLITS
from detbench.data.folders import new_folder
from detbench.parts.data import Drawn
from detbench.parts.part import digest_of, plain

# Part of the identity of drawn data: raise it with every change that moves a pixel or a box.
DRAWN_VERSION = 2

SHAPES = ("square", "triangle", "disc", "star", "cross", "diamond", "ell", "half disc")

# Sizes in pixels hold for images of this side and grow with it.
_BASE = 128

# Canvas pixels per image pixel: edges come out smooth when the canvas is averaged down.
_FINE = 2

# Places tried for an object before it is left out.
_TRIES = 20

Points = NDArray[np.float64]
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def class_names(source: Drawn) -> tuple[str, ...]:
    """The classes of a preset, by label."""
    return ("person",) if source.preset == "crowd" else SHAPES


def draw(
    source: Drawn, split: str, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]]:
    """One image of a drawn data set.

    Boxes go around whole objects, their hidden parts included, and lie inside the image.

    Returns:
        (size, size, 3) uint8 RGB, (N, 4) float64 xywh pixels, (N,) int64 labels.
    """
    image, objects = _drawn(source, split, index)
    boxes = np.array([found.box for found in objects], dtype=np.float64).reshape(-1, 4)
    return image, boxes, np.array([found.label for found in objects], dtype=np.int64)


def write(source: Drawn, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes a drawn data set in COCO's form and the plain layout; crowds in CrowdHuman's form as well.

    The folder appears when all is written; an interrupted call leaves at most a hidden one beside it.

    Args:
        source: what to draw.
        folder: the new data set's folder, which must not exist.
        progress: told the images written and their total after each.

    Raises:
        DataError: the folder exists.
    """
    counts = {"train": source.num_train, "val": source.num_val}
    total, done = sum(counts.values()), 0
    with new_folder(folder) as partial:
        (partial / "images").mkdir()
        (partial / "annotations").mkdir()
        for split in SPLITS:
            coco = _Coco(source)
            lines = []
            for index in range(counts[split]):
                image, objects = _drawn(source, split, index)
                name = f"{split}_{index:06d}"
                # The noise leaves repetition, the slow part of compression, nothing to find.
                Image.fromarray(image).save(
                    partial / "images" / f"{name}.png", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY
                )
                coco.add(f"{name}.png", objects)
                lines.append(_odgt_line(name, objects))
                done += 1
                if progress is not None:
                    progress(done, total)
            (partial / "annotations" / f"instances_{split}.json").write_text(coco.json(), encoding="utf-8")
            if source.preset == "crowd":
                (partial / f"annotation_{split}.odgt").write_text("".join(lines), encoding="utf-8")


def materialise(source: Drawn, cache: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder that holds a drawn data set, written on first use; safe in several processes at once.

    Args:
        source: what to draw.
        cache: folder that keeps it, under drawn/.
        progress: as in `write`.
    """
    folder = cache / "drawn" / digest(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
                shutil.rmtree(leftover)
            write(source, folder, progress=progress)
    return folder


def digest(source: Drawn) -> str:
    """Names the pixels and boxes of a drawn data set."""
    return digest_of([plain(source), DRAWN_VERSION])


class _Object(NamedTuple):
    """A drawn object: the xywh boxes of all of it and of what shows, and its class."""

    box: Box
    visible: Box
    label: int


def _drawn(source: Drawn, split: str, index: int) -> tuple[NDArray[np.uint8], list[_Object]]:
    name = f"{source.preset} {source.size} {source.seed} {split} {index}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()))
    canvas = _Canvas(source.size, rng)
    objects = _crowd(canvas, rng) if source.preset == "crowd" else _shapes(canvas, rng)
    return canvas.finished(rng), objects


def _odgt_line(name: str, objects: list[_Object]) -> str:
    """An image of people as CrowdHuman has it, without the boxes of heads."""
    people = [
        {"tag": "person", "fbox": found.box, "vbox": found.visible, "extra": {"box_id": i, "ignore": 0}}
        for i, found in enumerate(objects)
    ]
    return json.dumps({"ID": name, "gtboxes": people}) + "\n"


class _Coco:
    """A COCO annotation file in the making."""

    def __init__(self, source: Drawn) -> None:
        self._size = source.size
        self._tree: dict[str, list[dict[str, object]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(class_names(source))],
        }

    def add(self, file_name: str, objects: list[_Object]) -> None:
        images, annotations = self._tree["images"], self._tree["annotations"]
        images.append(
            {"id": len(images) + 1, "file_name": file_name, "width": self._size, "height": self._size}
        )
        for found in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": found.label + 1,
                    "bbox": found.box,
                    "area": round(found.box[2] * found.box[3], 2),
                    "iscrowd": 0,
                }
            )

    def json(self) -> str:
        return json.dumps(self._tree)


class _Canvas:
    """An image in the making. Objects come from front to back: a later one shows where none was before."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.scale = size / _BASE
        side = size * _FINE
        cells = int(rng.integers(3, 10))
        coarse = rng.integers(80, 176, (cells, cells, 3), dtype=np.uint8)
        background = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        self._distract(ImageDraw.Draw(background), rng)
        self._image = background
        self._free = Image.new("L", (side, side), 255)

    def _distract(self, pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
        """Lines and blobs of no class, under everything else."""
        side = self.size * _FINE
        for _ in range(int(rng.integers(3, 10))):
            width = max(1, round(rng.uniform(1, 3) * self.scale * _FINE))
            pen.line(rng.uniform(0, side, 4).tolist(), fill=_colour(rng), width=width)
        for _ in range(int(rng.integers(0, 4))):
            turns = np.sort(rng.uniform(0, math.tau, 9))
            radii = rng.uniform(2, 16, (9, 1)) * self.scale * _FINE
            blob = rng.uniform(0, side, 2) + radii * np.stack([np.cos(turns), np.sin(turns)], 1)
            pen.polygon([tuple(point) for point in blob.tolist()], fill=_colour(rng))

    def put(
        self, parts: list[tuple[Points, Colour]], outline: Colour | None, least_visible: float
    ) -> Box | None:
        """Puts an object, drawn as polygons in image pixels, behind those already there.

        Args:
            parts: (P, 2) xy corners of each polygon, and its colour.
            outline: colour of the polygons' edges; None for none.
            least_visible: share of the object that must not be hidden.

        Returns:
            The xywh box of what shows of it, in image pixels; None where that is too little: it wasn't put.
        """
        corners = np.concatenate([points for points, _ in parts]) * _FINE
        x0, y0 = np.floor(corners.min(0)).astype(int).tolist()
        x1, y1 = np.ceil(corners.max(0)).astype(int).tolist()
        patch = Image.new("RGBA", (x1 - x0, y1 - y0))
        pen = ImageDraw.Draw(patch)
        edge = max(1, round(self.scale * _FINE / 2))
        for points, fill in parts:
            # PIL's coordinates name the centres of pixels.
            where = [tuple(point) for point in (points * _FINE - (x0 + 0.5, y0 + 0.5)).tolist()]
            pen.polygon(where, fill=fill, outline=outline or fill, width=edge)
        shape = patch.getchannel("A")
        visible = ImageChops.darker(shape, self._free.crop((x0, y0, x1, y1)))
        shown = visible.getbbox()
        if shown is None or visible.histogram()[255] < least_visible * shape.histogram()[255]:
            return None
        self._free.paste(0, (x0, y0), shape)
        self._image.paste(patch, (x0, y0), visible)
        left, top, right, bottom = shown
        return (x0 + left) / _FINE, (y0 + top) / _FINE, (right - left) / _FINE, (bottom - top) / _FINE

    def mean_colour(self, box: Box) -> Colour:
        """Of what now stands in an xywh box of image pixels."""
        x, y, w, h = box
        corners = (x * _FINE, y * _FINE, (x + w) * _FINE, (y + h) * _FINE)
        red, green, blue = self._image.resize((1, 1), Image.Resampling.BOX, corners).tobytes()
        return red, green, blue

    def finished(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The image: averaged down, with noise. In whole numbers, so that all machines draw the same."""
        small = np.asarray(self._image.reduce(_FINE), dtype=np.int16)
        amplitude = int(rng.integers(6, 36))
        noise = rng.integers(-amplitude, amplitude + 1, small.shape, dtype=np.int16)
        image: NDArray[np.uint8] = np.clip(small + noise, 0, 255).astype(np.uint8)
        return image


def _shapes(canvas: _Canvas, rng: np.random.Generator) -> list[_Object]:
    """1 to 10 shapes of 6 to 72 pixels (geometric mean of the sides), log-uniform."""
    objects = []
    for _ in range(int(rng.integers(1, 11))):
        for _ in range(_TRIES):
            label = int(rng.integers(len(SHAPES)))
            stretch = math.exp(rng.uniform(-0.25, 0.25))
            points = _turned(_OUTLINES[SHAPES[label]] * (stretch, 1 / stretch), rng.uniform(-0.3, 0.3))
            width, height = np.ptp(points, axis=0)
            side = _log_uniform(rng, 6, 72) * canvas.scale
            (points,), box = _placed([points * side / math.sqrt(width * height)], canvas.size, rng)
            fill = _colour_unlike(canvas.mean_colour(box), rng)
            visible = canvas.put([(points, fill)], _colour(rng), least_visible=0.6)
            if visible is not None:
                objects.append(_Object(box, visible, label))
                break
    return objects


def _crowd(canvas: _Canvas, rng: np.random.Generator) -> list[_Object]:
    """8 to 30 figures; more than half of them stand so close behind another that their boxes nearly agree."""
    people: list[_Object] = []
    for _ in range(int(rng.integers(8, 31))):
        for _ in range(_TRIES):
            if people and rng.random() < 0.6:
                x, y, width, height = people[int(rng.integers(len(people)))].box
                near = (
                    x + width * rng.choice([-1, 1]) * rng.uniform(0.1, 0.5),
                    y + height * rng.uniform(-0.1, 0.05),
                )
                height *= rng.uniform(0.9, 1.1)
            else:
                near, height = None, _log_uniform(rng, 16, 80) * canvas.scale
            head, torso, legs = _figure(height, rng)
            (head, torso, legs), box = _placed([head, torso, legs], canvas.size, rng, near)
            skin = _SKIN[int(rng.integers(len(_SKIN)))]
            parts = [(legs, _colour(rng)), (torso, _colour(rng)), (head, skin)]
            visible = canvas.put(parts, None, least_visible=0.3)
            if visible is not None:
                people.append(_Object(box, visible, 0))
                break
    return people


def _figure(height: float, rng: np.random.Generator) -> tuple[Points, Points, Points]:
    """Head, torso and legs of a person, feet at y = height."""
    half = height * rng.uniform(0.17, 0.24)
    radius, neck, hip = 0.11 * height, 0.2 * height, height * rng.uniform(0.52, 0.6)
    head = _DISC * radius + (rng.uniform(-0.2, 0.2) * half, radius)
    torso = np.array([(-0.6, neck), (0.6, neck), (1, hip), (-1, hip)]) * (half, 1)
    step = rng.uniform(0.2, 0.9)
    legs = np.array(
        [(-0.75, hip), (0.75, hip), (step, height), (step - 0.4, height), (0, 1.15 * hip),
         (0.4 - step, height), (-step, height)]
    ) * (half, 1)  # fmt: skip
    return head, torso, legs


def _placed(
    parts: list[Points], size: int, rng: np.random.Generator, near: tuple[float, float] | None = None
) -> tuple[list[Points], Box]:
    """An object moved into the image, its top left corner as close to `near` as can be; and its box."""
    corners = np.concatenate(parts)
    low, extent = corners.min(0), np.ptp(corners, axis=0)
    room = size - extent
    corner = np.clip(near, 0, room) if near is not None else rng.uniform(0, 1, 2) * room
    x0, y0 = np.floor(corner * 100) / 100
    x1, y1 = np.ceil((corner + extent) * 100) / 100
    box = (x0, y0, round(x1 - x0, 2), round(y1 - y0, 2))
    return [points - low + corner for points in parts], box


def _turned(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _colour_unlike(other: Colour, rng: np.random.Generator) -> Colour:
    """A colour that can be told from another through the noise."""
    while True:
        colour = _colour(rng)
        if max(abs(mine - its) for mine, its in zip(colour, other, strict=True)) >= 64:
            return colour


def _ring(corners: int, start: float, stop: float, radii: tuple[float, ...] = (1,)) -> Points:
    """(corners, 2) points on arcs around the origin that take turns with their radii."""
    turns = np.linspace(start, stop, corners)
    points: Points = np.resize(radii, corners)[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
    return points


_DISC = _ring(33, 0, math.tau)

_CROSS = np.array(
    [(-1, -0.35), (-0.35, -0.35), (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35),
     (1, 0.35), (0.35, 0.35), (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35)]
)  # fmt: skip

# Each around the origin and about 2 across; y points down.
_OUTLINES: dict[str, Points] = {
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float),
    "triangle": np.array([(0, -1), (1, 1), (-1, 1)], dtype=float),
    "disc": _DISC,
    "star": _ring(11, -math.pi / 2, 1.5 * math.pi, radii=(1, 0.42)),
    "cross": _CROSS,
    "diamond": np.array([(0, -1), (1, 0), (0, 1), (-1, 0)], dtype=float),
    "ell": np.array([(-1, -1), (-0.3, -1), (-0.3, 0.35), (1, 0.35), (1, 1), (-1, 1)]),
    "half disc": _ring(18, math.pi, math.tau),
}

_SKIN: tuple[Colour, ...] = ((255, 219, 172), (224, 172, 105), (198, 134, 66), (141, 85, 36), (92, 58, 33))
