"""Small COCO data sets on disk, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image(
    key: Any = 1, name: str = "a.png", width: int = 64, height: int = 48, **more: Any
) -> dict[str, Any]:
    return {"id": key, "file_name": name, "width": width, "height": height, **more}


def annotation(key: Any = 1, image_id: Any = 1, category_id: Any = 1, **more: Any) -> dict[str, Any]:
    base = {"bbox": [4.0, 6.0, 20.0, 10.0], "area": 150.0, "iscrowd": 0}
    return {"id": key, "image_id": image_id, "category_id": category_id, **base, **more}


def category(key: Any = 1, name: str = "cat") -> dict[str, Any]:
    return {"id": key, "name": name}


def tree(
    images: list[Any] | None = None,
    annotations: list[Any] | None = None,
    categories: list[Any] | None = None,
) -> dict[str, Any]:
    """An annotation file's content: by default one image with one box."""
    return {
        "images": [image()] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": [category()] if categories is None else categories,
    }


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_images(folder: Path, content: dict[str, Any]) -> None:
    """A noise image for every image record."""
    for i, record in enumerate(content["images"]):
        pixels = np.random.default_rng(i).integers(
            0, 256, (record["height"], record["width"], 3), dtype=np.uint8
        )
        path = folder / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def write_plain(root: Path, train: dict[str, Any], val: dict[str, Any]) -> Path:
    """A data set in the plain layout, with its images."""
    for split, content in (("train", train), ("val", val)):
        write_json(root / f"annotations/instances_{split}.json", content)
        write_images(root / "images", content)
    return root


def several(prefix: str, count: int, *, boxes: int = 3, width: int = 64, height: int = 48) -> dict[str, Any]:
    """Images of slightly different sizes, each with a few boxes of two classes."""
    rng = np.random.default_rng(len(prefix) + count)
    images = [
        image(i, f"{prefix}{i}.png", width + int(rng.integers(0, 9)), height + int(rng.integers(0, 9)))
        for i in range(1, count + 1)
    ]
    annotations = [
        annotation(
            i * 100 + k, i, int(rng.integers(1, 3)), bbox=[*rng.uniform(0, 20, 2), *rng.uniform(4, 20, 2)]
        )
        for i in range(1, count + 1)
        for k in range(boxes)
    ]
    return tree(images, annotations, [category(1, "cat"), category(2, "dog")])
