"""The processes that train one run together: how they meet, what they exchange, what happens when one is lost.

The first, the leader, holds the run's folder, writes and reports; the others, its peers, only compute. `--nproc` has
the leader start its peers on this machine. Under torchrun it asks the other commands that torchrun started for them,
which do nothing else (`follow`). All meet at a key-value store, where it is also told why the run can't go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # torch's, untyped

from detbench.core.distributed import num_processes
from detbench.errors import Interrupted
from detbench.store import ERROR, LOG, write_json
from detbench.workers import Launch

T = TypeVar("T")

_TOLD = "told"  # the key of why a run can't go on
_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # in which a lost process is named, before what it broke elsewhere is reported


# --- what processes exchange ------------------------------------------------------------------------


def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """Makes gradients the sums over all processes; one that no process has stays None.

    One flat sum after the last backward pass, not DistributedDataParallel: that averages, wants every parameter used
    in every process, and would have to be told of accumulated parts and of modules that learn beside the model.
    """
    if num_processes() == 1:
        return
    grads = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
    is_there = grads[0].new_tensor([p.grad is not None for p in parameters])
    flat = torch.cat([is_there, *(grad.flatten() for grad in grads)])
    dist.all_reduce(flat)
    there, *sums = torch.split(flat, [len(parameters), *(p.numel() for p in parameters)])
    for parameter, grad, total, present in zip(parameters, grads, sums, there.tolist(), strict=True):
        parameter.grad = grad.copy_(total.view_as(grad)) if present else None


def gather_objects(x: T) -> list[T]:
    """Every process's object, in their order."""
    if num_processes() == 1:
        return [x]
    objects: list[Any] = [None] * num_processes()
    dist.all_gather_object(objects, x)
    return objects


def wait_for_all() -> None:
    """Returns once every process has come here."""
    gather_objects(None)


def leave() -> None:
    """Ends what is done together: from here on a process is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


# --- how they meet ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seat:
    """A process's place among those that train a run.

    Attributes:
        index: from 0, the leader.
        number: of all.
        local_index: among those of its machine; says which GPU is its own.
        host: of the store.
        port: of the store.
        run: the run's own prefix in the store.
    """

    index: int
    number: int
    local_index: int
    host: str
    port: int
    run: str

    def device(self, asked: str) -> str:
        """A GPU of its own, where GPUs are asked for or there are some."""
        if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
            return "cpu"
        return f"cuda:{self.local_index}"

    def store(self) -> Store:
        """A new connection to what is known of the run."""
        return PrefixStore(self.run, TCPStore(self.host, self.port))

    def tell(self, message: str, kind: str) -> None:
        """Lets all processes know why the run can't go on; the first reason is kept."""
        with contextlib.suppress(RuntimeError):  # the store may be gone, and with it whom to tell
            self.store().compare_set(_TOLD, "", json.dumps({"message": message, "kind": kind}))


@contextlib.contextmanager
def led(folder: Path, number: int, launch: Launch | None, command: Sequence[str]) -> Iterator[Seat]:
    """Assembles the processes that train a run, and joins them as their leader.

    Args:
        folder: the run's.
        number: of processes, several.
        launch: what torchrun said, if it started this; else the peers are started here.
        command: the leader's arguments, which its peers get as well.
    """
    watches = []
    if launch is None:
        meeting = TCPStore("localhost", 0, is_master=True)  # port 0: the system chooses a free one
        seats = [Seat(i, number, i, "localhost", meeting.port, "run") for i in range(number)]
        for seat in seats[1:]:
            watches.append(threading.Thread(target=_see_off, args=(_start(command, seat), seat), daemon=True))
            watches[-1].start()
        own = seats[0]
    else:
        store = _store_of(launch)
        run = _run_name(store.add("runs", 1))
        store.set(run, json.dumps(command))
        own = _seat_of(launch, run)
    try:
        with joined(own, folder):
            yield own
    finally:
        for watch in watches:
            watch.join()


