"""The scripted engine: its bytes are vLLM's, it does what it is told, and it remembers what it was asked."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, scripted
from tests.script import token_id
from tests.wire_client import WireClient, message, payload

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ONE_ANSWER = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
ONE_STREAM = {**ONE_ANSWER, "stream": True}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as engine:
        yield engine


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[WireClient]:
    async with WireClient(engine.url) as client:
        yield client


def said(texts: list[tuple[str, int]], prompt_tokens: int = 37, **more: Any) -> wire.Utterance:
    """What the recorded engine said, as the formatter takes it."""
    known: dict[str, Any] = {
        "id": "ID",
        "model": "tiny",
        "finish": "length",
        "prompts": [range(prompt_tokens)],
    }
    return wire.Utterance(tokens=[wire.Token(*text) for text in texts], **{**known, **more})


def neutral(data: bytes) -> bytes:
    """Without what differs from call to call: ids, times, and the sizes that an id's length changes."""
    data = re.sub(rb'"id":"(chatcmpl-|cmpl-)[^"]+"', b'"id":"ID"', data)
    data = re.sub(rb'"created":\d+', b'"created":0', data)
    data = re.sub(rb"modelperm-[0-9a-f]+", b"modelperm", data)
    data = re.sub(rb"(?m)^[0-9a-f]+\r\ndata", b"data", data)
    return re.sub(rb"(date: [^\r]+|content-length: \d+)", b"", data)


def streamed(events: list[wire.Event]) -> bytes:
    return wire.stream_head() + b"".join(wire.chunk(event.data) for event in events) + wire.LAST_CHUNK


THREE = [("The", 504), (" capital", 3575), (" of", 282)]
FOUR = [(" Paris", 7042), (".", 30), ("\n", 198), ("\n", 198)]
SEVEN = [(text, 0) for text in ("The", " capital", " of", " France", " is", " Paris", ".")]
PROMPT_IDS = [504, 3575, 282, 4649, 314]
CHAT_IDS = orjson.loads(wire.recorded("tokenize").body)["tokens"]
BAD_BIAS = wire.error(
    400,
    "token_id(s) [999999] in logit_bias contain out-of-vocab token ids. Vocabulary size: 49152 "
    "(parameter=logit_bias, value=[999999])",
    param="logit_bias",
)

PLAIN = {
    "chat_length": wire.chat_answer(said(THREE)),
    "chat_token_ids": wire.chat_answer(said(THREE, prompts=[CHAT_IDS], token_ids=True)),
    "completion": wire.completion_answer(said(FOUR, 5)),
    "models": wire.models("tiny", 2048),
    "tokenize_prompt": wire.tokenized(PROMPT_IDS, 2048),
}
STREAMS = {
    "stream": wire.chat_events(said(SEVEN, finish="stop", usage=False)),
    "stream_length": wire.chat_events(said(THREE, usage=False)),
    "stream_continuous_usage": wire.chat_events(said(THREE, continuous_usage=True)),
    "stream_token_ids": wire.chat_events(said(THREE, prompts=[CHAT_IDS], token_ids=True)),
    "completion_stream": wire.completion_events(said(FOUR, 5, usage=False)),
    "completion_stream_usage": wire.completion_events(said(FOUR, 5)),
    "completion_token_ids": wire.completion_events(said(FOUR, prompts=[PROMPT_IDS], token_ids=True)),
}
ERRORS = {
    "unknown_model": wire.unknown_model("huge", "tiny"),
    "bad_context_length": wire.prompt_too_long(2048, 2049),
    "bad_max_tokens": wire.too_many_tokens_asked(2048, 4000),
    "bad_logit_bias": BAD_BIAS,
    "overflow": wire.OVERFLOW,
    "chat_dead": wire.CORE_DEAD,
}


@pytest.mark.parametrize("sample", PLAIN)
def test_a_plain_answer_is_the_one_that_a_real_engine_gave(sample: str) -> None:
    """Head and body, byte for byte save what differs from call to call."""
    assert neutral(wire.plain_reply(200, PLAIN[sample])) == neutral(wire.recorded(sample).reply)


@pytest.mark.parametrize("sample", STREAMS)
def test_a_stream_is_the_one_that_a_real_engine_sent(sample: str) -> None:
    """Every event, in its own chunk, with the same framing around it."""
    assert neutral(streamed(list(STREAMS[sample]))) == neutral(wire.recorded(sample).reply)


