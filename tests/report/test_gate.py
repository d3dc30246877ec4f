"""The gate: a supported claim that is lost, and a number too far from the paper's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_collect import finish

from detbench.cli import main
from detbench.errors import StoreError
from detbench.recipes import Context
from detbench.report import Collected, build, hold, render
from detbench.report import collect as collect_runs
from detbench.results import RESULT
from detbench.store import Store

BASELINE, BEST = "Baseline (OneNet)", "DATE-F (Ours)"
CLAIM = "An FCOS-style second branch improves OneNet"


def measured(collect, gain: float, seeds: int = 3) -> Collected:
    """date/table5 with one difference, the same on every seed but for a little, and one claim about it."""
    collected = collect("date/table5", dict.fromkeys((BASELINE, BEST), range(seeds)))
    for label, more in ((BASELINE, 0.0), (BEST, gain)):
        results = collected.entry(label).results
        results[:] = [
            replace(result, metrics={"AP": 35.0 + result.seed + more * (1 + result.seed / 20)})
            for result in results
        ]
    claims = tuple(claim for claim in collected.recipe.claims if claim.text == CLAIM)
    return replace(collected, recipe=replace(collected.recipe, claims=claims))


@pytest.fixture
def records(tmp_path: Path, collect) -> Path:
    """What was recorded when the claim was supported."""
    recorded = measured(collect, 2.0)
    assert [verdict.ruling for verdict in build(recorded).verdicts] == ["supported"]
    (tmp_path / "results" / "date").mkdir(parents=True)
    path = tmp_path / "results" / "date" / "table5.cpu.json"
    path.write_text(render([recorded], "json"), encoding="utf-8")
    return tmp_path / "results"


def test_a_claim_that_is_still_supported_passes(records, collect):
    assert hold([measured(collect, 1.0)], records).misses == []


@pytest.mark.parametrize(("gain", "seeds", "now"), [(-2.0, 3, "contradicted"), (2.0, 1, "undecided")])
def test_a_supported_claim_that_is_lost_is_named_with_what_is_now_known(records, collect, gain, seeds, now):
    found = hold([measured(collect, gain, seeds)], records).misses
    assert len(found) == 1
    assert found[0].startswith(f"date/table5: '{CLAIM}' was supported, now {now}: ")


def test_other_scales_data_and_overrides_are_held_to_nothing(records, collect):
    lost = measured(collect, -2.0)
    assert hold([lost], records).misses
    assert hold([replace(lost, scale="gpu")], records).misses == []
    assert hold([replace(lost, data_name="mine")], records).misses == []
    assert hold([replace(lost, overrides=("optim.lr=1",))], records).misses == []


def test_what_was_held_is_counted_and_what_was_not_is_named(records, collect, tmp_path):
    passed = hold([measured(collect, 1.0)], records)
    assert (passed.claims, passed.numbers, passed.absent) == (1, 0, [])
    assert hold([], records).text == (
        "0 claims still supported, 0 numbers of papers met; recorded, but not reported here: date/table5, cpu, drawn "
        "shapes"
    )
    at_paper_scale = hold([replace(measured(collect, 1.0), scale="paper")], records)
    assert (at_paper_scale.claims, at_paper_scale.numbers) == (0, 2)


def test_a_claim_taken_out_of_the_recipe_is_missed_unless_the_table_is_reported_in_part(records, collect):
    without = measured(collect, 2.0)
    without = replace(without, recipe=replace(without.recipe, claims=()))
    assert "no claim of the recipe any more" in hold([without], records).misses[0]
    assert hold([replace(without, entries=without.entries[:2])], records).misses == []


def test_a_reported_number_is_held_at_paper_scale_alone(tmp_path, collect):
    # The paper has 35.4 and 36.8; the mean over seeds 0, 1, 2 is 36.0 and 36.0 + 2.1.
    collected = measured(collect, 2.0)
    assert hold([collected], tmp_path).misses == []
    found = hold([replace(collected, scale="paper")], tmp_path).misses
    assert found == [
        "date/table5, row 'Baseline (OneNet)': AP 36.0 is +0.6 from the reported 35.4, more than 0.5",
        "date/table5, row 'DATE-F (Ours)': AP 38.1 is +1.3 from the reported 36.8, more than 0.5",
    ]


def test_a_recipe_may_tolerate_more_or_less(tmp_path, collect):
    collected = replace(measured(collect, 2.0), scale="paper")
    for tolerance, missed in ((1.0, 1), (2.0, 0), (0.1, 2)):
        head = replace(collected.recipe.head, tolerance={"AP": tolerance})
        held = replace(collected, recipe=replace(collected.recipe, head=head))
        assert len(hold([held], tmp_path).misses) == missed


def test_records_that_are_missing_or_no_tables_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no such folder; give the one that holds the records"):
        hold([], tmp_path / "nowhere")
    named_by_a_number = '[{"verdicts": [], "name": 3, "scale": "cpu", "data": "drawn shapes"}]'
    for text in ('[{"verdicts": 1}]', "[3]", named_by_a_number):
        (tmp_path / "odd.json").write_text(text, encoding="utf-8")
        with pytest.raises(StoreError, match=r"odd\.json: no table"):
            hold([], tmp_path)
    for content in (b"[", b"\xff\xfe"):
        (tmp_path / "odd.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"odd\.json: can't be read"):
            hold([], tmp_path)


def command(*words: str) -> list[str]:
    return ["detbench", "report", "--gate", *words]


@pytest.fixture
def gated(tmp_path: Path) -> tuple[Store, Path]:
    """A store whose DATE-F has more to compute than the record's, which supported that it has not."""
    store, records = Store(tmp_path / "runs"), tmp_path / "results"
    digests = finish(store, "quickstart", Context("smoke"), seeds=2)
    records.mkdir()
    (records / "quickstart.smoke.json").write_text(render(collect_runs(store), "json"), encoding="utf-8")
    for path in store.root.glob(f"{digests[-1]}/*/{RESULT}"):
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree["cost"]["gflops_infer"] += 1.0
        path.write_text(json.dumps(tree), encoding="utf-8")
    return store, records


def test_the_command_exits_with_3_after_its_tables_and_says_what_is_lost(
    gated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store, records = gated
    monkeypatch.setattr("sys.argv", command("--runs", str(store.root), "--records", str(records)))
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 3
    assert "quickstart" in said.out
    assert "'DATE-F computes no more than OneNet at inference' was supported, now contradicted" in said.err


def test_the_commands_json_is_one_document_with_error_and_tables(
    gated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store, records = gated
    monkeypatch.setattr("sys.argv", command("--json", "--runs", str(store.root), "--records", str(records)))
    with pytest.raises(SystemExit) as stopped:
        main()
    tree = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 3
    assert tree["error"]["kind"] == "GateFailed"
    assert {verdict["ruling"] for verdict in tree["tables"][0]["verdicts"]} >= {"contradicted"}


def test_the_command_passes_where_nothing_is_lost(
    gated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    store, _ = gated
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.argv", command("--runs", str(store.root), "--records", str(tmp_path / "empty")))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert "gate passed: 0 claims still supported, 0 numbers of papers met" in capsys.readouterr().err


def test_a_gate_without_any_run_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr("sys.argv", command("--runs", str(tmp_path / "none"), "--records", str(tmp_path)))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 3
    assert "no finished run to hold" in capsys.readouterr().err
