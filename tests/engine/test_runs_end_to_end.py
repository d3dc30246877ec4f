"""Whole runs at `smoke` scale: every row of every recipe, and what has to hold whatever happens to the process."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from smoke_runs import assert_same_to_the_bit, cell_of, do, train_with_kills, worker

from detbench import recipes, runs, workers
from detbench.data.truth import ground_truth
from detbench.engine import machine
from detbench.errors import NonFiniteLoss, StoreError
from detbench.metrics import pycoco
from detbench.parts.experiment import Experiment
from detbench.recipe_text import Row
from detbench.recipes import Context
from detbench.results import DETECTIONS, read_curve, read_detections, read_result
from detbench.store import CHECKPOINT, ERROR, HELD, PREVIOUS, WEIGHTS, Store


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def distinct_cells() -> list[tuple[str, recipes.Recipe, Row]]:
    """One runnable row for each distinct experiment of all recipes."""
    seen: dict[str, tuple[str, recipes.Recipe, Row]] = {}
    for recipe, rows in recipes.select(["*"]):
        for row in rows:
            if not row.quoted and not recipe.needs(row):
                digest = recipes.resolve(recipe, row, Context("smoke")).digest("any")
                seen.setdefault(digest, (f"{recipe.name}/{recipes.slug(row.label)}", recipe, row))
    return list(seen.values())


def losses_of_last_step(experiment: Experiment, steps: int) -> set[str]:
    """The names of the losses of a run's last step; a teacher's depend on how far the run is."""
    progress = (steps - 1) / steps
    branches = experiment.branches_at(progress)
    parts = {f"{name}.{loss}" for name, branch in branches.items() for loss in branch.losses}
    teacher = experiment.teacher
    if teacher is None or progress < teacher.burn_in:
        return parts
    silent = experiment.silent_at(progress)
    pseudo = {f"pseudo.{part}" for part in parts if part.split(".")[0] not in silent}
    if teacher.consistency is not None and experiment.first_stage_at(progress) is not None:
        pseudo.add("pseudo.consistency")
    return parts | pseudo


@pytest.mark.slow
@pytest.mark.parametrize("name, recipe, row", distinct_cells(), ids=lambda x: x if isinstance(x, str) else "")
def test_every_row_that_can_run_does_at_smoke_scale(name, recipe, row, tmp_path, cache):
    *sources, cell = runs.plan([(recipe, [row])], Context("smoke"), seeds=[0], store=Store(tmp_path))
    for source in sources:
        do(source, cache)
    result = do(cell, cache, init_from=sources[-1].folder if sources else None)
    assert cell.state == "finished"
    assert result.digest == cell.digest
    assert all(0 <= value <= 100 for value in result.metrics.values() if value is not None)
    losses = read_curve(cell.folder).steps[-1]["losses"]
    parts = losses_of_last_step(cell.experiment, result.steps)
    assert set(losses) == parts | {"total"}
    assert losses["total"] == pytest.approx(sum(losses[p] for p in parts), rel=1e-5)


def test_the_written_detections_give_the_written_metrics_in_pycocotools(tmp_path, cache):
    cell = cell_of(
        "quickstart/fcos", Store(tmp_path), "schedule.length=30", "test.postprocess.score_threshold=0.0"
    )
    result = do(cell, cache)
    from detbench.data.dataset import open_data

    annotations = open_data(cell.experiment.data, cache).val.annotations
    truth = ground_truth(annotations, cell.experiment.test.metrics)
    again = pycoco.evaluate(truth, read_detections(cell.folder / DETECTIONS))
    for metric, value in again.summary.items():
        assert result.metrics[metric] == pytest.approx(None if value < 0 else 100 * value, abs=1e-10)


def test_equal_seeds_give_equal_bits_and_other_seeds_other_ones(tmp_path, cache):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cell = cell_of("quickstart/date-f", Store(tmp_path / name), seed=seed)
        do(cell, cache)
        weights.append(load_file(cell.folder / WEIGHTS))
    first, same, other = weights
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_number_of_loading_processes_changes_nothing(tmp_path, cache):
    weights = []
    for processes in (0, 2):
        cell = cell_of("quickstart/onenet", Store(tmp_path / str(processes)))
        do(cell, cache, workers=processes)
        weights.append(load_file(cell.folder / WEIGHTS))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    "settings",
    [
        ("training.ema=0.9",),
        ("training.accumulate=2",),
        ("training.precision=bf16",),
        ("optim.kind=sgd",),
        ("training.evaluations=2", "schedule.length=4"),
    ],
    ids=lambda s: " ".join(s),
)
def test_settings_of_the_loop_run_and_change_the_weights(settings, tmp_path, cache):
    plain, other = (
        cell_of("quickstart/fcos", Store(tmp_path)),
        cell_of("quickstart/fcos", Store(tmp_path), *settings),
    )
    assert plain.digest != other.digest
    do(plain, cache)
    do(other, cache)
    a, b = load_file(plain.folder / WEIGHTS), load_file(other.folder / WEIGHTS)
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_the_moving_average_moves_by_its_share_at_every_step(tmp_path, cache):
    weights = {}
    for length, ema in ((1, "unset"), (1, "0.75"), (2, "unset"), (2, "0.75")):
        settings = (f"training.ema={ema}", f"schedule.length={length}")
        cell = cell_of("quickstart/fcos", Store(tmp_path / f"{length}-{ema}"), *settings)
        do(cell, cache)
        weights[length, ema] = load_file(cell.folder / WEIGHTS)["neck.laterals.0.weight"]
    # The first update copies the weights, the second moves a quarter of the way.
    torch.testing.assert_close(weights[1, "0.75"], weights[1, "unset"])
    expected = 0.75 * weights[1, "unset"] + 0.25 * weights[2, "unset"]
    torch.testing.assert_close(weights[2, "0.75"], expected)


def test_a_loss_that_is_not_finite_names_step_images_and_losses_and_keeps_the_checkpoint(tmp_path, cache):
    cell = cell_of(
        "quickstart/fcos", Store(tmp_path), "optim.lr=1e30", "optim.clip_norm=1e30", "schedule.length=50"
    )
    with pytest.raises(
        NonFiniteLoss,
        match=r"step \d+ of 50: .*not finite .*o2m\.cls.* on the images .*png.*step \d+ is kept",
    ):
        do(cell, cache, checkpoint_seconds=0)
    state = torch.load(cell.folder / CHECKPOINT, weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_one_broken_run_does_not_stop_the_others(tmp_path):
    store = Store(tmp_path)
    bad = cell_of("quickstart/fcos", store, "optim.lr=1e30", "optim.clip_norm=1e30", "schedule.length=50")
    good = cell_of("quickstart/onenet", store)
    outcomes = workers.execute([bad, good], store=store, threads=1)
    assert [outcome.state for outcome in outcomes] == ["failed", "finished"]
    assert "not finite" in outcomes[0].message
    assert bad.state == "failed"
    assert json.loads((bad.folder / ERROR).read_text())["kind"] == "NonFiniteLoss"


@pytest.mark.slow
def test_a_killed_run_ends_bit_identical_to_one_never_killed(tmp_path, cache):
    settings = ("schedule.length=40", "training.ema=0.9", "training.evaluations=4")
    whole = cell_of("quickstart/date-f", Store(tmp_path / "whole"), *settings)
    killed = cell_of("quickstart/date-f", Store(tmp_path / "killed"), *settings)
    assert worker(whole, cache).wait() == 0
    kills = train_with_kills(killed, cache, after=(3, 17, 29))
    assert len(kills) >= 2, "the runs were too quick to be killed"
    assert_same_to_the_bit(whole.folder, killed.folder, WEIGHTS)


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "another pickle"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, cache, damage):
    settings = ("schedule.length=6",)
    whole, hurt = (
        cell_of("quickstart/fcos", Store(tmp_path / name), *settings) for name in ("whole", "hurt")
    )
    do(whole, cache)
    do(hurt, cache, checkpoint_seconds=0)
    path = hurt.folder / CHECKPOINT
    whole_bytes = path.read_bytes()
    path.write_bytes(
        {
            "cut off": whole_bytes[: len(whole_bytes) // 2],
            "empty": b"",
            "text": b"no checkpoint",
            "another pickle": b"\x80\x02garbage",
        }[damage]
    )
    assert (hurt.folder / PREVIOUS).is_file()
    (hurt.folder / "result.json").unlink()
    do(hurt, cache)
    a, b = load_file(whole.folder / WEIGHTS), load_file(hurt.folder / WEIGHTS)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_interrupted_worker_saves_and_says_so(tmp_path, cache):
    cell = cell_of("quickstart/onenet", Store(tmp_path), "schedule.length=100000")
    process = worker(cell, cache)
    while runs.progress(cell.folder) is None and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert cell.state == "resumable"
    state = torch.load(cell.folder / CHECKPOINT, weights_only=True)
    assert state["step"] > 0


def test_a_worker_that_is_stopped_while_it_starts_has_not_failed(tmp_path):
    cell = cell_of("quickstart/onenet", Store(tmp_path))
    # Where C code imports Python code, the interrupt of an import comes out as another error.
    code = f"""