@pytest.mark.parametrize("sample", ERRORS)
def test_an_error_is_the_one_that_a_real_engine_answered(sample: str) -> None:
    """Status line, type, code and text."""
    body = ERRORS[sample]
    reply = wire.plain_reply(body["error"]["code"], body)
    assert neutral(reply) == neutral(wire.recorded(sample).reply)


def test_an_error_inside_a_stream_is_the_one_that_a_real_engine_sent() -> None:
    """vLLM answers 200 before it looks at the prompt: even the caller's error is an event, then `[DONE]`."""
    events = [wire.Event("error", wire.error_event(BAD_BIAS)), wire.Event("done", wire.DONE)]
    assert neutral(streamed(events)) == neutral(wire.recorded("bad_logit_bias_stream").reply)
    assert wire.recorded("stream_core_killed").body.endswith(
        wire.chunk(wire.error_event(wire.CORE_DEAD)) + wire.chunk(wire.DONE) + wire.LAST_CHUNK
    )


def test_two_choices_are_told_as_a_real_engine_tells_them() -> None:
    """Roles first, one end per choice, one usage for all; a plain answer lists them in order."""
    mine = [payload(event.data) for event in wire.chat_events(said(THREE, n=2))]
    theirs = [payload(event) for event in wire.recorded("stream_n2").body.split(b"\r\n") if event[:4] == b"data"]
    assert sorted(shape(event) for event in mine) == sorted(shape(event) for event in theirs)
    assert mine[-2]["usage"] == theirs[-2]["usage"] == {"prompt_tokens": 37, "total_tokens": 43, "completion_tokens": 6}
    two = orjson.loads(wire.completion_answer(said(THREE, prompts=[range(3), range(3)])))
    real = orjson.loads(wire.recorded("completion_two_prompts").body)
    assert shape(two) == shape(real)
    assert two["usage"] == real["usage"]


