"""Replies recorded from a real engine, through the gateway: the caller gets the recorded bytes."""

import orjson
import pytest

from tests.engines import scripted
from tests.harness import CHAT, bearer, gateway
from tests.vllm_wire import recorded
from tests.wire_client import Body, Head, WireClient, WireReply

pytestmark = pytest.mark.anyio

PLAIN = ["chat", "chat_length", "chat_logprobs", "chat_n2", "chat_request_id", "chat_stop_string", "chat_token_ids"]
STREAMS = [
    "stream",
    "stream_continuous_usage",
    "stream_length",
    "stream_logprobs",
    "stream_n2",
    "stream_stop_string",
    "stream_token_ids",
    "stream_usage",
    "stream_waiting",
]
# Rejected by the engine as the caller's own fault.
REJECTED = ["bad_logit_bias", "bad_logit_bias_stream", "bad_n_greedy", "bad_max_tokens", "bad_type"]
BROKEN = {"stream_core_killed": 200, "stream_dead": 503, "chat_dead": 503, "overflow": 503, "overflow_stream": 503}
# What these samples asked for beyond what every caller may.
ALSO_ALLOWED = ["return_token_ids"]


def body_of(name: str) -> bytes:
    """The recorded reply without its framing."""
    raw_head, _, rest = recorded(name).reply.partition(b"\r\n\r\n")
    body = Body(Head(raw_head + b"\r\n\r\n"))
    body.feed(rest)
    assert body.done
    return bytes(body.data)


async def relayed(name: str, **fields: object) -> WireReply:
    """The gateway's reply to the recorded call, whose engine answers as the recorded one did."""
    call = orjson.loads(recorded(name).call.partition(b"\r\n\r\n")[2])
    call = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | {
        field: value for field, value in call.items() if field in ("stream", "n", "temperature")
    }
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].replays(name)
        async with WireClient(harness.url) as client:
            return await client.post(CHAT, json=call | fields, headers=bearer())


@pytest.mark.parametrize("name", PLAIN)
async def test_a_recorded_document_is_relayed_byte_for_byte(name: str) -> None:
    """Whatever an engine's document holds, it is the caller's."""
    reply = await relayed(name)
    assert (reply.status, reply.body) == (200, body_of(name))


@pytest.mark.parametrize("name", STREAMS)
async def test_a_recorded_stream_is_relayed_byte_for_byte(name: str) -> None:
    """With the usage asked for nothing is taken out."""
    reply = await relayed(name, stream_options={"include_usage": True})
    assert (reply.status, reply.body) == (200, body_of(name))


@pytest.mark.parametrize("name", STREAMS)
async def test_of_a_recorded_stream_at_most_the_usage_is_taken_out(name: str) -> None:
    """Without it asked for, the event without choices is missing, and nothing else."""
    reply = await relayed(name)
    events = [event + b"\n\n" for event in body_of(name).split(b"\n\n")[:-1]]
    usage = [event for event in events if b'"choices":[]' in event]
    assert reply.body == b"".join(event for event in events if event not in usage)
    assert len(usage) == (b"include_usage" in recorded(name).call)


@pytest.mark.parametrize("name", REJECTED)
async def test_a_recorded_rejection_keeps_its_reason_and_gets_our_shape(name: str) -> None:
    """The engine's code is a number and its type its own; SDKs read ours."""
    reply = await relayed(name)
    assert reply.status == 400
    error = reply.json["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert error["message"].split()[0] in body_of(name).decode()


@pytest.mark.parametrize(("name", "status"), BROKEN.items())
async def test_a_recorded_failure_is_told_in_our_words(name: str, status: int) -> None:
    """As a status where nothing was passed on, as a last event where something was."""
    reply = await relayed(name)
    assert (reply.status, reply.complete) == (status, True)
    if status == 200:
        whole = body_of(name)
        before = whole[: whole.index(b'data: {"error"')]
        assert reply.body.startswith(before + b'data: {"error":{"message":')
        assert b"EngineCore" not in reply.body
        assert b"[DONE]" not in reply.body
    else:
        assert reply.json["error"]["code"] == "server_is_overloaded"
        assert reply.header("retry-after") == "1"
