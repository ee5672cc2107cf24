"""A whole gateway on a loopback socket, in the test's own event loop, before whatever engines a test brings.

The ledger is checked when a gateway is left: no call open, no lease held, nothing in flight, one log line a call,
no prompt and no key in what was logged and measured, nothing that escaped to the server below.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gateway.fleet.replica import Health, Replica
from gateway.identity.keys import digest
from gateway.server import Serving, serving
from gateway.settings import Settings, parse
from gateway.telemetry import logs
from tests.wire_client import Headers, WireClient, WireReply, WireStream

SECRET = "a-secret-of-the-tests"
KEY = "pg-test-key"
ADMIN_KEY = "pga-test-key"
MODEL = "tiny"
PROMPT = "xylophone marzipan"
"""What `hello` says: words that have no business in a log."""

CHAT = "/v1/chat/completions"


def hello(content: str = PROMPT, **fields: Any) -> dict[str, Any]:
    """The body of a call."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def key(name: str, secret: str = KEY, **fields: Any) -> dict[str, Any]:
    """A key for the settings."""
    return {"name": name, "digest": digest(secret, SECRET.encode()), **fields}


def administered(database: Path) -> dict[str, Any]:
    """Sections for a gateway with a database and an administrator."""
    administrator = {"name": "root", "digest": digest(ADMIN_KEY, SECRET.encode()), "role": "admin"}
    return {
        "store": {"url": f"sqlite:///{database}", "refresh_s": 0.02, "usage_flush_s": 0.02},
        "admin": {"port": 0, "keys": [administrator]},
    }


