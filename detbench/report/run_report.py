"""What one finished run gets wrong: its numbers, and how they are printed. The page of them is in run_page.py."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detbench.data.annotations import Annotations
from detbench.data.fingerprint import fingerprint
from detbench.data.sources import read_splits
from detbench.data.truth import ground_truth
from detbench.errors import DataError, DetbenchError
from detbench.metrics import crowd, errors
from detbench.metrics.alignment import Alignment, measure
from detbench.metrics.coco import CocoResult, accumulate
from detbench.metrics.crowd import CrowdResult
from detbench.metrics.errors import KINDS, Costs, Errors
from detbench.metrics.matching import Floats, Ints
from detbench.metrics.tables import DetectionTable, percent
from detbench.parts.test import CocoMetrics
from detbench.recipes import short
from detbench.results import DETECTIONS, Result, read_detections, read_request, read_result
from detbench.store import Store

SHOWN = ("AP", "AP50", "AP75")
CROWD_NOTE = (
    "This run is measured with CrowdHuman's metrics. Errors, precision over recall, AP of classes and pictures are "
    "counted as COCO's evaluation does, with 100 detections of an image at most and regions to ignore as crowds"
)


@dataclass(frozen=True, eq=False)
class RunReport:
    """One run looked at closely.

    Attributes:
        result: what was recorded of it.
        rows: names of the rows it was run for.
        annotations: the validation images.
        images: the folder of their files.
        table: the detections.
        found: what became of each, and of each object.
        costs: of the kinds of errors, in AP at IoU 0.5.
        measured: COCO's numbers, by which errors and curves are counted whatever the run's own metrics are.
        crowd: CrowdHuman's numbers of a run that is measured with them, else None.
        score: detections of at least this score are counted in `confusion` and `image_f1`: the one at which F1 at
            IoU 0.5 over all classes is best.
        confusion: (K + 1, K + 1) classes of objects by classes of detections; the last of each is none.
        image_f1: (I,) at IoU 0.5.
        alignment: of scores with boxes.
    """

    result: Result
    rows: list[str]
    annotations: Annotations
    images: Path
    table: DetectionTable
    found: Errors
    costs: Costs
    measured: CocoResult
    crowd: CrowdResult | None
    score: float
    confusion: Ints
    image_f1: Floats
    alignment: Alignment

    @property
    def metrics(self) -> dict[str, float | None]:
        """The run's own numbers in percent, by the metrics that it is tested with."""
        if self.crowd is not None:
            return {name: percent(value) for name, value in self.crowd.summary.items()}
        return self.coco

    @property
    def coco(self) -> dict[str, float | None]:
        """COCO's numbers in percent."""
        return {name: percent(self.measured.summary[name]) for name in SHOWN}

    def worst(self, count: int) -> list[int]:
        """The images with the lowest F1, of equal ones those with more errors first; none without an error."""
        shown = (self.found.kind >= 0) & (self.found.matches.scores >= self.score)
        lost = self.found.counted & ~self.found.found(self.score)
        wrong = np.bincount(self.found.matches.image[shown], minlength=self.annotations.num_images)
        wrong += np.bincount(self.found.matches.object_image[lost], minlength=self.annotations.num_images)
        order = np.lexsort((-wrong, self.image_f1))
        return [int(i) for i in order[wrong[order] > 0][:count]]

    def class_metrics(self, k: int) -> dict[str, float | None]:
        """AP and its kin of a class in percent; None for a class without objects."""
        return {name: percent(self.measured.per_class[name][k]) for name in SHOWN}

    def curve(self, iou: float, k: int | None = None) -> list[float] | None:
        """Precision at COCO's 101 recall points, of one class or the mean of those with objects; None without."""
        precision = self.measured.precision[round((iou - 0.5) / 0.05), :, :, 0]
        chosen = precision[:, self.found.objects() > 0] if k is None else precision[:, [k]]
        if not chosen.size or chosen.min() < 0:
            return None
        curve: list[float] = chosen.mean(axis=1).tolist()
        return curve


def examine(folder: Path) -> RunReport:
    """Looks at a finished run.

    Raises:
        StoreError: the run isn't finished, or its files are damaged.
        DataError: its data is not where it was, or not what it was.
    """
    result = read_result(folder)
    data = result.data_part
    cache = Store.around(folder).cache
    splits = read_splits(data.source, cache)
    now = fingerprint(data.source, cache, unlabelled=data.unlabelled)
    if now != result.data["fingerprint"]:
        raise DataError(
            f"{splits.root}: this is not the data of run {folder}: its fingerprint was "
            f"{result.data['fingerprint']}, now it is {now}. Put the data back, or run again"
        )
    truth = ground_truth(splits.val, CocoMetrics())
    table = read_detections(folder / DETECTIONS)
    sizes = np.stack([splits.val.widths, splits.val.heights], axis=1)
    found = errors.analyse(truth, table)
    score = found.best_score()
    return RunReport(
        result=result,
        rows=[f"{short(name)}: {label}" for name, label in read_request(folder)["places"]],
        annotations=splits.val,
        images=splits.layout.val.images,
        table=table,
        found=found,
        costs=found.costs(),
        measured=accumulate(found.matches),
        crowd=crowd.evaluate(truth, table, sizes) if result.test_part.metrics.kind == "crowd" else None,
        score=score,
        confusion=errors.confusion(found, truth, table, score),
        image_f1=found.image_f1(score),
        alignment=measure(truth, table),
    )


