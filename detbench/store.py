"""Run folders: where they are, who holds them, and how they are written. The cache stands beside them.

runs/<digest>/<seed>/    request.json     what was asked: experiment, seed, scale, data, overrides, and its checksum
                         curve.jsonl      losses and metrics as they came
                         log.txt          what the worker printed
                         checkpoint.pt    the last state, and checkpoint.previous.pt the one before
                         error.json       why it failed, if it did
                         stopped.json     why an ablation stopped it early, if one did
                         model.safetensors, detections.npz, environment.json
                         SHA256SUMS       of the run's files, as `sha256sum -c` reads them
                         result.json      last of all, atomically: with it the run is finished
runs/cache/              annotation indices, drawn data; may be deleted at any time
runs/ablations/          recipes that `detbench ablate` made
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from detbench.errors import StoreError
from detbench.results import (
    CURVE,
    DETECTIONS,
    ENVIRONMENT,
    REQUEST,
    RESULT,
    STOPPED,
    Result,
    Stopped,
    read_result,
    read_stopped,
)

State = Literal["finished", "running", "failed", "stopped", "resumable", "missing"]

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
# The weights that are tested, unless a student's are asked for, which lie beside its teacher's.
WEIGHTS, STUDENT = "model.safetensors", "student.safetensors"
ERROR, LOG, LOCK = "error.json", "log.txt", "lock"
CHECKSUMS = "SHA256SUMS"
_SEAL = "sha256"  # in a request: of the rest of it

HELD = 75
"""A worker's exit code where another process holds its run."""

PAUSED = 76
"""A worker's exit code where it went as far as it was asked to and saved its state."""


@dataclass(frozen=True)
class Store:
    """A folder of runs.

    Attributes:
        root: holds everything; made when first written to.
    """

    root: Path

    @staticmethod
    def around(folder: Path) -> Store:
        """The store that a run's folder lies in."""
        return Store(folder.resolve().parent.parent)

    @property
    def cache(self) -> Path:
        """Files that can be made again."""
        return self.root / "cache"

    @property
    def ablations(self) -> Path:
        """Recipes that `ablate` made."""
        return self.root / "ablations"

    def folder(self, digest: str, seed: int) -> Path:
        """Where a run lives."""
        return self.root / digest / str(seed)

    def folders(self) -> Iterator[Path]:
        """Every run folder, finished or not, in the order of its name."""
        for request in sorted(self.root.glob(f"*/*/{REQUEST}")):
            yield request.parent

    def find(self, name: str) -> Path | None:
        """The run that a user calls by its folder, or by the start of its digest, and "/seed" if there are several.

        Returns:
            Its folder; None where the name looks like neither, such as a recipe's.

        Raises:
            StoreError: no run has such a digest, or several have.
        """
        if (Path(name) / REQUEST).is_file():
            return Path(name)
        if not re.fullmatch(r"[0-9a-f]{4,16}(/\d+)?", name):
            return None
        digest, _, seed = name.partition("/")
        fits = [f for f in self.folders() if f.parent.name.startswith(digest) and seed in ("", f.name)]
        if not fits:
            raise StoreError(f"{self.root}: no run is called {name}; `detbench runs` lists those there are")
        if len(fits) > 1:
            names = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in fits)
            raise StoreError(f"{self.root}: {name} may be {names}; name one of them")
        return fits[0]

    def get(self, name: str) -> Path:
        """The run that `find` finds.

        Raises:
            StoreError: there is none, or several.
        """
        folder = self.find(name)
        if folder is None:
            raise StoreError(f"{name}: no such run; `detbench runs` lists those there are")
        return folder

    def state(self, digest: str, seed: int) -> State:
        """How far a run has come."""
        return state_of(self.folder(digest, seed))

    def finished(self, digest: str) -> list[Result]:
        """The results of an experiment's finished runs, by seed."""
        folders = [path.parent for path in self.root.glob(f"{digest}/*/{RESULT}")]
        return sorted((read_result(folder) for folder in folders), key=lambda result: result.seed)

    def stopped(self, digest: str) -> list[Stopped]:
        """Why an experiment's runs were stopped early, of those that were and didn't go on since, by seed."""
        folders = [
            p.parent for p in self.root.glob(f"{digest}/*/{STOPPED}") if state_of(p.parent) == "stopped"
        ]
        found = [stop for folder in folders if (stop := read_stopped(folder)) is not None]
        return sorted(found, key=lambda stop: stop.seed)

    def results(self) -> Iterator[Result]:
        """Every finished run's result."""
        for folder in self.folders():
            if (folder / RESULT).is_file():
                yield read_result(folder)

    def trained(self, training_digest: str, seed: int) -> Path | None:
        """A finished run with the same training and seed, whatever its test; None when there is none.

        The run that did the training comes before those that borrowed its weights.
        """
        found: dict[bool, Path] = {}
        for folder in self.folders():
            if (
                folder.name != str(seed)
                or not (folder / RESULT).is_file()
                or not (folder / WEIGHTS).is_file()
            ):
                continue
            result = read_result(folder)
            if result.training_digest == training_digest:
                found.setdefault(bool(result.weights_from), folder)
        return found.get(False, found.get(True))


