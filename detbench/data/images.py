"""Image files to pixels: 8-bit RGB as NumPy arrays, whatever the file holds. No torch."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detbench.errors import DataError

# EXIF tag 274; with these values the picture is meant to be seen on its side.
_ORIENTATION = 274
_ON_ITS_SIDE = (5, 6, 7, 8)

# What PIL raises for damaged files, depending on format and on where the damage is.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file: (H, W, 3) uint8 RGB.

    Transparency is dropped, and of 16-bit values the high byte kept. The EXIF orientation is ignored, as
    torchvision's reader of COCO data does, unless only the turned picture has the size annotated.

    Args:
        path: the file.
        size: annotated height and width; None to take any.

    Raises:
        DataError: the file is missing, damaged, or of another size than annotated.
    """
    try:
        with Image.open(path) as image:
            height, width = image.height, image.width
            turned = (
                size is not None
                and size != (height, width)
                and size == (width, height)
                and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
            )
            if size is not None and size != (height, width) and not turned:
                raise DataError(
                    f"{path}: the image is {width} x {height} pixels, annotated as {size[1]} x {size[0]}. "
                    "Boxes would not fit; mend the file or its record."
                )
            pixels = _rgb(ImageOps.exif_transpose(image) if turned else image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file, but the annotations name it.") from None
    except _DAMAGED as error:
        raise DataError(f"{path}: can't be read as an image: {error}.") from None
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file from its header alone; the EXIF orientation is ignored.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file, but the annotations name it.") from None
    except _DAMAGED as error:
        raise DataError(f"{path}: can't be read as an image: {error}.") from None


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("pixel values beyond 16 bits")
        return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL warns
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
