"""What a benchmark is at, and how much time is left, on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from perf.bench import Watch

TRUST_S = 30.0
"""The estimates count as much as that much time measured."""


class TimeLeft:
    """What was estimated, mended by how long things really take."""

    def __init__(self, estimated_s: float, now: float) -> None:
        self._estimated_s = estimated_s
        self._done_s = 0.0
        self._begun = now
        self._ends_at = now + estimated_s

    def done(self, estimated_s: float, now: float) -> None:
        """Something has been done that was to take so long."""
        self._done_s += estimated_s
        pace = (now - self._begun + TRUST_S) / (self._done_s + TRUST_S)
        self._ends_at = now + max(0.0, self._estimated_s - self._done_s) * pace

    def seconds(self, now: float) -> float:
        return max(0.0, self._ends_at - now)


def in_words(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.1f} h left"


class _TimeLeftColumn(ProgressColumn):
    def __init__(self, left: TimeLeft) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        return Text(in_words(self._left.seconds(time.monotonic())))


@contextlib.contextmanager
def shown(estimated_s: float) -> Iterator[Watch]:
    """A bar on a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False, emoji=False)
    left = TimeLeft(estimated_s, time.monotonic())
    columns = (BarColumn(20), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
    what_column = TextColumn("{task.description}")
    with Progress(
        *columns, _TimeLeftColumn(left), what_column, console=console, transient=True
    ) as progress:
        task = progress.add_task("", total=estimated_s)

        def doing(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:
                console.print(f"{what} ({in_words(left.seconds(time.monotonic()))})")

        def done(seconds: float) -> None:
            left.done(seconds, time.monotonic())
            progress.advance(task, seconds)

        yield Watch(doing, done)