def shape(value: Any) -> str:
    """Names, order and types, without the texts."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{shape(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(shape(one) for one in value) + "]"
    return type(value).__name__


def test_metrics_have_the_lines_of_a_real_engine_with_our_numbers() -> None:
    """The same series in the same order; what nobody gave is 0, what describes the engine stays."""
    real = wire.recorded("metrics").body.decode().splitlines()
    told = {
        "vllm:num_requests_running": 2,
        "vllm:request_success_total{abort}": 3,
        "vllm:kv_cache_usage_perc": 0.5,
    }
    mine = wire.Metrics().render("other", told).decode().splitlines()
    assert [line.rpartition(" ")[0] for line in mine] == [
        line.rpartition(" ")[0].replace('model_name="tiny"', 'model_name="other"') for line in real
    ]
    assert 'vllm:num_requests_running{engine="0",model_name="other"} 2.0' in mine
    assert 'vllm:num_requests_waiting{engine="0",model_name="other"} 0.0' in mine
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="other"} 0.5' in mine
    assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="other"} 3.0' in mine
    assert any(line.startswith("vllm:cache_config_info") and 'block_size="32"' in line for line in mine)


async def test_it_answers_a_chat_and_keeps_what_it_received(engine: ScriptedEngine, client: WireClient) -> None:
    """Prompt tokens are words, completion tokens what was said; headers and body are kept as they came."""
    reply = await client.post(CHAT, ONE_ANSWER, headers={"X-Request-Id": "r-1", "authorization": "Bearer k"})
    assert reply.json["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert reply.json["usage"]["prompt_tokens"] == 6
    assert reply.json["usage"]["completion_tokens"] == 7
    assert reply.json["id"] == "chatcmpl-r-1"
    (call,) = engine.calls
    assert (call.method, call.path, call.body) == ("POST", CHAT, ONE_ANSWER)
    assert (b"X-Request-Id", b"r-1") in call.headers
    assert call.header("Authorization") == "Bearer k"
    assert (call.outcome, call.chunks_sent, call.tokens, call.aborted) == ("complete", 1, 7, False)
    assert repr(engine) == "<ScriptedEngine a 0 running, 1 served, 0 aborted>"


async def test_it_streams_one_event_a_chunk(engine: ScriptedEngine, client: WireClient) -> None:
    """Role, tokens, end, `[DONE]`; usage only when asked; the connection serves the next call."""
    engine.says("Pa", "ris")
    async with client.stream(CHAT, ONE_STREAM) as stream:
        events = await stream.events()
    assert stream.chunks == events
    assert stream.header("content-type") == "text/event-stream; charset=utf-8"
    assert [delta(event) for event in events] == ["", "Pa", "ris", "", None]
    assert (stream.terminated, stream.ending) == (True, "complete")
    async with client.stream(CHAT, {**ONE_STREAM, "stream_options": {"include_usage": True}}) as stream:
        events = await stream.events()
    assert payload(events[-2])["usage"] == {"prompt_tokens": 6, "total_tokens": 8, "completion_tokens": 2}
    assert engine.connections_made == 1
    assert engine.generated_tokens == 4


def delta(event: bytes) -> str | None:
    """The content of a chat event; None where there is none."""
    data = payload(event)
    choices = data.get("choices") if isinstance(data, dict) else None
    return choices[0]["delta"].get("content") if choices else None


async def test_max_tokens_cuts_an_answer(engine: ScriptedEngine, client: WireClient) -> None:
    """The finish reason is then `length`; an endless answer ends there too, or with the context."""
    reply = await client.post(CHAT, {**ONE_ANSWER, "max_tokens": 3})
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert reply.json["usage"]["completion_tokens"] == 3
    engine.says("ha", forever=True)
    engine.serves("tiny", max_model_len=20)
    reply = await client.post("/v1/completions", {"model": "tiny", "prompt": "one two three"})
    assert reply.json["choices"][0]["text"] == "ha" * 17
    assert reply.json["choices"][0]["finish_reason"] == "length"


async def test_completions_take_texts_and_token_ids(client: WireClient) -> None:
    """Each prompt has its own choices; ids count as they are, and come back when asked for."""
    ask = {"model": "tiny", "prompt": ["a b", "c d e"], "n": 2, "max_tokens": 1}
    reply = await client.post("/v1/completions", ask)
    assert [choice["index"] for choice in reply.json["choices"]] == [0, 1, 2, 3]
    assert reply.json["usage"] == reply.json["usage"] | {"prompt_tokens": 5, "completion_tokens": 4}
    ask = {"model": "tiny", "prompt": [5, 6, 7], "stream": True, "return_token_ids": True, "max_tokens": 2}
    async with client.stream("/v1/completions", ask) as stream:
        first, second, _ = [payload(event) for event in await stream.events()]
    assert first["choices"][0]["prompt_token_ids"] == [5, 6, 7]
    assert first["choices"][0]["token_ids"] == [token_id("The")]
    assert second["choices"][0]["prompt_token_ids"] is None


async def test_it_refuses_what_a_real_engine_refuses(client: WireClient) -> None:
    """Unknown model, prompt beyond the context, too many tokens asked for, no JSON, wrong route or method."""
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        ({**ONE_ANSWER, "model": "huge"}, 404, "model"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "word " * 2049}]}, 400, "input_tokens"),
        ({**ONE_STREAM, "max_tokens": 4000}, 400, "max_tokens"),
    ]
    for body, status, param in cases:
        reply = await client.post(CHAT, body)
        assert (reply.status, reply.json["error"]["param"]) == (status, param)
    assert (await client.post(CHAT, body=b"{")).status == 400
    assert (await client.post("/v1/nowhere", {})).json == {"detail": "Not Found"}
    wrong = await client.get(CHAT)
    assert (wrong.status, wrong.header("allow")) == (405, "POST")


async def test_it_tells_about_itself(engine: ScriptedEngine, client: WireClient) -> None:
    """Health, models, version, tokens and metrics, all under the test's control."""
    assert (await client.get("/health")).status == 200
    engine.health_is(503)
    assert (await client.get("/health")).status == 503
    assert (await client.get("/version")).json == {"version": "0.32.0"}
    engine.serves("other", max_model_len=99)
    (model,) = (await client.get("/v1/models")).json["data"]
    assert (model["id"], model["max_model_len"]) == ("other", 99)
    tokens = (await client.post("/tokenize", {"model": "other", "messages": ONE_ANSWER["messages"]})).json
    assert (tokens["count"], tokens["max_model_len"]) == (6, 99)
    engine.busy(running=7, waiting=3, kv_usage=0.5)
    metrics = (await client.get("/metrics")).body.decode()
    assert 'vllm:num_requests_running{engine="0",model_name="other"} 7.0' in metrics
    assert 'vllm:num_requests_waiting{engine="0",model_name="other"} 3.0' in metrics
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="other"} 0.5' in metrics
    assert engine.calls == []
    assert engine.paths["GET /health"] == 2
    assert [call.path for call in engine.others][-1] == "/metrics"


