"""The `bench` commands: cost, matching."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detbench.cli.console import print_json, say
from detbench.cli.options import JsonOption, Patterns, Scale, parse

app = typer.Typer(help="Count and measure without training.", no_args_is_help=True)


@app.command()
def cost(
    patterns: Patterns,
    scale: Annotated[Scale, typer.Option(help="smoke, cpu, gpu or paper (the default).")] = Scale.paper,
    as_json: JsonOption = False,
) -> None:
    """Count parameters and multiply-accumulates of rows, in training and at inference, beside the paper's."""
    from detbench import benching

    chosen, context = parse(patterns, scale, None)
    entries = benching.cost_tree(chosen, context)
    if as_json:
        print_json(entries)
    else:
        benching.show_cost(entries)


@app.command()
def matching(
    queries: Annotated[
        str, typer.Option(help="Queries of an image, several separated by commas.")
    ] = "100,300,900,2000",
    objects: Annotated[str, typer.Option(help="Mean number of an image's objects, likewise.")] = "7",
    batch: Annotated[str, typer.Option(help="Images, likewise.")] = "8",
    layers: Annotated[str, typer.Option(help="Decoder layers, likewise.")] = "6",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: both where there is CUDA.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.")] = 1,
    repeats: Annotated[int, typer.Option(min=2, help="Timed steps of each way.")] = 50,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a plot of cost over queries.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time Hungarian matching and Match-Free on the same synthetic batch (Match-Free, Table 2)."""
    from detbench import benching

    numbers = {"queries": queries, "objects": objects, "batch": batch, "layers": layers}
    entries = benching.matching_tree(
        **{name: benching.counts(text, option=f"--{name}") for name, text in numbers.items()},
        devices=benching.devices(device),
        threads=threads,
        repeats=repeats,
    )
    if out is not None:
        from detbench.report import latency, plots

        for plot in latency.plots(entries, benching.METHODS):
            for path in plots.save(plot, out):
                say(f"{path} written")
    if as_json:
        print_json(entries)
    else:
        benching.show_matching(entries)
