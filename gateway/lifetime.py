"""Tasks beside a block, and how a call under way is ended from outside: its caller left, its time is up, we shut down.

Each of these interrupts the task that runs the call, and the block that guards the call turns the cancellation
into the error that says why. No other module ends a call by cancelling its task.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from gateway.errors import CallTimedOut, Draining, GatewayError

Departure = Callable[[], Awaitable[GatewayError | None]]
"""Ends when the caller has left, with the error that says how; with None when his reply is complete."""


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

    Entering raises Draining once no more calls are taken; leaving raises the error that the call was interrupted
    with. Whoever interrupts is another task or a timer: the call itself is then at an await inside the block, so
    the cancellation arrives there and never after it.
    """

    def __init__(self, open_calls: "OpenCalls", deadline_s: float) -> None:
        self._open_calls = open_calls
        self._deadline_s = deadline_s
        self._error: GatewayError | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._open_calls.add(self)
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._cancelling = task.cancelling()
        self._deadline = self._loop.call_later(self._deadline_s, self.interrupt, CallTimedOut(self._deadline_s))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_calls.discard(self)
        self._deadline.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._error is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error from None

    def watch(self, departure: Departure) -> None:
        """From now on the caller's departure ends the call; his body must have been read."""
        self._watcher = self._loop.create_task(self._watch(departure))

    def interrupt(self, error: GatewayError) -> None:
        """Ends the call with `error`; the first reason given is the one that counts."""
        if self._error is None:
            self._error = error
            self._task.cancel()

    async def _watch(self, departure: Departure) -> None:
        error = await departure()
        if error is not None:
            self.interrupt(error)


class OpenCalls:
    """The calls under way; `<OpenCalls 3>`."""

    def __init__(self) -> None:
        self._guards: set[Guard] = set()
        self._closed = False
        self._none = asyncio.Event()

    def add(self, guard: Guard) -> None:
        """Raises Draining once calls are refused."""
        if self._closed:
            raise Draining
        self._guards.add(guard)

    def discard(self, guard: Guard) -> None:
        self._guards.discard(guard)
        if not self._guards:
            self._none.set()

    def refuse(self) -> None:
        """Takes no more calls; those under way go on."""
        self._closed = True

    def interrupt_all(self, error: GatewayError) -> None:
        for guard in tuple(self._guards):
            guard.interrupt(error)

    async def until_none(self) -> None:
        """Waits until no call is under way."""
        while self._guards:
            self._none.clear()
            await self._none.wait()

    def __len__(self) -> int:
        return len(self._guards)

    def __repr__(self) -> str:
        return f"<OpenCalls {len(self)}>"
