"""Candidates that the student agrees with: those whose matching cost is among the low ones (spec 8.3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detbench.core.assign.hungarian import solve
from detbench.core.assign.query_hungarian import query_cost
from detbench.core.distributed import gather_over_processes

if TYPE_CHECKING:
    from detbench.core.teaching.labels import Candidates
    from detbench.core.types import QueryPredictions
    from detbench.parts.teaching import CostMining

Floats = NDArray[np.floating[Any]]


@torch.no_grad()
def agreed(rule: CostMining, predictions: QueryPredictions, candidates: Candidates) -> Tensor:
    """(M,) bool: the candidates matched at a cost of at most `cost_threshold` of all costs of all processes.

    Args:
        rule: the cost, and the mixture's floor.
        predictions: of the student, on the candidates' view; the last layer counts.
        candidates: on that view.
    """
    cost = query_cost(rule.cost, predictions.last, candidates.targets)
    matches = solve(cost, candidates.counts)
    of_pairs = cost[matches.target_idx, matches.pred_idx]
    of_all = gather_over_processes(of_pairs).cpu().double().numpy()
    threshold = cost_threshold(of_all, variance_floor=rule.variance_floor)
    chosen = torch.zeros_like(candidates.labels, dtype=torch.bool)
    chosen[matches.target_idx] = of_pairs.double() <= threshold
    return chosen


def cost_threshold(costs: Floats, *, variance_floor: float) -> float:
    """The likeliest cost under a mixture of two Gaussians among those that are rather of the lower one.

    The lower one is the one that started at the least cost; where no cost is of it, all count, as in the released
    code. A single cost is its own threshold, and none at all have 0.

    Args:
        costs: (N,).
        variance_floor: added to the variances.
    """
    if len(costs) < 2:
        return float(costs.sum())
    log_density = _log_densities(costs, *two_gaussians(costs, variance_floor=variance_floor))
    of_lower = log_density[:, 0] >= log_density[:, 1]
    if of_lower.any():
        costs, log_density = costs[of_lower], log_density[of_lower]
    return float(costs[np.logaddexp(*log_density.T).argmax()])


def two_gaussians(
    x: Floats, *, variance_floor: float, tolerance: float = 1e-3, most_steps: int = 100
) -> tuple[Floats, Floats, Floats]:
    """Weights, means and variances, (2,) each, of a mixture fitted by expectation maximisation.

    It starts from the least and the greatest value as means, equal weights and variances of 1, and ends once the mean
    log-likelihood changes by less than `tolerance`, as scikit-learn's GaussianMixture does.

    Args:
        x: (N,).
        variance_floor: added to the variances.
        tolerance: of the mean log-likelihood.
        most_steps: bound on the steps.
    """
    weights, means, variances = np.full(2, 0.5), np.array([x.min(), x.max()]), np.ones(2)
    before = -math.inf
    for _ in range(most_steps):
        log_density = _log_densities(x, weights, means, variances)
        log_likelihood = np.logaddexp(*log_density.T)
        share = np.exp(log_density - log_likelihood[:, None])
        amount = share.sum(0) + 10 * np.finfo(np.float64).eps
        weights, means = amount / amount.sum(), x @ share / amount
        variances = np.square(x) @ share / amount - np.square(means) + variance_floor
        now = float(log_likelihood.mean())
        if abs(now - before) < tolerance:
            break
        before = now
    return weights, means, variances


def _log_densities(x: Floats, weights: Floats, means: Floats, variances: Floats) -> Floats:
    """(N, 2) logarithm of each component's weighed density at each value."""
    squares = np.square(x[:, None] - means) / variances
    densities: Floats = np.log(weights) - (np.log(2 * np.pi * variances) + squares) / 2
    return densities
