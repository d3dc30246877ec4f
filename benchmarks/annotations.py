"""What it takes to open a COCO annotation file of train2017's size: ours beside pycocotools.

    python benchmarks/annotations.py [--images 118287] [--folder DIR]

Draws a file with train2017's counts of images, boxes and polygon corners, then opens it in fresh processes:
with pycocotools, with ours for the first time (parsing), and with ours again (from the cache). Memory is what
the process holds of the system's, after the C allocator has been asked to give back what is free. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Of instances_train2017.json.
_IMAGES = 118_287
_BOXES_PER_IMAGE = 860_001 / _IMAGES
_CORNERS = 21


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=_IMAGES)
    parser.add_argument("--folder", type=Path, help="where to write the file; a temporary folder by default")
    parser.add_argument("--open", choices=sorted(_OPENERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.open:
            print(json.dumps(_measured(arguments.open, folder)))
            return
        path = folder / "instances.json"
        _write(path, arguments.images)
        print(f"{arguments.images} images, {path.stat().st_size / 1e6:.0f} MB")
        print(f"{'':<22}{'seconds':>9}{'CPU s':>9}{'kept MB':>9}{'peak MB':>9}")
        for name in ("pycocotools", "ours, first", "ours, cached"):
            command = [sys.executable, __file__, "--open", name, "--folder", str(folder)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{name:<22}" + "".join(f"{row[key]:>9.2f}" for key in ("wall", "cpu", "kept", "peak")))


def _write(path: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    tree = {
        "images": [
            {
                "license": 3,
                "file_name": f"{i:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.staticflickr.com/8186/{i}_c8b4c8a3a4_z.jpg",
                "id": i,
            }
            for i in range(1, images + 1)
        ],
        "categories": [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, 81)],
        "annotations": [],
    }
    head = json.dumps(tree)
    boxes = round(images * _BOXES_PER_IMAGE)
    with path.open("w") as file:
        file.write(head[: head.rindex("[") + 1])
        for i in range(1, boxes + 1):
            corners = np.round(rng.uniform(0, 480, 2 * _CORNERS), 2).tolist()
            x, y, w, h = np.round(rng.uniform(1, 240, 4), 2).tolist()
            record = {
                "segmentation": [corners],
                "area": w * h / 2,
                "iscrowd": 0,
                "image_id": int(rng.integers(1, images + 1)),
                "bbox": [x, y, w, h],
                "category_id": int(rng.integers(1, 81)),
                "id": i,
            }
            file.write(json.dumps(record) + (", " if i < boxes else "]}"))


def _with_pycocotools(folder: Path) -> object:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "instances.json"))


def _with_ours(folder: Path) -> object:
    from detbench.data.coco import read_annotations

    return read_annotations(folder / "instances.json", cache=folder / "cache")


_OPENERS = {"pycocotools": _with_pycocotools, "ours, first": _with_ours, "ours, cached": _with_ours}


def _measured(name: str, folder: Path) -> dict[str, float]:
    """Seconds and megabytes that opening takes in this process, imports left out."""
    importlib.import_module("pycocotools.coco")
    importlib.import_module("detbench.data.coco")
    before = _memory()["VmRSS"]
    wall, cpu = time.perf_counter(), time.process_time()
    kept = _OPENERS[name](folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    memory = _memory()
    assert kept is not None
    return {"wall": wall, "cpu": cpu, "kept": memory["VmRSS"] - before, "peak": memory["VmHWM"] - before}


def _memory() -> dict[str, float]:
    """Megabytes of this process by the kernel's names."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[0].startswith("Vm")}


if __name__ == "__main__":
    main()
