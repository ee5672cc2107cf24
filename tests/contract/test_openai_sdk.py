"""The official `openai` client against the gateway: what it returns, what it raises, when it tries again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.engines import ScriptedEngine, ScriptedEngines, scripted
from tests.harness import KEY, MODEL, PROMPT, Harness, gateway, key

pytestmark = pytest.mark.anyio

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a", max_model_len=64) as engines:
        engines["a"].says("The", " answer")
        yield engines


@pytest.fixture
def engine(engines: ScriptedEngines) -> ScriptedEngine:
    return engines["a"]


@pytest.fixture
async def harness(engine: ScriptedEngine) -> AsyncIterator[Harness]:
    async with gateway({"a": engine.url}, server={"max_body_bytes": 10_000}) as harness:
        yield harness


@pytest.fixture
async def client(harness: Harness) -> AsyncIterator[openai.AsyncOpenAI]:
    async with asking(harness) as client:
        yield client


def asking(harness: Harness, api_key: str = KEY, max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{harness.url}/v1", api_key=api_key, max_retries=max_retries)


async def synchronously(harness: Harness, use: Callable[[openai.OpenAI], Any]) -> Any:
    """What `use` makes of the synchronous client, in a thread."""

    def work() -> Any:
        with openai.OpenAI(base_url=f"{harness.url}/v1", api_key=KEY, max_retries=0) as client:
            return use(client)

    return await asyncio.to_thread(work)


# What it returns.


async def test_a_chat(client: openai.AsyncOpenAI, harness: Harness) -> None:
    """A completion with its usage and our identifier."""
    completion = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert completion.choices[0].message.content == "The answer"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 2)
    assert completion._request_id == harness.calls[0]["call"]


async def test_a_stream(client: openai.AsyncOpenAI) -> None:
    """Chunks without usage, ended by a finish reason."""
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The answer"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.usage for chunk in chunks} == {None}


async def test_a_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    """The last chunk has no choices and the usage."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert (last.choices, last.usage and last.usage.total_tokens) == ([], 4)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_the_stream_helper(client: openai.AsyncOpenAI) -> None:
    """The client's own accumulation gives the same completion as a plain call."""
    async with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "The answer"


async def test_the_synchronous_client(harness: Harness) -> None:
    """The same, plain and streamed."""

    def use(client: openai.OpenAI) -> tuple[str | None, str]:
        completion = client.chat.completions.create(model=MODEL, messages=HELLO)
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return completion.choices[0].message.content, streamed

    assert await synchronously(harness, use) == ("The answer", "The answer")


async def test_fields_pass_through_as_the_client_writes_them(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    """Tools, formats and sampling reach the engine; its tool calls reach the caller."""
    answer = (
        b'{"id":"x","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"finish_reason":"tool_calls",'
        b'"message":{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",'
        b'"function":{"name":"weather","arguments":"{\\"city\\":\\"Paris\\"}"}}]}}]}'
    )
    engine.fails_with(200, answer)
    completion = await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
            {"role": "tool", "tool_call_id": "c0", "content": "12"},
        ],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        response_format={"type": "json_object"},
        temperature=0.25,
        logit_bias={"5": 1},
        stop=["\n"],
        seed=3,
        user="u-1",
        extra_body={"top_k": 5},
    )
    calls = completion.choices[0].message.tool_calls
    assert calls is not None and calls[0].type == "function"
    assert (calls[0].function.name, calls[0].function.arguments) == ("weather", '{"city":"Paris"}')
    body = engine.calls[0].body
    assert body["tools"] == [TOOL]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert (body["parallel_tool_calls"], body["response_format"]) == (False, {"type": "json_object"})
    assert (body["temperature"], body["logit_bias"], body["stop"], body["seed"]) == (0.25, {"5": 1}, ["\n"], 3)
    assert (body["top_k"], len(body["messages"])) == (5, 3)
    assert "user" not in body


async def test_headers_can_be_read(client: openai.AsyncOpenAI, harness: Harness) -> None:
    """With raw responses, plain and streamed."""
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-request-id"] == harness.calls[0]["call"] == raw.request_id
    assert raw.headers["openai-processing-ms"].isdecimal()
    async with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, stream=True
    ) as streaming:
        assert streaming.headers["x-pagegate-replica"] == "a"
        assert (await streaming.read()).endswith(b"data: [DONE]\n\n")


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    """As pages and one by one."""
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "pagegate"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


