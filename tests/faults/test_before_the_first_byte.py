"""Engines that fail before a caller has heard anything: another one answers, and the caller notices nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, ScriptedEngines, scripted
from tests.harness import MODEL, Harness, gateway, hello
from tests.wire_client import WireReply, payload

pytestmark = pytest.mark.anyio

Misbehave = Callable[[ScriptedEngine], None]

HEAD = b"HTTP/1.1 200 OK\r\n"
STREAM_HEAD = HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON_HEAD = HEAD + b"content-type: application/json\r\n"
SECRETS = (b"10.9.8.7", b"/srv/models", b"Traceback", b"nginx")


def raw(*pieces: bytes, then: Any = "fin") -> Misbehave:
    return lambda engine: engine.sends_raw(pieces, then=then)


def status(code: int, body: Any = None, **fields: Any) -> Misbehave:
    return lambda engine: engine.fails_with(code, body, **fields)


# What any call may meet.
ANYHOW: dict[str, Misbehave] = {
    "refuses connections": lambda engine: engine.refuses_connections(),
    "dies with the call in hand": lambda engine: engine.dies_before_headers(),
    "closes with the call in hand": lambda engine: engine.dies_before_headers("fin"),
    "dies after its head": lambda engine: engine.dies_after_headers(),
    "closes after its head": lambda engine: engine.dies_after_headers("fin"),
    "says 500": status(500),
    "says 502 in HTML": status(502, b"<html>nginx at 10.9.8.7</html>", content_type="text/html"),
    "says 503": lambda engine: engine.overflows(),
    "says 429": status(429),
    "says 401": status(401),
    "says 404": status(404, wire.unknown_model("x", "/srv/models/x")),
    "says 204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "redirects": status(307, b"", headers=[("location", "http://10.9.8.7/v1/chat/completions")]),
    "switches protocols": raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    "sends garbage": raw(b"\x00\x01\x02\x03 Traceback"),
    "speaks HTTP/0.9": raw(b"<html>hello</html>"),
    "has a status without end": raw(b"HTTP/1.1 99999 OK\r\n\r\n"),
    "ends its lines like nobody else": raw(b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}"),
    "sends a header of a MiB": raw(HEAD + b"x: " + b"y" * 2**20 + b"\r\n\r\n"),
    "sends ten thousand headers": raw(HEAD + b"x: y\r\n" * 10_000 + b"\r\n"),
    "compresses": lambda engine: engine.adds_headers(("content-encoding", "gzip")),
    "sends a page": raw(HEAD + b"content-type: text/html\r\ncontent-length: 2\r\n\r\nhi", then="keep"),
    "dies of the first byte": lambda engine: engine.sends_raw(b"H", then="reset"),
    "says too early goodbye": raw(HEAD, then="fin"),
}
PLAINLY: dict[str, Misbehave] = {
    "sends half a document": lambda engine: engine.dies_after(1),
    "sends no JSON": status(200, b"{"),
    "sends an array": status(200, b"[]"),
    "sends an error inside a 200": status(200, wire.CORE_DEAD),
    "sends a stream": raw(STREAM_HEAD + wire.chunk(b"data: {}\n\n") + wire.LAST_CHUNK, then="keep"),
    "promises more than it sends": raw(JSON_HEAD + b"content-length: 100\r\n\r\n{}"),
}
STREAMING: dict[str, Misbehave] = {
    "sends no event": raw(STREAM_HEAD + wire.LAST_CHUNK, then="keep"),
    "sends comments alone": lambda engine: engine.sends_events(b": hello\n\n", b": hello\n\n"),
    "sends only the end": lambda engine: engine.sends_events(wire.DONE),
    "sends half an event": lambda engine: engine.sends_events(b'data: {"choices":'),
    "begins with an error": lambda engine: engine.sends_events(wire.error_event(wire.CORE_DEAD), wire.DONE),
    "begins with comments and an error": lambda engine: engine.sends_events(
        wire.KEEP_ALIVE, wire.error_event(wire.CORE_DEAD), wire.DONE
    ),
    "begins with an event that is called an error": lambda engine: engine.sends_events(b"event: error\ndata: x\n\n"),
    "sends a document": status(200, b'{"choices":[]}'),
    "dies in the middle of its first event": raw(STREAM_HEAD + b'30\r\ndata: {"cho', then="reset"),
}
CASES = [
    *[pytest.param(stream, how, id=f"{name}, {stream=}") for name, how in ANYHOW.items() for stream in (False, True)],
    *[pytest.param(False, how, id=name) for name, how in PLAINLY.items()],
    *[pytest.param(True, how, id=name) for name, how in STREAMING.items()],
]


@asynccontextmanager
async def before(engines: ScriptedEngines, first: str = "a", **sections: Any) -> AsyncIterator[Harness]:
    """A gateway before engines of which `first` is the best; probes do not come in between."""
    for name, engine in engines.items():
        engine.busy(running=0 if name == first else 1)
    sections.setdefault("fleet", {"probe_interval_s": 30})
    async with gateway({name: engine.url for name, engine in engines.items()}, **sections) as harness:
        yield harness


def is_good(reply: WireReply, stream: bool) -> bool:
    if stream:
        return reply.complete and reply.body.endswith(wire.DONE) and b'"error"' not in reply.body
    return bool(reply.json["choices"][0]["message"]["content"])


def assert_tells_nothing(reply: WireReply, engines: ScriptedEngines) -> None:
    told = reply.raw
    assert not [secret for secret in SECRETS if secret in told]
    assert not [engine for engine in engines.values() if str(engine.port).encode() in told]


@pytest.mark.parametrize(("stream", "misbehave"), CASES)
async def test_another_replica_answers(stream: bool, misbehave: Misbehave) -> None:
    """However the first one fails before its first event, or before its whole document."""
    async with scripted("a", "b") as engines, before(engines) as harness:
        misbehave(engines["a"])
        reply = await harness.post(hello(stream=stream))
        assert (reply.status, reply.header("x-pagegate-replica")) == (200, "b")
        assert is_good(reply, stream)
        assert (harness.calls[0]["outcome"], harness.calls[0]["attempts"]) == ("ok", 2)
        assert (engines["a"].calls_seen <= 1, engines["b"].calls_seen) == (True, 1)
        assert harness.metric("pagegate_attempts_total", replica="b", result="answered") == 1
        assert harness.metric("pagegate_attempts_total", replica="a", result="answered") == 0
        await engines["a"].idle()
        # What went wrong there does not stick to anything.
        engines["a"].behaves()
        await engines["a"].accepts_connections()
        assert is_good(await harness.post(hello(stream=stream)), stream)


@pytest.mark.parametrize(("stream", "misbehave"), CASES)
async def test_a_fault_of_every_replica_is_an_honest_status(stream: bool, misbehave: Misbehave) -> None:
    """503 and when to come back, or 500 where coming back is no use; and nothing of what the engines said."""
    async with scripted("a", "b") as engines, before(engines) as harness:
        for engine in engines.values():
            misbehave(engine)
        reply = await harness.post(hello(stream=stream))
        error = reply.json["error"]
        if reply.status == 500:
            assert harness.calls[0]["error"] == "EngineMisconfigured"
            assert (error["type"], error["code"], reply.header("x-should-retry")) == ("server_error", None, "false")
        else:
            assert (reply.status, error["code"]) == (503, "server_is_overloaded")
            assert (reply.header("retry-after"), reply.header("retry-after-ms")) == ("1", "1000")
        assert_tells_nothing(reply, engines)
        assert harness.calls[0]["outcome"] == "unserved"
        assert harness.calls[0]["completion_tokens"] == 0
        assert engines["a"].calls_seen + engines["b"].calls_seen <= 3


async def test_engines_that_refuse_the_gateway_itself_are_the_operators_business() -> None:
    """A key that an engine does not take, or a model that it does not know: no SDK should try that again."""
    for code in (401, 403, 404):
        async with scripted("a") as engines, before(engines) as harness:
            engines["a"].fails_with(code)
            reply = await harness.post()
            assert (reply.status, reply.json["error"]["type"]) == (500, "server_error")
            assert (reply.header("x-should-retry"), reply.header("retry-after")) == ("false", None)


async def test_engines_at_capacity_are_not_the_callers_limit() -> None:
    """An engine's 429 is ours to answer for: 503, and no word of a rate limit."""
    async with scripted("a", "b") as engines, before(engines) as harness:
        engines["a"].fails_with(429)
        engines["b"].overflows()
        reply = await harness.post()
        assert (reply.status, reply.json["error"]["type"]) == (503, "service_unavailable_error")
        assert harness.calls[0]["error"] == "EnginesBusy"
        assert {harness.replica(name).health.value for name in engines} == {"up"}


