"""A call through the whole gateway: what the engine receives, and what the caller gets back."""

import re
from typing import Any

import pytest

from gateway.identity.keys import cache_salt
from tests.engines import scripted
from tests.harness import CHAT, KEY, MODEL, SECRET, bearer, begun, gateway, hello, key
from tests.wire_client import WireClient, payload

pytestmark = pytest.mark.anyio

USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
# Whatever the engine writes: its own spacing, fields nobody knows, text that looks like structure.
SPOKEN = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    b": a comment\n\n"
    b'data: {"id": "1", "choices":[{"index":0,"delta":{"content":"\\u00e9 \\"usage\\" data:"}}],"new":1}\n\n',
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"stop"}]}\n\n',
)


# The reply.


async def test_a_plain_reply_is_the_engines_document_byte_for_byte() -> None:
    """What the engine wrote reaches the caller untouched, spacing included."""
    document = b'{"id": "x",  "choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":null}'
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].fails_with(200, document)
        reply = await harness.post()
    assert (reply.status, reply.body) == (200, document)
    assert reply.header("content-type") == "application/json"
    assert reply.header("content-length") == str(len(document))


async def test_a_stream_is_the_engines_events_without_the_usage_that_only_we_asked_for() -> None:
    """Every byte passes, but for the one event that the gateway asked the engine for and the caller did not."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_events(*SPOKEN, USAGE, DONE)
        reply = await harness.post(hello(stream=True))
    assert reply.body == b"".join(SPOKEN) + DONE
    assert reply.complete
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    assert reply.header("x-accel-buffering") == "no"
    assert harness.calls[0]["completion_tokens"] == 2


async def test_a_stream_with_usage_is_the_engines_events_byte_for_byte() -> None:
    """`include_usage` leaves the usage event where the engine put it."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_events(*SPOKEN, USAGE, DONE)
        reply = await harness.post(hello(stream=True, stream_options={"include_usage": True}))
    assert reply.body == b"".join(SPOKEN) + USAGE + DONE


@pytest.mark.parametrize("every", [1, 2, 7, 50])
async def test_a_stream_that_comes_in_crumbs_arrives_whole(every: int) -> None:
    """However the engine's bytes are cut, also in the middle of a character, the caller's are the same."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_events(*SPOKEN, USAGE, DONE)
        engines["a"].cuts(every=every)
        reply = await harness.post(hello(stream=True))
    assert reply.body == b"".join(SPOKEN) + DONE


async def test_each_event_is_passed_on_as_soon_as_it_is_there() -> None:
    """Nothing is held back until the next event: a caller reads each token when the engine wrote it."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engine = engines["a"]
        engine.says("one", " two")
        engine.steps()
        async with harness.sent(hello(stream=True)) as client:
            await engine.saw()
            engine.step()
            stream = await begun(client)
            assert payload(await stream.event())["choices"][0]["delta"]["role"] == "assistant"
            for token in ("one", " two"):
                engine.step()
                assert payload(await stream.event())["choices"][0]["delta"]["content"] == token
            engine.step(3)
            assert len(await stream.events()) == 2


async def test_a_call_and_its_reply_leave_one_record() -> None:
    """The ledger says what the engine said, and once."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says("one", " two", " three")
        await harness.post(hello())
        await harness.post(hello(stream=True))
        assert [line["outcome"] for line in harness.calls] == ["ok", "ok"]
        assert sum(line["completion_tokens"] for line in harness.calls) == engines["a"].generated_tokens == 6
        assert sum(line["prompt_tokens"] for line in harness.calls) == engines["a"].prompt_tokens == 4
        assert all(line["measured"] for line in harness.calls)
        assert harness.metric("pagegate_tokens_total", model=MODEL, kind="completion") == 6


# Headers of the reply.


async def test_every_answer_has_an_identifier_of_its_own_and_is_not_stored() -> None:
    """`x-request-id` and `cache-control: no-store` stand on every answer, errors and probes included."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        replies = [
            await harness.post(hello()),
            await harness.post(hello(stream=True)),
            await harness.post({"model": "other", "messages": [{"role": "user", "content": "x"}]}),
            await harness.post(hello(), headers={}),
            *[await harness.get(path) for path in ("/v1/models", "/livez", "/readyz", "/metrics", "/nowhere")],
        ]
    identifiers = [reply.header("x-request-id") or "" for reply in replies]
    assert all(re.fullmatch("req_[0-9a-f]{32}", identifier) for identifier in identifiers)
    assert len(set(identifiers)) == len(replies)
    assert {reply.header("cache-control") for reply in replies} == {"no-store"}
    assert identifiers[0] == harness.calls[0]["call"]


