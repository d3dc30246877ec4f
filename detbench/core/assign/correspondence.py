"""Sparse correspondence: the pairs that stand out in a soft correspondence, weighed (Match-Free, section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from detbench.core.types import Matches

if TYPE_CHECKING:
    from detbench.core.types import QueryPredictions, Targets
    from detbench.parts.assigners import SparseCorrespondence


def assign_sparse(rule: SparseCorrespondence, predictions: QueryPredictions, targets: Targets) -> Matches:
    """The pairs that are left of the predictions' correspondence, with what is left of it as weights."""
    assert predictions.correspondence is not None  # Experiment refuses the rule without a probe
    soft = predictions.correspondence
    if rule.detach_correspondence:
        soft = soft.detach()
    kept = stands_out(
        soft.detach(),
        targets.image_idx,
        num_images=len(targets.counts),
        row_filter=rule.row_filter,
        compare=rule.compare,
        rho_row=rule.rho if rule.rho_row is None else rule.rho_row,
        rho=rule.rho,
        keep_row_argmax=rule.keep_row_argmax,
    )
    weights = normalise_rows(soft * kept, how=rule.normalization, eps=rule.eps)
    target_idx, pred_idx = kept.nonzero(as_tuple=True)
    return Matches(targets.image_idx[target_idx], pred_idx, target_idx, weights=weights[target_idx, pred_idx])


def stands_out(
    soft: Tensor,
    image_idx: Tensor,
    *,
    num_images: int,
    row_filter: Literal["threshold", "argmax", "none"],
    compare: Literal["filtered", "unfiltered"],
    rho_row: float,
    rho: float,
    keep_row_argmax: bool,
) -> Tensor:
    """Which entries of a correspondence are kept: large in their row, and in their query's column (spec 7.2 a).

    Args:
        soft: (M, Q) correspondence, rows the objects.
        image_idx: (M,) the image of each.
        num_images: in the batch.
        row_filter: an entry is filtered out if it's below rho_row times its row's greatest, if it isn't the
            greatest, or never.
        compare: hold "filtered" entries, or all as they were ("unfiltered"), against the column's threshold.
        rho_row: of the row filter "threshold".
        rho: an entry must reach this share of the greatest filtered entry of its column.
        keep_row_argmax: an object left with nothing keeps its greatest entry.

    Returns:
        (M, Q) bool.
    """
    greatest = soft.amax(1, keepdim=True)
    filtered = soft
    if row_filter == "threshold":
        filtered = soft * (soft >= rho_row * greatest)
    elif row_filter == "argmax":
        filtered = soft * (soft == greatest)
    column = image_idx[:, None].expand_as(soft)
    peak = soft.new_zeros(num_images, soft.shape[1]).scatter_reduce_(0, column, filtered, "amax")
    compared = filtered if compare == "filtered" else soft
    kept = (compared >= rho * peak[image_idx]) & (compared > 0)
    if keep_row_argmax:
        kept |= (soft == greatest) & ~kept.any(1, keepdim=True)
    return kept


def normalise_rows(sparse: Tensor, *, how: Literal["none", "sum", "max"], eps: float) -> Tensor:
    """(M, Q) weights divided by their row's sum or greatest entry plus eps, or as they are (Table 4)."""
    match how:
        case "none":
            return sparse
        case "sum":
            return sparse / (sparse.sum(1, keepdim=True) + eps)
        case "max":
            return sparse / (sparse.amax(1, keepdim=True) + eps)
