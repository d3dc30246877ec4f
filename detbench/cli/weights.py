"""The `weights` commands: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detbench.cli.console import print_json, say
from detbench.cli.options import DEFAULT_RUNS, JsonOption, Scale, StoreOption, open_store

app = typer.Typer(help="Bring in weights that others published.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `import` a command of its own while it is the only one."""


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="The published checkpoint: .pth, .bin, .safetensors or detectron2's .pkl.")
    ],
    recipe: Annotated[str, typer.Option(help="The row whose detector it is (deta/ablations/deta).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings in which the published detector differs."),
    ] = None,
    scale: Annotated[Scale, typer.Option(help="smoke, cpu, gpu or paper (the default).")] = Scale.paper,
    layout: Annotated[
        str | None, typer.Option(help="Whose names the file has; found out by default.")
    ] = None,
    entry: Annotated[
        str | None, typer.Option(help="Which entry of the file to take; model or state_dict by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set of the detector's classes, where they aren't COCO's.")
    ] = None,
    runs: StoreOption = DEFAULT_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Write a published checkpoint in our names, to evaluate it, predict with it or start from it."""
    from detbench.data.sources import read_splits
    from detbench.engine.published import import_weights
    from detbench.listing import show_pairs
    from detbench.parts.data import source_in
    from detbench.parts.part import plain
    from detbench.recipes import Context, named_row, resolve

    found, row = named_row(recipe)
    experiment = resolve(found, row, Context(scale.value, overrides=tuple(overrides or ())))
    names = None
    if data is not None:
        names = read_splits(source_in(str(data)), open_store(runs).cache).val.category_names
    imported = import_weights(
        file,
        out,
        experiment,
        row=f"{recipe} at {scale.value} scale",
        layout=layout,
        entry=entry,
        class_names=names,
    )
    if imported.other_entries:
        say(f"{file}: also has weights under {', '.join(imported.other_entries)}; --entry takes them instead")
    if as_json:
        print_json(plain(imported))
        return
    show_pairs(
        {
            "layout": f"{imported.layout} ({imported.title})",
            "classes": len(imported.class_names) or "none, a body alone",
            "tensors": f"{imported.tensors} ({imported.parameters:,} numbers)",
            **{f"left out ({number})": reason for reason, number in imported.left_out.items()},
            "sha256 of the source": imported.source_sha256,
            "written": imported.file,
            "sha256": imported.sha256,
        }
    )
