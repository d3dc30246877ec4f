"""The whole state of a training run on disk: written atomically, the previous one kept until the new one is whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detbench.core.weights.files import UNREADABLE
from detbench.errors import StoreError
from detbench.store import CHECKPOINT, PREVIOUS, whole_file


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint beside the last one, then puts it in its place. Adds all random states."""
    current, new = folder / CHECKPOINT, folder / f".{CHECKPOINT}.new"
    with whole_file(new) as file:
        torch.save(state | {"random": _random_states()}, file)
    if current.is_file():
        current.replace(folder / PREVIOUS)
    new.replace(current)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, its random states restored; None where there is none.

    Raises:
        StoreError: there are checkpoints, and none can be read.
    """
    errors = []
    for name in (CHECKPOINT, PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            errors.append(f"{path}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            continue
        _restore_random_states(state.pop("random"))
        return state
    if errors:
        raise StoreError("no checkpoint can be read; start afresh with --force\n" + "\n".join(errors))
    return None


def weights_of(path: Path) -> dict[str, Tensor]:
    """The weights that a finished run left in a file.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path}: can't be used as the run's weights ({str(error).splitlines()[0]}); run it again with --force"
        ) from None


def _random_states() -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    name, numbers, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": (version, list(keys), gauss),
        "numpy": (name, torch.from_numpy(np.asarray(numbers).astype(np.int64)), position, has_gauss, cached),
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002


def saved_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, without restoring anything; None where there is none."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])
