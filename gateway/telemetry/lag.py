"""How late the event loop is: what every chunk of every stream waits for, whoever keeps the loop busy."""

import asyncio
from collections.abc import Callable
from types import TracebackType

PERIOD_S = 0.1


class LoopLag:
    """Tells `observe`, every `PERIOD_S` while the block runs, how many seconds after its time a timer was called."""

    def __init__(self, observe: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._observe = observe
        self._clock = clock

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._due_s = self._clock() + PERIOD_S
        self._timer = self._loop.call_later(PERIOD_S, self._called)

    def _called(self) -> None:
        # A loop counts from the start of its turn, and so may be early.
        self._observe(max(0.0, self._clock() - self._due_s))
        self._wait()