async def test_leaving_a_stream_early_is_seen_by_the_engine(
    client: openai.AsyncOpenAI, harness: Harness, engine: ScriptedEngine
) -> None:
    """Closing the client's stream closes the engine's."""
    engine.says(" word", forever=True)
    engine.stalls_after(3)
    async with await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        async for _ in stream:
            break
    await engine.calls[0].ended()
    assert engine.calls[0].aborted
    assert (await harness.ended())["outcome"] == "cancelled"


# What it raises.


async def test_a_key_that_is_wrong(harness: Harness) -> None:
    """AuthenticationError, with OpenAI's code."""
    async with asking(harness, "pg-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "invalid_request_error")
    assert error.request_id == harness.calls[0]["call"]


async def test_a_model_that_does_not_exist(client: openai.AsyncOpenAI) -> None:
    """NotFoundError."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


async def test_a_field_that_is_wrong(client: openai.AsyncOpenAI) -> None:
    """BadRequestError, naming the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9)
    assert (caught.value.param, caught.value.code) == ("temperature", None)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"guided_regex": "x"})
    assert (caught.value.param, caught.value.code) == ("guided_regex", "unsupported_parameter")


async def test_a_prompt_that_is_too_long(client: openai.AsyncOpenAI) -> None:
    """The code that frameworks look for to shorten a conversation."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 100}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=messages, stream=stream)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_a_body_that_is_too_large(client: openai.AsyncOpenAI) -> None:
    """413 reaches the client although it was still sending."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 2_000_000}]
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model=MODEL, messages=messages)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


async def test_a_limit_that_is_reached(engine: ScriptedEngine) -> None:
    """RateLimitError, with what the client needs to know when to come back."""
    identity = {"keys": [key("tester", limits={"requests_per_minute": 1})]}
    async with gateway({"a": engine.url}, identity=identity) as harness, asking(harness) as client:
        await client.chat.completions.create(model=MODEL, messages=HELLO)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    headers = caught.value.response.headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert 50 < float(headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_is_away(client: openai.AsyncOpenAI, engine: ScriptedEngine, stream: bool) -> None:
    """InternalServerError, which is the client's name for every status from 500."""
    engine.fails_with(500)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "server_is_overloaded")
    assert caught.value.type == "service_unavailable_error"


async def test_a_stream_that_breaks_off(client: openai.AsyncOpenAI, harness: Harness, engine: ScriptedEngine) -> None:
    """APIError out of the loop, never an end that looks like one; the synchronous client sees the same."""
    engine.dies_after(2)
    got: list[str] = []
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            got.append(chunk.choices[0].delta.content or "")
    assert "".join(got) == "The"
    assert caught.value.code == "server_is_overloaded"
    assert "broke off" in caught.value.message

    def use(client: openai.OpenAI) -> str:
        with pytest.raises(openai.APIError) as caught:
            list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
        return str(caught.value.code)

    assert await synchronously(harness, use) == "server_is_overloaded"


# When it tries again.


async def test_it_comes_back_when_it_was_told_to(harness: Harness, engine: ScriptedEngine) -> None:
    """After `retry-after-ms`, which is later than its own first guess of half a second."""
    engine.overflows(calls=1)
    async with asking(harness, max_retries=1) as client:
        begun_s = time.monotonic()
        completion = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert completion.choices[0].message.content == "The answer"
    assert time.monotonic() - begun_s >= 1.0
    assert [line["outcome"] for line in harness.calls] == ["unserved", "ok"]


async def test_it_does_not_come_back_when_that_is_no_use(harness: Harness, engine: ScriptedEngine) -> None:
    """`x-should-retry: false` counts more than a status from 500."""
    engine.fails_with(401)
    async with asking(harness, max_retries=5) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (caught.value.status_code, caught.value.type) == (500, "server_error")
    assert len(harness.calls) == 1


async def test_it_does_not_come_back_with_a_call_that_can_never_fit(engine: ScriptedEngine) -> None:
    """A 429 is tried again, unless we say otherwise."""
    identity = {"keys": [key("tester", limits={"tokens_per_minute": 100})]}
    async with gateway({"a": engine.url}, identity=identity) as harness, asking(harness, max_retries=5) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1000)
        assert caught.value.type == "tokens"
        assert len(harness.calls) == 1
