"""What `pagegate up` shows: a live table on a terminal while things load, plain lines otherwise.

Owns standard output. What is worth showing is decided by `up`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class Terminal(Protocol):
    """Where steps are shown. A step is named once and then told what it does."""

    def doing(self, step: str, what: str) -> None:
        """The step goes on; the same thing told twice is shown once."""

    def done(self, step: str, what: str) -> None:
        """The step has reached its aim."""

    def trouble(self, step: str, what: str) -> None:
        """The step has met with something that its reader should know."""


class Lines:
    """A line for each change, with the time of day. Percentages are shown in quarters."""

    def __init__(self, out: TextIO, now: Callable[[], datetime] = datetime.now) -> None:
        self._out = out
        self._now = now
        self._shown: dict[str, str] = {}

    def doing(self, step: str, what: str) -> None:
        stage, _, percent = what.rpartition(" ")
        if percent.endswith("%"):
            what = f"{stage} {int(percent[:-1]) // 25 * 25}%"
        self._say(step, what)

    def done(self, step: str, what: str) -> None:
        self._say(step, what)

    def trouble(self, step: str, what: str) -> None:
        self._say(step, what)

    def _say(self, step: str, what: str) -> None:
        if self._shown.get(step) != what:
            self._shown[step] = what
            _print(f"{self._now():%H:%M:%S} {step}: {what}", self._out)


@dataclass(slots=True)
class _Row:
    what: str
    since_s: float
    style: str = ""
    ended_s: float | None = None


class LiveTable:
    """A row for each step, with a spinner while it goes on and the seconds that it has taken."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._spinner = Spinner("dots")

    def doing(self, step: str, what: str) -> None:
        row = self._rows.get(step)
        since_s = row.since_s if row and row.ended_s is None else self._clock()
        self._rows[step] = _Row(what, since_s)

    def done(self, step: str, what: str) -> None:
        self._end(step, what, "green")

    def trouble(self, step: str, what: str) -> None:
        self._end(step, what, "red")

    def _end(self, step: str, what: str, style: str) -> None:
        now_s = self._clock()
        row = self._rows.get(step)
        self._rows[step] = _Row(what, row.since_s if row else now_s, style, now_s)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for step, row in self._rows.items():
            mark = self._spinner if row.ended_s is None else Text("●", row.style)
            took_s = (self._clock() if row.ended_s is None else row.ended_s) - row.since_s
            table.add_row(mark, step, Text(row.what, row.style), Text(f"{took_s:.0f} s", "dim"))
        return table


class Switchable:
    """A terminal that shows a live table inside `live`, where it can, and lines before and after."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: Terminal = Lines(out)
        self._shown: Terminal = self._lines

    def doing(self, step: str, what: str) -> None:
        self._shown.doing(step, what)

    def done(self, step: str, what: str) -> None:
        self._shown.done(step, what)

    def trouble(self, step: str, what: str) -> None:
        self._shown.trouble(step, what)

    def say(self, text: str) -> None:
        """Prints text as it is: lines are not broken, so that they can be pasted."""
        _print(text, self._out)

    @contextmanager
    def live(self) -> Iterator[None]:
        if not self._out.isatty():
            yield
            return
        table = LiveTable()
        with Live(table, console=Console(file=self._out), refresh_per_second=8):
            self._shown = table
            try:
                yield
            finally:
                self._shown = self._lines


def _print(text: str, out: TextIO) -> None:
    # Whoever read our output may have gone: that must not end the engines.
    with suppress(OSError):
        print(text, file=out, flush=True)
