"""The page of one run: its errors by kind and class, its curves, its confusions, and its worst images drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detbench import __version__
from detbench.data.images import read_image
from detbench.metrics.crowd import FPPI_POINTS, CrowdResult
from detbench.metrics.errors import KINDS, RIGHT
from detbench.metrics.matching import Ints
from detbench.report import forms
from detbench.report.alignment import histogram
from detbench.report.gather import hardware
from detbench.report.plots import SERIES, Plot, canvas, page_svg
from detbench.report.run_report import CROWD_NOTE, SHOWN, RunReport, as_tree, gains, number_text, render
from detbench.store import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

_PICTURES = 12
_LONGEST = 640  # side of a picture in the page, in pixels
_LABELS = 20  # that a picture can hold
_CLASSES = 20  # of a confusion matrix that a page can show

MEANINGS = {
    "classification": "overlaps an object of another class by 0.5 or more",
    "localisation": "overlaps an object of its class by 0.1 or more, but none by 0.5",
    "both": "overlaps an object of another class by 0.1 or more, but none by 0.5",
    "duplicate": "its object is found already, by a detection with a better score",
    "background": "overlaps no object by 0.1",
    "missed": "an object that is not found, and no error of the first two kinds is about it",
    "all false positives": "if there were no wrong detections at all",
    "all false negatives": "if only those objects had to be found that are",
}

_STATES = {"lost": "not found", "found": "found", "ignored": "not counted"}
MARKS = {kind: kind for kind in ("right", *KINDS[:-1])} | {
    kind: f"object, {text}" for kind, text in _STATES.items()
}


@dataclass(frozen=True)
class Mark:
    """One box on a picture.

    Attributes:
        kind: of a detection its error or "right", of an object "found", "lost" or "ignored".
        box: x, y, width, height in pixels of the image file.
        label: its class.
        text: what is said of it.
    """

    kind: str
    box: tuple[float, float, float, float]
    label: str
    text: str

    @property
    def is_wrong(self) -> bool:
        """Whether it is an error, or an object not found."""
        return self.kind == "lost" or self.kind in KINDS


@dataclass(frozen=True)
class Picture:
    """One image with what is wrong on it.

    Attributes:
        name: of its file.
        width: of the file's image in pixels, as its boxes count them.
        height: the same.
        data: the pixels as a data URI, perhaps fewer of them.
        f1: at the page's score.
        marks: what is right first, so that errors lie above.
        labelled: whether errors have their class written beside them; where there are too many, nobody can read it.
        summary: how much there is of each kind, in words.
    """

    name: str
    width: int
    height: int
    data: str
    f1: float
    marks: list[Mark]
    labelled: bool
    summary: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as it is shown.

    Attributes:
        names: of its rows and columns, without the last of each, which is none.
        counts: rows of detections by class.
        shares: of each row's sum.
        folded: how many classes "others" stands for.
    """

    names: list[str]
    counts: list[list[int]]
    shares: list[list[float]]
    folded: int


def write(report: RunReport, folder: Path) -> Path:
    """Writes index.html and errors.json; returns the page.

    Raises:
        DataError: one of the worst images can't be read.
    """
    path = folder / "index.html"
    write_text(path, page(report))
    write_text(folder / "errors.json", render(report, "json"))
    return path


def page(report: RunReport) -> str:
    """The whole page as text; needs no other file.

    Raises:
        DataError: one of the worst images can't be read.
    """
    costs = gains(report)
    pictures = [picture(report, index) for index in report.worst(_PICTURES)]
    drawn = {mark.kind for shown in pictures for mark in shown.marks}
    return (
        forms.environment()
        .get_template("run_page.html.j2")
        .render(
            version=__version__,
            report=report,
            facts=_facts(report),
            gains=costs,
            most=max(1e-9, *(gain for _, _, gain in costs)),
            meanings=MEANINGS,
            kinds=KINDS,
            shown=SHOWN,
            tree=as_tree(report),
            matrix=confusion_matrix(report.confusion, report.annotations.category_names),
            pictures=pictures,
            marks={kind: text for kind, text in MARKS.items() if kind in drawn},
            alignment=_alignment(report),
            miss_rate=None if report.crowd is None else _inline(miss_rate(report.crowd)),
            crowd_note=CROWD_NOTE,
            line=_line,
            percent=number_text,
        )
    )


def picture(report: RunReport, index: int) -> Picture:
    """One validation image with its objects and detections.

    Raises:
        DataError: its file can't be read.
    """
    name = report.annotations.file_name(index)
    height, width = report.annotations.size(index)
    pixels = Image.fromarray(read_image(report.images / name, (height, width)))
    pixels.thumbnail((_LONGEST, _LONGEST))
    stream = io.BytesIO()
    pixels.save(stream, format="JPEG", quality=85)
    marks = [*_objects(report, index), *_detections(report, index)]
    wrong = sum(mark.is_wrong for mark in marks)
    return Picture(
        name=name,
        width=width,
        height=height,
        data="data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(),
        f1=float(report.image_f1[index]),
        marks=marks,
        labelled=wrong <= _LABELS and len(report.annotations.category_names) > 1,
        summary=_summary(marks),
    )