async def test_its_metrics_count_what_it_did(engine: ScriptedEngine, client: WireClient) -> None:
    """Running calls, tokens and ends, as long as no test claims otherwise."""
    await client.post(CHAT, ONE_ANSWER)
    engine.steps()
    async with WireClient(engine.url) as other, other.stream(CHAT, ONE_STREAM):
        metrics = (await client.get("/metrics")).body.decode()
        assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0' in metrics
        assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 7.0' in metrics
        assert 'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 12.0' in metrics
    await engine.idle()
    metrics = (await client.get("/metrics")).body.decode()
    assert 'finished_reason="stop",model_name="tiny"} 1.0' in metrics
    assert 'finished_reason="abort",model_name="tiny"} 1.0' in metrics


async def test_a_stepped_stream_moves_only_by_hand(engine: ScriptedEngine, client: WireClient) -> None:
    """One step, one chunk, however long the test takes in between."""
    engine.steps()
    async with client.stream(CHAT, ONE_STREAM) as stream:
        (call,) = engine.calls
        assert call.chunks_sent == 0
        engine.step()
        assert payload(await stream.event())["choices"][0]["delta"]["role"] == "assistant"
        engine.step(2)
        assert [delta(await stream.event()) for _ in range(2)] == ["The", " capital"]
        assert (call.chunks_sent, call.tokens, engine.running) == (3, 2, 1)
        engine.step(100)
        assert delta((await stream.events())[0]) == " of"
    assert call.outcome == "complete"


async def test_a_held_call_is_answered_when_released(engine: ScriptedEngine, client: WireClient) -> None:
    """Not even a head comes before that; later calls are not held."""
    engine.holds()
    await client.send("POST", CHAT, json=ONE_ANSWER)
    await engine.saw(1)
    assert (engine.running, client.arrivals) == (1, [])
    engine.release()
    assert (await client.reply()).status == 200
    assert (await client.post(CHAT, ONE_ANSWER)).status == 200


async def test_a_client_that_leaves_is_noticed(engine: ScriptedEngine) -> None:
    """Held, stepping or stalled: the call is aborted, and nothing runs any more."""
    troubles: list[Callable[[], None]] = [engine.holds, engine.steps, lambda: engine.stalls_after(2)]
    for n, trouble in enumerate(troubles, start=1):
        engine.behaves()
        trouble()
        async with WireClient(engine.url) as client:
            await client.send("POST", CHAT, json=ONE_STREAM)
            await engine.saw(n)
            client.leave("reset" if n == 2 else "fin")
            await engine.calls[-1].ended()
        assert engine.calls[-1].aborted
        await engine.idle()
        assert repr(engine) == f"<ScriptedEngine a 0 running, 0 served, {n} aborted>"
    await engine.unconnected()


async def test_a_client_that_leaves_after_the_end_aborts_nothing(engine: ScriptedEngine) -> None:
    """SDKs close right after `[DONE]`, often with a reset."""
    async with WireClient(engine.url) as client, client.stream(CHAT, ONE_STREAM) as stream:
        while b"[DONE]" not in await stream.event():
            pass
        stream.leave("reset")
    await engine.unconnected()
    assert (engine.served, engine.aborted) == (1, 0)


async def test_a_stalled_stream_goes_on_when_it_resumes(engine: ScriptedEngine, client: WireClient) -> None:
    """Silence after k chunks, the connection open; then the rest."""
    engine.stalls_after(3)
    async with client.stream(CHAT, ONE_STREAM) as stream:
        assert [delta(await stream.event()) for _ in range(3)] == ["", "The", " capital"]
        await engine.calls[0].sent(3)
        assert engine.running == 1
        engine.resumes()
        assert delta(await stream.event()) == " of"
        await stream.events()
    assert stream.terminated


@pytest.mark.parametrize("how", ["reset", "fin"])
@pytest.mark.parametrize("chunks", [0, 1, 4])
async def test_a_stream_dies_after_as_many_chunks_as_told(engine: ScriptedEngine, chunks: int, how: Any) -> None:
    """The chunks arrive, then the connection ends as told, without the end of the framing."""
    engine.dies_after(chunks, how)
    async with WireClient(engine.url) as client, client.stream(CHAT, ONE_STREAM) as stream:
        assert len(await stream.events()) == chunks
        assert (stream.ending, stream.terminated) == (how, False)
    assert (engine.calls[0].outcome, engine.calls[0].chunks_sent) == ("died", chunks)


