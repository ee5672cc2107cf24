"""Callers' connections, on both event loops: what is no HTTP, what takes too long, what comes too early."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.edge.connection import LINGER_BYTES
from tests.engines import ScriptedEngines, scripted
from tests.harness import CHAT, KEY, Harness, bearer, begun, gateway, hello
from tests.wire_client import WireClient, WireReply, message

pytestmark = pytest.mark.anyio

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
CALL = message("POST", CHAT, json=hello(), headers=bearer())
STREAM = message("POST", CHAT, json=hello(stream=True), headers=bearer())


@pytest.fixture(
    params=[pytest.param(("asyncio", {"use_uvloop": use}), id="uvloop" if use else "asyncio") for use in (False, True)]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The gateway runs on uvloop, and must not depend on it."""
    return request.param


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a") as engines:
        yield engines


@pytest.fixture
async def harness(engines: ScriptedEngines) -> AsyncIterator[Harness]:
    async with gateway({"a": engines["a"].url}) as harness:
        yield harness


def told(reply: WireReply) -> tuple[int, str | None]:
    """Status and type of an error that has an OpenAI body and ends its connection."""
    assert reply.header("connection") == "close"
    assert reply.header("x-request-id")
    assert reply.header("cache-control") == "no-store"
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}
    return reply.status, reply.json["error"]["type"]


# What is no HTTP.


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/9.9\r\nhost: x\r\n\r\n",
        b"get /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\n folded: y\r\nno colon\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nh\x00st: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\x00y\r\n\r\n",
        b"GET /l\x7fvez\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1_0\r\n\r\nhello",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /livez HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a/b?c#d\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a@b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nexpect: the worst\r\n\r\n",
        b"CONNECT evil:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_once_and_cut_off(harness: Harness, raw: bytes) -> None:
    """400 or nothing; whatever follows on that connection is not read as a call of somebody's."""
    async with WireClient(harness.url) as client:
        await client.send_raw(raw)
        reply = await client.reply()
        assert 400 <= reply.status < 500
        assert told(reply)[1] == "invalid_request_error"
        await client.send_raw(LIVEZ)
        assert await client.read_to_end() == b""
    assert (await harness.get("/livez")).status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://evil/v1/models", 401), ("http://evil", 404), ("//evil/v1/models", 404), ("@evil/v1/models", 400)],
)
async def test_another_authority_in_the_target_changes_nothing(harness: Harness, target: str, status: int) -> None:
    """Only the path decides, and nobody is asked on a caller's behalf."""
    async with WireClient(harness.url) as client:
        await client.send_raw(f"GET {target} HTTP/1.1\r\nhost: elsewhere:80\r\n\r\n".encode())
        assert (await client.reply()).status == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nx: " + b"y" * 2**20, 431),
        (b"GET /livez HTTP/1.1\r\n" + (b"x: " + b"y" * 1000 + b"\r\n") * 100 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 10_000, 431),
        (b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 201 + b"\r\n", 431),
        (b"GET /" + b"y" * 2**20, 414),
        (b"GET /" + b"y" * 90_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    ],
)
async def test_a_head_without_measure_is_refused(harness: Harness, head: bytes, status: int) -> None:
    """It is not kept until it ends."""
    async with WireClient(harness.url) as client:
        await client.send_raw(head)
        assert told(await client.reply()) == (status, "invalid_request_error")


