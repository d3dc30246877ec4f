"""Which candidates the student agrees with: the mixture against plain loops, thresholds by hand (spec 8.3)."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from query_scenes import some_objects, some_queries

from detbench.core.assign.query_hungarian import query_cost
from detbench.core.teaching.labels import Candidates
from detbench.core.teaching.mining import agreed, cost_threshold, two_gaussians
from detbench.parts.teaching import CostMining

FLOOR = 1e-5


def density(x: float, weight: float, mean: float, variance: float) -> float:
    return weight * math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def fitted_in_loops(x: list[float]) -> list[tuple[float, float, float]]:
    """(weight, mean, variance) of both components, value by value."""
    components = [(0.5, min(x), 1.0), (0.5, max(x), 1.0)]
    before = -math.inf
    for _ in range(100):
        shares, total = [], 0.0
        for value in x:
            each = [density(value, *component) for component in components]
            shares.append([d / sum(each) for d in each])
            total += math.log(sum(each))
        components = []
        for k in range(2):
            amount = sum(share[k] for share in shares)
            mean = sum(share[k] * value for share, value in zip(shares, x, strict=True)) / amount
            square = sum(share[k] * (value - mean) ** 2 for share, value in zip(shares, x, strict=True))
            components.append((amount / len(x), mean, square / amount + FLOOR))
        if abs(total / len(x) - before) < 1e-3:
            break
        before = total / len(x)
    return components


def costs(seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return [*rng.normal(-1.0, 0.3, 12), *rng.normal(2.0, 0.8, 9)]


@pytest.mark.parametrize("seed", range(5))
def test_the_mixture_is_that_of_loops_over_values(seed: int):
    x = costs(seed)
    found = zip(
        *(values.tolist() for values in two_gaussians(np.array(x), variance_floor=FLOOR)), strict=True
    )
    for component, expected in zip(found, fitted_in_loops(x), strict=True):
        assert component == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_likeliest_cost_of_the_lower_component(seed: int):
    x = costs(seed)
    lower, upper = fitted_in_loops(x)
    of_lower = [value for value in x if density(value, *lower) >= density(value, *upper)]
    expected = max(of_lower, key=lambda value: density(value, *lower) + density(value, *upper))
    assert cost_threshold(np.array(x), variance_floor=FLOOR) == pytest.approx(expected)
    assert min(x) < expected < 0


def test_no_cost_has_threshold_0_and_one_is_its_own():
    assert cost_threshold(np.array([]), variance_floor=FLOOR) == 0
    assert cost_threshold(np.array([-1.5]), variance_floor=FLOOR) == -1.5


def test_equal_costs_all_reach_the_threshold():
    assert cost_threshold(np.full(7, 0.3), variance_floor=FLOOR) == 0.3


def test_costs_none_of_which_is_of_the_lower_component_have_their_likeliest_as_threshold(
    monkeypatch: pytest.MonkeyPatch,
):
    fit = (np.array([1e-9, 1.0]), np.array([-9.0, 1.0]), np.ones(2))
    monkeypatch.setattr("detbench.core.teaching.mining.two_gaussians", lambda *_, **__: fit)
    assert cost_threshold(np.array([0.0, 1.0, 2.0]), variance_floor=FLOOR) == 1.0


def test_the_mixture_ends_where_the_likelihood_stays():
    few = two_gaussians(np.array(costs(0)), variance_floor=FLOOR)
    exact = two_gaussians(np.array(costs(0)), variance_floor=FLOOR, tolerance=0.0, most_steps=1000)
    assert np.allclose(few[1], exact[1], atol=0.05)
    assert not np.allclose(few[1], exact[1], atol=1e-12)


def scene(counts: tuple[int, ...], seed: int) -> tuple[Candidates, CostMining]:
    objects = some_objects(counts, seed)
    scores = torch.linspace(0.1, 0.3, len(objects.labels))
    found = Candidates(
        objects.labels, objects.boxes, scores, objects.image_idx, objects.counts, objects.sizes
    )
    return found, CostMining()


def test_candidates_whose_match_costs_at_most_the_threshold_are_agreed_on():
    candidates, rule = scene((3, 0, 4), seed=0)
    predictions = some_queries(candidates.targets, 0, num_queries=5)
    cost = query_cost(rule.cost, predictions.last, candidates.targets).double()
    of_candidate: dict[int, float] = {}
    for first, count in ((0, 3), (3, 4)):
        best = min(
            permutations(range(5), count), key=lambda q: sum(cost[first + i, j] for i, j in enumerate(q))
        )
        of_candidate |= {first + i: float(cost[first + i, j]) for i, j in enumerate(best)}
    threshold = cost_threshold(np.array(list(of_candidate.values())), variance_floor=FLOOR)
    found = agreed(rule, predictions, candidates)
    assert found.tolist() == [of_candidate[m] <= threshold for m in range(7)]
    assert 0 < found.sum() < 7


def test_costs_of_other_processes_count_for_the_threshold(monkeypatch: pytest.MonkeyPatch):
    candidates, rule = scene((3, 0, 4), seed=0)
    predictions = some_queries(candidates.targets, 0, num_queries=5)
    far_below = torch.full((20,), -50.0, dtype=torch.float64)
    monkeypatch.setattr(
        "detbench.core.teaching.mining.gather_over_processes", lambda x: torch.cat([far_below, x])
    )
    assert not agreed(rule, predictions, candidates).any()


def test_no_candidate_is_agreed_on_where_there_is_none():
    candidates, rule = scene((0, 0), seed=0)
    assert agreed(rule, some_queries(candidates.targets, 0), candidates).tolist() == []
