"""Pictures to look at: images with boxes, alone or on one sheet. No torch."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detbench.data.images import read_image
from detbench.data.sources import find_layout, inspect
from detbench.errors import DataError
from detbench.parts.data import source_in

_GOLDEN = 0.618034  # steps through the hues so that neighbours in the list of classes differ
_GAP = 4  # pixels between the pictures of a sheet
_CROWD = (150, 150, 150)


@dataclass(frozen=True, slots=True)
class Box:
    """One box on a picture.

    Attributes:
        box: x, y, width, height in pixels of the image.
        label: class index, which chooses the colour; None for grey.
        text: written at its upper left corner; "" for none.
    """

    box: tuple[float, float, float, float]
    label: int | None
    text: str = ""


def with_boxes(pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> Image.Image:
    """(H, W, 3) pixels with boxes drawn on them; the later lie above."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(9.0, min(picture.size) / 40))
    for box in boxes:
        x, y, width, height = box.box
        color = _CROWD if box.label is None else _color(box.label)
        draw.rectangle((x, y, x + max(width, 1), y + max(height, 1)), outline=color, width=line)
        if box.text:
            left, top, right, bottom = draw.textbbox((x, y), box.text, font=font)
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=color)
            draw.text((x, y), box.text, fill=(0, 0, 0), font=font)
    return picture


def view(
    folder: Path, target: Path, *, split: Literal["train", "val"], count: int, seed: int, side: int
) -> int:
    """Writes a sheet of images of a data set with their annotations, drawn at random; crowds are grey.

    Args:
        folder: a data set in COCO's or CrowdHuman's format.
        target: the image file to write; its ending says the format.
        split: which images.
        count: how many, at most.
        seed: another one takes others.
        side: of each picture on the sheet, in pixels.

    Returns:
        How many images are on it.

    Raises:
        DataError: the data or one of the images can't be read, or the sheet can't be written.
    """
    source = source_in(str(folder))
    files = find_layout(source)[split]
    annotations, _ = inspect(source, files)
    if not annotations.num_images:
        raise DataError(f"{annotations.path}: no image to look at.")
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(annotations.num_images, min(count, annotations.num_images), replace=False))
    pictures = []
    for index in chosen.tolist():
        pixels = read_image(files.images / annotations.file_name(index), annotations.size(index))
        scale = side / max(pixels.shape[:2])
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        owned = annotations.of_image(index)
        boxes = [
            Box(
                box=(box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale),
                label=None if crowd else label,
                text="crowd" if crowd else annotations.category_names[label],
            )
            for box, label, crowd in zip(
                annotations.boxes[owned].tolist(),
                annotations.labels[owned].tolist(),
                annotations.iscrowd[owned].tolist(),
                strict=True,
            )
        ]
        small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        pictures.append(with_boxes(np.asarray(small), boxes))
    save(sheet(pictures, side), target)
    return len(pictures)


def sheet(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """Pictures of at most `side` pixels each way, row by row on one that is about as wide as high."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (side + _GAP) - _GAP, rows * (side + _GAP) - _GAP), (255, 255, 255))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        whole.paste(picture, (column * (side + _GAP), row * (side + _GAP)))
    return whole


def save(picture: Image.Image, target: Path) -> None:
    """Writes a picture; the ending says the format.

    Raises:
        DataError: there is no such format, or the file can't be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
    except ValueError:
        raise DataError(f"{target}: no image format has this ending; name a .png or .jpg file.") from None
    except OSError as error:
        raise DataError(
            f"{target}: can't be written ({error.strerror or error}). Name another file."
        ) from None


def _color(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