import os, runpy, signal, sys, time

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "detbench.engine.run":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt:
                raise AttributeError("half imported") from None

sys.meta_path.insert(0, Stop())
sys.argv = ["engine", {str(cell.folder)!r}, "--cache", {str(tmp_path)!r}]
runpy.run_module("detbench.engine", run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGTERM
    assert not (cell.folder / ERROR).exists()


def test_rows_that_differ_in_the_test_only_train_once(tmp_path):
    store = Store(tmp_path)
    chosen = recipes.select(["date/table6/date-f-12-ep*"])
    cells = runs.plan(chosen, Context("smoke"), seeds=[0], store=store)
    assert len(cells) == 2
    assert cells[0].training_digest == cells[1].training_digest
    outcomes = workers.execute(cells, store=store, jobs=2, threads=1)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    borrowed = [read_result(cell.folder).weights_from for cell in cells]
    assert sorted(map(bool, borrowed)) == [False, True]
    a, b = (load_file(cell.folder / WEIGHTS) for cell in cells)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_weights_that_another_test_would_borrow_are_named_when_they_are_damaged(tmp_path, cache):
    cells = runs.plan(
        recipes.select(["date/table6/date-f-12-ep*"]), Context("smoke"), seeds=[0], store=Store(tmp_path)
    )
    do(cells[0], cache)
    path = cells[0].folder / WEIGHTS
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-100]), path.unlink):
        damage()
        with pytest.raises(StoreError, match=rf"{path}: can't be used as the run's weights .* with --force"):
            do(cells[1], cache, weights_from=cells[0].folder)


