"""Sums over processes and values of all of them, with real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detbench.core.distributed import gather_over_processes, sum_over_processes

WORKER = """
import sys
import torch
import torch.distributed as dist
from detbench.core.distributed import gather_over_processes, sum_over_processes

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
print(gather_over_processes(torch.arange(rank * 2) + 10.0 * rank).tolist())
print(sum_over_processes(torch.tensor(float(rank))).item())
dist.destroy_process_group()
"""


def test_alone_a_process_has_its_own_values():
    x = torch.arange(3.0)
    assert gather_over_processes(x) is x
    assert sum_over_processes(x) is x


@pytest.mark.slow
def test_processes_share_values_of_any_number(tmp_path: Path):
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    for worker in workers:
        out, _ = worker.communicate(timeout=120)
        values, total = out.splitlines()
        assert values == "[10.0, 11.0, 20.0, 21.0, 22.0, 23.0]"
        assert float(total) == 3.0
