"""A finished run is verified from its raw detections; whatever of it is changed, verification names it."""

import hashlib
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from smoke_runs import cell_of, do

from detbench.engine.verify import verify
from detbench.parts.experiment import identity_of, training_digest_of
from detbench.parts.part import digest_of
from detbench.results import read_request, read_result
from detbench.store import CHECKSUMS, Store, write_request

NO_SUMS = f"{CHECKSUMS}: missing or damaged, so that no file can be held to it"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("runs"))
    cell = cell_of("quickstart/onenet", store)
    do(cell, store.cache)
    return cell.folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(finished, tmp_path / finished.parent.name / "0")
    return tmp_path / finished.parent.name / "0"


def change_result(folder, change):
    tree = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    change(tree)
    (folder / "result.json").write_text(json.dumps(tree), encoding="utf-8")


def test_an_untouched_run_agrees_in_every_number_and_file(finished):
    found = verify(finished)
    assert found.problems == ()
    classes = len(json.loads((finished / "result.json").read_text(encoding="utf-8"))["per_class"])
    assert found.numbers == 12 + 6 * classes


def test_checksums_are_those_of_the_files_bytes(finished):
    lines = (finished / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    assert set(sums) == {
        "checkpoint.pt", "curve.jsonl", "detections.npz", "environment.json", "model.safetensors", "result.json"
    }  # fmt: skip
    for name, recorded in sums.items():
        assert recorded == hashlib.sha256((finished / name).read_bytes()).hexdigest()


def test_one_changed_byte_of_any_file_fails_wherever_it_is(folder):
    chance = random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        if path.name in ("log.txt", "lock"):
            continue
        for place in (0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(6))):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            problems = verify(folder).problems
            named = [problem for problem in problems if problem.startswith(f"{path.name}: ")]
            assert problems if path.name == CHECKSUMS else named, f"{path.name}, byte {place}"
        path.write_bytes(content)
    assert verify(folder).problems == ()


def test_rows_that_are_added_to_a_finished_run_leave_it_whole(folder):
    request = read_request(folder)
    write_request(folder, request | {"places": [*request["places"], ["date/table5", "another"]]})
    assert verify(folder).problems == ()


def test_a_run_without_checksums_is_not_called_whole(folder):
    (folder / CHECKSUMS).unlink()
    assert verify(folder).problems == (NO_SUMS,)


def test_a_number_that_the_detections_do_not_give_is_named_even_without_checksums(folder):
    (folder / CHECKSUMS).unlink()
    recorded = read_result(folder).metrics["AP50"]
    change_result(folder, lambda tree: tree["metrics"].update(AP50=99.5))
    found = verify(folder)
    assert [problem for problem in found.problems if problem != NO_SUMS] == [
        f"metrics: AP50: recorded 99.5, the detections give {recorded}"
    ]


def test_other_detections_are_found_out_even_without_checksums(folder):
    (folder / CHECKSUMS).unlink()
    with np.load(folder / "detections.npz") as arrays:
        columns = dict(arrays)
    change_result(folder, lambda tree: tree["metrics"].update(AR100=-1.0))
    columns["boxes_xywh"] = columns["boxes_xywh"] + 500
    np.savez(folder / "detections.npz", **columns)
    assert any(problem.startswith("metrics: AR100") for problem in verify(folder).problems)


def test_a_changed_setting_is_named(folder):
    change_result(folder, lambda tree: tree["experiment"]["optim"].update(lr=0.5))
    problems = verify(folder).problems
    assert any(problem.startswith("digest: recorded") for problem in problems)
    assert any(problem.startswith("experiment: ") for problem in problems)
    assert any(problem.startswith("result.json: changed") for problem in problems)


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: missing" in verify(folder).problems


def test_a_run_from_before_a_setting_existed_still_verifies(folder):
    (folder / CHECKSUMS).unlink()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    for tree in (result, request):
        del tree["experiment"]["optim"]["weight_decay"]
    fingerprint = result["data"]["fingerprint"]
    result["digest"] = digest_of(identity_of(result["experiment"], fingerprint))
    result["training_digest"] = training_digest_of(result["experiment"], fingerprint)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    write_request(folder, request)
    moved = folder.parent.with_name(result["digest"])
    folder.parent.rename(moved)
    assert verify(moved / "0").problems == (NO_SUMS,)


def test_the_command_exits_1_and_names_what_differs(folder):
    command = [sys.executable, "-m", "detbench", "verify", str(folder)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    change_result(folder, lambda tree: tree["metrics"].update(AP75=98.5))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "metrics: AP75: recorded 98.5" in done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert any("result.json: changed" in problem for problem in json.loads(done.stdout)["problems"])