async def test_a_reply_says_who_served_it_and_how_long_each_took() -> None:
    """`server-timing` splits the time into the gateway's share and the engine's."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        for reply in (await harness.post(), await harness.post(hello(stream=True))):
            assert reply.header("x-pagegate-replica") == "a"
            assert re.fullmatch(r"gateway;dur=[\d.]+, engine;dur=[\d.]+", reply.header("server-timing") or "")
            assert (reply.header("openai-processing-ms") or "").isdecimal()
            assert re.fullmatch("[0-9a-f]{32}", reply.header("x-pagegate-trace") or "")


async def test_no_header_of_the_engine_reaches_the_caller() -> None:
    """Cookies, server names and whatever else an engine sends stay behind."""
    ours = {
        "x-request-id",
        "cache-control",
        "content-type",
        "content-length",
        "transfer-encoding",
        "x-accel-buffering",
        "openai-processing-ms",
        "server-timing",
        "x-pagegate-replica",
        "x-pagegate-trace",
    }
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].adds_headers(("set-cookie", "tenant=a"), ("x-engine", "10.0.0.1"), ("x-request-id", "theirs"))
        for reply in (await harness.post(), await harness.post(hello(stream=True))):
            assert {name for name, _ in reply.headers} <= ours
            assert reply.headers_named("x-request-id") != ["theirs"]


# What the engine receives.


async def test_an_engine_receives_exactly_the_headers_that_we_write() -> None:
    """Nothing of a caller's head goes on: no credential, no cookie, no header that steers an engine."""
    hostile = {
        "cookie": "a=b",
        "x-request-id": "mine",
        "x-data-parallel-rank": "1",
        "x-session-id": "s",
        "x-vllm-priority": "0",
        "x-forwarded-for": "10.0.0.1",
        "x-amzn-sagemaker-adapter-identifier": "x",
        "accept-encoding": "gzip",
        "te": "trailers",
        "baggage": "k=v",
        "tracestate": "k=v",
        "expect": "",
        "connection": "keep-alive, authorization",
    }
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        reply = await harness.post(hello(), headers={**bearer(), **hostile})
        (call,) = engines["a"].calls
    headers = {name.decode(): value.decode() for name, value in call.headers}
    assert len(headers) == len(call.headers)
    assert headers.pop("traceparent").endswith("-00")
    assert headers == {
        "host": f"127.0.0.1:{engines['a'].port}",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "content-length": str(len(call.raw_body)),
        "x-request-id": reply.header("x-request-id"),
    }
    assert call.path == CHAT


async def test_an_engine_gets_its_own_key_and_never_the_callers() -> None:
    """An engine that wants a key gets the one of the settings."""
    async with scripted("a") as engines:
        models = [{"name": MODEL, "replicas": [{"name": "a", "url": engines["a"].url, "api_key": "engine-key"}]}]
        async with gateway({}, models=models) as harness:
            await harness.post()
        (call,) = engines["a"].calls
        assert call.header("authorization") == "Bearer engine-key"
        assert {probe.header("authorization") for probe in engines["a"].others} == {"Bearer engine-key"}
        assert KEY not in str([(call.headers, call.raw_body) for call in (*engines["a"].calls, *engines["a"].others)])


