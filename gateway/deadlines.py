"""Many things that may each take the same time, before one timer.

A timer of its own for every call, connection and read would be most of what they cost. Things that share a delay
come due in the order in which they were started, so it is enough to look at the oldest one.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Timed = TypeVar("Timed")
# Event loops round to milliseconds: what is due by less than that is due.
ROUNDING_S = 0.001


class Deadlines(Generic[Timed]):
    """Calls `due` with whatever was started `delay_s` ago and not stopped since; `<Deadlines of 30 s: 3 running>`.

    `due` is called from the event loop, and the thing is stopped by then. `close` drops everything.
    """

    __slots__ = ("_due", "_loop", "_started", "_timer", "delay_s")

    def __init__(self, delay_s: float, due: Callable[[Timed], None]) -> None:
        self.delay_s = delay_s
        self._due = due
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: dict[Timed, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, thing: Timed) -> None:
        """Begins the thing's time, or begins it anew. Needs a running event loop."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._started.pop(thing, None)
        self._started[thing] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.delay_s, self._look)

    def stop(self, thing: Timed) -> None:
        """Ends the thing's time, if it runs."""
        self._started.pop(thing, None)

    def close(self) -> None:
        self._started.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self._loop is not None
        begun_by_s = self._loop.time() - self.delay_s + ROUNDING_S
        try:
            while self._started:
                thing, started_s = next(iter(self._started.items()))
                if started_s > begun_by_s:
                    break
                del self._started[thing]
                self._due(thing)
        finally:
            # Until here the timer that fired stands for itself, so that what `due` starts makes none.
            self._timer = None
            if self._started:
                wait_s = next(iter(self._started.values())) - begun_by_s
                self._timer = self._loop.call_later(max(0.0, wait_s), self._look)

    def __contains__(self, thing: object) -> bool:
        return thing in self._started

    def __repr__(self) -> str:
        return f"<Deadlines of {self.delay_s:g} s: {len(self._started)} running>"
