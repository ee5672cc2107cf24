"""What honest clients send with the official `openai` client: all of it is taken, and reaches the engine unharmed."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.engines import ScriptedEngine, scripted
from tests.harness import KEY, MODEL, gateway, hello

pytestmark = pytest.mark.anyio

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


class Step(BaseModel):
    """One of several, nested."""

    explanation: str = Field(max_length=200)
    kind: Literal["algebra", "proof"] | None = None
    deeper: list["Step"] = []


class Answer(BaseModel):
    """What a model is asked to fill in."""

    steps: list[Step]
    result: float


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    unit: Literal["c", "f"] = "c"


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted("a") as engines:
        yield engines["a"]


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        gateway({"a": engine.url}) as harness,
        openai.AsyncOpenAI(base_url=f"{harness.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


# The documented parameters of `chat.completions.create`, and whether they go on to the engine.
PASSED: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 100,
    "n": 2,
    "parallel_tool_calls": True,
    "presence_penalty": -0.5,
    "reasoning_effort": "low",
    "response_format": {"type": "text"},
    "seed": 7,
    "stop": ["\n", "END"],
    "temperature": 0.2,
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}],
    "top_logprobs": 3,
    "top_p": 0.9,
}
KEPT: dict[str, Any] = {
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": False,
    "user": "u",
    "verbosity": "low",
}
# What a server other than ours would have to do. Better refused than answered as if it had been done.
REFUSED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "web_search_options": {},
}
# vLLM's documented extras.
EXTRAS: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "stop_token_ids": [2],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_reasoning": False,
    "structured_outputs": {"choice": ["yes", "no"]},
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.mark.parametrize("name", PASSED)
async def test_a_parameter_of_the_client_reaches_the_engine(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, name: str
) -> None:
    """As the client writes it."""
    await client.chat.completions.create(model=MODEL, messages=HELLO, **{name: PASSED[name]})
    assert engine.calls[0].body[name] == PASSED[name]


@pytest.mark.parametrize("name", KEPT)
async def test_a_parameter_that_only_its_maker_needs_is_taken(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, name: str
) -> None:
    """It changes nothing of the answer, and goes no further."""
    await client.chat.completions.create(model=MODEL, messages=HELLO, **{name: KEPT[name]})
    assert name not in engine.calls[0].body


@pytest.mark.parametrize("name", REFUSED)
async def test_a_parameter_that_would_be_ignored_is_refused(client: openai.AsyncOpenAI, name: str) -> None:
    """A reply that leaves out what was asked for would look like success."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, **{name: REFUSED[name]})
    assert caught.value.param == name


@pytest.mark.parametrize("name", EXTRAS)
async def test_an_extra_of_vllm_reaches_the_engine(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, name: str
) -> None:
    """Sent with `extra_body`."""
    await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={name: EXTRAS[name]})
    assert engine.calls[0].body[name] == EXTRAS[name]


async def test_a_reply_is_parsed_into_a_model(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    """`parse()` makes a schema of a pydantic model, also of one that contains itself, and a tool of another."""
    engine.says('{"steps":[],"result":4}')
    completion = await client.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Answer, tools=[openai.pydantic_function_tool(Weather)]
    )
    assert completion.choices[0].message.parsed == Answer(steps=[], result=4)
    sent = engine.calls[0].body
    assert sent["response_format"]["json_schema"]["schema"]["$defs"].keys() == {"Step"}
    assert sent["tools"][0]["function"]["strict"] is True


async def test_a_streamed_reply_is_parsed_into_a_model(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    """The same with the client's streaming helper."""
    engine.says('{"steps":[]', ',"result":4}')
    async with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Answer) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.parsed == Answer(steps=[], result=4)


async def test_a_conversation_goes_on_with_the_clients_own_messages(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    """A reply's message is sent back as it came, parsed or not, with whatever the engine put into it; then a tool's."""
    engine.says('{"steps":[],"result":4}')
    plain = (await client.chat.completions.create(model=MODEL, messages=HELLO)).choices[0].message
    parsed = await client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Answer)
    calling = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": None,
            "reasoning": "It is about the weather.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "Weather", "arguments": '{"city":"Paris"}'}}
            ],
        }
    )
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        plain,
        parsed.choices[0].message.model_dump(exclude_unset=True, warnings=False),
        calling,
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "12"}]},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "And now?"}]},
    ]
    await client.chat.completions.create(model=MODEL, messages=messages)
    sent = engine.calls[-1].body["messages"]
    assert [message["role"] for message in sent] == [
        *("developer", "user", "assistant", "assistant", "assistant", "tool", "user")
    ]
    assert sent[2]["content"] == sent[3]["content"] == '{"steps":[],"result":4}'
    assert sent[4]["tool_calls"][0]["function"] == {"name": "Weather", "arguments": '{"city":"Paris"}'}
    assert sent[4]["reasoning"] == "It is about the weather."
    assert not {"parsed", "annotations", "audio", "function_call"} & {name for message in sent for name in message}


async def test_a_caller_may_have_the_usage_with_every_token() -> None:
    """Load tools of vLLM send `continuous_usage_stats`, which says something only beside `include_usage`."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        for options in ({"include_usage": True, "continuous_usage_stats": True}, {"continuous_usage_stats": True}):
            assert (await harness.post(hello(stream=True, stream_options=options))).status == 200
        asked = [call.body["stream_options"] for call in engines["a"].calls]
    assert asked == [{"include_usage": True, "continuous_usage_stats": True}, {"include_usage": True}]
