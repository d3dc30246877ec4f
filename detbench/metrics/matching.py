"""Greedy matching of detections to objects, for all images at once: what COCO and CrowdHuman share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Pairs looked at in one go: keeps their boxes and overlaps within a few megabytes.
_PAIRS_AT_ONCE = 1 << 18


def position_in_run(values: Ints) -> Ints:
    """For each element how many equal ones stand before it, (N,); equal values must be neighbours."""
    starts = run_starts(values)
    return np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))


def run_starts(values: Ints) -> Ints:
    """Where each run of equal neighbours begins, ascending."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return np.flatnonzero(changes)


def spread(starts: Ints, lengths: Ints) -> Ints:
    """The ranges start, start + 1, ... of the given lengths, laid end to end."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)


def pairs_of_groups(left: Ints, right: Ints) -> Iterator[tuple[Ints, Ints]]:
    """All pairs of a left and a right element with equal group number, in blocks of bounded size.

    Args:
        left: (N,) group numbers, ascending.
        right: (M,) group numbers, ascending.

    Yields:
        Indices into left and into right, ordered by both; together every pair once.
    """
    starts = np.searchsorted(right, left, side="left")
    lengths = np.searchsorted(right, left, side="right") - starts
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(left):
        limit = _PAIRS_AT_ONCE + (ends[begin] - lengths[begin])
        end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
        block = slice(begin, end)
        yield np.repeat(np.arange(begin, end), lengths[block]), spread(starts[block], lengths[block])
        begin = end


def close_pairs(
    left: Ints,
    right: Ints,
    *,
    overlap: Callable[[Ints, Ints], Floats],
    is_close: Callable[[Floats], Bools],
) -> tuple[Ints, Ints, Floats]:
    """Those of all pairs with equal group number that overlap enough, without ever holding all of them.

    Args:
        left: (N,) group numbers, ascending.
        right: (M,) group numbers, ascending.
        overlap: of pairs, given indices into left and into right.
        is_close: which overlaps are enough.

    Returns:
        Indices into left and into right, ordered by both, and the overlap, (P,) each.
    """
    blocks = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i, j in pairs_of_groups(left, right):
        of_pairs = overlap(i, j)
        close = is_close(of_pairs)
        blocks.append((i[close], j[close], of_pairs[close]))
    i, j, of_pairs = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return i, j, of_pairs


def greedy_choices(
    chooser: Ints, item: Ints, group: Ints, eligible: Bools, preferred: Bools, reusable: Bools
) -> tuple[Ints, Ints]:
    """Lets choosers, in order within their group, each take the item they like best of those left.

    The loop runs over turns: in one turn each group has one chooser, and groups share no items, so all of a
    turn choose together. Several matchings run side by side, one in each lane (area range x threshold); S is
    the shape of the lanes.

    Args:
        chooser: (P,) one end of each pair, ascending; one chooser's pairs stand in ascending order of liking.
        item: (P,) the other end.
        group: (P,) group of the pair, ascending.
        eligible: (P, *S) or broadcastable to it: may the pair match at all.
        preferred: (P, *S) or broadcastable: any such pair wins over all pairs that are not.
        reusable: (M,) items that are never used up.

    Returns:
        The distinct choosers, (C,) ascending, and the pair each takes in each lane, (C, *S), -1 for none.
    """
    lanes = np.broadcast_shapes(eligible.shape[1:], preferred.shape[1:])
    first = run_starts(chooser)
    lengths = np.diff(first, append=len(chooser))
    chosen = np.full((len(first), *lanes), -1)
    if not len(first):
        return chooser[first], chosen
    longest = lengths.max()
    place = 1 + np.arange(len(chooser)) - np.repeat(first, lengths)
    liking = np.expand_dims(place, tuple(range(1, preferred.ndim))) + longest * preferred
    taken = np.zeros((len(reusable), *lanes), bool)
    turn = position_in_run(group[first])
    for now in np.split(np.argsort(turn, kind="stable"), np.cumsum(np.bincount(turn))[:-1]):
        pairs = spread(first[now], lengths[now])
        score = np.where(eligible[pairs] & ~taken[item[pairs]], liking[pairs], 0)
        best = np.maximum.reduceat(score, np.cumsum(lengths[now]) - lengths[now], axis=0)
        who, *lane = np.nonzero(best)
        pair = first[now][who] + (best[who, *lane] - 1) % longest
        chosen[now[who], *lane] = pair
        taken[item[pair], *lane] = ~reusable[item[pair]]
    return chooser[first], chosen