def confusion_matrix(counts: Ints, names: Sequence[str]) -> Matrix:
    """A confusion matrix to look at; of many classes those most often confused, the rest summed up as others."""
    classes = len(names)
    if classes <= _CLASSES:
        return _matrix(counts, list(names), folded=0)
    between = counts[:classes, :classes] * ~np.eye(classes, dtype=bool)
    most = np.argsort(-(between.sum(axis=0) + between.sum(axis=1)), kind="stable")[:_CLASSES]
    kept = np.sort(most)
    place = np.full(classes + 1, _CLASSES)
    place[kept], place[-1] = np.arange(_CLASSES), _CLASSES + 1
    folded = np.zeros((_CLASSES + 2, _CLASSES + 2), np.int64)
    np.add.at(folded, (place[:, None], place), counts)
    others = classes - _CLASSES
    return _matrix(folded, [*(names[k] for k in kept), f"{others} others"], folded=others)


def _matrix(counts: Ints, names: list[str], *, folded: int) -> Matrix:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Matrix(names, counts.tolist(), shares.tolist(), folded)


def _objects(report: RunReport, index: int) -> list[Mark]:
    """The objects of an image, found ones first."""
    found = report.found.found(report.score)
    marks = []
    for i in np.arange(len(found))[report.annotations.of_image(index)]:
        name = report.annotations.category_names[report.annotations.labels[i]]
        kind = "ignored" if not report.found.counted[i] else "found" if found[i] else "lost"
        box = report.annotations.boxes[i].tolist()
        marks.append(Mark(kind, box, name, f"{name}, {_STATES[kind]}"))
    return sorted(marks, key=lambda mark: mark.is_wrong)


def _detections(report: RunReport, index: int) -> list[Mark]:
    """The detections of an image that score well enough and count, right ones first."""
    found, names = report.found, report.annotations.category_names
    rows = np.flatnonzero(
        (found.matches.image == index) & (found.matches.scores >= report.score) & (found.kind >= RIGHT)
    )
    marks = []
    for row in rows[np.lexsort((found.matches.scores[rows], found.kind[rows]))]:
        name = names[found.matches.label[row]]
        kind = "right" if found.kind[row] == RIGHT else KINDS[found.kind[row]]
        text = f"{kind}: {name} {found.matches.scores[row]:.2f}"
        if kind in ("classification", "both"):
            text += f" on {names[found.matches.object_label[found.about[row]]]}"
        box = report.table.boxes_xywh[found.matches.detection[row]].tolist()
        marks.append(Mark(kind, box, name, text))
    return marks


def _summary(marks: Sequence[Mark]) -> str:
    kinds = [mark.kind for mark in marks]
    objects = kinds.count("found") + kinds.count("lost")
    parts = [f"{kinds.count('found')} of {objects} object{'s' if objects != 1 else ''} found"]
    parts += [f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds]
    return ", ".join(parts)


def _line(curve: Sequence[float], width: float, height: float) -> str:
    """A curve over recall as the points of an SVG polyline; every second one, which no eye can tell."""
    count = len(curve) - 1
    return " ".join(f"{i / count * width:.4g},{(1 - curve[i]) * height:.4g}" for i in range(0, len(curve), 2))


def _alignment(report: RunReport) -> Markup | None:
    """The histograms of IoU; none where no detection overlaps any object."""
    if not len(report.alignment.best):
        return None
    return _inline(histogram(report.alignment, label=""))


def miss_rate(found: CrowdResult) -> Plot:
    """The miss rate over false positives per image, whose mean mMR is (Dollár et al., 2012)."""
    figure, axes = canvas("false positives per image", "miss rate")
    low, high = FPPI_POINTS[0] / 2, FPPI_POINTS[-1] * 2
    fppi = found.false_positives_per_image
    x = np.geomspace(low, high, 200)
    if len(fppi) and found.recall[0] >= 0:
        # As in the metric: a rate's miss rate is that of the first detection to reach it, and the last one's beyond.
        shown = np.searchsorted(fppi, x, side="left").clip(max=len(fppi) - 1)
        axes.plot(x, 1 - found.recall[shown], color=SERIES[0], linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1)
    return Plot("miss-rate", "Miss rate over false positives per image", figure)


def _inline(plot: Plot) -> Markup:
    from markupsafe import Markup

    return Markup(page_svg(plot.figure, prefix=plot.name, title=plot.title))


def _facts(report: RunReport) -> dict[str, str]:
    result = report.result
    recorded = {name: number_text(value) for name, value in result.metrics.items()}
    return {
        "Rows": ", ".join(report.rows),
        "Run": result.name,
        "Scale": result.scale,
        "Data": result.data["name"],
        "Images": f"{report.annotations.num_images:,}",
        "Objects": f"{int(report.found.counted.sum()):,}",
        "Detections": f"{len(report.table.scores):,}",
        **recorded,
        "Hardware": hardware(result),
        "Finished": result.finished[:10],
    }
