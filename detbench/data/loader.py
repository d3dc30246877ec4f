"""The order in which images reach training and testing, and the processes that prepare them."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from detbench.data.batch import Batch, collate
from detbench.data.dataset import DetectionData
from detbench.errors import DataError
from detbench.parts.data import Data, Transform

# Opens every seed of an order, to share no stream with other uses of a run's seed.
_STREAM = 2


def steps_per_epoch(split: DetectionData, batch: int) -> int:
    """Steps after which every image has been seen, the images of the last one included."""
    return -(-len(split) // batch)


def train_batches(
    split: DetectionData,
    data: Data,
    *,
    seed: int,
    batch: int,
    steps_from: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """Training batches without end, from any step on.

    The images of epoch e stand in an order drawn from (seed, e), the epochs one after the other in one row.
    Step s takes positions s * batch to (s + 1) * batch of it, so a batch may hold the end of one epoch and
    the start of the next. A process of several takes its equal share. Neither `workers` nor `steps_from`
    changes what is in a batch.

    Args:
        split: where images come from.
        data: the experiment's data part.
        seed: of the run.
        batch: images of one step, over all processes; a multiple of `world`.
        steps_from: the first step, counted from 0.
        workers: processes that prepare batches; 0 for none but this one.
        rank: number of this process.
        world: number of processes that share each batch.

    Raises:
        DataError: `batch` is no multiple of `world`; or, on reaching it, an image can't be read.
    """
    if batch % world:
        raise DataError(f"A batch of {batch} images can't be shared evenly by {world} processes.")
    plan = _train_plan(split.indices, seed, batch, steps_from, rank, world)
    return _batches(_Prepare(split, data.train, seed, data.pixels.pad_multiple), plan, workers)


def test_batches(
    split: DetectionData, data: Data, *, batch: int, workers: int
) -> Generator[Batch, None, None]:
    """Every image of a split once, in the annotations' order; the last batch may be smaller.

    Args:
        split: where images come from.
        data: the experiment's data part.
        batch: images of one batch.
        workers: processes that prepare batches; 0 for none but this one.

    Raises:
        DataError: on reaching an image that can't be read.
    """
    indices = split.indices.tolist()
    plan = [[(0, index) for index in indices[i : i + batch]] for i in range(0, len(indices), batch)]
    return _batches(_Prepare(split, data.test, 0, data.pixels.pad_multiple), plan, workers)


test_batches.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks of its name

# The images of one batch, each with the epoch that decides its augmentation.
_Plan = list[tuple[int, int]]


def _train_plan(
    indices: NDArray[np.int64], seed: int, batch: int, steps_from: int, rank: int, world: int
) -> Iterator[_Plan]:
    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([_STREAM, seed, epoch]).permutation(indices)

    share = batch // world
    for step in itertools.count(steps_from):
        first = step * batch + rank * share
        places = (divmod(position, len(indices)) for position in range(first, first + share))
        yield [(epoch, int(order(epoch)[place])) for epoch, place in places]


@dataclass(frozen=True, slots=True)
class _Prepare(Dataset[Batch | DataError]):
    """Batches by what is in them. A data error is returned: raised in a worker, a traceback would bury it."""

    split: DetectionData
    transform: Transform
    seed: int
    pad_multiple: int

    def __getitem__(self, plan: _Plan) -> Batch | DataError:
        try:
            samples = [
                self.split.sample(index, epoch=epoch, seed=self.seed, transform=self.transform)
                for epoch, index in plan
            ]
        except DataError as error:
            return error
        return collate(samples, self.pad_multiple)


def _batches(prepare: _Prepare, plan: Iterable[_Plan], workers: int) -> Generator[Batch, None, None]:
    prepared: Iterable[Batch | DataError]
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