@pytest.mark.parametrize("how", ["reset", "fin"])
async def test_a_call_dies_before_its_head(engine: ScriptedEngine, how: Any) -> None:
    """The call was read, and not one byte came back; the next call is answered."""
    engine.dies_before_headers(how, calls=1)
    async with WireClient(engine.url) as client:
        await client.send("POST", CHAT, json=ONE_ANSWER)
        assert (await client.read_to_end(), client.ending) == (b"", how)
    async with WireClient(engine.url) as client:
        assert (await client.post(CHAT, ONE_ANSWER)).status == 200


async def test_a_plain_answer_dies_within_its_body(engine: ScriptedEngine) -> None:
    """After the head, or after half of the body: less came than the content length promised."""
    for chunks in (0, 1):
        engine.dies_after(chunks, "fin")
        async with WireClient(engine.url) as client:
            reply = await client.post(CHAT, ONE_ANSWER)
        assert (reply.ending, reply.complete) == ("fin", False)
        promised = int(reply.header("content-length") or 0)
        assert len(reply.body) == (0 if chunks == 0 else promised // 2)


async def test_refused_connections_are_accepted_again_on_the_same_port(engine: ScriptedEngine) -> None:
    """Refused means ECONNREFUSED; connections that were open stay usable."""
    async with WireClient(engine.url) as client:
        assert (await client.get("/health")).status == 200
        engine.refuses_connections()
        with pytest.raises(ConnectionRefusedError):
            async with WireClient(engine.url):
                pass
        assert (await client.get("/health")).status == 200
    await engine.accepts_connections()
    async with WireClient(engine.url) as client:
        assert (await client.get("/health")).status == 200


async def test_a_crash_takes_every_connection_with_it(engine: ScriptedEngine, client: WireClient) -> None:
    """Streams are reset, new callers refused, until it is started again."""
    engine.stalls_after(1)
    async with client.stream(CHAT, ONE_STREAM) as stream:
        await stream.event()
        engine.crashes()
        assert (await stream.events(), stream.ending) == ([], "reset")
    with pytest.raises(ConnectionRefusedError):
        async with WireClient(engine.url):
            pass
    assert engine.calls[0].outcome == "died"
    engine.behaves()
    await engine.accepts_connections()
    async with WireClient(engine.url) as again:
        assert (await again.post(CHAT, ONE_ANSWER)).status == 200


async def test_a_query_of_death_crashes_it(engine: ScriptedEngine, client: WireClient) -> None:
    """Only a body with the text does."""
    engine.crashes_on("MAGIC")
    assert (await client.post(CHAT, ONE_ANSWER)).status == 200
    await client.send("POST", "/v1/completions", json={"model": "tiny", "prompt": "a MAGIC word"})
    assert (await client.read_to_end(), client.ending) == (b"", "reset")
    with pytest.raises(ConnectionRefusedError):
        async with WireClient(engine.url):
            pass


async def test_a_lost_core_ends_streams_with_an_error_event(engine: ScriptedEngine, client: WireClient) -> None:
    """As recorded: error event, `[DONE]`, clean end; then 500 and an unhealthy `/health`."""
    engine.stalls_after(2)
    async with client.stream(CHAT, ONE_STREAM) as stream:
        await stream.event()
        await stream.event()
        engine.loses_core()
        assert await stream.events() == [wire.error_event(wire.CORE_DEAD), wire.DONE]
        assert stream.terminated
    assert (await client.post(CHAT, ONE_ANSWER)).raw == wire.plain_reply(500, wire.CORE_DEAD)
    assert (await client.get("/health")).status == 503


async def test_idle_connections_close_when_told(engine: ScriptedEngine, client: WireClient) -> None:
    """As after the engine's keep-alive time; a connection that carries a call stays."""
    await client.get("/health")
    engine.steps()
    async with WireClient(engine.url) as other, other.stream(CHAT, ONE_STREAM) as stream:
        engine.closes_idle()
        assert (await client.read_to_end(), client.ending) == (b"", "fin")
        engine.step(100)
        await stream.events()
        assert stream.terminated


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        ("omits_done", ["role", "a", "end", "usage"]),
        ("omits_usage", ["role", "a", "end", "done"]),
        ("doubles_usage", ["role", "a", "end", "usage", "usage", "done"]),
        ("ends_without_finish", ["role", "a", "usage", "done"]),
    ],
)
async def test_a_stream_leaves_out_or_doubles_what_it_is_told(
    engine: ScriptedEngine, client: WireClient, spoil: str, kinds: list[str]
) -> None:
    """The framing stays right, and the calls after it are as they should be."""
    engine.says("a")
    getattr(engine, spoil)(calls=1)
    body = {**ONE_STREAM, "stream_options": {"include_usage": True}}
    async with client.stream(CHAT, body) as stream:
        assert [kind(event) for event in await stream.events()] == kinds
        assert stream.terminated
    async with client.stream(CHAT, body) as stream:
        assert [kind(event) for event in await stream.events()] == ["role", "a", "end", "usage", "done"]


