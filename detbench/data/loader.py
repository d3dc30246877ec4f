"""The order in which images reach training and testing, and the processes that prepare them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from detbench.data.batch import Batch, TeachingBatch, collate
from detbench.data.dataset import DetectionData
from detbench.data.views import LABELLED, PLAIN, WEAK, View, strong_view
from detbench.errors import DataError
from detbench.parts.data import Data, Transform
from detbench.parts.teaching import Teacher

# One opens every seed of an order or a share, to share no stream with other uses of a run's seed.
_STREAM, _UNLABELLED_STREAM, _SHARE_STREAM = 2, 3, 4

AnyBatch = TypeVar("AnyBatch", Batch, TeachingBatch)


def train_batches(
    split: DetectionData,
    data: Data,
    *,
    seed: int,
    batch: int,
    steps_from: int,
    workers: int,
    parts: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """Training batches without end, from any step on.

    The images of epoch e stand in an order drawn from (seed, e), the epochs one after the other in one row.
    Step s takes positions s * batch to (s + 1) * batch of it, so a batch may hold the end of one epoch and
    the start of the next. A process of several takes its equal share of each part of it. Neither `workers` nor
    `steps_from` changes what is in a batch.

    Args:
        split: where images come from.
        data: the experiment's data part.
        seed: of the run.
        batch: images of one step, over all processes; a multiple of `parts` times `world`.
        steps_from: the first step, counted from 0.
        workers: processes that prepare batches; 0 for none but this one.
        parts: of a batch, computed one after another: what a process takes of one lies together.
        rank: number of this process.
        world: number of processes that share each batch.

    Raises:
        DataError: `batch` is no such multiple; or, on reaching it, an image can't be read.
    """
    if batch % (parts * world):
        raise DataError(f"Parts of {batch // parts} images can't be shared evenly by {world} processes.")
    plan = _train_plan(split.indices, seed, batch, steps_from, parts, rank, world)
    return _batches(_Prepare(split, data.train, seed, data.pixels.pad_multiple), plan, workers)


def test_batches(
    split: DetectionData, data: Data, *, batch: int, workers: int, rank: int = 0, world: int = 1
) -> Generator[Batch, None, None]:
    """Every image of a split once, in the annotations' order; the last batch may be smaller.

    Several processes take turns: each gets every `world`-th batch, from its own on.

    Args:
        split: where images come from.
        data: the experiment's data part.
        batch: images of one batch.
        workers: processes that prepare batches; 0 for none but this one.
        rank: number of this process.
        world: number of processes.

    Raises:
        DataError: on reaching an image that can't be read.
    """
    indices = split.indices.tolist()
    plan = [[(0, index) for index in indices[i : i + batch]] for i in range(0, len(indices), batch)]
    return _batches(_Prepare(split, data.test, 0, data.pixels.pad_multiple), plan[rank::world], workers)


test_batches.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks of its name


def teaching_batches(
    labelled: DetectionData,
    unlabelled: DetectionData,
    data: Data,
    teacher: Teacher,
    *,
    seed: int,
    batch: int,
    steps_from: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[TeachingBatch, None, None]:
    """Training batches of labelled and unlabelled images without end, from any step on (spec 8.1).

    Each kind of images stands in one row of epochs, as in `train_batches`, and a step takes as many from the head
    of each as (seed, step) decide. A process of several takes its share of the groups. Neither `workers` nor
    `steps_from` changes what is in a batch.

    Args:
        labelled: where images with objects come from.
        unlabelled: where the others come from.
        data: the experiment's data part.
        teacher: says how many are labelled, and what the student sees of the others.
        seed: of the run.
        batch: images of one step, over all processes; a multiple of the teacher's group times `world`.
        steps_from: the first step, counted from 0.
        workers: processes that prepare batches; 0 for none but this one.
        rank: number of this process.
        world: number of processes that share each batch.

    Raises:
        DataError: `batch` is no such multiple; or, on reaching it, an image can't be read.
    """
    if batch % (teacher.group * world):
        raise DataError(
            f"{batch // teacher.group} groups of images can't be shared evenly by {world} processes."
        )
    prepare = _PrepareTeaching(
        labelled=_Prepare(labelled, data.train, seed, data.pixels.pad_multiple, LABELLED),
        weak=_Prepare(unlabelled, data.train, seed, data.pixels.pad_multiple, WEAK),
        strong=_Prepare(unlabelled, data.train, seed, data.pixels.pad_multiple, strong_view(teacher.views)),
    )
    plan = _teaching_plan(labelled.indices, unlabelled.indices, teacher, seed, batch, steps_from, rank, world)
    return _batches(prepare, plan, workers)


def labelled_in_step(teacher: Teacher, *, seed: int, batch: int, step: int) -> list[int]:
    """How many images of each group of a step are labelled: a binomial number, but neither none nor all."""
    rng = np.random.default_rng([_SHARE_STREAM, seed, step])
    drawn = rng.binomial(teacher.group, teacher.labelled_share, batch // teacher.group)
    numbers: list[int] = drawn.clip(1, teacher.group - 1).tolist()
    return numbers


# The images of one batch, each with the epoch that decides its augmentation.
_Plan = list[tuple[int, int]]


def _train_plan(
    indices: NDArray[np.int64], seed: int, batch: int, steps_from: int, parts: int, rank: int, world: int
) -> Iterator[_Plan]:
    at = _row(indices, seed, _STREAM)
    share = batch // (parts * world)
    for step in itertools.count(steps_from):
        firsts = [step * batch + (part * world + rank) * share for part in range(parts)]
        yield [at(position) for first in firsts for position in range(first, first + share)]


def _teaching_plan(
    labelled: NDArray[np.int64],
    unlabelled: NDArray[np.int64],
    teacher: Teacher,
    seed: int,
    batch: int,
    steps_from: int,
    rank: int,
    world: int,
) -> Iterator[tuple[_Plan, _Plan]]:
    known, unknown = _row(labelled, seed, _STREAM), _row(unlabelled, seed, _UNLABELLED_STREAM)
    done = sum(
        sum(labelled_in_step(teacher, seed=seed, batch=batch, step=step)) for step in range(steps_from)
    )
    share = batch // world
    groups = share // teacher.group
    for step in itertools.count(steps_from):
        of_group = labelled_in_step(teacher, seed=seed, batch=batch, step=step)
        first = done + sum(of_group[: rank * groups])
        last = first + sum(of_group[rank * groups : (rank + 1) * groups])
        start = step * batch + rank * share
        others = range(start - first, start + share - last)
        yield [known(position) for position in range(first, last)], [unknown(position) for position in others]
        done += sum(of_group)


def _row(indices: NDArray[np.int64], seed: int, stream: int) -> Callable[[int], tuple[int, int]]:
    """Epoch and image at a position of one epoch after the other, each in an order of its own."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([stream, seed, epoch]).permutation(indices)

    def at(position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(indices))
        return epoch, int(order(epoch)[place])

    return at


