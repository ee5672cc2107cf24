"""Limits end to end: reserved before a call, settled after it, told in headers; the clock is the test's."""

import asyncio
from typing import Any

import pytest

from tests.engines import scripted
from tests.harness import CHAT, MODEL, Clock, Harness, bearer, begun, gateway, hello, key
from tests.wire_client import WireClient, WireReply

pytestmark = pytest.mark.anyio


def limited(**limits: Any) -> dict[str, Any]:
    return {"keys": [key("tester", limits=limits)]}


def refusal(reply: WireReply) -> tuple[int, str, str]:
    return reply.status, reply.json["error"]["type"], reply.json["error"]["code"]


async def test_requests_a_minute_are_counted_and_come_back_evenly() -> None:
    """Two a minute: the third waits for half a minute, as its headers say."""
    clock = Clock()
    limits = limited(requests_per_minute=2)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=clock, identity=limits) as harness:
        first, second, third = [await harness.post() for _ in range(3)]
        assert [first.header("x-ratelimit-remaining-requests"), second.header("x-ratelimit-remaining-requests")] == [
            "1",
            "0",
        ]
        assert first.header("x-ratelimit-limit-requests") == "2"
        assert [first.header("x-ratelimit-reset-requests"), second.header("x-ratelimit-reset-requests")] == [
            "30s",
            "1m0s",
        ]
        assert refusal(third) == (429, "requests", "rate_limit_exceeded")
        assert (third.header("retry-after"), third.header("retry-after-ms")) == ("30", "30000")
        assert third.header("x-ratelimit-remaining-requests") == "0"
        clock.advance(29.9)
        assert (await harness.post()).status == 429
        clock.advance(0.1)
        assert (await harness.post()).status == 200
        assert len(engines["a"].calls) == 3
        assert harness.gate == "<Gate 0 running, 0 waiting, 2 refused, 0 shed>"


async def test_a_key_without_limits_gets_no_headers_about_them() -> None:
    """There is nothing to tell."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        reply = await harness.post()
    assert not [name for name, _ in reply.headers if name.startswith("x-ratelimit")]


async def test_tokens_are_reserved_while_a_call_runs_and_settled_with_what_it_took() -> None:
    """A call that may take 150 of 200 tokens keeps another one out; one that took 5 leaves room for it."""
    limits = limited(tokens_per_minute=200)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=Clock(), identity=limits) as harness:
        engine = engines["a"]
        engine.says("one", " two", " three")
        engine.holds(calls=1)
        async with harness.sent(hello(max_tokens=120)) as client:
            await engine.saw()
            refused = await harness.post(hello(max_tokens=120))
            assert refusal(refused) == (429, "tokens", "rate_limit_exceeded")
            assert 0 < float(refused.header("retry-after") or 0) <= 60
            engine.release()
            reply = await client.reply()
        assert reply.header("x-ratelimit-limit-tokens") == "200"
        assert 0 < int(reply.header("x-ratelimit-remaining-tokens") or 0) < 80
        assert (await harness.post(hello(max_tokens=120))).status == 200
        # Both took 5: of what is left a call for 190 can be had only if nothing stayed reserved.
        measured = sum(
            line["prompt_tokens"] + line["completion_tokens"] for line in harness.calls if "measured" in line
        )
        assert measured == 10


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_no_engine_served_costs_nothing(stream: bool) -> None:
    """Requests and tokens come back when nothing ran."""
    limits = limited(requests_per_minute=1, tokens_per_minute=200)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=Clock(), identity=limits) as harness:
        engines["a"].fails_with(500, calls=2)
        failed = await harness.post(hello(stream=stream, max_tokens=100))
        assert failed.status == 503
        assert failed.header("x-ratelimit-remaining-requests") == "1"
        assert (await harness.post(hello(stream=stream, max_tokens=100))).status == 200


async def test_a_slot_is_held_until_the_last_byte_of_a_stream() -> None:
    """One call at a time: a second stream is refused while the first one runs, and admitted after it."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, identity=limited(concurrent_calls=1)) as harness,
    ):
        engine = engines["a"]
        engine.says("one", " two")
        engine.steps(calls=1)
        async with harness.sent(hello(stream=True)) as client:
            await engine.saw()
            engine.step(2)
            stream = await begun(client)
            await stream.event()
            refused = await harness.post(hello(stream=True))
            assert refusal(refused) == (429, "requests", "rate_limit_exceeded")
            assert refused.header("retry-after") == "1"
            engine.step(10)
            await stream.events()
        await harness.ended(2)
        assert (await harness.post(hello(stream=True))).status == 200


