"""Checkpoint files to tensors by name: .safetensors, torch's .pth and .bin, detectron2's .pkl. Runs nothing."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detbench.core.weights.layout import some
from detbench.errors import DataError

_ENTRIES = ("model", "state_dict")
"""Where checkpoints keep their weights: DETR's descendants and detectron2, mmdetection."""

_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,  # the command line, which DETR's descendants keep
    _SCALAR,  # NumPy's numbers: metrics, learning rates
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)),
]
"""What checkpoints hold beside tensors and can run nothing."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of a file.

    Attributes:
        where: the file, as a message should call it.
        tensors: by the names they have there, without the prefix of parallel training.
        entry: which entry of the file they are; "" where the file holds nothing else.
        other_entries: those that hold weights too, of an average for example.
        class_names: by index, where the file says them (mmdetection); empty where it doesn't.
    """

    where: str
    tensors: Mapping[str, Tensor]
    entry: str
    other_entries: tuple[str, ...]
    class_names: tuple[str, ...]


def read_checkpoint(path: Path, *, entry: str | None = None) -> Checkpoint:
    """The weights in a file.

    Args:
        path: .safetensors, .pkl (a pickle of NumPy arrays), or what torch wrote, under any other ending.
        entry: which entry to take; None for "model" or "state_dict".

    Raises:
        DataError: there is no such file, it can't be read without running code, or it holds no weights or NaN.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a .safetensors, .pth, .bin or .pkl checkpoint.")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix == ".pkl":
            with path.open("rb") as file:
                content = _Arrays(file, encoding="latin1").load()
        else:
            with torch.serialization.safe_globals(_HARMLESS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise DataError(_unreadable(path, error)) from None

    entries = {name: found for name, value in _items(content) if (found := _tensors(value))}
    own = _tensors(content)
    if entry is not None:
        if entry not in entries:
            has = f"those with weights are {', '.join(entries)}" if entries else "it has none with weights"
            raise DataError(f"{path}: has no entry '{entry}' with weights; {has}.")
    elif not own:
        entry = next((name for name in _ENTRIES if name in entries), None)
        if entry is None and entries:
            raise DataError(
                f"{path}: holds weights under {', '.join(entries)}, none of which is {' or '.join(_ENTRIES)}; "
                "say with --entry which to take."
            )
    tensors = own if entry is None else entries[entry]
    if not tensors:
        raise DataError(f"{path}: holds no parameters; expected a dict of tensors by name.")
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise DataError(
            f"{path}: has {some('tensors with NaN or infinite values', broken)}; take a file from before that "
            "training broke down, or a whole copy."
        )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Checkpoint(
        where=str(path),
        tensors=tensors,
        entry=entry or "",
        other_entries=tuple(name for name in entries if name != entry),
        class_names=_class_names(content),
    )


class _Arrays(pickle.Unpickler):
    """Reads pickles of NumPy arrays and nothing else: whatever could run code is refused."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),  # how pickles of Python 2 spell bytes
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not an array")
        return super().find_class(module, name)


UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
"""What torch's, pickle's and safetensors' readers raise for files that are damaged or of another kind."""


def _unreadable(path: Path, error: BaseException) -> str:
    """Why a file can't be read. Both readers name what they refuse to run after the word GLOBAL."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused is not None:
        return (
            f"{path}: holds a {refused[1]} beside its weights, which may run code when it is read, so it isn't; "
            "save the weights alone, as a dict of tensors."
        )
    if isinstance(
        error, LookupError | pickle.UnpicklingError
    ):  # which says nothing, or to read it without checks
        reason = "no whole pickle"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path}: can't be read as a checkpoint ({reason}); it may be cut off, or of another kind."


def _items(content: Any) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in content.items() if isinstance(k, str)] if isinstance(content, Mapping) else []


def _tensors(value: Any) -> dict[str, Tensor]:
    """The tensors and arrays of a dict by name; empty where it holds a dict or none of them."""
    items = _items(value)
    if any(isinstance(v, Mapping) for _, v in items):
        return {}
    arrays = {k: torch.from_numpy(v) for k, v in items if isinstance(v, np.ndarray) and v.dtype.kind in "fiu"}
    return arrays | {k: v for k, v in items if isinstance(v, Tensor)}


def _class_names(content: Any) -> tuple[str, ...]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()
