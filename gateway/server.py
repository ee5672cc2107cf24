"""The gateway as a process: sockets, signals, and the way down.

The first SIGTERM or SIGINT makes the gateway unready, then shuts the door, waits for open calls, ends those that
take too long with an error event, and leaves with status 0. The second one ends open calls at once.
"""

import asyncio
import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

import uvloop
from prometheus_client import disable_created_metrics

from gateway.app import Clock, Gateway, running
from gateway.edge.callers import Callers, ConnectionLimits
from gateway.edge.routes import Surface
from gateway.errors import ShuttingDown
from gateway.settings import ServerSettings, Settings
from gateway.telemetry.logs import Log

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for what was said last to reach callers, before their connections are cut.
FAREWELL_S = 2.0
BACKLOG = 4096
YOUNG_OBJECTS = 50_000
SPARE_FILES = 256
# What accepted sockets inherit: a caller who vanished without a word is noticed within 45 s, and what the kernel holds
# for one who does not read stays small.
SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 45_000),
    (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 128 * 1024),
)


class PortTaken(Exception):
    """The address cannot be listened on."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot listen on {host} port {port}: {why}")


class Listener:
    """A socket of ours, and who calls on it. Use as `async with`: leaving it shuts the door and waits."""

    def __init__(self, surface: Surface, bound: socket.socket, limits: ConnectionLimits, gateway: Gateway) -> None:
        self._bound = bound
        self.port: int = bound.getsockname()[1]
        self.callers = Callers(surface, surface.surplus, limits, gateway.metrics, gateway.new_id, gateway.clock)

    async def __aenter__(self) -> "Listener":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.callers.connection, sock=self._bound, backlog=BACKLOG)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
        await self.callers.gone(FAREWELL_S)

    def close(self) -> None:
        """Accepts no more connections; those that carry no call are closed, the others after their reply."""
        self._server.close()
        self.callers.close()


@dataclass(slots=True)
class Serving:
    """A gateway that listens. `port` is the one it got, the others likewise where it has them."""

    gateway: Gateway
    host: str
    port: int
    metrics_port: int | None
    admin_port: int | None
    _settings: ServerSettings
    _public: Listener
    _hurried: bool = False
    _patience: asyncio.Timeout | None = None

    async def drain(self) -> None:
        """Goes on while load balancers learn to send calls elsewhere, then takes none and waits for the last one."""
        pipeline = self.gateway.pipeline
        pipeline.draining = True
        self.gateway.log.info("draining", open_calls=len(pipeline.open_calls))
        self._public.callers.retire()
        if self._settings.drain_delay_s:
            await self._wait(asyncio.Event().wait(), self._settings.drain_delay_s)
        pipeline.open_calls.refuse()
        self._public.close()
        await self._wait(pipeline.open_calls.until_none(), self._settings.drain_timeout_s)
        pipeline.open_calls.interrupt_all(ShuttingDown())

    @property
    def max_connections(self) -> int:
        """As many callers as may be connected: as set, or fewer where files are scarce."""
        return self._public.callers.limits.connections

    def hurry(self) -> None:
        """Makes a drain end now."""
        self._hurried = True
        if self._patience is not None:
            self._patience.reschedule(0)

    async def _wait(self, what: Awaitable[object], at_most_s: float) -> None:
        try:
            async with asyncio.timeout(0 if self._hurried else at_most_s) as self._patience:
                await what
        except TimeoutError:
            pass
        finally:
            self._patience = None


@asynccontextmanager
async def serving(
    settings: Settings, *, log: Log | None = None, clock: Clock = time.monotonic
) -> AsyncIterator[Serving]:
    """A gateway that accepts calls while the block runs, and is drained after. Raises PortTaken, SettingsError."""
    server = settings.server
    limits = ConnectionLimits(
        server.head_timeout_s,
        server.slow_reader_s,
        server.keep_alive_s,
        connections=min(server.max_connections, affordable_connections()),
        connections_per_address=server.max_connections_per_address,
    )
    with ExitStack() as bound:
        # Ports first: one that is taken should cost nothing.
        door = bound.enter_context(listen(server.host, server.port))
        side_door = _bound(bound, server.metrics_host, server.metrics_port)
        back_door = _bound(bound, settings.admin.host, settings.admin.port)
        async with AsyncExitStack() as up:
            gateway = await up.enter_async_context(running(settings, log=log, clock=clock))
            beside = [
                None if bound_to is None else await up.enter_async_context(Listener(surface, bound_to, limits, gateway))
                for surface, bound_to in ((gateway.operations, side_door), (gateway.admin, back_door))
            ]
            metrics_port, admin_port = (None if listener is None else listener.port for listener in beside)
            public = await up.enter_async_context(Listener(gateway.public, door, limits, gateway))
            served = Serving(gateway, server.host, public.port, metrics_port, admin_port, server, public)
            try:
                yield served
            finally:
                await served.drain()


async def serve(settings: Settings) -> None:
    """Serves until a signal comes, and then drains. Raises PortTaken, SettingsError."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as served:

        def on_signal() -> None:
            if stop.is_set():
                served.hurry()
            stop.set()

        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal)
        served.gateway.log.info(
            "listening",
            host=served.host,
            port=served.port,
            metrics_port=served.metrics_port,
            admin_port=served.admin_port,
            max_connections=served.max_connections,
        )
        settle_memory()
        await stop.wait()


def _bound(bound: ExitStack, host: str, port: int | None) -> socket.socket | None:
    return None if port is None else bound.enter_context(listen(host, port))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises PortTaken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortTaken(host, port, error.strerror or str(error)) from None
    try:
        for level, option, value in SOCKET_OPTIONS:
            bound.setsockopt(level, option, value)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise PortTaken(host, port, error.strerror or str(error)) from None
    return bound


def settle_memory() -> None:
    """Takes what start-up made out of the collector's sight, so that its pauses stay short under many streams."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)


def allow_files(connections: int) -> None:
    """Raises the limit of open files, as far as it may be, to what so many connections and their engines' need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + SPARE_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def affordable_connections() -> int:
    """How many callers' connections the limit of open files has room for: each may need an engine's beside it.

    Without this an engine that cannot be connected to for want of a file would look as if it were down.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, (soft - SPARE_FILES) // 2)


def run(settings: Settings) -> None:
    """`serve` in an event loop of its own, in a process of its own."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # A creation time for each series doubles what every scrape carries.
    allow_files(settings.server.max_connections)
    # What is in memory are callers' words and keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
