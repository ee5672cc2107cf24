"""Tasks beside a block, and how a call under way is ended from outside: its caller left, its time is up, the gateway shuts down.

Each of these interrupts the task that runs the call, and the block that guards the call turns the cancellation
into the error that says why. The one place in the gateway where tasks are cancelled.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from gateway.errors import CallerLeft, CallTimedOut, GatewayError, SlowReader

Receive = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def background() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks beside the block; the end of the block waits for them. What the block raises is not wrapped in a group."""
    group = await asyncio.TaskGroup().__aenter__()
    try:
        yield group
    finally:
        await group.__aexit__(None, None, None)


class Guard:
    """Guards a call in the current task, from entering to leaving the block.

    Watches `receive` for the caller's departure; the body must have been read by then. Leaving the block raises
    the error that the call was interrupted with.
    """

    def __init__(self, open_calls: "OpenCalls", receive: Receive, deadline_s: float, slow_reader_s: float) -> None:
        self._open_calls = open_calls
        self._receive = receive
        self._deadline_s = deadline_s
        self._slow_reader_s = slow_reader_s
        self._error: GatewayError | None = None
        self._sending_since_s: float | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._cancelling = task.cancelling()
        self._open_calls.add(self)
        self._watcher = self._loop.create_task(self._watch())
        self._deadline = self._loop.call_later(self._deadline_s, self.interrupt, CallTimedOut(self._deadline_s))
        self._patience: asyncio.TimerHandle | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_calls.discard(self)
        self._watcher.cancel()
        self._deadline.cancel()
        if self._patience is not None:
            self._patience.cancel()
        if self._error is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error from None

    def interrupt(self, error: GatewayError) -> None:
        """Ends the call with `error`; the first reason given is the one that counts."""
        if self._error is None:
            self._error = error
            self._task.cancel()

    async def send(self, sending: Awaitable[None]) -> None:
        """Awaits a write to the caller; one that makes no headway for too long interrupts the call."""
        if self._patience is None:
            self._patience = self._loop.call_later(self._slow_reader_s / 2, self._check_reader)
        self._sending_since_s = self._loop.time()
        await sending
        self._sending_since_s = None

    def _check_reader(self) -> None:
        # One lazy timer a stream instead of one a write: a stall is noticed within one and a half times the limit.
        since_s = self._sending_since_s
        if since_s is not None and self._loop.time() - since_s >= self._slow_reader_s:
            self.interrupt(SlowReader(self._slow_reader_s))
        else:
            self._patience = self._loop.call_later(self._slow_reader_s / 2, self._check_reader)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.interrupt(CallerLeft())


class OpenCalls:
    """The calls under way; `<OpenCalls 3>`."""

    def __init__(self) -> None:
        self._guards: set[Guard] = set()

    def add(self, guard: Guard) -> None:
        self._guards.add(guard)

    def discard(self, guard: Guard) -> None:
        self._guards.discard(guard)

    def interrupt_all(self, error: GatewayError) -> None:
        for guard in tuple(self._guards):
            guard.interrupt(error)

    def __len__(self) -> int:
        return len(self._guards)

    def __repr__(self) -> str:
        return f"<OpenCalls {len(self)}>"
