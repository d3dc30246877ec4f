"""What workers are started with; what they do is in engine/test_runs_end_to_end.py."""

import pytest

from detbench import workers


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("processes, threads", [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_cores_are_divided_among_processes(processes, threads):
    assert workers.default_threads(processes) == threads


def test_the_number_of_threads_that_the_environment_asks_for_is_taken(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert workers.default_threads(2) == 3


@pytest.mark.parametrize("value", ["", "0", "many", "2,1"])
def test_what_is_no_number_of_threads_is_as_if_unset(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert workers.default_threads(2) == 4


def test_the_one_thread_that_torchrun_sets_by_itself_is_not_taken_for_a_wish(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert workers.default_threads(2) == 4


def test_idle_threads_do_not_spin_for_long_even_where_their_number_is_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = workers._environment(threads=2)
    assert (environment["OMP_NUM_THREADS"], environment["GOMP_SPINCOUNT"]) == ("2", "1000")


def test_how_idle_threads_wait_is_left_to_who_has_said_it(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in workers._environment(threads=2)
