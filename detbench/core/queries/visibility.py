"""Which of the decoder's queries see each other."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def visibility(
    *, groups: tuple[int, ...], num_one_to_one: int, num_one_to_many: int, device: torch.device
) -> Tensor | None:
    """(Q, Q) bool, True where the row's query sees the column's; None where all see all.

    Groups made from boxes come first. Each sees itself and the one-to-one queries, which see only each other, as the
    one-to-many ones do (spec 2.8, 3).

    Args:
        groups: queries in each group.
        num_one_to_one: those that the detector is tested with.
        num_one_to_many: those behind them.
        device: of the result.
    """
    if sum(groups) + num_one_to_many == 0:
        return None
    one_to_one = len(groups)
    with torch.inference_mode(False):  # a training step saves it for its backward
        members = torch.tensor([*groups, num_one_to_one, num_one_to_many])
        group = torch.arange(len(members)).repeat_interleave(members).to(device)
        rows, columns = group.unsqueeze(1), group.unsqueeze(0)
        return (rows == columns) | ((rows < one_to_one) & (columns == one_to_one))
