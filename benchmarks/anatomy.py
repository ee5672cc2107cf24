"""Where a call's microseconds go: each part of a plain call's path, over and over, without a socket.

The sum is what the path costs while everything is in the processor's caches; what a real call costs beyond that is the
kernel's, the event loop's, and cold caches'. It is a map for whoever changes the path, not a figure to compare with
others: `python -m benchmarks.anatomy`.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

import httptools
import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.vllm_bytes import plain_body
from gateway.app import Gateway, running
from gateway.call import Call, Delivery
from gateway.edge.arrival import Arrival
from gateway.edge.exchange import Exchange
from gateway.edge.head import Head, read_head
from gateway.fleet.replica import Health, Replica
from gateway.identity.keys import digest
from gateway.lifetime import Guard
from gateway.relay.relay import relay
from gateway.settings import Settings
from gateway.upstream.engines import Envelope
from gateway.wire import json_text, openai

ROUNDS, CALLS = 15, 2000
SECRET, KEY, MODEL, CHAT = "the-secret-of-the-benchmark", "pg-anatomy", "mock", "/v1/chat/completions"
BODY = orjson.dumps(
    {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Tell me about the quick brown fox, please, in some detail."},
        ],
        "max_tokens": 16,
        "temperature": 0.7,
    }
)
HEADERS = (
    (b"host", b"127.0.0.1:8080"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer " + KEY.encode()),
    (b"content-length", b"%d" % len(BODY)),
)
MESSAGE = b"POST %b HTTP/1.1\r\n%b\r\n%b" % (
    CHAT.encode(),
    b"".join(b"%b: %b\r\n" % pair for pair in HEADERS),
    BODY,
)
Result = TypeVar("Result")


class Nowhere:
    """A caller's connection that takes everything and wants nothing; also a parser's empty protocol."""

    address = "127.0.0.1"

    def write(self, data: bytes) -> None: ...
    def hold_back(self) -> None: ...
    def let_on(self) -> None: ...
    def answered(self, exchange: Exchange) -> None: ...

    def last(self) -> bool:
        return False


class Given:
    """An engine's whole answer."""

    def __init__(self) -> None:
        self.first = plain_body(0, 0, MODEL, 30, 16, length=True)
        self.document: dict[str, Any] = orjson.loads(self.first)

    async def pour(self, sink: Callable[[bytes], bool]) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def finish(self) -> None: ...


def settings() -> Settings:
    """A key and a tenant with limits of every kind, and two replicas; nothing is traced or logged."""
    limits = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrent_calls": 10**5}
    key = {"name": "one", "tenant": "all", "digest": digest(KEY, SECRET.encode()), "limits": limits}
    replicas = [{"name": name, "url": "http://127.0.0.1:9"} for name in ("a", "b")]
    return Settings.model_validate(
        {
            "identity": {"secret": SECRET, "keys": [key], "tenants": [{"name": "all", "limits": limits}]},
            "models": [{"name": MODEL, "replicas": replicas}],
            "telemetry": {"log_calls": False, "log_level": "error"},
        }
    )


