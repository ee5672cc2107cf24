"""What a caller gets from a real engine through the gateway, with the official SDK."""

from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import openai
import pytest

from tests.harness import KEY, Harness
from tests.real.conftest import MODEL, Worker, decoded
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ENDLESS: Any = [{"role": "user", "content": "Count from one to one thousand."}]


@pytest.fixture
async def client(harness: Harness) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{harness.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def test_the_capital_of_france_is_paris(client: openai.AsyncOpenAI) -> None:
    """A plain reply through the async SDK."""
    reply = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in (reply.choices[0].message.content or "")


async def test_the_capital_of_france_is_paris_in_a_stream(client: openai.AsyncOpenAI) -> None:
    """A stream through the async SDK."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=32, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert "Paris" in text


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sync_sdk_gets_the_same_answer(harness: Harness, stream: bool) -> None:
    """The synchronous SDK, from a thread of its own, called by an alias."""

    def ask() -> str:
        with openai.OpenAI(base_url=f"{harness.url}/v1", api_key=KEY, max_retries=0) as client:
            if not stream:
                reply = client.chat.completions.create(model="small", messages=QUESTION, temperature=0, max_tokens=32)
                return reply.choices[0].message.content or ""
            chunks = client.chat.completions.create(
                model="small", messages=QUESTION, temperature=0, max_tokens=32, stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert "Paris" in await anyio.to_thread.run_sync(ask)


async def test_usage_is_the_engines_own(harness: Harness, worker: Worker, client: openai.AsyncOpenAI) -> None:
    """What the caller reads, what the gateway records and what the engine counts are the same numbers."""
    before = await worker.counter("vllm:prompt_tokens_total"), await worker.counter("vllm:generation_tokens_total")
    reply = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=16)
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=16, stream=True
    )
    assert [chunk async for chunk in stream][-1].usage is None, "the caller did not ask for the usage"
    await harness.until_idle()
    after = await worker.counter("vllm:prompt_tokens_total"), await worker.counter("vllm:generation_tokens_total")
    assert reply.usage is not None
    for record in harness.calls:
        assert (record["prompt_tokens"], record["completion_tokens"], record["measured"]) == (
            reply.usage.prompt_tokens,
            reply.usage.completion_tokens,
            True,
        )
    assert (after[0] - before[0], after[1] - before[1]) == (
        2 * reply.usage.prompt_tokens,
        2 * reply.usage.completion_tokens,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "temperature": 0.8, "seed": 7},
        {"logprobs": True, "top_logprobs": 3},
        {"stop": ["Paris"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": {
            "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}}}},
        {"tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]},
    ],
    ids=["two choices", "logprobs", "stop string", "JSON schema", "tools"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_what_the_engine_can_do_passes_through(
    harness: Harness, worker: Worker, fields: dict[str, Any], stream: bool
) -> None:
    """The same call through the gateway and to the engine gives the same choices."""
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24, "stream": stream, **fields}

    async def choices(url: str) -> list[Any]:
        async with WireClient(url, within_s=120) as client:
            if not stream:
                reply = await client.post("/v1/chat/completions", json=body, headers=harness.headers)
                assert reply.status == 200, reply.body
                return [_without_ids(choice) for choice in reply.json["choices"]]
            async with client.stream("/v1/chat/completions", json=body, headers=harness.headers) as events:
                seen = [decoded(event) for event in await events.events()]
            assert seen.pop() == "[DONE]"
            return sorted((_without_ids(choice) for event in seen for choice in event["choices"]), key=_by_index)

    assert await choices(harness.url) == await choices(worker.url)


def _without_ids(value: Any) -> Any:
    """A choice without the random identifiers of tool calls."""
    if isinstance(value, dict):
        return {key: _without_ids(inner) for key, inner in value.items() if key != "id"}
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value


def _by_index(choice: dict[str, Any]) -> int:
    index: int = choice["index"]
    return index


async def test_a_repeated_prompt_hits_the_prefix_cache(harness: Harness, worker: Worker) -> None:
    """The tenant's salt is the same from call to call, so its prompts share a cache; another tenant's would not."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "river " * 200}], "max_tokens": 1}
    async with WireClient(harness.url, within_s=60) as client:
        await client.post("/v1/chat/completions", json=body, headers=harness.headers)
        before = await worker.counter("vllm:prefix_cache_hits_total")
        reply = await client.post("/v1/chat/completions", json=body, headers=harness.headers)
    assert await worker.counter("vllm:prefix_cache_hits_total") > before
    await harness.until_idle()
    cached = reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= 128
    assert harness.calls[-1]["cached_tokens"] == cached


async def test_a_call_beyond_the_context_says_so(harness: Harness, client: openai.AsyncOpenAI) -> None:
    """The code is OpenAI's, the numbers are counted by the engine's own tokenizer."""
    long: Any = [{"role": "user", "content": "river " * 3000}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=long)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "2048 tokens" in caught.value.message


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
async def test_a_caller_who_leaves_frees_the_engine_within_two_seconds(
    harness: Harness, worker: Worker, stream: bool
) -> None:
    """The engine stops generating, and the tokens so far are charged."""
    body = {"model": MODEL, "messages": ENDLESS, "max_tokens": 1900, "min_p": 0, "stream": stream}
    async with WireClient(harness.url, within_s=60) as client:
        await client.send("POST", "/v1/chat/completions", json=body, headers=harness.headers)
        if stream:
            await client.head()
        await worker.until_running(within_s=20)
    await worker.until_idle(within_s=2)
    generated = await worker.counter("vllm:generation_tokens_total")
    await harness.until_idle()
    assert harness.calls[-1]["outcome"] == "cancelled"
    assert harness.calls[-1]["prompt_tokens"] > 0
    assert await worker.counter("vllm:generation_tokens_total") == generated
