"""Small data sets in CrowdHuman's format on disk, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def person(fbox: list[float], vbox: list[float] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "tag": "person",
        "fbox": fbox,
        "vbox": fbox if vbox is None else vbox,
        "hbox": fbox,
        "head_attr": {"ignore": 0, "occ": 0, "unsure": 0},
        "extra": {"box_id": 0, "occ": 0},
        **more,
    }


def mask(box: list[float]) -> dict[str, Any]:
    """As CrowdHuman has them: three equal boxes, head_attr empty, ignore 1."""
    return person(box, tag="mask", head_attr={}, extra={"box_id": 1, "ignore": 1})


def line(key: Any = "a", *boxes: Any, **more: Any) -> dict[str, Any]:
    return {"ID": key, "gtboxes": list(boxes), **more}


def write_image(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 30)).save(path)


def write_odgt(
    root: Path, train: list[Any], val: list[Any], *, images: str = "Images", suffix: str = ".jpg"
) -> Path:
    """A data set with an image of 64 x 48 pixels for every line; a line that is text is written as it is."""
    for split, lines in (("train", train), ("val", val)):
        for record in lines:
            if isinstance(record, dict) and isinstance(record.get("ID"), str):
                write_image(root / images / f"{record['ID']}{suffix}")
        text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
        (root / images).mkdir(parents=True, exist_ok=True)
        (root / f"annotation_{split}.odgt").write_text(text, encoding="utf-8")
    return root