async def test_an_engine_receives_the_callers_fields_and_those_that_the_gateway_decides() -> None:
    """The body is written anew: allowed fields as they were, the tenant's cache salt, never the caller's own one."""
    sent: dict[str, Any] = hello(
        temperature=0.5,
        seed=7,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        stop=["a", "b"],
        user="somebody",
        metadata={"k": "v"},
        cache_salt="mine",
        priority=-5,
        request_id="mine",
        top_p=None,
    )
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        await harness.post(sent)
        (call,) = engines["a"].calls
    passed = {name: sent[name] for name in ("model", "messages", "temperature", "seed", "tools", "stop")}
    assert call.body == {**passed, "cache_salt": cache_salt("default", SECRET.encode())}


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
async def test_an_engine_is_always_asked_for_the_usage_of_a_stream(options: Any) -> None:
    """Whatever the caller says about it: without usage nothing can be settled."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        reply = await harness.post(hello(stream=True, stream_options=options))
        assert engines["a"].calls[0].body["stream_options"] == {"include_usage": True}
    assert (b'"usage"' in reply.body) == (options == {"include_usage": True})


async def test_each_tenant_has_a_prefix_cache_of_its_own() -> None:
    """The salt is the tenant's: the same for all its keys, another one for others, and not guessable."""
    identity = {
        "tenants": [{"name": "red"}, {"name": "blue"}],
        "keys": [
            key("r1", "pg-red-1", tenant="red"),
            key("r2", "pg-red-2", tenant="red"),
            key("b", "pg-blue", tenant="blue"),
        ],
    }
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, identity=identity) as harness:
        for secret in ("pg-red-1", "pg-red-2", "pg-blue"):
            assert (await harness.post(headers=bearer(secret))).status == 200
        red, also_red, blue = (call.body["cache_salt"] for call in engines["a"].calls)
    assert red == also_red != blue
    assert re.fullmatch("[0-9a-f]{32}", red)


async def test_an_alias_reaches_the_engine_as_the_canonical_model() -> None:
    """Engines know one name; callers may know several."""
    async with scripted("a") as engines:
        models = [{"name": MODEL, "aliases": ["gpt-4o", "fast"], "replicas": [{"name": "a", "url": engines["a"].url}]}]
        async with gateway({}, models=models) as harness:
            reply = await harness.post(hello() | {"model": "fast"})
            assert engines["a"].calls[0].body["model"] == MODEL
            assert (reply.status, harness.calls[0]["model"]) == (200, MODEL)


async def test_fields_that_the_operator_allows_are_passed_on() -> None:
    """`admission.allowed_fields` widens the table; without it a field that is not in it is refused by name."""
    async with scripted("a") as engines:
        urls = {"a": engines["a"].url}
        async with gateway(urls) as harness:
            reply = await harness.post(hello(ignore_eos=True))
            assert (reply.status, reply.json["error"]["param"]) == (400, "ignore_eos")
            assert reply.json["error"]["code"] == "unsupported_parameter"
        async with gateway(urls, admission={"allowed_fields": ["ignore_eos"]}) as harness:
            assert (await harness.post(hello(ignore_eos=True))).status == 200
        assert [call.body.get("ignore_eos") for call in engines["a"].calls] == [True]


async def test_a_stream_is_not_resumed() -> None:
    """One call, one charge: what a browser says about the last event that it saw begins nothing anew."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        reply = await harness.post(hello(stream=True), headers={**bearer(), "last-event-id": "3"})
        again = await harness.post(hello(stream=True))
    assert reply.body.count(b"data: ") == again.body.count(b"data: ")
    assert len(harness.calls) == len(engines["a"].calls) == 2


# Connections.


async def test_calls_follow_each_other_on_one_connection_of_the_caller_and_one_to_the_engine() -> None:
    """A stream that ended with `[DONE]` leaves both connections fit for the next call."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        async with WireClient(harness.url) as client:
            for stream in (True, False, True, True):
                reply = await client.post(CHAT, json=hello(stream=stream), headers=harness.headers)
                assert (reply.status, reply.complete) == (200, True)
        assert len({call.connection for call in engines["a"].calls}) == 1


async def test_a_caller_has_the_end_of_a_stream_before_the_engine_ended_its_message() -> None:
    """What an engine still has to say after `[DONE]` keeps nobody waiting, and costs the next call no connection."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engine = engines["a"]
        engine.sends_events(*SPOKEN, DONE, b": and another thing\n\n")
        engine.stalls_after(len(SPOKEN) + 1)
        reply = await harness.post(hello(stream=True))
        assert reply.complete
        assert (await harness.ended())["outcome"] == "ok"
        assert harness.gate == "<Gate 0 running, 0 waiting, 0 refused, 0 shed>"
        engine.resumes()
        await engine.calls[0].ended()
        assert (await harness.post(hello())).status == 200
        assert engine.calls[0].outcome == "complete"
        assert engine.calls[0].connection == engine.calls[1].connection
