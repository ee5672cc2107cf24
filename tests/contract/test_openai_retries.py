"""The official `openai` client, told to retry, against every refusal of ours: how often it comes back, and when.

A pause that the client chooses is not slept: the clock of the gateway is put forward by it instead. So a call that is
admitted on its second attempt was told the truth about when to come back.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.engines import ScriptedEngine, scripted
from tests.harness import KEY, MODEL, Clock, Harness, gateway, hello, key
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

RETRIES = 2
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "x"}]


@dataclass(frozen=True)
class Pause:
    """A pause that the client chose, and what it was told by our headers; seconds."""

    chosen_s: float
    told_s: float


class Patient(openai.AsyncOpenAI):
    """The client itself, but for what it does with a pause: it notes it, and moves a clock instead of waiting.

    `final`: the last error said that to try again is of no use.
    """

    def __init__(self, harness: Harness, clock: Clock, api_key: str = KEY, max_retries: int = RETRIES) -> None:
        super().__init__(base_url=f"{harness.url}/v1", api_key=api_key, max_retries=max_retries)
        self.pauses: list[Pause] = []
        self.final = False
        self._clock = clock

    def _calculate_retry_timeout(self, remaining_retries: int, options: Any, response_headers: Any = None) -> float:
        chosen_s = super()._calculate_retry_timeout(remaining_retries, options, response_headers)
        told = {name: float(response_headers[name]) for name in ("retry-after", "retry-after-ms")}
        # Whole seconds for those who read no milliseconds, and never earlier than these.
        assert 0 <= told["retry-after"] - told["retry-after-ms"] / 1000 < 1
        self.pauses.append(Pause(chosen_s, told["retry-after-ms"] / 1000))
        self._clock.advance(chosen_s)
        return 0.0

    async def ask(self, **fields: Any) -> str:
        """A call: `served`, or the status and code of the error that it ends in."""
        try:
            await self.chat.completions.create(model=MODEL, messages=HELLO, **fields)
        except openai.APIStatusError as error:
            self.final = error.response.headers.get("x-should-retry") == "false"
            return f"{error.status_code} {error.code}"
        return "served"


def limited(**limits: Any) -> dict[str, Any]:
    return {"keys": [key("tester", limits=limits)]}


async def until_waiting(harness: Harness, calls: int) -> None:
    async with asyncio.timeout(10):
        while f" {calls} waiting" not in harness.gate:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def attempts(harness: Harness) -> int:
    return len(harness.calls)


@pytest.mark.parametrize(
    ("limits", "fields", "told_s"),
    [
        ({"requests_per_minute": 1}, {}, 60),
        ({"requests_per_minute": 2}, {}, 30),
        ({"tokens_per_minute": 100}, {"max_tokens": 60}, None),
    ],
    ids=["one call a minute", "two calls a minute", "tokens a minute"],
)
async def test_it_comes_back_once_and_is_served(limits: Any, fields: Any, told_s: float | None) -> None:
    """A limit that refills says when there is room again, to the millisecond: not before, and not for nothing."""
    clock = Clock()
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, clock=clock, identity=limited(**limits)) as it,
    ):
        async with Patient(it, clock) as client:
            engines["a"].says(*["word "] * 60)
            while not client.pauses:
                assert await client.ask(**fields) == "served"
        (pause,) = client.pauses
        assert pause.chosen_s == pause.told_s
        assert told_s is None or pause.told_s == told_s
        assert 0 < pause.told_s <= 60
        assert [line["outcome"] for line in it.calls][-2:] == ["refused", "ok"]
        assert it.metric("pagegate_limits_reached_total") == 1


@pytest.mark.parametrize(
    ("limits", "budget", "fields", "code", "final"),
    [
        ({}, {"tokens_per_day": 80}, {"max_tokens": 30}, "insufficient_quota", True),
        ({}, {"tokens_per_month": 80}, {"max_tokens": 30}, "insufficient_quota", True),
        ({}, {"cost_per_day": 0.08}, {"max_tokens": 30}, "insufficient_quota", True),
        ({}, {"cost_per_month": 0.08}, {"max_tokens": 30}, "insufficient_quota", True),
        ({"tokens_per_minute": 100}, {}, {"max_tokens": 1000}, "rate_limit_exceeded", True),
        # A client waits two minutes at most: one that came back before there is room would come for nothing.
        ({"tokens_per_day": 100}, {}, {"max_tokens": 60}, "rate_limit_exceeded", False),
    ],
    ids=[
        "tokens of a day",
        "tokens of a month",
        "cost of a day",
        "cost of a month",
        "larger than the limit",
        "spread over a day",
    ],
)
async def test_it_does_not_come_back_where_that_is_vain(
    limits: Any, budget: Any, fields: Any, code: str, final: bool
) -> None:
    """What is used up for long, and what can never fit, is refused once."""
    clock = Clock()
    identity = {"tenants": [{"name": "default", "budget": budget}], **limited(**limits)}
    async with scripted("a") as engines:
        model = {
            "name": MODEL,
            "price": {"prompt": 1000, "completion": 1000},
            "replicas": [{"name": "a", "url": engines["a"].url}],
        }
        async with gateway({}, models=[model], clock=clock, identity=identity) as it:
            engines["a"].says(*["word "] * 60)
            async with Patient(it, clock) as client:
                found, calls = "served", 0
                while found == "served" and calls < 3:
                    found, calls = await client.ask(**fields), calls + 1
            assert (found, client.pauses) == (f"429 {code}", [])
            assert client.final or not final
            assert attempts(it) == calls


async def test_it_waits_a_second_for_a_slot() -> None:
    """When one is free nobody can know."""
    clock = Clock()
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, clock=clock, identity=limited(concurrent_calls=1)) as it,
    ):
        engines["a"].holds()
        async with it.sent() as held, Patient(it, clock) as client:
            await engines["a"].saw()
            assert await client.ask() == "429 rate_limit_exceeded"
            engines["a"].release()
            await held.reply()
        assert client.pauses == [Pause(1, 1)] * RETRIES
        assert attempts(it) == 1 + RETRIES + 1


def busy(engine: ScriptedEngine, **queue: Any) -> dict[str, Any]:
    """Before an engine that runs one call, and is given one more."""
    model = {"name": MODEL, "replicas": [{"name": "a", "url": engine.url}], "calls_per_replica": 1}
    return {"models": [model], "queue": queue}


@pytest.mark.parametrize(
    ("queue", "found"),
    [
        ({"max_waiting": 0}, "503 server_is_overloaded"),
        ({"max_waiting": 1, "max_waiting_per_tenant": 1, "max_wait_s": 60}, "429 rate_limit_exceeded"),
    ],
    ids=["a queue that is full", "a tenant's part of it that is full"],
)
async def test_it_comes_back_to_a_queue_when_it_will_have_moved(queue: Any, found: str) -> None:
    """503 and 429 alike, with a pause in milliseconds; not one attempt more than it was told to make."""
    clock = Clock()
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine, **queue), clock=clock) as it:
            async with it.sent() as one, it.sent() as two:
                await engine.saw(2)
                waiting = [one, two]
                if queue["max_waiting"]:
                    async with it.sent() as three, Patient(it, clock) as client:
                        await until_waiting(it, 1)
                        assert await client.ask() == found
                        engine.behaves()
                        for call in (*waiting, three):
                            assert (await call.reply()).status == 200
                else:
                    async with Patient(it, clock) as client:
                        assert await client.ask() == found
                    engine.behaves()
                    for call in waiting:
                        assert (await call.reply()).status == 200
            assert len(client.pauses) == RETRIES
            assert all(pause.chosen_s == pause.told_s > 0 for pause in client.pauses)
            assert len([line for line in it.calls if line["outcome"] != "ok"]) == 1 + RETRIES


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


async def test_it_comes_back_where_limits_cannot_be_checked(redis: RedisServer) -> None:
    """A limit that refuses without Redis is no fault of the caller's: 503, and worth another try."""
    clock = Clock()
    rule = {"name": "hard", "per": ["tenant"], "requests_per_minute": 1000, "on_loss": "refuse"}
    sections: dict[str, Any] = {"redis": {"url": redis.url, "timeout_s": 0.5, "retry_s": 0.02}, "limits": [rule]}
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=clock, **sections) as it:
        async with Patient(it, clock) as client:
            assert await client.ask() == "served"
            redis.kill()
            assert await client.ask() == "503 server_is_overloaded"
        assert client.pauses == [Pause(1, 1)] * RETRIES
        assert len(engines["a"].calls) == 1


@pytest.mark.parametrize("wrong", ["pg-wrong", "eyJhbGciOiJub25lIn0.e30.", "pga-wrong"])
async def test_it_does_not_come_back_with_a_wrong_credential(wrong: str) -> None:
    """401 is final; who goes on with wrong ones is told to wait, and only then comes back."""
    clock = Clock()
    identity = {"failures_per_minute": 2}
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=clock, identity=identity) as it:
        async with Patient(it, clock, api_key=wrong) as client:
            for _ in range(2):
                assert await client.ask() == "401 invalid_api_key"
            assert (client.pauses, attempts(it)) == ([], 2)
            assert await client.ask() == "401 invalid_api_key"
            assert client.pauses == [Pause(30, 30)]
        assert attempts(it) == 4


async def test_streams_are_retried_alike() -> None:
    """Before the first byte a streamed call is a call like any other."""
    clock = Clock()
    identity = limited(requests_per_minute=1)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=clock, identity=identity) as it:
        assert (await it.post(hello())).status == 200
        async with Patient(it, clock) as client:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            assert [chunk.choices[0].finish_reason async for chunk in stream][-1] == "stop"
        assert client.pauses == [Pause(60, 60)]
