"""Heads that two parsers would read differently: none of them may decide who calls, or what."""

from collections.abc import AsyncIterator

import pytest

from tests.engines import ScriptedEngines, scripted
from tests.harness import KEY, MODEL, gateway
from tests.wire_client import WireClient, message

pytestmark = pytest.mark.anyio

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
BEARER = ("Authorization", f"Bearer {KEY}")


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a") as engines:
        yield engines


async def test_a_trailer_is_no_header(engines: ScriptedEngines) -> None:
    """RFC 9110, 6.5.1: a key that comes after a chunked body authenticates nobody."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
    trailed = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    async with gateway({"a": engines["a"].url}) as harness, WireClient(harness.url) as client:
        await client.send_raw(head + trailed)
        assert (await client.reply()).status == 401
    assert not engines["a"].calls


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("together", [True, False])
async def test_a_body_behind_an_upgrade_is_never_the_next_call(
    engines: ScriptedEngines, protocol: str, together: bool
) -> None:
    """An upgrade is ignored (RFC 9110, 7.8): what follows the head is its body, however it came, then the next head."""
    hidden = b"GET /metrics HTTP/1.1\r\nHost: g\r\n\r\n"
    pairs = [BEARER, ("Connection", "Upgrade"), ("Upgrade", protocol), ("Content-Type", "application/json")]
    call = message("POST", "/v1/chat/completions", body=hidden, headers=pairs)
    async with gateway({"a": engines["a"].url}) as harness, WireClient(harness.url) as client:
        for part in [call] if together else [call.removesuffix(hidden), hidden]:
            await client.send_raw(part)
        reply = await client.reply()
        assert (reply.status, reply.json["error"]["type"]) == (400, "invalid_request_error")
        assert "not valid JSON" in reply.json["error"]["message"]
        assert (await client.get("/livez")).json == {"status": "alive"}


@pytest.mark.parametrize("framing", ["content-length", "transfer-encoding"])
async def test_a_client_that_would_rather_speak_http_2_is_served(engines: ScriptedEngines, framing: str) -> None:
    """Java's HttpClient asks for h2c with every call until it is told otherwise."""
    settings = ("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")
    pairs = [BEARER, ("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), settings]
    pairs.append(("Content-Type", "application/json"))
    call = message("POST", "/v1/chat/completions", json=BODY, headers=pairs)
    if framing == "transfer-encoding":
        head, _, body = call.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        call = b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", b""]) + chunked
    async with gateway({"a": engines["a"].url}) as harness, WireClient(harness.url) as client:
        for _ in range(2):
            await client.send_raw(call)
            assert (await client.reply()).status == 200
    assert engines["a"].calls_seen == 2


@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Host", "Traceparent"])
async def test_a_header_that_decides_something_stands_once(engines: ScriptedEngines, name: str) -> None:
    """Of two, a proxy before us may have looked at the other one."""
    twice = [(name, "one"), (name, "two")]
    pairs = [pair for pair in [BEARER, ("Host", "g")] if pair[0] != name]
    async with gateway({"a": engines["a"].url}) as harness, WireClient(harness.url) as client:
        reply = await client.post("/v1/chat/completions", json=BODY, headers=[*pairs, *twice])
        assert reply.status == 400
        assert name.lower() in reply.json["error"]["message"]
    assert not engines["a"].calls