def bearer(secret: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


class LogLines(io.RawIOBase):
    """Takes a gateway's log, and gives it back as values."""

    def __init__(self) -> None:
        self.text = b""
        self._written = asyncio.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.text += bytes(data)
        self._written.set()
        return len(data)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Waits until what was logged makes the fact true."""
        while not fact():
            self._written.clear()
            await self._written.wait()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.text.splitlines()]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


@dataclass
class Clock:
    """A clock that stands still until it is told to go on; seconds."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


async def begun(client: WireClient) -> WireStream:
    """The reply to the call that was sent, once its head is there."""
    return WireStream(client, await client.head())


@dataclass
class Harness:
    """A gateway under test. `calls` are the log lines of the calls that have ended."""

    serving: Serving
    log: LogLines = field(repr=False)
    failures_expected: bool = False
    lines_expected: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.serving.port}"

    @property
    def operations_url(self) -> str:
        return f"http://127.0.0.1:{self.serving.metrics_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.serving.admin_port}"

    async def administer(self, method: str, path: str, body: Any = None, key: str = ADMIN_KEY) -> WireReply:
        """A call to the admin API, by the administrator of the tests unless another key is given."""
        async with WireClient(self.admin_url) as client:
            await client.send(method, f"/admin/v1{path}", json=body, headers=bearer(key))
            return await client.reply()

    @property
    def gate(self) -> str:
        return repr(self.serving.gateway.pipeline.gate)

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self.log.named("call")

    @property
    def headers(self) -> dict[str, str]:
        return bearer()

    async def post(self, body: Any = None, headers: Headers | None = None, path: str = CHAT) -> WireReply:
        """A call on a connection of its own, with the usual key unless headers are given; and its reply."""
        async with WireClient(self.url) as client:
            return await client.post(path, json=body or hello(), headers=bearer() if headers is None else headers)

    async def get(self, path: str, headers: Headers | None = None) -> WireReply:
        async with WireClient(self.url) as client:
            return await client.get(path, headers=bearer() if headers is None else headers)

    @asynccontextmanager
    async def sent(self, body: Any = None, headers: Headers | None = None) -> AsyncIterator[WireClient]:
        """A call that was sent on a connection of its own, and of whose reply nothing was read yet."""
        async with WireClient(self.url) as client:
            await client.send("POST", CHAT, json=body or hello(), headers=bearer() if headers is None else headers)
            yield client

    @asynccontextmanager
    async def stream(self, headers: Headers | None = None, **fields: Any) -> AsyncIterator[WireStream]:
        """A streamed call on a connection of its own, read no further than the head."""
        body = hello(stream=True, **fields)
        async with (
            WireClient(self.url) as client,
            client.stream(CHAT, body, headers=bearer() if headers is None else headers) as stream,
        ):
            yield stream

    def replica(self, name: str) -> Replica:
        return next(
            replica
            for pool in self.serving.gateway.pipeline.fleet.snapshot().pools.values()
            for replica in pool
            if replica.name == name
        )

    async def until_up(self, *names: str) -> None:
        """Waits until the replicas (all, unless named) take calls."""
        async with asyncio.timeout(10):
            await self.serving.gateway.pipeline.fleet.until(
                lambda snapshot: all(
                    replica.health is Health.UP
                    for pool in snapshot.pools.values()
                    for replica in pool
                    if not names or replica.name in names
                )
            )

    async def until_down(self, name: str) -> None:
        """Waits until a replica takes no calls."""
        async with asyncio.timeout(10):
            await self.serving.gateway.pipeline.fleet.until(lambda _: self.replica(name).health is Health.DOWN)

    async def ended(self, calls: int = 1) -> dict[str, Any]:
        """Waits until so many calls have ended since the start; the log line of the last one."""
        async with asyncio.timeout(10):
            await self.log.until(lambda: len(self.calls) >= calls)
        return self.calls[-1]

    async def until_idle(self) -> None:
        """Waits until no call is open: the last one was settled and logged."""
        async with asyncio.timeout(10):
            await self.serving.gateway.pipeline.open_calls.until_none()

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the series with these labels, as a scrape would see it; 0 where there is none."""
        total = 0.0
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        for line in self.serving.gateway.metrics.exposition().decode().splitlines():
            series, _, value = line.rpartition(" ")
            found, _, given = series.partition("{")
            if found == name and wanted <= set(given.rstrip("}").split(",")):
                total += float(value)
        return total

    def assert_balanced(self) -> None:
        """Nothing is left behind."""
        pipeline = self.serving.gateway.pipeline
        assert repr(pipeline.open_calls) == "<OpenCalls 0>"
        assert self.gate.startswith("<Gate 0 running")
        in_flight = {
            replica.name: replica.in_flight for pool in pipeline.fleet.snapshot().pools.values() for replica in pool
        }
        assert not any(in_flight.values()), in_flight
        identifiers = [line["call"] for line in self.calls]
        assert len(identifiers) == len(set(identifiers)), "a call was logged twice"
        if self.lines_expected:
            assert self.metric("pagegate_calls_total") == len(identifiers)
        told = self.log.text + self.serving.gateway.metrics.exposition()
        for secret in (KEY, ADMIN_KEY, SECRET, *PROMPT.split()):
            assert secret.encode() not in told
        escaped = [line for line in self.log.lines if line["event"] == "library" and line["level"] == "error"]
        assert not escaped
        assert self.failures_expected or not self.log.named("call_failed")


def settings_for(engines: Mapping[str, str], sections: Mapping[str, Any]) -> Settings:
    """Settings for engines given as name -> URL, with sections of a test's own laid over the usual ones."""
    usual: dict[str, Any] = {
        "server": {"port": 0, "drain_timeout_s": 5},
        "identity": {
            "secret": SECRET,
            "failures_per_minute": 1_000_000,
            "tenants": [{"name": "default"}],
            "keys": [key("tester")],
        },
        "models": [{"name": MODEL, "replicas": [{"name": name, "url": url} for name, url in engines.items()]}],
        "fleet": {"probe_interval_s": 0.05, "probe_timeout_s": 1},
        "upstream": {"backoff_s": 0.001},
    }
    for name, section in sections.items():
        usual[name] = {**usual[name], **section} if isinstance(usual.get(name), dict) else section
    return parse(usual, "the test's settings", Path())


@asynccontextmanager
async def gateway(
    engines: Mapping[str, str], *, clock: Clock | None = None, wait: bool = True, **sections: Any
) -> AsyncIterator[Harness]:
    """A gateway before engines (name -> URL), ready unless told not to wait; checked when it is left."""
    settings = settings_for(engines, sections)
    lines = LogLines()
    log = logs.make(settings.telemetry, lines)  # type: ignore[arg-type]  # A raw stream is all that it needs.
    tasks = asyncio.all_tasks()
    given = {"clock": clock} if clock is not None else {}
    async with serving(settings, log=log, **given) as served:
        harness = Harness(served, lines, lines_expected=settings.telemetry.log_calls)
        if wait:
            await harness.until_up()
        yield harness
        await harness.until_idle()
        harness.assert_balanced()
    # A fixture is left in another task of the test runner's than it was entered in.
    left = {task for task in asyncio.all_tasks() - tasks if "TestRunner" not in repr(task.get_coro())}
    assert not left, f"the gateway left tasks behind: {left}"
