"""Connections to engines: kept while they are good for something, never between two callers' bytes."""

import asyncio
from typing import Any

import pytest

from tests import vllm_wire as wire
from tests.engines import scripted
from tests.harness import MODEL, gateway, hello

pytestmark = pytest.mark.anyio


def document(text: str) -> bytes:
    return b'{"choices":[{"index":0,"message":{"content":"%b"},"finish_reason":"stop"}]}' % text.encode()


async def test_a_connection_that_is_not_used_is_closed_before_the_engine_does() -> None:
    """vLLM closes after 5 s of silence; who closes first does not lose a call to it."""
    upstream = {"idle_connection_s": 0.05}
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream=upstream, fleet={"probe_interval_s": 30}) as harness,
    ):
        await asyncio.gather(*[harness.post() for _ in range(5)])
        await engines["a"].unconnected()
        assert (await harness.post()).status == 200


async def test_a_connection_that_an_engine_ends_with_its_answer_is_not_used_again() -> None:
    """`connection: close`, and answers without a length."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engine = engines["a"]
        endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + document("until the end")
        engine.sends_raw(endless, calls=1)
        assert (await harness.post()).json["choices"][0]["message"]["content"] == "until the end"
        engine.adds_headers(("connection", "close"), calls=1)
        for _ in range(2):
            assert (await harness.post()).status == 200
        assert len({call.connection for call in engine.calls}) == 3
        assert [line["attempts"] for line in harness.calls] == [1, 1, 1]


async def test_a_rejection_is_no_reason_to_part() -> None:
    """Errors that an engine tells to the end leave their connections fit for the next call."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].fails_with(400, calls=1)
        engines["a"].overflows(calls=1)
        assert [(await harness.post()).status for _ in range(3)] == [400, 503, 200]
        assert len({call.connection for call in engines["a"].calls}) == 1


async def test_interim_answers_are_no_answers() -> None:
    """100, 102 and 103 come before the real one."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_raw([interim, wire.plain_reply(200, document("real"))], then="keep")
        reply = await harness.post()
        assert (reply.status, reply.body) == (200, document("real"))
        assert harness.calls[0]["attempts"] == 1


@pytest.mark.parametrize("pieces", [1, 2])
async def test_what_an_engine_sends_too_much_is_nobodys_answer(pieces: int) -> None:
    """A second reply, together with the first or after it, never reaches the next caller."""
    first, second = wire.plain_reply(200, document("mine")), wire.plain_reply(200, document("somebody else's"))
    sent = [first + second] if pieces == 1 else [first, second]
    async with scripted("a", "b") as engines:
        engines["b"].busy(running=1)
        async with gateway({name: engine.url for name, engine in engines.items()}) as harness:
            for engine in engines.values():
                engine.sends_raw(sent, then="keep", calls=1)
            replies = [await harness.post() for _ in range(4)]
        assert {reply.status for reply in replies} == {200}
        assert not [reply for reply in replies if b"somebody" in reply.body]


async def test_a_reply_beyond_the_size_limit_is_given_up() -> None:
    """Before memory is; also where the first event of a stream has no end."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream={"max_reply_bytes": 2048}) as harness,
    ):
        engines["a"].fails_with(200, document("x" * 10_000))
        assert (await harness.post()).status == 503
        engines["a"].behaves()
        engines["a"].sends_events(b"data: " + b"x" * 3000, b"x" * 3000)
        assert (await harness.post(hello(stream=True))).status == 503
        assert {line["error"] for line in harness.calls} == {"EngineFailed"}


async def test_an_engine_that_does_not_speak_tls_is_not_spoken_to() -> None:
    """`https://` means it: there is no falling back."""
    async with scripted("a") as engines:
        replica: dict[str, Any] = {"name": "a", "url": engines["a"].url.replace("http:", "https:")}
        async with gateway({}, models=[{"name": MODEL, "replicas": [replica]}], wait=False) as harness:
            await harness.until_down("a")
            assert harness.replica("a").why_down == "no connection: TLS failed"
            assert (await harness.post()).status == 503
        assert engines["a"].calls == []


async def test_two_tenants_never_see_each_others_bytes() -> None:
    """Hundreds of calls over few connections, some given up in the middle: each gets the words meant for it."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        for engine in engines.values():
            engine.paces(gap_s=0.0005)

        async def call(number: int) -> None:
            async with harness.sent(hello(f"n{number}", stream=bool(number % 2), max_tokens=5)) as client:
                if number % 5 == 0:
                    client.leave("reset" if number % 2 else "fin")
                    return
                reply = await client.reply()
                assert (reply.status, reply.complete) == (200, True)
                # The engine names a reply after our identifier for the call.
                assert (reply.header("x-request-id") or "x").encode() in reply.body

        for _ in range(4):
            async with asyncio.TaskGroup() as group:
                for number in range(60):
                    group.create_task(call(number))
        await harness.ended(240)
        for engine in engines.values():
            await engine.idle()