async def test_a_body_that_is_no_http_is_the_callers_mistake(harness: Harness, engines: ScriptedEngines) -> None:
    """Where it ends nobody can say, so nothing can follow on that connection."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
    async with WireClient(harness.url) as client:
        await client.send_raw(f"{head}transfer-encoding: chunked\r\n\r\nzz\r\n".encode())
        assert told(await client.reply()) == (400, "invalid_request_error")
        assert await client.read_to_end() == b""
    assert (await harness.ended())["outcome"] == "bad_call"
    assert engines["a"].calls == []


async def test_garbage_behind_a_call_is_answered_after_it(harness: Harness, engines: ScriptedEngines) -> None:
    """The call before it was a good one and gets its reply; then the connection ends."""
    engines["a"].steps()
    async with WireClient(harness.url) as client:
        await client.send_raw(STREAM)
        await engines["a"].saw()
        engines["a"].step()
        stream = await begun(client)
        await stream.event()
        await client.send_raw(b"\x00\x00\x00\r\n\r\n" + LIVEZ)
        engines["a"].step(20)
        rest = b"".join(await stream.events())
        assert rest.endswith(b"data: [DONE]\n\n")
        assert told(await client.reply()) == (400, "invalid_request_error")
        assert await client.read_to_end() == b""
    assert (await harness.ended())["outcome"] == "ok"


# What takes too long.


@pytest.mark.parametrize("begun_with", [b"GET /livez HTTP/1.1\r\nho", b"GET /livez HTTP/1.1\r\nhost: x\r\nx: "])
async def test_a_head_that_does_not_end_is_not_waited_for(engines: ScriptedEngines, begun_with: bytes) -> None:
    """Also the second one on a connection, and also when a byte comes now and then."""
    async with gateway({"a": engines["a"].url}, server={"head_timeout_s": 0.05}) as harness:
        for before in (b"", LIVEZ):
            async with WireClient(harness.url) as client:
                if before:
                    await client.send_raw(before)
                    assert (await client.reply()).status == 200
                await client.send_raw(begun_with)
                await client.send_raw(b"y")
                assert told(await client.reply())[0] == 408


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n"])
async def test_a_connection_on_which_nothing_is_said_is_closed(engines: ScriptedEngines, sent: bytes) -> None:
    """Without a word, as nothing was asked."""
    async with gateway({"a": engines["a"].url}, server={"head_timeout_s": 0.05}) as harness:
        async with WireClient(harness.url) as client:
            if sent:
                await client.send_raw(sent)
            assert await client.read_to_end() == b""
        async with WireClient(harness.url) as client:
            await client.get("/livez")
            await client.send_raw(b"\r\n")
            assert await client.read_to_end() == b""


async def test_an_idle_connection_is_kept_for_a_while(engines: ScriptedEngines) -> None:
    """`keep_alive_s` after the last reply it is closed."""
    async with (
        gateway({"a": engines["a"].url}, server={"keep_alive_s": 0.05}) as harness,
        WireClient(harness.url) as client,
    ):
        assert (await client.get("/livez")).status == 200
        assert (await client.get("/livez")).status == 200
        assert await client.read_to_end() == b""
        assert client.ending == "fin"


async def test_connections_beyond_the_limit_are_told_so(engines: ScriptedEngines) -> None:
    """503 with an OpenAI body, which SDKs try again; the others go on."""
    async with (
        gateway({"a": engines["a"].url}, server={"max_connections": 2}) as harness,
        WireClient(harness.url) as one,
        WireClient(harness.url) as two,
    ):
        await one.get("/livez")
        await two.get("/livez")
        refused = await harness.post()
        assert told(refused) == (503, "service_unavailable_error")
        assert (refused.json["error"]["code"], refused.header("retry-after")) == ("server_is_overloaded", "1")
        two.leave()
        await engines["a"].until(lambda: "2 connections" not in repr(harness.serving._public.callers))
        assert (await one.post(CHAT, json=hello(), headers=bearer())).status == 200


# What comes too early, or goes on too long.


async def test_an_answer_that_came_before_the_body_survives_it(harness: Harness) -> None:
    """A caller who sends 50 MiB before he looks still reads that his key is wrong: no reset takes it away."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {50 * 2**20}\r\n\r\n".encode()
    async with WireClient(harness.url) as client:
        await client.send_raw(head)
        await client.send_raw(bytes(50 * 2**20))
        assert told(await client.reply())[0] == 401
        assert await client.read_to_end() == b""


