"""Finished runs that never ran: results and curves drawn from a formula, for the report's tests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detbench import recipes
from detbench.data.fingerprint import fingerprint
from detbench.data.sources import read_splits
from detbench.parts.data import Coco, Drawn
from detbench.parts.part import plain
from detbench.recipe_text import Row
from detbench.recipes import Context, Recipe
from detbench.report.gather import Collected, Entry
from detbench.results import DETECTIONS, REQUEST, RESULT, Curve, Result
from detbench.store import Store, write_json

Collect = Callable[..., Collected]
DIGEST = "0123456789abcdef"

SPECIALS = """
[recipe]
paper = "none"
table = "table1"
kind = "demo"
title = "Labels & titles with 100 % of <special> signs"
metrics = ["AP", "APs"]
base = "dense"
baseline = "a, b & c"

[[row]]
label = "a, b & c"
use = "onenet"
reported = { AP = 35.4 }

[[row]]
label = "x_y=1† {50 %} <b>#1</b>"
use = "onenet"
set.branches.o2o.assigner = { kind = "poto" }
reported = { AP = 36.1 }
note = 'a "note" with \\ and | and $5'

[[row]]
label = "of others"
quoted = true
reported = { AP = 40.0 }

[[row]]
label = "of tomorrow"
use = "onenet"
needs = ["time machine"]
reported = { AP = 50.0 }

[[row]]
label = "waiting"
use = "fcos"

[[claim]]
text = "x_y=1 & 50 % is ahead of a"
place = "section 1, p. <3>"
note = "about $5"
kind = "sign"
rows = ["x_y=1† {50 %} <b>#1</b>", "a, b & c"]

[[claim]]
text = "a is ahead of x_y=1 by 90"
place = "abstract"
kind = "at_least"
margin = 90
rows = ["a, b & c", "x_y=1† {50 %} <b>#1</b>"]

[[claim]]
text = "waiting is worst"
place = "abstract"
rows = ["a, b & c", "waiting"]
"""


def collected(
    recipe: Recipe,
    seeds: int | dict[str, Sequence[int]] = 3,
    *,
    overrides: tuple[str, ...] = (),
    missing: dict[str, set[str]] | None = None,
) -> Collected:
    """A recipe at cpu scale, measured.

    Args:
        recipe: any.
        seeds: of every runnable row, or of the rows by label; others are not run.
        overrides: laid over all rows.
        missing: label to the metrics that could not be measured.
    """
    context = Context("cpu", None, overrides)
    baseline = recipe.rows.get(recipe.head.baseline)
    under = None if baseline is None else recipes.resolve(recipe, baseline, context)
    entries = []
    for index, row in enumerate(recipe.rows.values()):
        needs = recipe.needs(row)
        if row.quoted or needs:
            entries.append(Entry(row, (), needs, {}, [], []))
            continue
        experiment = recipes.resolve(recipe, row, context)
        chosen = range(seeds) if isinstance(seeds, int) else seeds.get(row.label, ())
        runs = [
            run(row, seed, index, plain(experiment), (missing or {}).get(row.label, set())) for seed in chosen
        ]
        changes = {} if under is None else recipes.changes(under, experiment)
        digest = f"{index:016x}"
        entries.append(Entry(row, (digest,), (), changes, [r for r, _ in runs], [c for _, c in runs]))
    return Collected(recipe, "cpu", "drawn shapes", overrides, entries)


def run(
    row: Row, seed: int, index: int, experiment: dict[str, Any], missing: set[str]
) -> tuple[Result, Curve]:
    """One run whose AP follows the paper's number of its row, with noise of the seed."""
    chance = random.Random(f"{row.label}/{seed}")
    shared = random.Random(seed).gauss(0, 0.5)
    ap = 30 + 3 * (row.reported.get("AP", 36.0) - 34.0) + shared + chance.gauss(0, 0.35)
    final = metrics(ap, chance)
    steps, per_epoch = 6000, 750
    slow = 1 + 0.12 * (index % 5)
    branches = {
        f"{name}.{loss}": 1.0 + len(loss) / 4
        for name, branch in experiment["branches"].items()
        for loss in branch["losses"]
    }
    curve = Curve()
    for step in range(15, steps + 1, 15):
        shape = 0.35 + 0.65 * math.exp(-step / (900 + 150 * (index % 4)))
        losses = {name: size * shape * math.exp(chance.gauss(0, 0.08)) for name, size in branches.items()}
        curve.steps.append(
            {"step": step, "epoch": step / per_epoch, "seconds": 0.05 * slow * step, "lr": 1e-3,
             "losses": {**losses, "total": sum(losses.values())}}
        )  # fmt: skip
    for number in range(1, 7):
        step = steps * number // 6
        reached = ap * (1 - math.exp(-3.2 * number / 6 / (1 + 0.1 * (index % 3)))) / (1 - math.exp(-3.2))
        now = final if number == 6 else metrics(reached + chance.gauss(0, 0.4), chance)
        curve.evaluations.append(
            {"step": step, "epoch": step / per_epoch, "seconds": 0.05 * slow * step, "metrics": now}
        )
    result = Result(
        digest=f"{index:016x}", training_digest=f"{index:016x}", seed=seed, scale="cpu",
        experiment=experiment, metrics=final | dict.fromkeys(missing), per_class={},
        cost={"params_train_m": 1.3, "params_infer_m": 1.2, "gflops_train": 0.9, "gflops_infer": 0.8},
        steps=steps, epochs=steps / per_epoch, seconds={"train": 0.05 * slow * steps, "test": 20.0},
        data={"fingerprint": "f", "name": "drawn shapes", "num_train": 3000, "num_val": 2000,
              "num_classes": 8, "drawn": True},
        environment={"device": "cpu", "cpu": "AMD EPYC 9354", "threads": 1, "torch": "2.9.0"},
        commit="0123456789abcdef", weights_from="", finished=f"2026-11-21T0{seed}:00:00+00:00",
    )  # fmt: skip
    return result, curve