async def test_of_many_calls_at_once_exactly_as_many_run_as_may() -> None:
    """Nobody slips through between the look at a limit and its use."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, identity=limited(concurrent_calls=5)) as harness,
    ):
        engine = engines["a"]
        engine.holds()

        async def call() -> int:
            return (await harness.post()).status

        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call()) for _ in range(30)]
            await harness.ended(25)
            await engine.saw(5)
            assert harness.gate == "<Gate 5 running, 0 waiting, 25 refused, 0 shed>"
            engine.release()
        statuses = [call.result() for call in calls]
        assert (statuses.count(200), statuses.count(429), engine.calls_seen) == (5, 25, 5)


async def test_keys_share_the_limits_of_their_tenant_and_each_has_its_own() -> None:
    """A refusal says whose limit it was, and takes nothing from the others."""
    identity = {
        "tenants": [{"name": "default", "limits": {"requests_per_minute": 3}}],
        "keys": [key("one", "pg-one", limits={"requests_per_minute": 2}), key("two", "pg-two")],
    }
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=Clock(), identity=identity) as harness:
        one = [await harness.post(headers=bearer("pg-one")) for _ in range(3)]
        two = [await harness.post(headers=bearer("pg-two")) for _ in range(2)]
        assert [reply.status for reply in (*one, *two)] == [200, 200, 429, 200, 429]
        assert "key one" in one[2].json["error"]["message"]
        assert "tenant default" in two[1].json["error"]["message"]


async def test_a_call_that_can_never_fit_is_told_not_to_come_back() -> None:
    """SDKs obey `x-should-retry`."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, identity=limited(tokens_per_minute=100)) as harness,
    ):
        reply = await harness.post(hello(max_tokens=1000))
        assert refusal(reply) == (429, "tokens", "rate_limit_exceeded")
        assert (reply.header("x-should-retry"), reply.header("retry-after")) == ("false", None)
        # A length that we only guess must not make a call impossible.
        assert (await harness.post(hello())).status == 200


async def test_a_gateway_runs_so_many_calls_and_no_more() -> None:
    """Beyond `admission.max_running` a call is answered 503 at once: that is no fault of the caller's."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, admission={"max_running": 1}) as harness,
    ):
        engines["a"].holds(calls=1)
        async with harness.sent() as client:
            await engines["a"].saw()
            reply = await harness.post()
            assert refusal(reply) == (503, "service_unavailable_error", "server_is_overloaded")
            assert reply.header("retry-after") == "1"
            engines["a"].release()
            assert (await client.reply()).status == 200
        assert harness.gate == "<Gate 0 running, 0 waiting, 0 refused, 1 shed>"


async def test_a_bad_call_and_a_wrong_key_take_nothing() -> None:
    """Limits count calls, and these are none."""
    identity = limited(requests_per_minute=1)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=Clock(), identity=identity) as harness:
        async with WireClient(harness.url) as client:
            await client.post(CHAT, json={"model": "tiny"}, headers=bearer())
        await harness.post(headers=bearer("pg-wrong"))
        assert (await harness.post()).status == 200


async def test_a_caller_that_leaves_is_charged_its_prompt_and_what_it_got() -> None:
    """To read a prompt costs an engine work, whether its caller stays or not."""
    limits = limited(tokens_per_minute=10_000)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, identity=limits) as harness:
        engine = engines["a"]
        engine.says(" word", forever=True)
        engine.steps()
        async with harness.sent(hello(stream=True)) as client:
            await engine.saw()
            engine.step(4)
            stream = await begun(client)
            for _ in range(4):
                await stream.event()
        line = await harness.ended()
        assert (line["outcome"], line["measured"]) == ("cancelled", False)
        assert line["prompt_tokens"] > 0
        assert line["completion_tokens"] >= 3
    assert_settled(harness)


def assert_settled(harness: Harness) -> None:
    assert harness.gate.startswith("<Gate 0 running")


async def test_the_tokens_of_a_prompt_can_be_counted_by_the_engines_own_tokenizer() -> None:
    """Template and tools included; a limit that the estimate would not fit is then no obstacle."""
    identity = limited(tokens_per_minute=20)
    long = hello("x" * 200, max_tokens=5)
    async with scripted("a") as engines:
        engine, url = engines["a"], engines["a"].url
        async with gateway({"a": url}, clock=Clock(), identity=identity, admission={"count_tokens": "exact"}) as exact:
            assert (await exact.post(long)).status == 200
            assert "/tokenize" in {call.path for call in engine.others}
        async with gateway({"a": url}, clock=Clock(), identity=identity) as estimated:
            assert (await estimated.post(long)).status == 429


async def test_a_budget_is_not_overspent_by_calls_that_leave_their_length_open() -> None:
    """However many at once: what each may take is reserved whole, and the engine is told to stop there."""
    identity = {"tenants": [{"name": "default", "budget": {"tokens_per_day": 300}}], "keys": [key("tester")]}
    async with scripted("a") as engines:
        engines["a"].serves(MODEL, max_model_len=100_000)
        engines["a"].says("word ", forever=True)
        async with gateway({"a": engines["a"].url}, identity=identity) as harness:
            await harness.serving.gateway.pipeline.fleet.until(lambda _: harness.replica("a").context_tokens == 100_000)
            replies = await asyncio.gather(*(harness.post(hello("x")) for _ in range(12)))
            spent = sum(reply.json["usage"]["total_tokens"] for reply in replies if reply.status == 200)
            assert 0 < spent <= 300
            assert {reply.status for reply in replies} == {200, 429}