def kind(event: bytes) -> str:
    """What an event is, in one word."""
    data = payload(event)
    if not isinstance(data, dict) or "error" in data:
        return "done" if data == "[DONE]" else "comment" if data is None else "error"
    if not data["choices"]:
        return "usage"
    (choice,) = data["choices"]
    return "end" if choice["finish_reason"] else "role" if "role" in choice["delta"] else choice["delta"]["content"]


async def test_an_error_comes_inside_the_stream(engine: ScriptedEngine, client: WireClient) -> None:
    """After as many chunks as told; `[DONE]` follows, as from a real engine."""
    engine.error_event_after(2)
    async with client.stream(CHAT, ONE_STREAM) as stream:
        assert [kind(event) for event in await stream.events()] == ["role", "The", "error", "done"]
        assert stream.terminated


async def test_a_wedged_engine_sends_only_comments(engine: ScriptedEngine, client: WireClient) -> None:
    """Bytes, and never an event."""
    engine.only_comments(every_s=0.001)
    async with client.stream(CHAT, ONE_STREAM) as stream:
        assert {await stream.event() for _ in range(5)} == {wire.KEEP_ALIVE}
    await engine.calls[0].ended()
    assert (engine.calls[0].aborted, engine.generated_tokens) == (True, 0)


async def test_it_fails_as_often_as_told(engine: ScriptedEngine, client: WireClient) -> None:
    """`calls=k` is the next k; any status, body and headers; the connection stays."""
    engine.fails_with(500, calls=1)
    engine.fails_with(502, "<html>", content_type="text/html", headers=[("retry-after", "7")], calls=1)
    engine.overflows(calls=1)
    first, second, third, fourth = [await client.post(CHAT, ONE_ANSWER) for _ in range(4)]
    assert (first.status, first.json["error"]["code"]) == (500, 500)
    assert (second.status, second.body, second.header("retry-after")) == (502, b"<html>", "7")
    assert third.status == 503
    assert third.json["error"]["type"] == "Service Unavailable"
    assert fourth.status == 200
    assert engine.connections_made == 1


async def test_scripts_for_the_next_calls_add_up_and_then_end(engine: ScriptedEngine) -> None:
    """Different concerns combine on one call; the lasting script is back after it."""
    engine.says("lasting")
    engine.says("once", calls=1)
    engine.dies_after(2, "fin", calls=1)
    async with WireClient(engine.url) as client, client.stream(CHAT, ONE_STREAM) as stream:
        assert [kind(event) for event in await stream.events()] == ["role", "once"]
    async with WireClient(engine.url) as client:
        reply = await client.post(CHAT, ONE_ANSWER)
        assert reply.json["choices"][0]["message"]["content"] == "lasting"


async def test_other_routes_go_wrong_too(engine: ScriptedEngine, client: WireClient) -> None:
    """Probes can be held, refused and fed with garbage, while calls are answered."""
    engine.fails_with(500, on="/metrics")
    engine.holds(on="/health")
    assert (await client.get("/metrics")).status == 500
    async with WireClient(engine.url) as probe:
        await probe.send("GET", "/health")
        assert (await client.post(CHAT, ONE_ANSWER)).status == 200
        engine.release(on="/health")
        assert (await probe.reply()).status == 200
        engine.sends_raw(b"\x00garbage", on="/v1/models")
        await probe.send("GET", "/v1/models")
        assert (await probe.read_to_end(), probe.ending) == (b"\x00garbage", "fin")