async def test_a_call_that_breaks_engines_is_not_carried_through_the_fleet() -> None:
    """Two deaths are enough: the third replica never sees it, and goes on serving others."""
    async with scripted("a", "b", "c") as engines, before(engines, upstream={"attempts": 5}) as harness:
        for engine in engines.values():
            engine.crashes_on("query of death")
        for _ in range(3):  # Also where the connections were in use before.
            await harness.post()
        reply = await harness.post(hello("query of death", stream=True))
        assert reply.status == 503
        assert sum(engine.died for engine in engines.values()) == 2
        assert (await harness.post()).status == 200


async def test_engines_that_cannot_be_reached_may_all_be_tried() -> None:
    """They never had the call, so it cannot have harmed them."""
    async with scripted("a", "b", "c") as engines, before(engines) as harness:
        for name in ("a", "b"):
            engines[name].refuses_connections()
        reply = await harness.post()
        assert (reply.status, reply.header("x-pagegate-replica")) == (200, "c")


async def test_a_busy_engine_is_not_asked_again() -> None:
    """Every engine is asked once: asking a full one again keeps it busier, and its caller waiting."""
    async with scripted("a", "b") as engines, before(engines) as harness:
        for engine in engines.values():
            engine.overflows()
        reply = await harness.post()
        assert (reply.status, reply.header("retry-after-ms")) == (503, "1000")
        assert harness.calls[0]["attempts"] == 2