def state_of(folder: Path) -> State:
    """How far the run in a folder has come."""
    if (folder / RESULT).is_file():
        return "finished"
    if not (folder / REQUEST).is_file():
        return "missing"
    if _is_held(folder):
        return "running"
    if (folder / ERROR).is_file():
        return "failed"
    if (folder / STOPPED).is_file():
        return "stopped"
    if (folder / CHECKPOINT).is_file() or (folder / PREVIOUS).is_file():
        return "resumable"
    return "missing"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a run while it is worked on; the same run is never trained twice at the same time.

    Raises:
        StoreError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=2)  # somebody may just be looking whether it is held
    except Timeout:
        raise StoreError(f"{folder}: another process is training this run; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, tree: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, _json(tree))


def finish(folder: Path, result: Any) -> None:
    """Writes a run's result, a plain tree, with which it is finished; before it the checksums of all its files."""
    text = _json(result)
    kept = (CURVE, DETECTIONS, ENVIRONMENT, WEIGHTS, STUDENT, CHECKPOINT, PREVIOUS)
    sums = {name: sha256_of(folder / name) for name in kept if (folder / name).is_file()}
    write_text(folder / CHECKSUMS, _sums_text(sums | {RESULT: _sha256(text)}))
    write_text(folder / RESULT, text)


def changed_files(folder: Path) -> dict[str, str]:
    """The files of a finished run that aren't what they were when it finished, and how each is known to differ.

    The log isn't held to anything: the worker's process may write to it to its last moment.
    """
    changed = {} if _is_sealed(folder / REQUEST) else {REQUEST: "changed since it was written (sha256)"}
    try:
        text = (folder / CHECKSUMS).read_text(encoding="utf-8")
        recorded = {name: digest for digest, name in (line.split("  ") for line in text.splitlines())}
    except (OSError, ValueError):
        return changed | {CHECKSUMS: "missing or damaged, so that no file can be held to it"}
    if text != _sums_text(recorded) or RESULT not in recorded:
        changed[CHECKSUMS] = "changed since the run finished"
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            changed[name] = "missing"
        elif sha256_of(folder / name) != digest:
            changed[name] = "changed since the run finished (sha256)"
    return changed


def write_request(folder: Path, tree: dict[str, Any]) -> None:
    """Writes what is asked of a run, sealed with a checksum: rows are added when SHA256SUMS has long been written."""
    unsealed = {key: value for key, value in tree.items() if key != _SEAL}
    write_json(folder / REQUEST, unsealed | {_SEAL: _sha256(_json(unsealed))})


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is there once all is written or not at all.

    Raises:
        StoreError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path}: can't be written ({error.strerror or error}); see that the folder is yours and has room, or "
            "name another"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def forget(folder: Path) -> None:
    """Removes what a run has written, so that it starts afresh; who asked for it stays known. The caller holds it."""
    for path in folder.iterdir():
        if path.name not in (LOCK, REQUEST, LOG):
            path.unlink()


def forget_ending(folder: Path) -> None:
    """A run that failed or was stopped early goes on from its last good checkpoint."""
    for name in (ERROR, STOPPED):
        (folder / name).unlink(missing_ok=True)


def cut_curve(folder: Path, *, after_step: int) -> None:
    """Drops what a killed run wrote after its last checkpoint."""
    path = folder / CURVE
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= after_step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    write_text(path, "".join(f"{line}\n" for line in kept))


def _is_sealed(path: Path) -> bool:
    """Whether a request is to the byte what was written."""
    try:
        text = path.read_text(encoding="utf-8")
        unsealed = {key: value for key, value in json.loads(text).items() if key != _SEAL}
    except (OSError, ValueError, AttributeError):
        return False
    return text == _json(unsealed | {_SEAL: _sha256(_json(unsealed))})


def _sums_text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(tree: Any) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _is_held(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
