"""One life of one child process: started in a group of its own, heard, asked whether it is ready, and ended.

What a child is meant to be is a `ChildSpec`; when it starts, starts again or stops is decided by
`supervisor`.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

from engine_config.supervision import groups
from engine_config.supervision.held_groups import HeldGroups
from engine_config.supervision.words import Words

LAST_WORDS_S = 2.0
POLL_S = 0.05
PROBE_S = 5.0
HURRIED_S = 3.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process that is to run and to answer over HTTP.

    Attributes:
        name: What it is called, in reports and as its log file.
        command: Program and arguments.
        port: Where it answers.
        host: The address to ask it at.
        probe_path: What answers 200 once it is ready.
        grace_s: How long it may take to end after SIGTERM before it is killed.
        leftovers_s: How long the processes that it leaves behind may take.
        startup_timeout_s: How long it may take from its start until it is ready.
        environment: Its whole environment; None for ours.
    """

    name: str
    command: tuple[str, ...]
    port: int
    host: str = "127.0.0.1"
    probe_path: str = "/health"
    grace_s: float = 30.0
    leftovers_s: float = 10.0
    startup_timeout_s: float = 900.0
    environment: Mapping[str, str] | None = None


class Life(asyncio.SubprocessProtocol):
    """A running child. `on_exit` is called once, in the event loop, when its first process has ended."""

    def __init__(self, words: Words, held: HeldGroups, on_exit: Callable[[], None]) -> None:
        self._words = words
        self._held = held
        self._on_exit = on_exit
        self._exited = asyncio.Event()
        self._silent = asyncio.Event()
        self._hurried = False
        self._patience: asyncio.Timeout | None = None
        self.group = 0

    def __repr__(self) -> str:
        return f"<Life of {self.group}, {'over' if self.is_over else 'running'}>"

    @property
    def is_over(self) -> bool:
        return self._exited.is_set()

    @property
    def status(self) -> int | None:
        """Exit status, -N after signal N; None while it runs."""
        return self._transport.get_returncode() if self.is_over else None

    async def end(self, grace_s: float) -> bool:
        """Asks the child to end, and kills it after `grace_s`. Whether it ended by itself."""
        self._signal(signal.SIGTERM)
        await self._over_within(0 if self._hurried else grace_s)
        if self._hurried:
            # The gateway takes a second request as leave to cut its open calls off.
            self._signal(signal.SIGTERM)
            await self._over_within(HURRIED_S)
        by_itself = self.is_over
        await self.kill()
        return by_itself

    def hurry(self) -> None:
        """Shortens what the child has left to end; again, and it has none."""
        self._hurried = True
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def kill(self) -> None:
        """Kills the child's first process; what it leaves behind is cleared when its block is left."""
        self._signal(signal.SIGKILL)
        await self._exited.wait()

    async def clear(self, patience_s: float) -> None:
        """Ends what the child left behind, killing it after `patience_s`, and hears its last words.

        It is asked first, because a vLLM engine core that is killed leaves hundreds of MiB in /dev/shm.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not groups.is_empty(self.group):
                groups.send(self.group, number)
                await self._emptied(patience_s)
        with suppress(TimeoutError):  # a process that left the group may hold the pipe
            async with asyncio.timeout(LAST_WORDS_S):
                await self._silent.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Not by the transport: it looks first whether the process has ended, and asyncio's own wait for that
        # would then find nothing and invent an exit status.
        if not self.is_over:
            with suppress(ProcessLookupError):
                os.kill(self.group, number)

    async def _over_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds) as self._patience:
                await self._exited.wait()
        except TimeoutError:
            pass
        finally:
            self._patience = None

    async def _emptied(self, patience_s: float) -> None:
        for _ in range(int((HURRIED_S if self._hurried else patience_s) / POLL_S)):
            if groups.is_empty(self.group):
                return
            await asyncio.sleep(POLL_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.group = self._transport.get_pid()
        self._held.hold(self.group)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._words.hear(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._silent.set()

    def process_exited(self) -> None:
        self._exited.set()
        self._on_exit()


@asynccontextmanager
async def living(spec: ChildSpec, words: Words, held: HeldGroups, on_exit: Callable[[], None]) -> AsyncIterator[Life]:
    """Starts the child; when the block is left, by whatever way, nothing of it runs. Raises OSError."""
    words.begin()
    transport, life = await asyncio.get_running_loop().subprocess_exec(
        lambda: Life(words, held, on_exit),
        *spec.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env=spec.environment,
    )
    try:
        yield life
        if life.is_over:
            await life.clear(spec.leftovers_s)
    finally:
        groups.send(life.group, signal.SIGKILL)
        await life.kill()
        held.release(life.group)
        transport.close()


async def ended(spec: ChildSpec, words: Words) -> int | None:
    """Runs a child that ends by itself; its exit status. It does not end with us when we are killed."""
    over = asyncio.Event()
    async with living(spec, words, HeldGroups(), over.set) as life:
        await over.wait()
    return life.status


async def answers(host: str, port: int, path: str) -> bool:
    """Whether a GET is answered 200 within `PROBE_S`."""
    try:
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                name = f"[{host}]" if ":" in host else host
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError is an endless line
        return False
    return status.split(b" ")[1:2] == [b"200"]
