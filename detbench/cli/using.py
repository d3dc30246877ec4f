"""Commands that use what was trained: eval, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detbench.cli.console import print_json, say
from detbench.cli.options import (
    DEFAULT_RUNS,
    DeviceOption,
    JsonOption,
    StoreOption,
    WorkersOption,
    open_store,
)

_Run = Annotated[
    str,
    typer.Argument(
        help="A finished run: its folder, or the start of its digest and /SEED; or a .safetensors file that "
        "`weights import` wrote."
    ),
]
_ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads; by default OMP_NUM_THREADS, else all cores.")
]


def evaluate(
    run: _Run,
    data: Annotated[Path, typer.Option(help="A folder of data in COCO's or CrowdHuman's format.")],
    runs: StoreOption = DEFAULT_RUNS,
    device: DeviceOption = "auto",
    threads: _ThreadsOption = None,
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Test a run's model on the validation images of another data set; classes go by their names."""
    from detbench import listing
    from detbench.engine import apply, machine
    from detbench.parts.part import plain
    from detbench.workers import default_threads

    store = open_store(runs)
    chosen = machine.prepare(threads=threads or default_threads(), device=device)
    trained = apply.load_named(run, store, device=chosen)
    found = apply.evaluate(trained, data, cache=store.cache, workers=workers)
    if as_json:
        print_json(plain(found))
        return
    if found.not_in_data:
        say(f"{data}: has no {', '.join(found.not_in_data)}; detections of these classes don't count")
    metrics = {
        name: "not measured" if value is None else f"{value:.1f}" for name, value in found.metrics.items()
    }
    listing.show_pairs({"run": found.run, "data": found.data, "images": found.num_images} | metrics)


def predict(
    run: _Run,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    score: Annotated[float, typer.Option(min=0, max=1, help="The least score of a detection.")] = 0.3,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the images with their detections into this folder."),
    ] = None,
    runs: StoreOption = DEFAULT_RUNS,
    device: DeviceOption = "auto",
    threads: _ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Detect objects in image files with a run's model."""
    from detbench.engine import apply, machine
    from detbench.workers import default_threads

    chosen = machine.prepare(threads=threads or default_threads(), device=device)
    trained = apply.load_named(run, open_store(runs), device=chosen)
    found = apply.predict(trained, images, score=score)
    if out is not None:
        apply.draw(found, trained.class_names, out)
        say(f"{len(found)} {'image' if len(found) == 1 else 'images'} written to {out}")
    if as_json:
        print_json(found)
        return
    for image in found:
        print(f"{image['file']}: {len(image['detections'])} detections of score {score:g} or more")
        for one in image["detections"]:
            x, y, width, height = one["box"]
            print(f"  {one['score']:.3f} {one['class']} at {x:.0f}, {y:.0f}, {width:.0f} x {height:.0f}")
