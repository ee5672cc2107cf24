"""The gateway as a process: sockets, signals, and the way down.

The first SIGTERM or SIGINT makes the gateway unready, then closes the listener, waits for open calls, ends those
that take too long with an error event, and leaves with status 0. The second one ends open calls at once.
"""

import asyncio
import gc
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn
import uvloop
from prometheus_client import disable_created_metrics
from starlette.routing import Router

from gateway.app import Clock, Gateway, running
from gateway.errors import ShuttingDown
from gateway.lifetime import background
from gateway.settings import ServerSettings, Settings
from gateway.telemetry.logs import Log

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for an error event to leave once calls were interrupted, before connections are cut.
FAREWELL_S = 2
YOUNG_OBJECTS = 50_000


class PortTaken(Exception):
    """The address cannot be listened on."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot listen on {host} port {port}: {why}")


class Listener(uvicorn.Server):
    """uvicorn on sockets of ours; signals are the process's business, not its."""

    def __init__(self, app: Router, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=int(settings.keep_alive_s),
                timeout_graceful_shutdown=int(settings.drain_delay_s + settings.drain_timeout_s + FAREWELL_S) + 1,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def accepting(self) -> None:
        """Waits until connections are accepted."""
        while not self.started:
            await asyncio.sleep(0.001)


@dataclass(slots=True)
class Serving:
    """A gateway that listens. `port` is the one it got, `metrics_port` likewise where it has one."""

    gateway: Gateway
    host: str
    port: int
    metrics_port: int | None
    _settings: ServerSettings
    _listeners: tuple[Listener, ...]
    _hurry: asyncio.Event

    async def drain(self) -> None:
        """Shuts the door and waits until the last call has ended or was ended."""
        self.gateway.pipeline.draining = True
        self.gateway.log.info("draining", open_calls=len(self.gateway.pipeline.open_calls))
        await self._pause(self._settings.drain_delay_s)
        for listener in self._listeners:
            listener.should_exit = True
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._settings.drain_timeout_s
        while self.gateway.pipeline.open_calls and loop.time() < end_s and not self._hurry.is_set():
            await self._pause(min(0.05, end_s - loop.time()))
        self.gateway.pipeline.open_calls.interrupt_all(ShuttingDown())

    def hurry(self) -> None:
        """Makes a drain end now."""
        self._hurry.set()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._hurry.wait()
            except TimeoutError:
                pass


@asynccontextmanager
async def serving(
    settings: Settings, *, log: Log | None = None, clock: Clock = time.monotonic
) -> AsyncIterator[Serving]:
    """A gateway that accepts calls while the block runs, and is drained after. Raises PortTaken, SettingsError."""
    server = settings.server
    sockets = [listen(server.host, server.port)]
    try:
        if server.metrics_port is not None:
            sockets.append(listen(server.metrics_host, server.metrics_port))
        async with running(settings, log=log, clock=clock) as gateway, background() as group:
            apps = [gateway.public, gateway.operations][: len(sockets)]
            listeners = tuple(Listener(app, server) for app in apps)
            for listener, bound in zip(listeners, sockets, strict=True):
                group.create_task(listener.serve([bound]))
                await listener.accepting()
            ports = [bound.getsockname()[1] for bound in sockets]
            serving = Serving(
                gateway, server.host, ports[0], ports[1] if len(ports) > 1 else None, server, listeners, asyncio.Event()
            )
            try:
                yield serving
            finally:
                await serving.drain()
    finally:
        for bound in sockets:
            bound.close()


async def serve(settings: Settings) -> None:
    """Serves until a signal comes, and then drains. Raises PortTaken, SettingsError."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    async with serving(settings) as served:

        def on_signal() -> None:
            if stop.is_set():
                served.hurry()
            stop.set()

        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal)
        served.gateway.log.info("listening", host=served.host, port=served.port, metrics_port=served.metrics_port)
        settle_memory()
        await stop.wait()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises PortTaken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortTaken(host, port, error.strerror or str(error)) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


def run(settings: Settings) -> None:
    """`serve` in an event loop of its own, in a process of its own."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # A creation time for each series doubles what every scrape carries.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
