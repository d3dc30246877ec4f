"""Image files to pixels: 8-bit RGB as NumPy arrays, whatever the file holds. No torch."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detbench.errors import DataError

# What of an image file isn't taken over as it stands: see `traits`.
Trait = Literal["gray", "16-bit", "cmyk", "transparent", "turned", "not turned"]

# EXIF tag 274; with these values the picture is meant to be seen on its side.
_ORIENTATION = 274
_UPRIGHT = 1
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
            turned = size is not None and _is_turned(image, size)
            if size is not None and size != (image.height, image.width) and not turned:
                raise DataError(
                    f"{path}: the image is {image.width} x {image.height} pixels, annotated as "
                    f"{size[1]} x {size[0]}. Boxes would not fit; mend the file or its record."
                )
            pixels = _rgb(ImageOps.exif_transpose(image) if turned else image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file, but the annotations name it.") from None
    except _DAMAGED as error:
        raise DataError(f"{path}: can't be read as an image: {error}.") from None
    return pixels


def traits(path: Path, size: tuple[int, int]) -> list[Trait]:
    """What `read_image` changes about a picture, or leaves undone, when it reads a file; most files have none.

    Args:
        path: a file that it can read.
        size: annotated height and width.
    """
    with Image.open(path) as image:
        found: list[Trait] = []
        if image.mode in ("1", "L", "LA"):
            found.append("gray")
        if image.mode.startswith("I"):
            found.append("16-bit")
        if image.mode == "CMYK":
            found.append("cmyk")
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            found.append("transparent")
        if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
            found.append("turned" if _is_turned(image, size) else "not turned")
    return found


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


def _is_turned(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether only the picture turned as its EXIF says has the annotated size."""
    return (
        size != (image.height, image.width)
        and size == (image.width, image.height)
        and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    )


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
