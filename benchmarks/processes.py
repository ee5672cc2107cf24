"""Processes that the benchmark starts and always ends: pinned to cores, with a log, and last words if they fail.

Each runs in a session of its own, so that a Ctrl-C reaches this process alone, which then ends the others.
"""

import asyncio
import os
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cores import pinned
from benchmarks.measuring import descendants
from benchmarks.serving import HOST

PATIENCE_S = 6.0
LINES_SHOWN = 12
LONGEST_LINE = 2**26
"""What a load process says at once: its histograms."""


class Trouble(Exception):
    """The benchmark cannot go on, or not with this gateway; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process under way."""

    name: str
    process: Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    def trouble(self, what: str) -> Trouble:
        """What went wrong, with the process' last words."""
        return Trouble(f"{self.name} {what}{last_words(self.log)}")

    async def line(self, within_s: float) -> bytes:
        """The next line it says. Raises Trouble where it ends or says nothing."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise self.trouble(f"said nothing for {within_s:.0f} s") from None
        if not line:
            await self.process.wait()
            raise self.trouble(f"ended with status {self.process.returncode}")
        return line

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(ConnectionError):
            self.process.stdin.write(line + b"\n")


def last_words(log: Path) -> str:
    """The end of a log, indented; nothing of a log that is empty."""
    with suppress(OSError):
        lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n    {line[:240]}" for line in lines[-LINES_SHOWN:])
    return ""


@asynccontextmanager
async def started(
    name: str,
    command: Sequence[str],
    *,
    cores: tuple[int, ...],
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    talks: bool = False,
) -> AsyncIterator[Started]:
    """A process, and none of it afterwards. One that `talks` has pipes, and a log of what it complains about only."""
    with log.open("wb") as file, pinned(cores):
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE if talks else asyncio.subprocess.DEVNULL,
                stdout=PIPE if talks else file,
                stderr=file,
                cwd=folder,
                env={**os.environ, **environment} if environment else None,
                start_new_session=True,
                limit=LONGEST_LINE,
            )
        except OSError as error:
            raise Trouble(f"{name} cannot be started: {error.strerror}: {command[0]}") from None
    try:
        yield Started(name, process, log)
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    """Asks it to end, and makes it; also those of its descendants that outlive it."""
    pids = descendants(process.pid) if process.returncode is None else set()
    try:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await process.wait()
    finally:
        # No await from here on: a second Ctrl-C must not leave anything behind.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    await process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def require_free(ports: Sequence[int]) -> None:
    """Raises Trouble for a port that somebody has."""
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, port))
            except OSError as error:
                raise Trouble(
                    f"port {port} cannot be taken: {error.strerror}; end what listens there, or choose others"
                ) from None