@pytest.mark.parametrize("then", ["keep", "fin", "reset"])
async def test_raw_bytes_go_out_as_they_are(engine: ScriptedEngine, then: Any) -> None:
    """No framing is added or repaired; the connection ends as told."""
    engine.sends_raw([b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\n"], then=then)
    async with WireClient(engine.url) as client:
        await client.send("POST", CHAT, json=ONE_ANSWER)
        await engine.saw(1)
        if then == "keep":
            await engine.calls[0].ended()
            data = await client.read()
        else:
            data = await client.read_to_end()
        assert data == b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nset-cookie: a=b\r\n"
        assert client.ending == (None if then == "keep" else then)


async def test_raw_pieces_arrive_one_by_one(engine: ScriptedEngine, client: WireClient) -> None:
    """A reader in the same process gets each piece in a read of its own."""
    engine.sends_raw([b"a", b"b", b"cc"])
    await client.send("POST", CHAT, json=ONE_ANSWER)
    await client.read_to_end()
    assert [data for _, data in client.arrivals] == [b"a", b"b", b"cc"]


@pytest.mark.parametrize("cuts", [{"every": 1}, {"every": 7}, {"at": (3, 200, 201)}])
async def test_a_reply_is_cut_at_any_byte(engine: ScriptedEngine, cuts: dict[str, Any]) -> None:
    """The same bytes in other reads."""
    engine.says("é", "\u2028", "🙂")
    async with WireClient(engine.url) as client, client.stream(CHAT, ONE_STREAM) as stream:
        await stream.events()
    engine.cuts(*cuts.get("at", ()), every=cuts.get("every", 0))
    async with WireClient(engine.url) as client, client.stream(CHAT, ONE_STREAM) as cut:
        await cut.events()
        sizes = [len(data) for _, data in client.arrivals]
    assert neutral(cut.head.raw + cut.raw) == neutral(stream.head.raw + stream.raw)
    assert sizes[:2] == {1: [1, 1], 7: [7, 7], 0: [3, 197]}[cuts.get("every", 0)]
    assert engine.generated_tokens == 6


async def test_any_events_can_be_streamed(engine: ScriptedEngine, client: WireClient) -> None:
    """Invalid ones too, each in a chunk of its own."""
    engine.sends_events(b"data: {broken\n\n", b"\xef\xbb\xbfdata\r\n\r\n", b": only a comment\n\n")
    async with client.stream(CHAT, ONE_STREAM) as stream:
        await stream.events()
    assert stream.chunks == [b"data: {broken\n\n", b"\xef\xbb\xbfdata\r\n\r\n", b": only a comment\n\n"]
    assert stream.terminated


async def test_recorded_replies_are_replayed(engine: ScriptedEngine, client: WireClient) -> None:
    """Byte for byte, and the connection is good for another call."""
    engine.replays("stream_logprobs", calls=1)
    async with client.stream(CHAT, ONE_STREAM) as stream:
        await stream.events()
    assert stream.head.raw + stream.raw == wire.recorded("stream_logprobs").reply
    assert (await client.post(CHAT, ONE_ANSWER)).status == 200


async def test_headers_are_added_on_top(engine: ScriptedEngine, client: WireClient) -> None:
    """To plain answers and streams."""
    engine.adds_headers(("set-cookie", "a=b"))
    assert (await client.post(CHAT, ONE_ANSWER)).header("set-cookie") == "a=b"
    async with client.stream(CHAT, ONE_STREAM) as stream:
        assert stream.header("set-cookie") == "a=b"
        assert stream.header("transfer-encoding") == "chunked"
        await stream.events()


async def test_chunks_share_writes_when_told(engine: ScriptedEngine, client: WireClient) -> None:
    """A burst: the same chunks in fewer writes."""
    engine.paces(chunks_per_write=4)
    engine.steps()
    async with client.stream(CHAT, ONE_STREAM) as stream:
        engine.step()
        await stream.event()
        assert engine.calls[0].chunks_sent == 4
        engine.step(100)
        assert len(await stream.events()) == 9
        assert stream.terminated


async def test_it_keeps_the_pace_it_is_told(engine: ScriptedEngine, client: WireClient) -> None:
    """First event after ttft_s, then gap_s per token; never faster."""
    engine.says("a", "b", "c")
    engine.paces(ttft_s=0.03, gap_s=0.01)
    start = time.monotonic()
    async with client.stream(CHAT, ONE_STREAM) as stream:
        assert delta(await stream.event()) == ""
        assert time.monotonic() - start >= 0.03
        await stream.events()
    assert time.monotonic() - start >= 0.05
    start = time.monotonic()
    await client.post(CHAT, ONE_ANSWER)
    assert time.monotonic() - start >= 0.05


async def test_a_reader_that_stops_holds_the_engine_back(engine: ScriptedEngine) -> None:
    """Nothing piles up in the engine: it writes on when the reader reads on."""
    engine.says("x" * 10_000, forever=True)
    client = WireClient(engine.url, receive_buffer_bytes=4096)
    async with client, client.stream(CHAT, ONE_STREAM) as stream:
        await engine.calls[0].sent(10)
        while engine.calls[0].chunks_sent != await settled(engine):
            pass
        held_back_at = engine.calls[0].chunks_sent
        assert held_back_at < 1000
        for _ in range(held_back_at + 1):
            assert await stream.event()
        assert engine.calls[0].chunks_sent > held_back_at


async def settled(engine: ScriptedEngine) -> int:
    """Chunks sent after a few turns of the event loop."""
    for _ in range(10):
        await asyncio.sleep(0)
    return engine.calls[0].chunks_sent


async def test_pipelined_calls_are_answered_in_order(engine: ScriptedEngine, client: WireClient) -> None:
    """The second call is looked at when the first is answered."""
    engine.holds()
    both = [message("POST", CHAT, json={**ONE_ANSWER, "max_tokens": n}) for n in (1, 2)]
    await client.send_raw(b"".join(both))
    await engine.saw(1)
    assert engine.calls_seen == 1
    engine.release()
    assert [(await client.reply()).json["usage"]["completion_tokens"] for _ in range(2)] == [1, 2]


async def test_connection_close_is_honoured(engine: ScriptedEngine, client: WireClient) -> None:
    """The reply says so too, as a real engine's does."""
    reply = await client.post(CHAT, ONE_ANSWER, headers={"Connection": "close"})
    assert reply.header("connection") == "close"
    assert (await client.read_to_end(), client.ending) == (b"", "fin")


async def test_what_is_not_http_is_counted(engine: ScriptedEngine, client: WireClient) -> None:
    """400 and the end of the connection; it never becomes a call."""
    await client.send_raw(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: +1_0\r\n\r\n")
    assert (await client.reply()).status == 400
    assert (engine.malformed_messages, engine.calls) == (1, [])


async def test_several_engines_have_a_name_and_a_port_each() -> None:
    """And close with their block."""
    async with scripted("a", "b") as engines:
        assert [repr(engine) for engine in engines.values()] == [
            "<ScriptedEngine a 0 running, 0 served, 0 aborted>",
            "<ScriptedEngine b 0 running, 0 served, 0 aborted>",
        ]
        assert engines["a"].port != engines["b"].port
        urls = [engine.url for engine in engines.values()]
    for url in urls:
        with pytest.raises(ConnectionRefusedError):
            async with WireClient(url):
                pass


async def test_nothing_is_left_when_it_closes_with_calls_under_way() -> None:
    """Held calls, streams and idle connections are closed with it, and the event loop has no task of it."""
    tasks = asyncio.all_tasks()
    async with WireClientStack() as clients:
        async with ScriptedEngine() as engine:
            engine.holds()
            for client in await clients.connect(engine.url, 3):
                await client.send("POST", CHAT, json=ONE_STREAM)
            await engine.saw(3)
            await clients.connect(engine.url, 2)
        assert (engine.connections_open, engine.running, engine.aborted) == (0, 0, 3)
    assert asyncio.all_tasks() == tasks


class WireClientStack:
    """Several clients that close together."""

    def __init__(self) -> None:
        self._clients: list[WireClient] = []

    async def __aenter__(self) -> "WireClientStack":
        return self

    async def connect(self, url: str, n: int) -> list[WireClient]:
        clients = [await WireClient(url).__aenter__() for _ in range(n)]
        self._clients += clients
        return clients

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.leave()


async def test_a_fact_that_never_comes_is_an_error_that_tells_the_story(engine: ScriptedEngine) -> None:
    """The engine's own words, not a bare timeout."""
    with pytest.raises(AssertionError, match="<ScriptedEngine a 0 running, 0 served, 0 aborted>"):
        await engine.saw(1, within_s=0.01)


async def test_without_recording_only_counts_are_kept() -> None:
    """For benchmarks: nothing grows with the number of calls."""
    async with ScriptedEngine(recording=False) as engine, WireClient(engine.url) as client:
        await client.post(CHAT, ONE_ANSWER)
        await client.get("/health")
        assert (engine.calls, engine.others, engine.calls_seen, engine.served) == ([], [], 1, 1)
