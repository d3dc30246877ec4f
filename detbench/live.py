"""What a user sees while runs are at work: a live table on a terminal, plain lines where output is piped."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from detbench.runs import Cell, Progress, progress
from detbench.workers import Outcome, Watch

_REFRESH_SECONDS = 1.0  # reading curves is cheap, not free


@contextlib.contextmanager
def watching(cells: Sequence[Cell]) -> Iterator[Watch]:
    """A function to call again and again with the running cells and the outcomes so far."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield _Screen(cells, live)
    else:
        yield _Lines(cells)


class _Screen:
    """The live table: row, seed, epoch, loss, score, time left."""

    def __init__(self, cells: Sequence[Cell], live: Live) -> None:
        self.cells, self.live, self.next = cells, live, 0.0
        self.cached = {id(cell) for cell in cells if cell.state == "finished"}

    def __call__(self, running: Sequence[Cell], done: Sequence[Outcome]) -> None:
        if time.monotonic() < self.next and running:
            return
        self.next = time.monotonic() + _REFRESH_SECONDS
        ended = {id(outcome.cell): outcome.state for outcome in done}
        table = Table("row", "seed", "state", "epoch", "loss", "score", "time left", box=None, pad_edge=False)
        for cell in self.cells:
            at_work = cell in running
            if id(cell) in self.cached and id(cell) not in ended and not at_work:
                table.add_row(cell.label, str(cell.seed), "[dim]was finished[/]", "", "", "", "")
                continue
            state = ended.get(id(cell), "running" if at_work else "waiting")
            now = progress(cell.folder) if at_work or state == "finished" else None
            table.add_row(cell.label, str(cell.seed), _colour(state), *_columns(now, at_work))
        self.live.update(table)


class _Lines:
    """One line when a run starts, at each tenth of it, and when it ends."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.said: dict[int, tuple[str, int]] = {}
        self.next = 0.0
        finished = sum(cell.state == "finished" for cell in cells)
        _say(f"{len(cells)} run{'s' * (len(cells) != 1)}, {finished} finished before")

    def __call__(self, running: Sequence[Cell], done: Sequence[Outcome]) -> None:
        for outcome in done:
            if self.said.get(id(outcome.cell), ("", 0))[0] != "ended":
                self.said[id(outcome.cell)] = ("ended", 0)
                _say(f"{_name(outcome.cell)}: {outcome.state}{_ending(outcome)}")
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + _REFRESH_SECONDS
        for cell in running:
            now = progress(cell.folder)
            tenth = 10 * now.step // now.of if now else 0
            if self.said.get(id(cell)) != ("running", tenth):
                self.said[id(cell)] = ("running", tenth)
                _say(f"{_name(cell)}: {'starts' if now is None else _sentence(now)}")


def _columns(now: Progress | None, at_work: bool) -> tuple[str, str, str, str]:
    if now is None:
        return ("", "", "", "starting" if at_work else "")
    left = now.seconds_left if at_work else None
    return (
        f"{now.epoch:.1f}",
        "" if now.loss is None else f"{now.loss:.3f}",
        _score(now),
        "" if left is None else _duration(left),
    )


def _sentence(now: Progress) -> str:
    loss = "" if now.loss is None else f", loss {now.loss:.3f}"
    score = "" if now.score is None else f", {_score(now)}"
    left = "" if now.seconds_left is None else f", {_duration(now.seconds_left)} left"
    return f"step {now.step} of {now.of}{loss}{score}{left}"


def _ending(outcome: Outcome) -> str:
    if outcome.message:
        return f": {outcome.message}"
    now = progress(outcome.cell.folder)
    return "" if now is None or now.score is None else f", {_score(now)}"


def _score(now: Progress) -> str:
    return "" if now.score is None else f"{now.score[0]} {now.score[1]:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _colour(state: str) -> str:
    colours = {
        "finished": "green",
        "failed": "red",
        "interrupted": "yellow",
        "paused": "dim",
        "stopped": "yellow",
        "running": "cyan",
        "waiting": "dim",
    }
    return f"[{colours[state]}]{state}[/]"


def _name(cell: Cell) -> str:
    return f"{cell.label}, seed {cell.seed}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
