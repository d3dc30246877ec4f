"""One run trained by two processes: what one would have trained, and nothing lost when one of them is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from detbench import recipes, runs, workers
from detbench.engine.run import run_experiment
from detbench.errors import NonFiniteLoss, RecipeError
from detbench.recipes import Context
from detbench.results import DETECTIONS, ENVIRONMENT, read_curve, read_detections, read_result
from detbench.store import CHECKPOINT, ERROR, STUDENT, WEIGHTS, Store, write_json

SMOOTH = (
    "optim.eps=1.0",
    "optim.lr=0.1",
)  # Adam otherwise makes whole steps of gradients that are but rounding
EXPERIMENTS = {
    "batch norm and centre-ness": ("quickstart/fcos", "training.batch=4", "test.batch=1"),
    "accumulated parts": ("quickstart/onenet", "training.batch=4", "training.accumulate=2"),
    "denoising and dropout": ("align-detr/figure1-right/dino", "detector.transformer.dropout=0.1"),
    "auxiliary heads that sample": ("sized-l1/table4/co-detr",),
    "a sample of positives": ("deta/ablations/deta",),
    "soft pairs": ("match-free/ablations/nothing-detached",),
    "a teacher": (
        "sized-l1/table1/semi-detr-10",
        "training.batch=4",
        "teacher.group=2",
        "teacher.burn_in=0.0",
        "teacher.labels.threshold=0.0",
        # The recipe's own are divided process by process.
        *(f"branches.{branch}.losses.cls.divide_by=pairs" for branch in ("encoder", "decoder", "denoising")),
    ),
}
BREAKS = ("quickstart/fcos", "optim.lr=1e30", "schedule.length=6")


def cell_of(root: Path, pattern: str, *overrides: str) -> runs.Cell:
    context = Context("smoke", None, overrides)
    (cell,) = runs.plan(recipes.select([pattern]), context, seeds=[0], store=Store(root))
    runs.request(cell)
    return cell


def do(cell: runs.Cell, **options: object) -> object:
    return run_experiment(
        cell.experiment, seed=0, fingerprint=cell.fingerprint, scale="smoke", folder=cell.folder,
        cache=cell.folder.parent.parent / "cache", device="cpu", **options,
    )  # fmt: skip


def take_part(index: int, root: Path, meeting: Path) -> None:
    """What each of two processes does."""
    for i, name in enumerate([*EXPERIMENTS, "tested", "broken"]):
        dist.init_process_group("gloo", init_method=f"file://{meeting / str(i)}", rank=index, world_size=2)
        if name in EXPERIMENTS:
            do(cell_of(root / "two", *EXPERIMENTS[name], *SMOOTH))
        elif name == "tested":
            trained = cell_of(root / "one", *EXPERIMENTS["batch norm and centre-ness"], *SMOOTH)
            cell = cell_of(root / "tested", *EXPERIMENTS["batch norm and centre-ness"], *SMOOTH)
            do(cell, weights_from=trained.folder)
        else:
            with pytest.raises(NonFiniteLoss) as stopped:
                do(cell_of(root / "two", *BREAKS))
            (root / f"message {index}").write_text(str(stopped.value), encoding="utf-8")
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every experiment trained by one process and by two."""
    root = tmp_path_factory.mktemp("both")
    for name in EXPERIMENTS:
        do(cell_of(root / "one", *EXPERIMENTS[name], *SMOOTH))
        cell_of(root / "two", *EXPERIMENTS[name], *SMOOTH)
    meeting = root / "meeting"
    meeting.mkdir()
    torch.multiprocessing.spawn(take_part, (root, meeting), nprocs=2)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_processes_train_what_one_does(both: Path, name: str) -> None:
    one, two = (cell_of(both / runs_, *EXPERIMENTS[name], *SMOOTH).folder for runs_ in ("one", "two"))
    for file in (WEIGHTS, STUDENT):
        if (one / file).is_file():
            theirs = load_file(two / file)
            for key, weight in load_file(one / file).items():
                assert torch.allclose(theirs[key], weight, rtol=1e-4, atol=2e-6), (file, key)
    for alone, shared in zip(read_curve(one).steps, read_curve(two).steps, strict=True):
        assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-4, abs=1e-6)
    assert (read_result(one).environment["processes"], read_result(two).environment["processes"]) == (1, 2)


