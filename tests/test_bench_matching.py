"""`bench matching`: what it times is the same work done two ways, and it says which way comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from detbench import benching
from detbench.cli import app
from detbench.engine.matching import Shape, match_layer_by_layer, synthetic, time_matching
from detbench.parts.assigners import QueryHungarian

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [Shape(40, 7, 5, 3), Shape(9, 20, 4, 1), Shape(30, 2, 1, 2)])
def test_both_forms_of_hungarian_matching_find_the_same_pairs(shape: Shape) -> None:
    predictions, targets = synthetic(shape, CPU)
    one = match_layer_by_layer(predictions, targets)
    other = QueryHungarian()(predictions, targets.repeat(shape.layers))

    def pairs(matches: object) -> set[tuple[int, ...]]:
        columns = [getattr(matches, name).tolist() for name in ("image_idx", "pred_idx", "target_idx")]
        return set(zip(*columns, strict=True))

    assert pairs(one) == pairs(other)
    assert len(pairs(one)) == sum(targets.counts) * shape.layers


def test_the_synthetic_batch_has_the_asked_mean_of_objects_and_a_crowded_image() -> None:
    _, targets = synthetic(Shape(300, 7, 32, 1), CPU)
    assert sum(targets.counts) / 32 == pytest.approx(7, rel=0.05)
    assert max(targets.counts) > 20
    assert min(targets.counts) == 0


def test_every_method_is_timed_with_its_spread() -> None:
    timed = time_matching(Shape(10, 2, 2, 2), device=CPU, repeats=3)
    assert list(timed) == list(benching.METHODS)
    assert all(0 < timing.low <= timing.median <= timing.high for timing in timed.values())


def test_the_verdict_names_the_faster_way() -> None:
    medians = {
        "hungarian_per_layer": 50.0,
        "hungarian": 5.0,
        "hungarian_with_losses": 25.0,
        "match_free": 25.0,
    }
    ms = {method: (median, median, median) for method, median in medians.items()}
    text = benching.verdict({"device": "cpu", "queries": 300, "ms": ms})
    assert "2.0 times faster than Hungarian matching layer by layer" in text
    assert "5.0 times slower than all layers at once" in text


def test_the_command_prints_a_table_beside_the_papers_numbers_and_draws_a_plot(tmp_path: Path) -> None:
    arguments = [
        "bench",
        "matching",
        "--queries",
        "10,20",
        "--batch",
        "2",
        "--repeats",
        "2",
        "--device",
        "cpu",
    ]
    shown = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "the paper" in shown.output
    assert "53" in shown.output
    assert "20 queries: Match-Free" in shown.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "matching-cpu-2x6x7.png",
        "matching-cpu-2x6x7.svg",
    ]
    entries = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [entry["queries"] for entry in entries] == [10, 20]
    assert set(entries[0]["ms"]) == set(benching.METHODS)


def test_a_number_that_is_none_is_refused() -> None:
    refused = CliRunner().invoke(app, ["bench", "matching", "--queries", "100,few"])
    assert "--queries 100,few: expected whole numbers" in str(refused.exception)