def test_a_finished_run_is_not_run_again_unless_forced(tmp_path):
    store = Store(tmp_path)
    cell = cell_of("quickstart/onenet", store)
    workers.execute([cell], store=store, threads=1)
    written = (cell.folder / "result.json").stat().st_mtime_ns
    assert workers.execute([cell], store=store, threads=1) == []
    assert (cell.folder / "result.json").stat().st_mtime_ns == written
    workers.execute([cell], store=store, threads=1, force=True)
    assert (cell.folder / "result.json").stat().st_mtime_ns > written


def test_force_trains_anew_even_where_another_run_has_the_same_training(tmp_path):
    store = Store(tmp_path)
    chosen = recipes.select(["date/table6/date-f-12-ep*"])
    cells = runs.plan(chosen, Context("smoke"), seeds=[0], store=store)
    workers.execute(cells, store=store, threads=1)
    (trained,) = [cell for cell in cells if not read_result(cell.folder).weights_from]
    workers.execute([trained], store=store, threads=1, force=True)
    again = read_result(trained.folder)
    assert again.weights_from == ""
    assert again.seconds["train"] > 0
    assert len(read_curve(trained.folder).evaluations) == 1


def test_an_unfinished_run_that_is_asked_for_again_follows_the_new_request(tmp_path):
    store = Store(tmp_path)
    first = cell_of("quickstart/onenet", store)
    runs.request(first)
    again = cell_of("quickstart/onenet", store, "test.batch=3")
    assert again.digest == first.digest, "the batch at test changes no number"
    runs.request(again)
    assert json.loads((first.folder / "request.json").read_text())["experiment"]["test"]["batch"] == 3


@pytest.mark.slow
def test_two_batches_started_together_both_end_with_the_run_done_once(tmp_path):
    command = [sys.executable, "-m", "detbench", "run", "quickstart/onenet", "--scale", "smoke"]
    command += ["--runs", str(tmp_path), "schedule.length=200"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    (result,) = tmp_path.glob("*/*/result.json")
    assert read_result(result.parent).steps == 200


def test_a_gpu_that_is_not_there_is_one_message(tmp_path):
    store = Store(tmp_path)
    cell = cell_of("quickstart/onenet", store)
    (outcome,) = workers.execute([cell], store=store, device="cuda:99")
    assert "CUDA devices here" in outcome.message


def test_a_training_that_fails_is_tried_once_for_all_that_share_it(tmp_path):
    store = Store(tmp_path)
    context = Context("smoke", None, ("optim.lr=1e30", "optim.clip_norm=1e30", "schedule.length=50"))
    cells = runs.plan(recipes.select(["date/table6/date-f-12-ep*"]), context, seeds=[0], store=store)
    outcomes = workers.execute(cells, store=store, threads=1)
    assert [outcome.state for outcome in outcomes] == ["failed", "failed"]
    assert "not started: its training is that of" in outcomes[1].message


def test_changed_data_is_refused(tmp_path, cache):
    cell = cell_of("quickstart/onenet", Store(tmp_path))
    stale = runs.Cell(
        cell.places,
        cell.experiment,
        0,
        cell.context,
        "drawn-0000",
        cell.digest,
        cell.training_digest,
        cell.folder,
    )
    from detbench.errors import DataError

    with pytest.raises(DataError, match="has changed since this run was planned"):
        do(stale, cache)


def test_matmul_stays_float32_however_fast_it_is_made():
    machine.prepare(threads=1, device="cpu")
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    error = ((a @ b).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-5, "bfloat16 products miss this by a factor of 100"
    assert torch.get_num_threads() == 1


def test_relative_size_limits_scale_with_the_image(tmp_path, cache):
    cell = cell_of("quickstart/onenet", Store(tmp_path))
    from detbench.data.dataset import open_data

    annotations = open_data(cell.experiment.data, cache).val.annotations
    truth = ground_truth(annotations, cell.experiment.test.metrics)
    assert np.allclose(truth.image_area_factor, 640 * 480 / 64**2)


def test_two_processes_never_train_the_same_run(tmp_path, cache):
    cell = cell_of("quickstart/onenet", Store(tmp_path), "schedule.length=100000")
    first = worker(cell, cache)
    while runs.progress(cell.folder) is None and first.poll() is None:
        time.sleep(0.02)
    assert cell.state == "running"
    assert worker(cell, cache).wait() == HELD
    assert workers._begun_with(cell.folder) == (1, 1), "what a run that goes on starts with again"
    first.terminate()
    assert first.wait() == 130
    shutil.rmtree(cell.folder)
