"""Whether a finished run still says what it measured: its numbers from its raw detections, its files, its digests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from detbench.data.annotations import Annotations
from detbench.data.fingerprint import fingerprint
from detbench.data.sources import read_splits
from detbench.engine.evaluate import measure, percent, percent_per_class
from detbench.errors import StoreError
from detbench.parts.experiment import identity_of, training_digest_of
from detbench.parts.part import digest_of
from detbench.results import DETECTIONS, RESULT, Result, read_detections, read_request, read_result
from detbench.store import Store, changed_files

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong.

    Attributes:
        run: "digest/seed".
        numbers: how many were worked out again.
        problems: one line each, naming what differs; empty where everything agrees.
    """

    run: str
    numbers: int
    problems: tuple[str, ...]


def verify(folder: Path) -> Verified:
    """Works out every metric of a run again and compares it, the experiment and the files with what is recorded.

    Raises:
        StoreError: the run isn't finished.
        DataError: the data can't be read.
    """
    if not (folder / RESULT).is_file():
        raise StoreError(f"{folder}: the run is not finished, so there is nothing to verify")
    changed = [f"{name}: {how}" for name, how in changed_files(folder).items()]
    try:
        numbers, wrong = _check_contents(folder)
    except Exception as error:
        if not changed:
            raise
        # Changed bytes break whoever reads them, in ways that nobody can list.
        numbers, wrong = 0, [f"no number compared, for the files can't be read: {error}"]
    place = folder.resolve()
    return Verified(f"{place.parent.name}/{place.name}", numbers, (*changed, *wrong))


def _check_contents(folder: Path) -> tuple[int, list[str]]:
    """How many numbers were worked out again, and what differs."""
    result = read_result(folder)
    problems = list(_check_digests(folder, result))
    data = result.data_part
    cache = Store.around(folder).cache
    found = fingerprint(data.source, cache, unlabelled=data.unlabelled)
    if found != result.data["fingerprint"]:
        return 0, [
            *problems,
            f"data: recorded {result.data['fingerprint']}, found {found}; no number compared",
        ]
    numbers, wrong = _check_numbers(folder, result, read_splits(data.source, cache).val)
    return numbers, [*problems, *wrong]


def _check_digests(folder: Path, result: Result) -> Iterator[str]:
    data = result.data["fingerprint"]
    place = folder.resolve()
    pairs = {
        "digest": (result.digest, digest_of(identity_of(result.experiment, data))),
        "training_digest": (result.training_digest, training_digest_of(result.experiment, data)),
        "folder": (f"{place.parent.name}/{place.name}", result.name),
    }
    for name, (recorded, found) in pairs.items():
        if recorded != found:
            yield f"{name}: recorded {recorded}, the experiment gives {found}"
    if identity_of(read_request(folder)["experiment"], data) != identity_of(result.experiment, data):
        yield "experiment: the request and the result record different ones"


def _check_numbers(folder: Path, result: Result, annotations: Annotations) -> tuple[int, list[str]]:
    measured = measure(read_detections(folder / DETECTIONS), annotations, result.test_part.metrics)
    per_class = percent_per_class(measured, annotations.category_names)
    expected = {"metrics": percent(measured)} | {f"per_class {name}": v for name, v in per_class.items()}
    recorded = {"metrics": result.metrics} | {f"per_class {name}": v for name, v in result.per_class.items()}
    problems = [
        f"{group}: {name}: recorded {recorded.get(group, {}).get(name)}, "
        f"the detections give {expected.get(group, {}).get(name)}"
        for group in dict.fromkeys((*recorded, *expected))
        for name in _differing(recorded.get(group, {}), expected.get(group, {}))
    ]
    return sum(map(len, expected.values())), problems


def _differing(recorded: Numbers, expected: Numbers) -> list[str]:
    """Names of numbers that differ by more than another machine's rounding, or that one side lacks."""
    return [
        name
        for name in dict.fromkeys((*recorded, *expected))
        if name not in recorded or name not in expected or not _same(recorded[name], expected[name])
    ]


def _same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=0, abs_tol=1e-9)