def at_once(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    raise RuntimeError("it waits for something")


class Parts:
    """The parts of one call's path, in its order, each as a function that can be called again and again."""

    def __init__(self, gateway: Gateway) -> None:
        self.pipeline = gateway.pipeline
        self.surface = gateway.public
        self.new_id = gateway.new_id
        self.parser = httptools.HttpRequestParser(Nowhere())
        self.head = self.read_head()
        self.principal = at_once(self.pipeline.identities.authenticate(KEY, ""))
        self.resolve = partial(self.pipeline.catalog.resolve, may_call=self.principal.may_call)
        self.call: Call = self.read()
        self.replica: Replica = self.pipeline.fleet.snapshot().of(MODEL)[0]
        self.trace = self.pipeline.telemetry.call(self.arrive())
        self.given = Given()

    def parse(self) -> None:
        self.parser.feed_data(MESSAGE)

    def read_head(self) -> Head:
        return read_head(b"POST", CHAT.encode(), HEADERS, "1.1", keep_alive=True)

    def arrive(self) -> Arrival:
        exchange = Exchange(Nowhere(), self.head, self.new_id(), 0.0)
        exchange.feed(BODY)
        exchange.complete()
        return Arrival(exchange, self.surface.reading)

    def authenticate(self) -> None:
        at_once(self.pipeline.identities.authenticate(self.head.bearer, ""))

    def read(self) -> Call:
        return at_once(self.arrive().read(self.resolve, "salt"))

    def check(self) -> None:
        openai.read_chat(json_text.parse(BODY), 8)

    def follow(self) -> None:
        with self.pipeline.telemetry.call(self.arrive()) as trace:
            span = trace.attempt(self.replica, self.call)
            span.answered()
            span.end(None)
            trace.headers()

    def guard(self) -> None:
        with Guard(self.pipeline.open_calls) as guard:
            guard.watch(self.arrive())

    def admit(self) -> None:
        lease = at_once(self.pipeline.gate.enter(self.principal, self.call))
        lease.lines()
        self.pipeline.gate.leave(lease, None)

    def rank(self) -> None:
        self.pipeline.router.rank(self.call, self.pipeline.fleet.snapshot())

    def address(self) -> None:
        Envelope(self.call.id, "00-0-0-00").head(self.replica.address, CHAT, 400)
        orjson.dumps(self.call.body)

    def relay(self) -> None:
        orjson.loads(self.given.first)
        relay(self.given, self.call, Delivery(), time.monotonic, self.trace.gap, 10**6)

    def answer(self) -> None:
        exchange = Exchange(Nowhere(), self.head, "req_1", 0.0)
        exchange.whole(200, b"x" * 200, self.given.first)


def parts(gateway: Gateway) -> list[tuple[str, Callable[[], object], Callable[[], object] | None]]:
    """Words, the part, and what it is measured together with and has to be taken off."""
    it = Parts(gateway)
    return [
        ("the parser (llhttp), without callbacks", it.parse, None),
        ("head: could it be read in two ways", it.read_head, None),
        ("exchange, identifier, arrival", it.arrive, None),
        ("identity: key to principal", it.authenticate, None),
        ("edge: body to call", it.read, it.arrive),
        ("· of that, strict JSON and the table of fields", it.check, None),
        ("guard", it.guard, it.arrive),
        ("admission: reserve, settle, headers", it.admit, None),
        ("routing, two replicas", it.rank, None),
        ("upstream: the message to the engine", it.address, None),
        ("relay: a whole reply", it.relay, None),
        ("telemetry, not sampled", it.follow, it.arrive),
        ("the answer's bytes", it.answer, None),
    ]


def cost_us(part: Callable[[], object]) -> float:
    """Microseconds of processor time a run, in the best of several rounds."""
    best_s = float("inf")
    for _ in range(ROUNDS):
        begun_s = time.process_time()
        for _ in range(CALLS):
            part()
        best_s = min(best_s, time.process_time() - begun_s)
    return best_s / CALLS * 1e6


async def task_us() -> float:
    """A task that does nothing, from its creation to its end."""
    loop = asyncio.get_running_loop()
    best_s = float("inf")
    for _ in range(ROUNDS):
        begun_s = time.process_time()
        for _ in range(CALLS):
            await loop.create_task(asyncio.sleep(0))
        best_s = min(best_s, time.process_time() - begun_s)
    return best_s / CALLS * 1e6


async def measure() -> list[tuple[str, float]]:
    async with AsyncExitStack() as up:
        gateway = await up.enter_async_context(running(settings()))
        for replica in gateway.pipeline.fleet.snapshot().of(MODEL):
            replica.health = Health.UP
        found = [
            (words, cost_us(part) - (cost_us(without) if without else 0.0)) for words, part, without in parts(gateway)
        ]
        return [*found, ("a task", await task_us())]


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure())
    table = Table("part of a plain call", "us", title="Where a call's microseconds go")
    table.columns[1].justify = "right"
    for words, us in found:
        table.add_row(words, f"{us:.1f}")
    table.add_row("together", f"{sum(us for words, us in found if not words.startswith('·')):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
