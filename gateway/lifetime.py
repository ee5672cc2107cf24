"""Tasks beside a block, and how a call under way is ended from outside: its caller left, its time is up, we shut down.

Each of these interrupts the task that runs the call, and the block that guards the call turns the cancellation
into the error that says why. No other module ends a call by cancelling its task.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Protocol, Self

from gateway.deadlines import Deadlines
from gateway.errors import CallTimedOut, Draining, GatewayError


@asynccontextmanager
async def background() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks beside the block; the end of the block waits for them. What the block raises is not wrapped in a group."""
    group = await asyncio.TaskGroup().__aenter__()
    try:
        yield group
    finally:
        await group.__aexit__(None, None, None)


class Departing(Protocol):
    """A caller, as far as he may leave."""

    @property
    def departed(self) -> GatewayError | None:
        """Why he is not there any more; None while he is."""
        ...

    def when_departed(self, told: Callable[[GatewayError], None]) -> None:
        """Calls `told` once if he leaves before he has his whole reply."""
        ...


class Guard:
    """Guards a call in the current task, from entering to leaving the block.

    Entering raises Draining once no more calls are taken; leaving raises the error that the call was interrupted
    with. Whoever interrupts is another task or a timer: the call itself is then at an await inside the block, so
    the cancellation arrives there and never after it.
    """

    __slots__ = ("_cancelling", "_error", "_open_calls", "_task")

    def __init__(self, open_calls: "OpenCalls") -> None:
        self._open_calls = open_calls
        self._error: GatewayError | None = None

    def __enter__(self) -> Self:
        self._open_calls.add(self)
        task = asyncio.current_task(self._open_calls.loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_calls.discard(self)
        if self._error is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error from None

    def watch(self, caller: Departing) -> None:
        """From now on the caller's departure ends the call. Raises how he left, if he has."""
        if caller.departed is not None:
            raise caller.departed
        caller.when_departed(self.interrupt)

    def interrupt(self, error: GatewayError) -> None:
        """Ends the call with `error`; the first reason given is the one that counts."""
        if self._error is None:
            self._error = error
            self._task.cancel()


class OpenCalls:
    """The calls under way; `<OpenCalls 3>`. None may take longer than `deadline_s`."""

    def __init__(self, deadline_s: float) -> None:
        # To ask for the running loop is a system call on some Pythons.
        self.loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(deadline_s, self._end)
        self._guards: set[Guard] = set()
        self._closed = False
        self._none = asyncio.Event()

    def add(self, guard: Guard) -> None:
        """Raises Draining once calls are refused."""
        if self._closed:
            raise Draining
        self._guards.add(guard)
        self._deadlines.start(guard)

    def discard(self, guard: Guard) -> None:
        self._guards.discard(guard)
        self._deadlines.stop(guard)
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

    def close(self) -> None:
        """Nothing comes due any more."""
        self._deadlines.close()

    def _end(self, guard: Guard) -> None:
        guard.interrupt(CallTimedOut(self._deadlines.delay_s))

    def __len__(self) -> int:
        return len(self._guards)

    def __repr__(self) -> str:
        return f"<OpenCalls {len(self)}>"
