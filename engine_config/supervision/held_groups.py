"""Holds process groups to this process: when it vanishes, even by SIGKILL, they are ended.

Owns the reaper (`engine_config.supervision.reaper`) and the pipe that it reads; the pipe's end is what tells it. A
reaper that dies is replaced. Ending the groups of a supervisor that lives is the supervisor's own business.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

REAPER = (sys.executable, "-m", "engine_config.supervision.reaper")
PAUSE_S = 1.0


class HeldGroups:
    """The groups that are held; `kept` must run for as long as any is.

    Args:
        environment: What the reaper inherits; None for all that we have.
        reaper: Its program and arguments.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, reaper: Sequence[str] = REAPER) -> None:
        self._environment = environment
        self._reaper = tuple(reaper)
        self._groups: set[int] = set()
        self._pipe: int | None = None

    def __repr__(self) -> str:
        return f"<HeldGroups {len(self._groups)}, {'with' if self._pipe is not None else 'without'} a reaper>"

    def hold(self, group: int) -> None:
        """From now on the group is ended when this process vanishes."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """The group is gone."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    async def kept(self) -> None:
        """Keeps a reaper running until cancelled; it then ends what is still held."""
        while True:
            await self._one_reaper()
            await asyncio.sleep(PAUSE_S)

    async def _one_reaper(self) -> None:
        reading, writing = os.pipe()
        devnull = asyncio.subprocess.DEVNULL
        try:
            reaper = await asyncio.create_subprocess_exec(
                *self._reaper,
                stdin=reading,
                stdout=devnull,
                stderr=devnull,
                start_new_session=True,
                env=self._environment,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._pipe = writing
        try:
            for group in self._groups:
                self._tell(f"+{group}\n")
            await reaper.wait()
        finally:
            self._pipe = None
            os.close(writing)
            await reaper.wait()

    def _tell(self, line: str) -> None:
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # a reaper has just died: the next one is told everything
                os.write(self._pipe, line.encode())
