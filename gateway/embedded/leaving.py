"""How a program of ours is told to leave: the first signal cancels what it does, later ones make it hurry."""

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Leaving:
    """Cancels the block at the first signal, and takes the cancellation for a normal end of it.

    Use it in the main task. What the block does on its way out is not cancelled again once `then` was called.
    """

    def __init__(self) -> None:
        self._asked = False
        self._then: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Leaving {'asked' if self._asked else 'not asked'}>"

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        # nohup ignores SIGHUP for us and means it; a shell's & ignores SIGINT for us, and need not mean it.
        hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        self._signals = [number for number in SIGNALS if hangs_up or number is not signal.SIGHUP]
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)
        return self._asked and kind is asyncio.CancelledError and self._task.uncancel() == 0

    def then(self, hurry: Callable[[], None]) -> None:
        """The block is on its way out: from now on a signal calls `hurry`."""
        self._then = hurry

    def _signalled(self) -> None:
        if self._then is not None:
            self._then()
        elif not self._asked:
            self._asked = True
            self._task.cancel()
