"""The benchmark end to end, in small: it measures, finds every fault of an engine, and leaves nothing behind."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import checks, client, cores, load, measures
from benchmarks.findings import Findings, Size
from benchmarks.gateways import READY_MADE, Entry, Launch
from benchmarks.http_get import NoAnswer, fetch
from benchmarks.jobs import Job, Kind, Outcome, Target
from benchmarks.lab import Lab, RealEngine
from benchmarks.processes import Trouble
from benchmarks.results import Results, Run
from benchmarks.running import Plan, Running
from benchmarks.scenarios import named
from benchmarks.script import Behaviour, read_prompt
from benchmarks.vllm_bytes import STREAM_HEAD, Words, chunked, plain_body, usage_of
from tests.engines import ScriptedEngine

pytestmark = pytest.mark.anyio

TINY = Size(
    warm_s=0.05,
    window_s=0.2,
    plain=4,
    low_rate=60.0,
    low_streams_rate=30.0,
    streams=4,
    full=4,
    bursts=4,
    open_window_s=0.3,
    open_spare_s=1.0,
    leaving=6,
    gone_within_s=5.0,
    slots=2,
    overload_s=0.4,
    loads=(1.0, 2.0),
)


class Quiet:
    """A listener who only listens."""

    def began(self, entry: Entry, repetition: int, what: str) -> None:
        """Nothing is shown."""

    def ended(self, run: Run, seconds: float) -> None:
        """Nothing is shown."""


def lab(folder: Path, real: RealEngine | None = None) -> Lab:
    plan = cores.plan(cores.usable_cores())
    return Lab(cores=plan, folder=folder, key="sk-of-the-tests", secret="a-secret-of-the-tests", real=real)


async def measured(folder: Path, entry: Entry, *names: str) -> Results:
    plan = Plan(entries=[entry], scenarios=[named(name) for name in names], size=TINY, repetitions=1)
    return await Running(plan, lab(folder), Quiet(), {}).run()


async def test_the_gateway_is_measured(tmp_path: Path) -> None:
    """Calls, open streams and callers who leave: figures, no errors, and every engine call cancelled."""
    results = await measured(tmp_path, READY_MADE["pagegate"], "plain", "open-20", "leave")
    assert [(run.failure, run.errors) for run in results.runs] == [(None, {})] * 3
    plain, opened, left = (run.figures for run in results.runs)
    assert plain["cpu_us_per_call"] > 0
    assert plain["calls_per_s"] > 10
    assert opened["start_mib"] > 20
    assert opened["mib"] >= opened["start_mib"] / 2
    assert opened["astray"] == 0
    assert opened["live_p50_ms"] > 0
    assert [left[f"{name}_cancelled"] for name in ("streaming", "waiting", "plain")] == [100, 100, 100]


async def test_a_pass_through_is_measured(tmp_path: Path) -> None:
    """The other scenarios, before the yardstick; no engine runs more than it has places for."""
    results = await measured(tmp_path, READY_MADE["passthrough"], "latency", "streams", "bursts", "overload")
    assert [(run.failure, run.errors) for run in results.runs] == [(None, {})] * 4
    latency, streams, bursts, overload = (run.figures for run in results.runs)
    assert latency["ttft_p50_ms"] >= 2
    assert streams["cpu_us_per_stream"] > 0
    assert bursts["streams_per_s"] > 1
    assert 0 < overload["peak_per_s"] < 2 * 2 / 0.17 * 2


async def test_a_real_engine_is_measured_directly(tmp_path: Path) -> None:
    """What it says is not known; that it says something and ends rightly is."""
    async with ScriptedEngine(model="tiny") as engine:
        engine.says("The", " capital", ".")
        async with lab(tmp_path, RealEngine(engine.url, "tiny")).bench(READY_MADE["direct"]) as bench:
            found: Findings = await measures.plain(bench, TINY)
            assert (found.errors, bench.real) == (Counter(), True)
            assert found.figures["calls_per_s"] > 1


async def test_a_gateway_that_does_not_start_shows_its_last_words(tmp_path: Path) -> None:
    """The others would go on; it fails in every scenario."""
    broken = Entry(name="broken", about="", launch=lambda _: Launch(["sh", "-c", "echo no such luck >&2; exit 3"]))
    results = await measured(tmp_path, broken, "plain", "overload")
    first, second = (run.failure or "" for run in results.runs)
    assert "broken ended with status 3 before it was ready" in first
    assert "no such luck" in first
    assert "did not start" in second or "ended with status 3" in second


async def test_what_was_started_has_ended_afterwards(tmp_path: Path) -> None:
    """Engines and gateway, also when somebody loses patience."""
    ports: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        async with lab(tmp_path).bench(READY_MADE["passthrough"]) as bench:
            ports += [bench.target.port, *(int(url.rpartition(":")[2]) for url in bench.engines.urls)]
            raise asyncio.CancelledError
    assert len(ports) == 3
    for port in ports:
        with pytest.raises(NoAnswer):
            await fetch("127.0.0.1", port, "/health")


# What a load process says of an engine that is at fault.

TOKENS = 8
Pieces = list[bytes]


def right(call: int) -> Pieces:
    """A stream as a list of its chunks, the end included."""
    words = Words(call, 1, b"m", TOKENS, length=False, usage=usage_of(3, TOKENS))
    framed = words.role() + words.tokens_at_once() + words.closing()
    return [chunked(event) for event in re.findall(rb"data: .*\n\n", framed)] + [b"0\r\n\r\n"]


class Faulty:
    """A server that answers every call with what a fault makes of the right pieces; one call a connection."""

    def __init__(self, spoil: Callable[[Pieces], Pieces]) -> None:
        self._spoil = spoil

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(re.findall(rb"content-length: (\d+)", head)[0])
                body: dict[str, Any] = orjson.loads(await reader.readexactly(size))
                call, _ = read_prompt(body["messages"][-1]["content"], Behaviour())
                if body["stream"]:
                    writer.write(b"".join(self._spoil([STREAM_HEAD, *right(call)])))
                else:
                    writer.write(
                        b"".join(self._spoil([plain_head(call), plain_body(call, 1, "m", 3, TOKENS, length=True)]))
                    )
                if self._spoil is cut_off:
                    return
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


def plain_head(call: int) -> bytes:
    size = len(plain_body(call, 1, "m", 3, TOKENS, length=True))
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % size


@asynccontextmanager
async def faulty(spoil: Callable[[Pieces], Pieces]) -> AsyncIterator[int]:
    server = await asyncio.start_server(Faulty(spoil).answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def found(port: int, *, stream: bool) -> Outcome:
    """What a load process finds there with three calls at a time."""
    job = Job(
        kind=Kind.CLOSED,
        target=Target(host="127.0.0.1", port=port, model="m"),
        stream=stream,
        usage=stream,
        tokens=TOKENS,
        connections=3,
        warm_s=0.0,
        window_s=0.05,
        grace_s=1.0,
    )
    said: list[dict[str, Any]] = []

    async def at_once() -> None:
        """Nobody has to be waited for."""

    await load.work(job, at_once, said.append)
    return Outcome.from_json(said[-1]["outcome"])


def nothing(pieces: Pieces) -> Pieces:
    return pieces


def drop(pieces: Pieces) -> Pieces:
    return pieces[:4] + pieces[5:]


def reorder(pieces: Pieces) -> Pieces:
    return [*pieces[:4], pieces[5], pieces[4], *pieces[6:]]


def duplicate(pieces: Pieces) -> Pieces:
    return [*pieces[:5], pieces[4], *pieces[5:]]


def truncate(pieces: Pieces) -> Pieces:
    return [*pieces[:6], pieces[-1]]


def cut_off(pieces: Pieces) -> Pieces:
    return pieces[:6]


def no_finish(pieces: Pieces) -> Pieces:
    return [piece for piece in pieces if b'"finish_reason":"stop"' not in piece]


def no_done(pieces: Pieces) -> Pieces:
    return [piece for piece in pieces if b"[DONE]" not in piece]


def error(_: Pieces) -> Pieces:
    return [b'HTTP/1.1 500 Oh\r\ncontent-length: 14\r\n\r\n{"error":"oh"}']


def wrong_frame(pieces: Pieces) -> Pieces:
    return [*pieces[:4], b"zz\r\n", *pieces[4:]]


def more_than_asked(pieces: Pieces) -> Pieces:
    return [*pieces, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]


def silence(pieces: Pieces) -> Pieces:
    return pieces[:3]


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (drop, {checks.LOST}),
        (reorder, {checks.REORDERED}),
        (duplicate, {checks.DUPLICATE}),
        (truncate, {checks.LOST, checks.NO_FINISH, checks.NO_DONE, checks.NO_USAGE}),
        (cut_off, {client.CUT_OFF, checks.LOST, checks.NO_FINISH, checks.NO_DONE, checks.NO_USAGE}),
        (no_finish, {checks.NO_FINISH}),
        (no_done, {checks.NO_DONE}),
        (error, {"status 500"}),
        (wrong_frame, {client.FRAMING}),
        (silence, {load.UNFINISHED}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_every_fault_of_a_stream_is_reported(spoil: Callable[[Pieces], Pieces], kinds: set[str]) -> None:
    """By its kind; none of these replies counts as one."""
    async with faulty(spoil) as port:
        outcome = await found(port, stream=True)
    assert outcome.errors.keys() == kinds
    assert outcome.calls == 0
    assert outcome.of("latency").quantile(0.5) is None


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_nothing_is_reported_of_an_engine_that_does_right(stream: bool) -> None:
    """The server of these tests, unspoilt: replies count."""
    async with faulty(nothing) as port:
        outcome = await found(port, stream=stream)
    assert not outcome.errors
    assert outcome.checked > 3
    assert outcome.calls > 0


async def test_an_error_is_shown_with_a_sample_and_a_plain_reply_is_checked_too() -> None:
    """What one of them said helps to find out why."""
    async with faulty(error) as port:
        outcome = await found(port, stream=False)
    assert outcome.errors.keys() == {"status 500"}
    assert outcome.samples == {"status 500": '{"error":"oh"}'}


async def test_bytes_that_nobody_asked_for_are_reported() -> None:
    """A second reply to one call would be taken for the next call's."""
    async with faulty(more_than_asked) as port:
        outcome = await found(port, stream=True)
    assert load.STRAY in outcome.errors


async def test_a_server_that_is_not_there_is_reported() -> None:
    """Every attempt counts."""
    async with faulty(nothing) as port:
        pass
    outcome = await found(port, stream=True)
    assert outcome.errors.keys() == {load.NO_CONNECTION}
    assert outcome.checked == 0


async def test_a_gateway_that_answers_wrongly_is_not_measured(tmp_path: Path) -> None:
    """The first calls must be right; what it said is told."""
    async with faulty(error) as port:
        entry = Entry(name="wrong", about="", url=f"http://127.0.0.1:{port}")
        with pytest.raises(Trouble, match=r'wrong answers wrongly \(\d+ x status 500\): \{"error":"oh"\}'):
            async with lab(tmp_path).bench(entry):
                raise AssertionError("it is measured")
