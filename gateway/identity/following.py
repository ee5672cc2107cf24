"""Keeps a directory up to date with the database: asks every moment what has changed since it asked last.

A database that is away changes nothing for what is known. Until it has been read once, a key that is unknown may
still turn out to be good: the directory says so.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from gateway.identity.directory import Directory
from gateway.lifetime import background
from gateway.store.database import StoreLost
from gateway.store.rows import Changes

Ask = Callable[[int, str], Awaitable[Changes]]
"""What has changed after a revision that is known by a stamp; raises StoreLost."""
Note = Callable[[str], None]
"""Is told once when the database is lost, with why, and once when it is back, with an empty text."""

# How many keys are taken in before calls have a turn; and how long a change waits for its own to be seen.
AT_A_TIME = 200
AT_ONCE_S = 3.0


class Following:
    """Use as `async with`: entering asks once, and then a task goes on. `<Following revision 17>`."""

    def __init__(self, directory: Directory, ask: Ask, every_s: float, note: Note) -> None:
        self._directory = directory
        self._ask = ask
        self._every_s = every_s
        self._note = note
        self._lost = ""
        self._looking = asyncio.Lock()
        self._stamp = ""

    async def __aenter__(self) -> Self:
        await self._look()
        self._background = background()
        group = await self._background.__aenter__()
        self._task = group.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await self._background.__aexit__(kind, error, trace)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._look()

    async def at_once(self) -> None:
        """Something has just been changed here: returns when the directory has it, or after a time without it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(AT_ONCE_S):
                await self._look()

    async def _look(self) -> None:
        """One look after the other: what was asked earlier must not come later."""
        async with self._looking:
            directory = self._directory
            try:
                changes = await self._ask(directory.revision, self._stamp)
            except StoreLost as lost:
                if not self._lost:
                    self._note(str(lost))
                self._lost = str(lost)
                return
            if changes.whole:
                directory.restart(changes.revision, changes.tenants, changes.keys)
            elif changes.revision != directory.revision or not directory.complete:
                directory.learn(changes.tenants, ())
                for start in range(0, len(changes.keys), AT_A_TIME):
                    directory.learn((), changes.keys[start : start + AT_A_TIME])
                    await asyncio.sleep(0)  # Calls go on meanwhile.
                directory.follow(changes.revision, (), ())
            self._stamp = changes.stamp
            if self._lost:
                self._lost = ""
                self._note("")

    def __repr__(self) -> str:
        return f"<Following revision {self._directory.revision}{f', lost: {self._lost}' if self._lost else ''}>"
