"""The `data` commands: make, check, view, convert, split."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from detbench.cli.console import fail, print_json, say
from detbench.cli.options import JsonOption

app = typer.Typer(help="Draw, check, look at, convert and split data sets.", no_args_is_help=True)


class DataFormat(StrEnum):
    """The formats data can be converted between."""

    coco = "coco"
    voc = "voc"
    odgt = "odgt"


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="A folder that doesn't exist yet.")],
    preset: Annotated[str, typer.Option(help="shapes or crowd.")] = "shapes",
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 128,
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 3000,
    val: Annotated[int, typer.Option(min=1, help="Validation images.")] = 2000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
) -> None:
    """Draw a data set and write it in COCO's form, and the crowd in CrowdHuman's as well."""
    from detbench.data.drawn import write
    from detbench.parts.data import Drawn
    from detbench.parts.part import read_part

    tree = {"preset": preset, "size": size, "num_train": train, "num_val": val, "seed": seed}
    write(read_part(Drawn, tree, where="data make"), folder)
    say(f"{train} training and {val} validation images written to {folder}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder of data in COCO's or CrowdHuman's format.")],
    as_json: JsonOption = False,
) -> None:
    """List everything that is wrong or odd about a data set; exit 2 if it can't be used."""
    from detbench import listing
    from detbench.data.check import check as examine
    from detbench.parts.part import plain

    found = examine(folder)
    error = listing.check_error(found, folder)
    if as_json and error is not None:
        fail(error, plain(found))
    if as_json:
        print_json(plain(found))
    else:
        listing.show_check(found)
    if error is not None:
        raise error


class Split(StrEnum):
    """The splits of a data set."""

    train = "train"
    val = "val"


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(help="A folder of data in COCO's or CrowdHuman's format.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("view.png"),
    split: Annotated[Split, typer.Option(help="train or val.")] = Split.train,
    images: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Another one takes others.")] = 0,
    side: Annotated[int, typer.Option(min=32, help="Of each image on the sheet, in pixels.")] = 320,
) -> None:
    """Write a sheet of images with their annotated boxes."""
    from detbench.data.pictures import view as write_sheet

    shown = write_sheet(folder, out, split=split.value, count=images, seed=seed, side=side)
    say(f"{shown} images with their boxes written to {out}")


@app.command("convert")
def convert_data(
    folder: Annotated[
        Path, typer.Argument(help="A data set in COCO's, Pascal VOC's or CrowdHuman's format.")
    ],
    target: Annotated[Path, typer.Argument(help="A folder that doesn't exist yet.")],
    to: Annotated[DataFormat, typer.Option(help="The format to write; odgt is CrowdHuman's.")],
    link: Annotated[bool, typer.Option("--link", help="Hard links to the images instead of copies.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a data set in another format, and list what that format can't say."""
    from detbench.data.convert import convert
    from detbench.parts.part import plain

    done = convert(folder, target, to=to.value, link=link)
    if as_json:
        print_json(plain(done))
    else:
        for note in done.notes:
            print(note)
    say(f"{sum(done.images.values())} images with {sum(done.boxes.values())} boxes written to {target}")


@app.command("split")
def split_data(
    folder: Annotated[Path, typer.Argument(help="A folder of data in COCO's format.")],
    labelled: Annotated[float, typer.Option(help="Percent of the training images that are labelled.")],
    folds: Annotated[int, typer.Option(min=1, help="How often to draw them, with seeds 1, 2, ...")] = 5,
    offset: Annotated[
        int, typer.Option(min=0, max=2**31, help="Added to the seeds; another one draws others.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a file into this folder instead of printing.")
    ] = None,
) -> None:
    """Draw which training images are labelled where only some are (COCO-partial), as JSON with their ids."""
    from detbench.data.labelled import draw_folds, write

    drawn = draw_folds(folder, percent=labelled, folds=folds, offset=offset)
    if out is None:
        print_json(drawn.tree())
    else:
        path = write(drawn, out)
        say(f"{len(drawn.labelled[0])} of {drawn.num_images} images drawn {folds} times, written to {path}")