@dataclass(frozen=True, slots=True)
class _Prepare(Dataset[Batch | DataError]):
    """Batches by what is in them. A data error is returned: raised in a worker, a traceback would bury it."""

    split: DetectionData
    transform: Transform
    seed: int
    pad_multiple: int
    view: View = PLAIN

    def __getitem__(self, plan: _Plan) -> Batch | DataError:
        try:
            samples = [
                self.split.sample(
                    index, epoch=epoch, seed=self.seed, transform=self.transform, view=self.view
                )
                for epoch, index in plan
            ]
        except DataError as error:
            return error
        return collate(samples, self.pad_multiple)


@dataclass(frozen=True, slots=True)
class _PrepareTeaching(Dataset[TeachingBatch | DataError]):
    """The same for batches of a teacher."""

    labelled: _Prepare
    weak: _Prepare
    strong: _Prepare

    def __getitem__(self, plan: tuple[_Plan, _Plan]) -> TeachingBatch | DataError:
        known, unknown = plan
        labelled, weak, strong = self.labelled[known], self.weak[unknown], self.strong[unknown]
        if isinstance(labelled, Batch) and isinstance(weak, Batch) and isinstance(strong, Batch):
            return TeachingBatch(labelled, weak, strong)
        return next(part for part in (labelled, weak, strong) if isinstance(part, DataError))


def _batches(
    prepare: Dataset[AnyBatch | DataError], plan: Iterable[Any], workers: int
) -> Generator[AnyBatch, None, None]:
    prepared: Iterable[AnyBatch | DataError]
    if workers:
        # Its own generator, because a loader otherwise draws a number from the global one.
        prepared = DataLoader(
            prepare, batch_size=None, sampler=plan, num_workers=workers, generator=torch.Generator()
        )
    else:
        prepared = map(prepare.__getitem__, plan)
    for batch in prepared:
        if isinstance(batch, DataError):
            raise batch
        yield batch
