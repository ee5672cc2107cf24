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

Ask = Callable[[int], Awaitable[Changes]]
"""What has changed after a revision; raises StoreLost."""
Note = Callable[[str], None]
"""Is told once when the database is lost, with why, and once when it is back, with an empty text."""


class Following:
    """Use as `async with`: entering asks once, and then a task goes on. `<Following revision 17>`."""

    def __init__(self, directory: Directory, ask: Ask, every_s: float, note: Note) -> None:
        self._directory = directory
        self._ask = ask
        self._every_s = every_s
        self._note = note
        self._lost = ""
        self._wanted = asyncio.Event()

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
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._wanted.wait()
            self._wanted.clear()
            await self._look()

    def soon(self) -> None:
        """Asks at the next moment: something has just been changed here."""
        self._wanted.set()

    async def _look(self) -> None:
        known = self._directory.revision
        try:
            changes = await self._ask(known)
            # A database that was put back to what it was earlier: what is known may never have been.
            restarted = changes.revision < known == self._directory.revision
            if restarted:
                changes = await self._ask(0)
        except StoreLost as lost:
            if not self._lost:
                self._note(str(lost))
            self._lost = str(lost)
            return
        if restarted:
            self._directory.restart(changes.revision, changes.tenants, changes.keys)
        elif changes.revision != known or not self._directory.complete:
            self._directory.follow(changes.revision, changes.tenants, changes.keys)
        if self._lost:
            self._lost = ""
            self._note("")

    def __repr__(self) -> str:
        return f"<Following revision {self._directory.revision}{f', lost: {self._lost}' if self._lost else ''}>"
