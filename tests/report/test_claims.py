"""A verdict on a claim: tested over seeds, adjusted over the table, and never on one seed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from detbench.errors import RecipeError
from detbench.recipe_text import Claim
from detbench.recipes import load
from detbench.report import page, render
from detbench.report.claims import Verdict, judge
from detbench.report.gather import Collected
from detbench.report.table import build

A, B, C = "Baseline (OneNet)", "DATE-R (Ours)", "DATE-F (Ours)"

Judge = Callable[..., Verdict]


def with_values(collect, values: dict[str, Sequence[float]], claims: Sequence[Claim]) -> Collected:
    """date/table5 with these APs, seed by seed, and these claims."""
    collected = collect("date/table5", {label: range(len(numbers)) for label, numbers in values.items()})
    for label, numbers in values.items():
        results = collected.entry(label).results
        for i, number in enumerate(numbers):
            results[i] = replace(results[i], metrics={"AP": float(number)})
    return replace(collected, recipe=replace(collected.recipe, claims=tuple(claims)))


def claim(kind: str, *rows: str, **more) -> Claim:
    return Claim(text="", place="", kind=kind, rows=rows, **more)


@pytest.fixture
def judged(collect) -> Judge:
    """The verdict on the only claim of a table."""

    def one(values: dict[str, Sequence[float]], only: Claim) -> Verdict:
        return judge(with_values(collect, values, [only]))[0]

    return one


UP = {A: (30, 31, 32), B: (32, 33.1, 33.9), C: (34, 35.1, 36.2)}  # each seed, each step up by about two


@pytest.mark.parametrize(
    ("made", "ruling"),
    [
        (claim("sign", B, A), "supported"),
        (claim("sign", A, B), "contradicted"),
        (claim("sign", A, B, sign="-"), "supported"),
        (claim("at_least", B, A, margin=1.5), "supported"),
        (claim("at_least", B, A, margin=2.0), "undecided"),
        (claim("at_least", B, A, margin=2.5), "contradicted"),
        (claim("at_least", A, B, margin=-2.5), "supported"),
        (claim("order", C, B, A), "supported"),
        (claim("order", C, A, B), "contradicted"),
        (claim("best", C, A, B), "supported"),
        (claim("best", B, A, C), "contradicted"),
        (claim("monotone", A, B, C), "supported"),
        (claim("monotone", A, C, B), "contradicted"),
    ],
)
def test_clear_differences_decide_a_claim_of_every_kind(judged: Judge, made: Claim, ruling: str):
    verdict = judged(UP, made)
    assert verdict.ruling == ruling
    assert verdict.seeds == 3
    assert bool(verdict.decided_by) == (ruling == "undecided")


def test_a_sign_is_tested_as_scipy_tests_it(judged: Judge):
    values = {A: (30, 31, 32, 30.5), B: (31, 31.5, 32.1, 32)}
    verdict = judged(values, claim("sign", B, A))
    differences = np.subtract(values[B], values[A])
    assert verdict.p_for == pytest.approx(
        scipy_stats.ttest_1samp(differences, 0, alternative="greater").pvalue
    )
    assert verdict.p_against == pytest.approx(
        scipy_stats.ttest_1samp(differences, 0, alternative="less").pvalue
    )


def test_every_contrast_must_be_significant_for_support_and_one_for_contradiction(judged: Judge):
    values = {A: (30, 31, 32), B: (30.1, 31.3, 31.9), C: (34, 35.1, 36.2)}  # A and B are close
    verdict = judged(values, claim("order", C, B, A))
    assert verdict.ruling == "undecided"
    assert verdict.p_for == max(
        judged(values, claim("sign", C, B)).p_for, judged(values, claim("sign", B, A)).p_for
    )
    assert judged(values, claim("best", A, B, C)).ruling == "contradicted"
    against = judged(values, claim("sign", A, C)).p_against
    assert judged(values, claim("best", A, B, C)).p_against == pytest.approx(2 * against)


def test_p_values_are_adjusted_over_the_claims_of_the_table(collect):
    values = {A: (30, 31, 32), B: (31, 32.5, 32.9), C: (34, 35.1, 36.2)}
    weak, strong = claim("sign", B, A), claim("sign", C, A)
    alone = judge(with_values(collect, values, [weak]))[0]
    both = judge(with_values(collect, values, [weak, strong, claim("sign", C, B)]))
    assert (alone.ruling, both[0].ruling) == ("supported", "supported")
    assert both[0].p_for == alone.p_for  # the largest of three stays as it is
    strongest = judge(with_values(collect, values, [strong]))[0].p_for
    assert both[1].p_for == pytest.approx(3 * strongest)


def test_a_claim_that_one_test_would_support_may_not_survive_ten(collect):
    values = {A: (30, 31, 32), B: (31, 32.5, 32.9)}
    many = [claim("sign", B, A)] + [claim("sign", B, A, sign="-")] * 9
    verdicts = judge(with_values(collect, values, many))
    assert verdicts[0].p_for == pytest.approx(10 * judge(with_values(collect, values, many[:1]))[0].p_for)
    assert verdicts[0].ruling == "undecided"


def test_an_undecided_claim_says_how_many_more_seeds_would_decide_it(judged: Judge):
    # Differences 1.0, 0.0, 2.0: mean 1, sd 1; an effect of one sd needs 8 pairs at 5 % and 80 % power (G*Power).
    verdict = judged({A: (30, 31, 32), B: (31, 31, 34)}, claim("sign", B, A))
    assert verdict.ruling == "undecided"
    assert "5 more seeds (8 in all) would support it with at least 80% probability" in verdict.decided_by
    other = judged({A: (30, 31, 32), B: (31, 31, 34)}, claim("sign", A, B))
    assert "5 more seeds (8 in all) would contradict it" in other.decided_by


def test_seeds_for_a_claim_of_several_comparisons_decide_all_of_them_as_often_as_it_says(judged: Judge):
    # C - A is 1, 0, 2 and C - B is 0, 2, 1: mean 1, sd 1 each; 8 pairs would show each alone, but seldom both.
    verdict = judged({A: (30, 31, 32), B: (31, 29, 33), C: (31, 31, 34)}, claim("best", C, A, B))
    assert "8 more seeds (11 in all) would support it with at least 80% probability" in verdict.decided_by

    def found_both(seeds: int) -> float:
        differences = np.random.default_rng(0).normal(1, 1, (4000, 2, seeds))
        tested = scipy_stats.ttest_1samp(differences, 0, axis=2, alternative="greater")
        return float((tested.pvalue < 0.05).all(axis=1).mean())

    assert found_both(8) < 0.7
    assert found_both(11) >= 0.8


@pytest.mark.parametrize("third", [32.0, 32.001])
def test_where_there_is_next_to_no_difference_no_number_of_seeds_decides(judged: Judge, third: float):
    verdict = judged({A: (30, 31, 32), B: (31, 30, third)}, claim("sign", B, A))
    assert verdict.decided_by == "At this difference no number of seeds up to 1,000 would decide it."


@pytest.mark.parametrize("ahead", [0, 2])
def test_seeds_that_agree_to_the_digit_decide_nothing(judged: Judge, ahead: float):
    same = {A: (30, 31, 32), B: (30 + ahead, 31 + ahead, 32 + ahead)}
    for made in (claim("sign", B, A), claim("at_least", B, A, margin=-0.5), claim("order", A, B)):
        verdict = judged(same, made)
        assert verdict.ruling == "undecided"
        assert verdict.decided_by.startswith("Seeds agree to the digit, so that their spread isn't known;")


def test_one_seed_decides_nothing_and_shows_what_other_images_would_do(collect):
    collected = with_values(collect, {A: (30,), B: (33,)}, [claim("sign", B, A)])
    verdict = judge(collected)[0]
    assert verdict.ruling == "undecided"
    assert verdict.text.startswith("+3.0 AP with one seed.")
    assert "needs two at least" in verdict.decided_by
    samples = np.linspace(-1, 1, 1001)
    entries = [
        replace(entry, resampled={"AP": entry.results[0].metrics["AP"] + scale * samples})
        for entry in collected.entries
        if entry.results
        for scale in (1 if entry.row.label == A else 3,)
    ]
    verdict = judge(replace(collected, entries=entries))[0]
    assert verdict.text.startswith("+3.0 AP [+1.1, +4.9] with one seed (in brackets: over other images")
    assert verdict.ruling == "undecided"


def test_a_row_without_runs_leaves_a_claim_undecided(collect):
    collected = collect("date/table5", {A: (0, 1)})
    verdict = judge(collected)[0]
    assert verdict.ruling == "undecided"
    assert verdict.text == (
        "Not measured: Baseline (OneNet), POTO (not run). Runs of these rows would decide it."
    )


def test_rows_without_a_common_seed_leave_a_claim_undecided(judged: Judge, collect):
    collected = with_values(collect, {A: (30, 31), B: (32, 33)}, [claim("sign", B, A)])
    entry = collected.entry(B)
    entry.results[:] = [replace(result, seed=result.seed + 2) for result in entry.results]
    assert judge(collected)[0].reason == "Its rows have no seed in common."


def test_a_claim_about_quoted_rows_is_never_decided_here(collect):
    collected = collect("align-detr/table1", 0)
    about_others = next(v for v in judge(collected) if "Focus-DETR" in v.claim.text)
    assert about_others.ruling == "undecided"
    assert "quoted rows are never run" in about_others.text


def test_a_counted_number_decides_with_one_run(collect):
    collected = collect("date/table8", 1)
    assert {verdict.ruling for verdict in judge(collected)} == {"supported"}
    rows = ("DATE-F (Ours), infer", "DATE-F (Ours), train")
    claims = [
        claim("order", *rows, metric="params_m"),
        claim("best", *rows[::-1], metric="params_m"),
        claim("sign", *rows, metric="params_m", sign="-"),
        claim("sign", rows[0], "OneNet, infer", metric="params_m"),  # equal numbers have no sign
    ]
    verdicts = judge(replace(collected, recipe=replace(collected.recipe, claims=tuple(claims))))
    assert [v.ruling for v in verdicts] == ["supported", "contradicted", "supported", "contradicted"]
    assert all(v.text.endswith("the same for every seed.") for v in verdicts)
    assert all(v.p_for is None for v in verdicts)


def test_claims_on_equal_rows_are_seldom_called_supported(collect):
    rng = np.random.default_rng(0)
    claims = [claim("sign", B, A), claim("sign", C, A), claim("order", C, B, A), claim("best", A, B, C)]
    collected = with_values(collect, UP, claims)
    wrong = 0
    for _ in range(150):
        for label in (A, B, C):
            results = collected.entry(label).results
            results[:] = [replace(result, metrics={"AP": rng.normal(30, 1)}) for result in results]
        wrong += any(verdict.ruling == "supported" for verdict in judge(collected))
    assert wrong / 150 <= 0.08


def test_a_table_has_its_verdicts_and_says_what_the_seeds_could_have_shown(collect):
    table = build(with_values(collect, UP, [claim("sign", B, A)]))
    assert [verdict.ruling for verdict in table.verdicts] == ["supported"]
    # Differences of B: 2.0, 2.1, 1.9: sd 0.1; with 3 seeds 80 % power at 5 % two-sided needs 3.26 sd (G*Power).
    note = next(note for note in table.notes if note.startswith("Smallest true difference"))
    assert "DATE-R (Ours) 0.3" in note
    assert table.notes[-1].endswith("adjusted (Holm) for the 1 claim of this table that was tested.")


def test_a_verdict_with_a_margin_is_qualified_at_other_scales_than_the_papers(collect):
    def notes(made: Claim, **changes: str) -> str:
        return " ".join(build(replace(with_values(collect, UP, [made]), **changes)).notes)

    within = claim("at_least", A, B, margin=-2.5)
    assert "Margins of claims are meant for the paper's scale. Scale cpu" in notes(within)
    assert "Margins" not in notes(within, scale="paper")
    assert "Margins" not in notes(claim("sign", B, A))


def test_verdicts_stand_in_every_form_for_people_and_in_json(collect):
    made = Claim(text="B beats A", place="section 9", kind="sign", rows=(B, A), note="or so")
    collected = with_values(collect, UP, [made])
    for form, head in (
        ("terminal", "supported  B beats A (section 9; or so)"),
        ("markdown", "- **supported**: B beats A (section 9; or so). +2.0 AP"),
    ):
        assert head in render([collected], form)
    assert "<strong>supported</strong> B beats A <small>section 9; or so</small>" in page([collected])
    tree = json.loads(render([collected], "json"))[0]["verdicts"][0]
    assert (tree["claim"]["text"], tree["ruling"], tree["seeds"]) == ("B beats A", "supported", 3)
    assert tree["contrasts"][0]["difference"]["mean"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ('kind = "sign"\nrows = ["a", "b", "c"]', "sign compares two rows, not 3"),
        ('kind = "best"\nrows = ["a"]', "best compares two rows or more, not 1"),
        ('kind = "order"\nrows = ["a", "b", "a"]', "a row is named twice"),
        ('kind = "best"\nrows = ["a", "b"]\nmargin = 1.0', "a margin belongs to at_least, not to best"),
        ('kind = "order"\nrows = ["a", "b"]\nsign = "-"', "a sign belongs to the kind sign, not to order"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(tmp_path, written: str, problem: str):
    rows = "".join(f'[[row]]\nlabel = "{label}"\nuse = "fcos"\n' for label in "abc")
    (tmp_path / "own.toml").write_text(
        '[recipe]\npaper = "none"\ntable = "table1"\ntitle = "t"\nmetrics = ["AP"]\nbase = "dense"\n'
        f'{rows}[[claim]]\ntext = "so it is"\nplace = "here"\n{written}\n',
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match=f"claim 'so it is': {problem}"):
        load(str(tmp_path / "own.toml"))


def test_a_tolerance_for_no_column_is_refused(tmp_path):
    (tmp_path / "own.toml").write_text(
        '[recipe]\npaper = "none"\ntable = "table1"\ntitle = "t"\nmetrics = ["AP"]\ntolerance = { AR = 1.0 }\n',
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match="tolerance: AR is no metric of this table"):
        load(str(tmp_path / "own.toml"))


def test_a_report_of_fewer_rows_does_not_make_a_claim_easier(collect):
    values = {A: (30, 31, 32), B: (31, 32.5, 32.9), C: (34, 35.1, 36.2)}
    claims = [claim("sign", C, A), claim("sign", B, A), claim("sign", B, C, sign="-")]
    whole = with_values(collect, values, claims)
    fewer = replace(
        whole,
        recipe=replace(whole.recipe, claims=(claims[0],)),
        entries=[whole.entry(A), whole.entry(C)],
        whole=whole,
    )
    assert judge(fewer) == judge(whole)[:1]
    assert judge(replace(fewer, whole=None))[0].p_for < judge(fewer)[0].p_for


def test_a_metric_without_a_value_leaves_a_claim_undecided(collect):
    collected = collect("date/table5", {A: (0, 1), B: (0, 1)})
    nothing = [
        replace(entry, results=[replace(r, metrics=dict.fromkeys(r.metrics)) for r in entry.results])
        for entry in collected.entries
    ]
    text = judge(replace(collected, entries=nothing))[0].text
    assert text.startswith("Not measured: Baseline (OneNet), POTO (not run); Baseline (OneNet) (no AP). ")
    text = judge(replace(collected, entries=nothing))[2].text
    assert text.startswith(f"Not measured: {B} (no AP); {A} (no AP). The validation images have nothing")