@contextlib.contextmanager
def joined(seat: Seat, folder: Path) -> Iterator[None]:
    """Takes a seat. The run ends for all processes when it ends for one: this one may exit here at any moment."""
    over = threading.Event()
    watch = threading.Thread(target=_exit_when_told, args=(seat, folder, over), daemon=True)
    watch.start()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(
            backend, store=PrefixStore("group", seat.store()), rank=seat.index, world_size=seat.number
        )
        yield
    except (Interrupted, KeyboardInterrupt):  # all are, and the leader may still be saving
        raise
    except Exception as error:
        if isinstance(error, RuntimeError):  # as a lost process leaves in others
            watch.join(_GRACE_SECONDS)
        seat.tell(str(error), type(error).__name__)
        raise
    finally:
        over.set()
        leave()
        if seat.index == 0:
            seat.tell("the leader has ended", "RunFailed")


def _start(command: Sequence[str], seat: Seat, **settings: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "detbench.engine", *command, "--peer", json.dumps(asdict(seat))],
        stdin=subprocess.DEVNULL,
        **settings,
    )


def _see_off(peer: subprocess.Popen[bytes], seat: Seat) -> None:
    """Waits for a peer's end, and tells of it if it isn't a good one."""
    code = peer.wait()
    if code not in (0, Interrupted.exit_code):
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        seat.tell(
            f"process {seat.index} of 0 to {seat.number - 1} was {how}, and the others can't go on without it. "
            "Run again to go on from the last checkpoint",
            "RunFailed",
        )


def _exit_when_told(seat: Seat, folder: Path, over: threading.Event) -> None:
    """Ends this process, which may be waiting for one that is lost, once somebody tells why."""
    try:
        store = seat.store()
        while not store.check([_TOLD]):
            if over.wait(_LOOK_SECONDS):
                return
        told = json.loads(store.get(_TOLD))
    except RuntimeError:  # the store is gone, and with it whoever held it
        told = {"message": "the process that started this one is gone", "kind": "RunFailed"}
    if over.is_set():
        return
    if seat.index == 0:
        write_json(folder / ERROR, told)
        print(told["message"], file=sys.stderr, flush=True)
    os._exit(1)


# --- under torchrun ---------------------------------------------------------------------------------


@contextlib.contextmanager
def leading(launch: Launch) -> Iterator[None]:
    """Holds the followers together while the first command has runs trained, and lets them go in the end."""
    store = _store_of(launch, hosts=not launch.has_store)
    try:
        yield
    finally:
        store.set(_run_name(store.add("runs", 1)), "")


def follow(launch: Launch) -> None:
    """Takes part in every run that the first command has trained, until that one ends.

    Raises:
        KeyboardInterrupt: the user stopped it; its process has stopped as well.
    """
    store = _store_of(launch)
    for number in itertools.count(1):
        run = _run_name(number)
        while not store.check([run]):
            time.sleep(_LOOK_SECONDS)
        asked = store.get(run)
        if not asked:
            return
        command = json.loads(asked)
        seat = _seat_of(launch, run)
        with (Path(command[0]) / LOG).open("ab") as log:
            # A session of its own, as the leader's: Ctrl-C reaches it once, from here.
            peer = _start(command, seat, stdout=log, stderr=log, start_new_session=True)
        try:
            _see_off(peer, seat)
        except KeyboardInterrupt:
            peer.terminate()
            peer.wait()
            raise


def _store_of(launch: Launch, *, hosts: bool = False) -> Store:
    meeting = TCPStore(launch.host, launch.port, is_master=hosts, wait_for_workers=False)
    return PrefixStore(launch.attempt, meeting)


def _run_name(number: int) -> str:
    return f"run {number}"


def _seat_of(launch: Launch, run: str) -> Seat:
    return Seat(
        launch.index, launch.number, launch.local_index, launch.host, launch.port, f"{launch.attempt} {run}"
    )