@pytest.mark.slow
def test_two_processes_detect_what_one_does_in_the_same_order(both: Path) -> None:
    one, two = (
        cell_of(both / runs_, *EXPERIMENTS["batch norm and centre-ness"], *SMOOTH)
        for runs_ in ("one", "tested")
    )
    for alone, shared in zip(
        vars(read_detections(one.folder / DETECTIONS)).values(),
        vars(read_detections(two.folder / DETECTIONS)).values(),
        strict=True,
    ):
        assert np.array_equal(alone, shared)
    assert read_result(one.folder).metrics == read_result(two.folder).metrics


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_both_with_one_message(both: Path) -> None:
    first, second = ((both / f"message {index}").read_text(encoding="utf-8") for index in range(2))
    assert first == second
    assert "is not finite" in first
    assert first.count(".png") + first.count("train") >= 2, "the images of both are named"


# --- with processes that the leader starts ----------------------------------------------------------

LONG = ("quickstart/fcos", "schedule.length=40", "training.evaluations=2")


def start(cell: runs.Cell) -> subprocess.Popen[bytes]:
    """The worker of a cell, with a peer, in a session of their own."""
    command = [
        sys.executable, "-m", "detbench.engine", str(cell.folder), "--cache", str(cell.folder.parents[1] / "cache"),
        "--processes", "2", "--device", "cpu", "--checkpoint-seconds", "0",
    ]  # fmt: skip
    with (cell.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def wait_for(done: object, *, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for_another(path: Path) -> None:
    """Waits until a file is written anew. Between two checkpoints there is a moment without one."""

    def written() -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime_ns
        return None

    before = written()
    wait_for(lambda: written() not in (None, before))


def is_gone(session: int) -> bool:
    """Whether no process of a session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return True
    return False


def peer_of(leader: int) -> int:
    return int(Path(f"/proc/{leader}/task/{leader}/children").read_text(encoding="utf-8").split()[0])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the peer through Linux's /proc")
def test_a_run_that_lost_a_process_stops_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, cut = cell_of(tmp_path / "whole", *LONG), cell_of(tmp_path / "cut", *LONG)
    assert start(whole).wait() == 0

    leader = start(cut)
    wait_for((cut.folder / CHECKPOINT).is_file)
    os.kill(peer_of(leader.pid), signal.SIGKILL)
    assert leader.wait(timeout=60) == 1
    assert "process 1 of 0 to 1 was killed by signal 9" in (cut.folder / ERROR).read_text(encoding="utf-8")

    (cut.folder / ERROR).unlink()
    leader = start(cut)
    wait_for_another(cut.folder / CHECKPOINT)
    leader.kill()
    leader.wait()
    wait_for(lambda: is_gone(leader.pid))  # its peer doesn't outlive it

    leader = start(cut)
    wait_for_another(cut.folder / CHECKPOINT)
    leader.send_signal(signal.SIGINT)
    assert leader.wait(timeout=60) == 130

    assert start(cut).wait() == 0
    weights = load_file(whole.folder / WEIGHTS)
    assert all(torch.equal(weight, load_file(cut.folder / WEIGHTS)[key]) for key, weight in weights.items())
    assert read_result(cut.folder).metrics == read_result(whole.folder).metrics


@pytest.mark.slow
def test_torchrun_trains_every_run_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "detbench",
    ]
    command += [
        "run",
        "quickstart/fcos",
        "quickstart/onenet",
        "--scale",
        "smoke",
        "--runs",
        str(tmp_path),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [table["name"] for table in json.loads(done.stdout)] == ["quickstart"], "one process prints"
    results = list(Store(tmp_path).results())
    assert len(results) == 2
    assert all(result.environment["processes"] == 2 for result in results)


# --- what is refused --------------------------------------------------------------------------------


def test_a_batch_that_processes_cant_share_is_refused(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "quickstart/fcos", "training.batch=4", "training.accumulate=2")
    with pytest.raises(RecipeError, match=r"4 images .* in 2 equal shares, which 4 processes can't divide"):
        workers.execute([cell], store=Store(tmp_path), processes=4)


def test_a_run_goes_on_with_the_processes_it_began_with(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "quickstart/fcos")
    write_json(cell.folder / ENVIRONMENT, {"threads": 1})
    with pytest.raises(RecipeError, match=r"begun with 1 processes.*found 2"):
        workers.execute([cell], store=Store(tmp_path), processes=2)


def test_several_processes_take_a_gpu_each(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="2 processes take a GPU each"):
        workers.execute([], store=Store(tmp_path), processes=2, device="cuda:1")


def test_half_of_torchruns_variables_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert workers.launched() is None  # as in a cluster's job of one command, which no torchrun started


@pytest.mark.parametrize(
    ("options", "message"), [({"jobs": 2}, "side by side"), ({"processes": 3}, "started 2")]
)
def test_under_torchrun_the_number_of_processes_is_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        workers.execute([], store=Store(tmp_path), **options)  # type: ignore[arg-type]