def metrics(ap: float, chance: random.Random) -> dict[str, float | None]:
    return {
        "AP": ap, "AP50": 1.45 * ap + chance.gauss(0, 0.3), "AP75": 1.05 * ap + chance.gauss(0, 0.3),
        "APs": 0.6 * ap + chance.gauss(0, 0.5), "APm": 1.1 * ap + chance.gauss(0, 0.5),
        "APl": 1.3 * ap + chance.gauss(0, 0.8),
    }  # fmt: skip


def finished_run(
    store: Store, source: Drawn | Coco, digest: str = DIGEST, seed: int = 0, recipe_name: str = "date/table5"
) -> Path:
    """A run that never ran: its detections are the objects, most of them spoiled."""
    recipe = recipes.load(recipe_name)
    row = recipe.runnable()[0]
    experiment = plain(recipes.resolve(recipe, row, Context("smoke", None, ())))
    experiment["data"]["source"] = plain(source)
    val = read_splits(source, store.cache).val
    folder = store.folder(digest, seed)
    folder.mkdir(parents=True)

    rng = np.random.default_rng(0)
    kept = np.flatnonzero(rng.random(len(val.labels)) < 0.8)
    kept = np.concatenate([kept, kept[:10]])  # ten duplicates
    boxes = val.boxes[kept]
    boxes[:, :2] += rng.normal(0, 0.15, (len(kept), 2)) * boxes[:, 2:]
    labels = np.where(
        rng.random(len(kept)) < 0.3, (val.labels[kept] + 1) % len(val.category_names), val.labels[kept]
    )
    np.savez_compressed(
        folder / DETECTIONS,
        image=val.image_idx[kept], label=labels, boxes_xywh=boxes, scores=np.linspace(0.9, 0.1, len(kept)),
    )  # fmt: skip

    write_json(folder / REQUEST, {"seed": seed, "places": [[recipe.name, row.label]]})
    result = {
        "digest": digest, "training_digest": "", "seed": seed, "scale": "smoke", "experiment": experiment,
        "metrics": {"AP": 12.34, "APl": None}, "per_class": {}, "cost": {}, "steps": 2, "epochs": 1.0,
        "seconds": {"train": 1.0, "test": 1.0}, "commit": "", "weights_from": "",
        "environment": {"device": "cpu", "threads": 1, "cpu": "a <CPU>"}, "finished": "2026-01-02T03:04:05+00:00",
        "data": {"fingerprint": fingerprint(source, store.cache), "name": "some & more", "drawn": True,
                 "num_train": 2, "num_val": 12, "num_classes": len(val.category_names)},
    }  # fmt: skip
    write_json(folder / RESULT, result)
    return folder


@pytest.fixture(scope="session")
def collect() -> Collect:
    """Measured recipes by name."""

    def by_name(name: str, seeds: int | dict[str, Sequence[int]] = 3, **rest: Any) -> Collected:
        return collected(recipes.load(name), seeds, **rest)

    return by_name


@pytest.fixture(scope="session")
def special(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """A table with every state a row can be in and signs that each form must escape. Not to be changed."""
    path = tmp_path_factory.mktemp("recipes") / "specials.toml"
    path.write_text(SPECIALS, encoding="utf-8")
    rows = {"a, b & c": (0, 1, 2, 5), "x_y=1† {50 %} <b>#1</b>": (0, 2)}
    return collected(recipes.load(str(path)), rows, missing={"x_y=1† {50 %} <b>#1</b>": {"APs"}})