def render(report: RunReport, form: str) -> str:
    """A run's report as text: "terminal" or "json".

    Raises:
        DetbenchError: it is asked for in another form.
    """
    if form == "json":
        return json.dumps(as_tree(report), indent=1, ensure_ascii=False) + "\n"
    if form == "terminal":
        return _terminal(report)
    raise DetbenchError(
        f"--format {form}: the report of a run is printed as terminal or json; -o writes its page"
    )


def as_tree(report: RunReport) -> dict[str, Any]:
    """Every number of the report as plain values, in percent where they are AP or its kin.

    "metrics" are the run's own; "coco" is what errors, classes and curves are counted by.
    """
    costs, counts, names = report.costs, report.found.counts(), report.annotations.category_names
    return {
        "run": report.result.name,
        "rows": report.rows,
        "scale": report.result.scale,
        "data": report.result.data,
        "metrics": report.metrics,
        "coco": report.coco,
        "errors": {
            kind: {"count": int(counts[i].sum()), "gain": 100 * costs.kinds[kind]}
            for i, kind in enumerate(KINDS)
        },
        "false_positives_gain": 100 * costs.false_positives,
        "false_negatives_gain": 100 * costs.false_negatives,
        "classes": [
            {
                "name": name,
                "objects": int(report.found.objects()[k]),
                **report.class_metrics(k),
                "errors": dict(zip(KINDS, counts[:, k].tolist(), strict=True)),
                "precision50": report.curve(0.5, k),
                "precision75": report.curve(0.75, k),
            }
            for k, name in enumerate(names)
        ],
        "precision50": report.curve(0.5),
        "precision75": report.curve(0.75),
        "score": report.score,
        "confusion": {"names": [*names, None], "objects_by_detections": report.confusion.tolist()},
        "alignment": _alignment_tree(report.alignment),
        "worst_images": [
            {"file": report.annotations.file_name(i), "f1": float(report.image_f1[i])}
            for i in report.worst(20)
        ],
    }


def _alignment_tree(found: Alignment) -> dict[str, Any]:
    """Mean IoU of the most confident and of the best detections of objects; None where nothing overlaps any."""
    upon = len(found.best) > 0
    return {
        "objects": found.objects,
        "overlapped": len(found.best),
        "confident_iou": float(found.confident.mean()) if upon else None,
        "best_iou": float(found.best.mean()) if upon else None,
        "gap": found.gap if upon else None,
    }


def gains(report: RunReport) -> list[tuple[str, int, float]]:
    """Each kind of error with how many there are and the AP50 in percent it costs; then all of either side."""
    totals = report.found.counts().sum(axis=1).tolist()
    rows: list[tuple[str, int, float]] = [
        (kind, count, 100 * report.costs.kinds[kind]) for kind, count in zip(KINDS, totals, strict=True)
    ]
    rows.append(("all false positives", sum(totals[:-1]), 100 * report.costs.false_positives))
    lost = int((report.found.counted & ~report.found.found()).sum())
    rows.append(("all false negatives", lost, 100 * report.costs.false_negatives))
    return rows


def _terminal(report: RunReport) -> str:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    # Piped text isn't wrapped to a terminal that isn't there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)

    def grid(*columns: str) -> Grid:
        made = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for i, column in enumerate(columns):
            made.add_column(column, justify="right" if i else "left", overflow="fold")
        return made

    kinds = grid("error", "count", "AP50 gained if mended")
    for name, count, gain in gains(report):
        kinds.add_row(name, f"{count:,}", f"{gain:.1f}")
    classes = grid("class", "objects", *SHOWN, "cls", "loc", "both", "dup", "bg", "miss")
    counts, objects = report.found.counts(), report.found.objects()
    for k, name in enumerate(report.annotations.category_names):
        numbers = [number_text(value) for value in report.class_metrics(k).values()]
        classes.add_row(Text(name), f"{objects[k]:,}", *numbers, *(f"{count:,}" for count in counts[:, k]))
    worst = grid("worst images", f"F1 at scores from {report.score:.2f}")
    for i in report.worst(5):
        worst.add_row(Text(report.annotations.file_name(i)), f"{report.image_f1[i]:.2f}")
    with console.capture() as capture:
        console.print(Text.assemble((f"run {report.result.name}", "bold"), f"  {', '.join(report.rows)}"))
        console.print(Text(_described(report), style="dim"))
        if report.crowd is not None:
            console.print(Text(f"{CROWD_NOTE}: AP50 {number_text(report.coco['AP50'])} there", style="dim"))
        for part in (kinds, classes, worst):
            console.print()
            console.print(part)
        if len(report.alignment.best):
            console.print()
            console.print(Text(_aligned(report.alignment)))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _described(report: RunReport) -> str:
    """A run's data and numbers in one line."""
    numbers = ", ".join(f"{name} {number_text(value)}" for name, value in report.metrics.items())
    images, objects = report.annotations.num_images, int(report.found.counted.sum())
    return f"{numbers} on {images:,} images of {report.result.data['name']} with {objects:,} objects"


def _aligned(found: Alignment) -> str:
    """How well scores pick boxes, in one line."""
    return (
        f"IoU of an object's most confident box {found.confident.mean():.3f}, of its best {found.best.mean():.3f}: "
        f"gap {found.gap:.3f} ({len(found.best):,} of {found.objects:,} objects)"
    )


def number_text(value: float | None) -> str:
    """A number in percent, or a dash for none."""
    return "–" if value is None else f"{value:.1f}"