async def test_an_engine_that_does_not_begin_in_time_is_left() -> None:
    """Its work is aborted before another one is asked; comments are no beginning."""
    for misbehave in (ScriptedEngine.holds, ScriptedEngine.only_comments):
        async with (
            scripted("a", "b") as engines,
            before(engines, upstream={"first_token_timeout_s": 0.1}) as harness,
        ):
            misbehave(engines["a"])
            reply = await harness.post(hello(stream=True))
            assert reply.header("x-pagegate-replica") == "b"
            assert engines["a"].calls[0].aborted
            assert harness.metric("pagegate_attempts_total", replica="a", result="slow") == 1


# Kept connections.


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_kept_connection_that_died_costs_nothing(how: Any, stream: bool) -> None:
    """Engines close idle connections when they like, also in the moment in which they are used again."""
    async with scripted("a") as engines, before(engines) as harness:
        engine = engines["a"]
        await harness.post()
        engine.closes_idle(how)
        await engine.unconnected()
        assert (await harness.post(hello(stream=stream))).status == 200
        engine.dies_before_headers(how, calls=1)
        assert (await harness.post(hello(stream=stream))).status == 200
        assert [line["attempts"] for line in harness.calls] == [1, 1, 1]
        assert harness.metric("pagegate_attempts_total", result="answered") == 3
        assert harness.metric("pagegate_attempts_total") == 3


async def test_a_call_is_sent_twice_to_an_engine_only_if_the_first_connection_was_a_kept_one() -> None:
    """On a fresh connection silence means that the engine died of the call, or with it."""
    async with scripted("a", "b") as engines, before(engines) as harness:
        engines["a"].dies_before_headers(calls=2)
        await harness.post()
        assert engines["a"].calls_seen == 1