async def test_a_body_without_end_is_not_read_for_ever(harness: Harness) -> None:
    """What comes after the answer is dropped, up to a point; then the connection is reset."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {10**12}\r\n\r\n".encode()
    async with WireClient(harness.url) as client:
        await client.send_raw(head)
        assert (await client.head()).status == 401
        sent = 0
        with pytest.raises(ConnectionError):
            while sent <= 2 * LINGER_BYTES:
                await client.send_raw(bytes(2**20))
                sent += 2**20
        assert sent >= LINGER_BYTES


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_closes_his_side_and_reads_on_gets_his_reply(
    harness: Harness, engines: ScriptedEngines, stream: bool
) -> None:
    """Half-closing after a call is legal; such a caller is served until a write to him fails."""
    engine = engines["a"]
    engine.says("one", " two")
    engine.holds()
    engine.steps()
    async with WireClient(harness.url) as client:
        await client.send_raw(STREAM if stream else CALL)
        await engine.saw()
        client.half_close()
        # While the engine is silent he gets an interim answer: it tells us whether he is still there.
        assert (await client.read()).startswith(b"HTTP/1.1 100 ")
        engine.release()
        engine.step(10)
        reply = await client.reply()
        assert (reply.status, reply.complete) == (200, True)
        assert reply.header("connection") == "close"
        assert await client.read_to_end() == b""
    assert b" two" in reply.body
    assert (await harness.ended())["outcome"] == "ok"


async def test_a_caller_that_closes_his_side_in_the_middle_of_a_stream_gets_the_rest(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """A comment between two events is all that he notices."""
    engine = engines["a"]
    engine.says("one", " two")
    engine.steps()
    async with WireClient(harness.url) as client:
        await client.send_raw(STREAM)
        await engine.saw()
        engine.step(2)
        stream = await begun(client)
        await stream.event()
        await stream.event()
        client.half_close()
        assert not stream.unfinished
        await stream.read()
        assert stream.unfinished.startswith(b":\n")
        engine.step(10)
        rest = b"".join(await stream.events())
        assert stream.terminated
    assert rest.endswith(b"data: [DONE]\n\n")
    assert (await harness.ended())["outcome"] == "ok"


async def test_calls_that_were_sent_together_are_answered_in_their_order(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """HTTP/1.1 pipelining, one after the other."""
    engines["a"].says("first", calls=1)
    async with WireClient(harness.url) as client:
        await client.send_raw(STREAM + CALL + LIVEZ)
        first, second, third = [await client.reply() for _ in range(3)]
    assert b'"first"' in first.body
    assert second.json["choices"][0]["message"]["content"].endswith("Paris.")
    assert third.json == {"status": "alive"}


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_caller_with_calls_in_waiting_is_seen_to_leave(
    harness: Harness, engines: ScriptedEngines, how: Any
) -> None:
    """The call under way is given up, and the others never begin."""
    engine = engines["a"]
    engine.holds()
    async with WireClient(harness.url) as client:
        await client.send_raw(STREAM + CALL + CALL)
        await engine.saw()
        client.leave(how)
        await engine.calls[0].ended()
    assert engine.calls[0].aborted
    assert (await harness.ended())["outcome"] == "cancelled"
    assert engine.calls_seen == 1


@pytest.mark.parametrize("early", [CALL * 30, message("POST", CHAT, body=bytes(300_000), headers=bearer())])
async def test_what_waits_for_its_turn_is_bounded(harness: Harness, engines: ScriptedEngines, early: bytes) -> None:
    """A caller who sends more than that ahead loses his connection."""
    engines["a"].holds()
    async with WireClient(harness.url) as client:
        await client.send_raw(STREAM)
        await engines["a"].saw()
        await client.send_raw(early)
        await engines["a"].calls[0].ended()
    assert (await harness.ended())["outcome"] == "cancelled"


async def test_a_caller_that_vanishes_is_noticed_by_the_kernel(harness: Harness) -> None:
    """No FIN comes of a cable that was pulled: keep-alive probes and a limit for what is unacknowledged see to it."""
    async with WireClient(harness.url) as client:
        await client.get("/livez")
        accepted = next(iter(harness.serving._public.callers._connections)).socket
        options = {
            name: accepted.getsockopt(level, getattr(socket, name))
            for level, name in (
                (socket.SOL_SOCKET, "SO_KEEPALIVE"),
                (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
                (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
                (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
                (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
                (socket.IPPROTO_TCP, "TCP_NODELAY"),
            )
        }
    assert options.pop("TCP_KEEPIDLE") + options.pop("TCP_KEEPINTVL") * options.pop("TCP_KEEPCNT") <= 45
    assert options == {"SO_KEEPALIVE": 1, "TCP_USER_TIMEOUT": 45_000, "TCP_NODELAY": 1}


async def test_many_callers_come_and_go_and_leave_nothing(harness: Harness, engines: ScriptedEngines) -> None:
    """Connections are counted down as they are counted up."""

    async def visit(number: int) -> None:
        async with WireClient(harness.url) as client:
            await client.send_raw(STREAM if number % 2 else CALL)
            if number % 3:
                await client.reply()

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(visit(number))
    await harness.until_idle()
    await harness.serving._public.callers.gone(5)
    assert repr(harness.serving._public.callers) == "<Callers 0 connections, 0 exchanges>"
    assert KEY not in str(engines["a"].calls[0].headers)


async def test_one_address_cannot_take_every_connection(engines: ScriptedEngines) -> None:
    """With `max_connections_per_address` whoever connects from elsewhere still gets through."""
    settings = {"max_connections_per_address": 2}
    async with (
        gateway({"a": engines["a"].url}, server=settings) as harness,
        WireClient(harness.url) as one,
        WireClient(harness.url) as two,
    ):
        await one.get("/livez")
        await two.get("/livez")
        assert told(await harness.post())[0] == 503
        loop = asyncio.get_running_loop()
        elsewhere = await loop.create_connection(Talk, "127.0.0.1", harness.serving.port, local_addr=("127.0.0.2", 0))
        elsewhere[0].write(LIVEZ)
        assert (await elsewhere[1].said).startswith(b"HTTP/1.1 200 ")
        elsewhere[0].close()
        two.leave()
        await engines["a"].until(lambda: "<Callers 1 connections" in repr(harness.serving._public.callers))
        assert (await harness.post()).status == 200


class Talk(asyncio.Protocol):
    """The first bytes that come."""

    def __init__(self) -> None:
        self.said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if not self.said.done():
            self.said.set_result(data)


async def test_what_never_became_a_call_is_counted(harness: Harness) -> None:
    """By its error: an operator sees slow and hostile clients that no call's metrics show."""
    async with WireClient(harness.url) as client:
        await client.send_raw(b"\x16\x03\x01\x02\x00")
        await client.reply()
        metrics = (await harness.get("/metrics")).body
    assert b'pagegate_refused_heads_total{error="NotHttp"} 1.0' in metrics
    assert b"pagegate_connections 2.0" in metrics


async def test_bodies_on_their_way_have_room_together(engines: ScriptedEngines) -> None:
    """They are read before a call's limits are asked: without a bound one key could fill the memory."""
    headers = {**bearer(), "content-type": "application/json"}
    megabyte = message("POST", CHAT, body=bytes(2**20), headers=headers)
    async with (
        gateway({"a": engines["a"].url}, server={"max_arriving_bytes": 2**20}) as harness,
        WireClient(harness.url) as one,
        WireClient(harness.url) as two,
    ):
        await one.send_raw(megabyte[:-10])
        room = harness.serving.gateway.public.reading.room
        await engines["a"].until(lambda: "<Room 1048576 of" in repr(room))
        await two.send_raw(megabyte[:-10])
        refused = await two.reply()
        assert (refused.status, refused.json["error"]["code"]) == (503, "server_is_overloaded")
        assert (await harness.post()).status == 200, "what came at once takes no room"
        await one.send_raw(megabyte[-10:])
        assert (await one.reply()).status == 400
        assert repr(room) == "<Room 0 of 1048576 bytes taken>"