# The caller's own faults.


async def rejected(harness: Harness, engine: ScriptedEngine, stream: bool, **fields: Any) -> dict[str, Any]:
    """The error of a call that is the caller's fault, which no other replica was bothered with."""
    seen = engine.calls_seen
    reply = await harness.post(hello(stream=stream) | fields)
    assert (reply.status, reply.header("retry-after")) == (400, None)
    assert engine.calls_seen == seen + 1
    assert_tells_nothing(reply, {"a": engine})
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}
    assert harness.calls[-1]["outcome"] == "bad_call"
    assert harness.calls[-1]["attempts"] == 1
    return dict(reply.json["error"])


@pytest.mark.parametrize("sample", ["bad_logit_bias", "bad_logit_bias_stream", "bad_n_greedy", "bad_type"])
async def test_what_an_engine_rejects_is_not_tried_elsewhere(sample: str) -> None:
    """The reason is passed on, in our own shape; also where it came as an event of a stream that had not begun."""
    async with scripted("a", "b") as engines, before(engines) as harness:
        engines["a"].replays(sample)
        error = await rejected(harness, engines["a"], sample.endswith("stream"))
        assert (error["type"], error["code"]) == ("invalid_request_error", None)
        assert len(error["message"]) > 10
        assert engines["b"].calls_seen == 0
        assert harness.replica("a").health.value == "up"


async def test_a_rejection_tells_nothing_of_the_inside() -> None:
    """Addresses and paths in an engine's words are taken out; the field's name stays."""
    words = "Cannot open /srv/models/tiny/config.json at http://10.9.8.7:8000/x for logit_bias"
    async with scripted("a") as engines, before(engines) as harness:
        engines["a"].fails_with(400, wire.error(400, words, param="logit_bias"))
        error = await rejected(harness, engines["a"], False)
        assert error["param"] == "logit_bias"
        assert error["message"].startswith("Cannot open")
        engines["a"].fails_with(422, b"<html>Traceback</html>")
        assert (await rejected(harness, engines["a"], False))["message"] == "The engine rejected the call."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_beyond_the_context_is_counted_by_the_engine_and_named(stream: bool) -> None:
    """`context_length_exceeded` comes of the engine's own tokenizer, whatever words it used for it."""
    async with scripted("a", max_model_len=50) as engines, before(engines) as harness:
        too_long = [{"role": "user", "content": "word " * 60}]
        error = await rejected(harness, engines["a"], stream, messages=too_long)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "50 tokens" in error["message"]
        assert "60 in the messages" in error["message"]
        error = await rejected(harness, engines["a"], stream, max_tokens=51)
        assert error["code"] == "context_length_exceeded"
        engines["a"].fails_with(400, wire.error(400, "This model's maximum context length is 50 tokens"))
        assert (await rejected(harness, engines["a"], stream))["code"] is None


async def test_an_engine_that_cannot_count_leaves_the_reason_as_it_is() -> None:
    """The count is a courtesy: without it the rejection stays a rejection."""
    for misbehave in (status(500, on="/tokenize"), status(200, b"x", on="/tokenize"), status(404, on="/tokenize")):
        async with scripted("a", max_model_len=5) as engines, before(engines) as harness:
            misbehave(engines["a"])
            error = await rejected(harness, engines["a"], False, max_tokens=10)
            assert error["code"] is None


async def test_calls_under_way_do_not_suffer_from_one_that_fails() -> None:
    """Streams on other connections to the same engine go on."""
    async with scripted("a") as engines, before(engines) as harness:
        engine = engines["a"]
        engine.steps(calls=1)
        async with harness.sent(hello(stream=True)) as client:
            await engine.saw()
            engine.fails_with(500, calls=2)
            engine.dies_before_headers(calls=1)
            await asyncio.gather(harness.post(), harness.post())
            engine.step(20)
            reply = await client.reply()
        assert payload(reply.body.split(b"\n\n")[0])["model"] == MODEL
        assert is_good(reply, True)
