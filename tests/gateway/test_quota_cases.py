"""What a call is held to before it runs: how much is reserved for it, whatever it says or leaves unsaid of its length.

A limit shows what is reserved: a call that takes exactly all of it runs, and one token less refuses it.
"""

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.admission.cost import FIRST_GUESS_TOKENS_PER_BYTE
from tests.engines import ScriptedEngine, scripted
from tests.gateway.test_queue import busy, until_waiting
from tests.harness import KEY, MODEL, PROMPT, Clock, bearer, begun, gateway, hello, key
from tests.wire_client import WireReply

pytestmark = pytest.mark.anyio

UNSAID = 256
MOST = 2**31 - 1


def limited(**limits: Any) -> dict[str, Any]:
    return {"keys": [key("tester", limits=limits)]}


def prompt_tokens(body: dict[str, Any]) -> int:
    """What the prompt of a body is thought to take before any was measured."""
    return round(len(json.dumps(body)) * FIRST_GUESS_TOKENS_PER_BYTE) + 1


def refusal(reply: WireReply) -> tuple[int, str, str]:
    return reply.status, reply.json["error"]["type"], reply.json["error"]["code"]


# What is reserved.

LENGTHS = {
    "a length": ({"max_tokens": 7}, 7),
    "the same by its new name": ({"max_completion_tokens": 7}, 7),
    "both names": ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
    "null for one of them": ({"max_tokens": None, "max_completion_tokens": 7}, 7),
    "one token": ({"max_tokens": 1}, 1),
    "a length for each of several choices": ({"max_tokens": 7, "n": 4}, 28),
    "one choice": ({"max_tokens": 7, "n": 1}, 7),
    "null choices": ({"max_tokens": 7, "n": None}, 7),
    "as many choices as may be": ({"max_tokens": 7, "n": 8}, 56),
    "a stream": ({"max_tokens": 7, "stream": True}, 7),
    "stops that may never come": ({"max_tokens": 7, "stop": ["\u2603"], "repetition_penalty": 0.5}, 7),
    "tools": ({"max_tokens": 7, "tools": [{"type": "function", "function": {"name": "f" * 60}}]}, 7),
    "more than any engine has": ({"max_tokens": MOST}, MOST),
    "more than any engine has, eight times": ({"max_tokens": MOST, "n": 8}, 8 * MOST),
}
LIMITS = ("tokens_per_minute", "tokens_per_day")
BUDGETS = ("tokens_per_day", "tokens_per_month")


@pytest.mark.parametrize(("fields", "completion"), LENGTHS.values(), ids=LENGTHS)
async def test_what_a_call_says_of_its_length_is_reserved(fields: dict[str, Any], completion: int) -> None:
    """Prompt and completion of every choice, in each kind of limit and budget alike."""
    body = hello(**fields)
    whole = prompt_tokens(body) + completion
    held_to: list[dict[str, Any]] = [{"limits": {name: whole}} for name in LIMITS]
    held_to += [{"budget": {name: whole}} for name in BUDGETS]
    async with scripted("a") as engines:
        for held in held_to:
            ((kind, given),) = held.items()
            ((name, _),) = given.items()
            for size, status in ((whole, 200), (whole - 1, 429)):
                tenant = {"name": "default", kind: {name: size}}
                identity = {"tenants": [tenant], "keys": [key("tester")]}
                async with gateway({"a": engines["a"].url}, clock=Clock(), identity=identity) as harness:
                    reply = await harness.post(body)
                # More than its context an engine refuses itself.
                found = 200 if reply.status == 400 and completion >= MOST else reply.status
                assert found == status, (name, size)
                if reply.status == 200 and kind == "limits":
                    assert reply.header("x-ratelimit-remaining-tokens") == "0"
        assert len(engines["a"].calls) == len(held_to)
        # What was said goes on as it was said: the engine holds to it.
        sent = {name for name in ("max_tokens", "max_completion_tokens") if fields.get(name) is not None}
        for call in engines["a"].calls:
            assert {name for name in ("max_tokens", "max_completion_tokens") if name in call.body} == sent


@pytest.mark.parametrize(
    ("fields", "admission", "completion"),
    [
        ({}, {}, UNSAID),
        ({"max_tokens": None}, {}, UNSAID),
        ({"max_tokens": None, "max_completion_tokens": None}, {}, UNSAID),
        ({"n": 3}, {}, 3 * UNSAID),
        ({}, {"completion_tokens": 1000}, 1000),
    ],
    ids=["nothing", "null", "null twice", "nothing of three choices", "as the operator guesses"],
)
async def test_what_a_call_leaves_unsaid_is_guessed(fields: Any, admission: Any, completion: int) -> None:
    """By a setting; and what is only guessed makes no call impossible that a small limit has room for."""
    body = hello(**fields)
    whole = prompt_tokens(body) + completion
    async with scripted("a") as engines:
        for size, left in ((whole + 5, "5"), (whole, "0"), (prompt_tokens(body) + 1, "0")):
            sections: dict[str, Any] = {"identity": limited(tokens_per_minute=size), "admission": admission}
            async with gateway({"a": engines["a"].url}, clock=Clock(), **sections) as harness:
                reply = await harness.post(body)
                assert (reply.status, reply.header("x-ratelimit-remaining-tokens")) == (200, left)
            assert "max_tokens" not in engines["a"].calls[-1].body


@pytest.mark.parametrize("fields", [{"max_tokens": 10}, {"max_tokens": 10, "n": 3}], ids=["one choice", "three"])
async def test_what_a_call_will_cost_is_reserved(fields: Any) -> None:
    """By its model's price, to the millionth of a unit."""
    body = hello(**fields)
    micros = 2 * prompt_tokens(body) + 5 * 10 * fields.get("n", 1)
    async with scripted("a") as engines:
        replicas = [{"name": "a", "url": engines["a"].url}]
        model = {"name": MODEL, "price": {"prompt": 2, "completion": 5}, "replicas": replicas}
        for name in ("cost_per_day", "cost_per_month"):
            for budget_micros, status in ((micros, 200), (micros - 1, 429)):
                budget = {name: budget_micros / 1e6}
                identity = {"tenants": [{"name": "default", "budget": budget}], "keys": [key("tester")]}
                async with gateway({}, models=[model], identity=identity) as harness:
                    assert (await harness.post(body)).status == status


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": -(2**63)},
        {"max_tokens": MOST + 1},
        {"max_tokens": 2**64},
        {"max_tokens": 1e30},
        {"max_tokens": 7.0},
        {"max_tokens": "7"},
        {"max_tokens": True},
        {"max_tokens": [7]},
        {"max_completion_tokens": 0},
        {"max_completion_tokens": -1},
        {"max_tokens": 7, "max_completion_tokens": 8},
        {"max_tokens": 1, "max_completion_tokens": MOST},
        {"n": 0},
        {"n": -1},
        {"n": 9},
        {"n": 128},
        {"n": 16384},
        {"n": 2**63},
        {"n": 1.5},
        {"n": True},
        # What makes a call longer, or several of it, than it says; or brings a prompt that is not counted.
        {"best_of": 20},
        {"use_beam_search": True, "n": 4},
        {"length_penalty": 0.1},
        {"ignore_eos": True},
        {"min_tokens": 2000},
        {"prompt": ["x"] * 100},
        {"prompt_token_ids": [1] * 100},
        {"prompt_embeds": "AAAA"},
        {"echo": True},
        {"prompt_logprobs": 20},
        {"truncate_prompt_tokens": -1},
        {"documents": [{"text": "x"}]},
        {"thinking_token_budget": 10**6},
        {"repetition_detection": {"max_pattern_size": 1}},
        {"background": True},
    ],
    ids=str,
)
async def test_what_cannot_be_reserved_for_is_refused_and_takes_nothing(fields: dict[str, Any]) -> None:
    """400 before any limit is asked and any engine hears of it."""
    identity = limited(requests_per_minute=1, tokens_per_minute=1000, concurrent_calls=1)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, clock=Clock(), identity=identity) as harness:
        reply = await harness.post(hello(**fields))
        assert (reply.status, reply.json["error"]["type"]) == (400, "invalid_request_error")
        assert engines["a"].calls == []
        assert reply.header("x-ratelimit-remaining-requests") == "1"
        assert reply.header("x-ratelimit-remaining-tokens") == "1000"
        assert (await harness.post(hello(max_tokens=5))).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/tokenize",
        "/detokenize",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/v1/score",
        "/v1/rerank",
        "/v1/audio/transcriptions",
        "/pooling",
        "/classify",
        "/inference/v1/generate",
    ],
)
async def test_there_is_no_way_past_the_limits(path: str) -> None:
    """What engines can do besides, and nobody counts, is not served."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        for body in (hello(), {"model": MODEL, "prompt": ["x"] * 100}, {"model": MODEL, "input": ["x"] * 100}):
            assert (await harness.post(body, path=path)).status == 404
        assert engines["a"].calls == []
        assert f"POST {path}" not in engines["a"].paths


# What is charged in the end.


async def test_prompts_that_are_read_for_nobody_use_up_the_limit() -> None:
    """Who has prompts read again and again, and leaves each time before the first word, comes to his limit."""
    body = hello(max_tokens=1)
    limit = 10 * prompt_tokens(body) + 1
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, clock=Clock(), identity=limited(tokens_per_minute=limit)) as harness,
    ):
        engines["a"].holds()
        for number in range(10):
            async with harness.sent(body):
                await engines["a"].saw(number + 1)
            assert (await harness.ended(number + 1))["outcome"] == "cancelled"
        refused = await harness.post(body)
        assert refusal(refused) == (429, "tokens", "rate_limit_exceeded")
        assert len(engines["a"].calls) == 10


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_tried_twice_is_counted_once(stream: bool) -> None:
    """Whoever failed first: one call, one charge, and the slot is free after it."""
    limits = limited(requests_per_minute=10, tokens_per_minute=1000, concurrent_calls=1)
    async with scripted("a", "b") as engines:
        urls = {name: engine.url for name, engine in engines.items()}
        async with gateway(urls, clock=Clock(), identity=limits) as harness:
            for engine in engines.values():
                engine.says("one", " two")
            while not any(line["attempts"] > 1 for line in harness.calls):
                engines["a"].fails_with(500)
                assert (await harness.post(hello(stream=stream, max_tokens=5))).status == 200
            calls = len(harness.calls)
            engines["a"].behaves()
            last = await harness.post(hello(max_tokens=5))
            assert last.header("x-ratelimit-remaining-requests") == str(10 - calls - 1)
            used = sum(line["prompt_tokens"] + line["completion_tokens"] for line in harness.calls[:calls])
            assert used == calls * 4
            assert harness.metric("pagegate_tokens_total", kind="completion") == sum(
                line["completion_tokens"] for line in harness.calls
            )


async def test_an_estimate_that_was_too_low_is_paid_for_later() -> None:
    """A call that says nothing of its length may take more than was reserved: the next ones wait until it is paid."""
    clock = Clock()
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, clock=clock, identity=limited(tokens_per_minute=300)) as harness,
    ):
        engines["a"].says(*["word "] * 900)
        assert (await harness.post()).status == 200
        refused = await harness.post()
        assert refusal(refused) == (429, "tokens", "rate_limit_exceeded")
        wait_s = float(refused.header("retry-after-ms") or 0) / 1000
        assert wait_s > 120
        clock.advance(wait_s - 0.01)
        assert (await harness.post()).status == 429
        clock.advance(0.01)
        assert (await harness.post()).status == 200


# Whose turn is next.


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"priority": -(2**31)}, {}),
        ({"priority": 2**31}, {}),
        ({"service_tier": "priority"}, {}),
        ({}, {"x-vllm-priority": "-100"}),
        ({}, {"priority": "u=0, i", "x-priority": "high"}),
    ],
    ids=str,
)
async def test_a_callers_own_word_gives_no_precedence(fields: Any, headers: Any) -> None:
    """Neither here nor at the engine: who came later goes later."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine)) as harness, harness.sent() as one, harness.sent() as two:
            await engine.saw(2)
            async with harness.sent(hello("first")) as first:
                await until_waiting(harness, 1)
                async with harness.sent(hello("pushy", **fields), {**bearer(), **headers}) as pushy:
                    await until_waiting(harness, 2)
                    engine.behaves()
                    for call in (one, two, first, pushy):
                        assert (await call.reply()).status == 200
        order = [call.body["messages"][0]["content"] for call in engine.calls]
        assert order == [PROMPT, PROMPT, "first", "pushy"]
        assert not any({"priority", "service_tier"} & set(call.body) for call in engine.calls)
        assert not any(call.header(name) for call in engine.calls for name in ("x-vllm-priority", "priority"))


async def test_a_class_that_the_operator_gives_goes_first() -> None:
    """The key's, else its tenant's: those who came later pass those who wait already, but for their kept share."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        sections = busy(engine)
        sections["identity"] = {
            "tenants": [{"name": "default"}, {"name": "urgent", "priority": "high"}],
            "keys": [key("tester"), key("vip", "pg-vip", priority="high"), key("other", "pg-urgent", tenant="urgent")],
        }
        async with gateway({}, **sections) as harness, AsyncExitStack() as sent:
            calls = [await sent.enter_async_context(harness.sent()) for _ in range(2)]
            await engine.saw(2)
            for number, secret in enumerate([KEY] * 8 + ["pg-vip", "pg-urgent"] * 2):
                body = hello("plain" if secret == KEY else "high", max_tokens=9)
                calls.append(await sent.enter_async_context(harness.sent(body, bearer(secret))))
                await until_waiting(harness, number + 1)
            engine.behaves()
            assert [(await call.reply()).status for call in calls] == [200] * 14
        order = [call.body["messages"][0]["content"] for call in engine.calls[2:]]
        assert order.index("high") == 0
        assert order[:6].count("high") == 4, order


async def test_long_prompts_of_one_tenant_do_not_hold_up_anothers_short_ones() -> None:
    """Turns are shared by tokens, not by calls: behind one long prompt of another many short ones have their turn."""
    async with scripted("a", max_model_len=100_000) as engines:
        engine: ScriptedEngine = engines["a"]
        engine.holds()
        long, short = hello("word " * 1800, max_tokens=200), hello("ping", max_tokens=1)
        async with gateway({}, **busy(engine)) as harness, harness.sent() as one, harness.sent() as two:
            await engine.saw(2)
            async with AsyncExitStack() as sent:
                calls = [one, two]
                for number in range(40):
                    body, secret = (long, KEY) if number < 20 else (short, "pg-other-key")
                    calls.append(await sent.enter_async_context(harness.sent(body, bearer(secret))))
                    await until_waiting(harness, number + 1)
                engine.behaves()
                assert [(await call.reply()).status for call in calls] == [200] * 42
        sizes = ["long" if call.body.get("max_tokens") == 200 else "short" for call in engine.calls[2:]]
        assert sizes.count("long") == 20
        assert len(sizes) - 1 - sizes[::-1].index("short") <= 22, sizes


async def test_two_streams_beyond_one_slot_never_overlap() -> None:
    """A slot is a stream's for as long as it lasts, however many try."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, identity=limited(concurrent_calls=1)) as harness,
    ):
        engine = engines["a"]
        engine.says("one", " two")
        engine.steps()
        for number in range(3):
            async with harness.sent(hello(stream=True)) as client:
                await engine.saw(number + 1)
                engine.step(1)
                stream = await begun(client)
                assert [(await harness.post(hello(stream=True))).status for _ in range(3)] == [429] * 3
                engine.step(100)
                await stream.events()
            await harness.until_idle()
        assert engine.calls_seen == 3
        assert harness.gate.startswith("<Gate 0 running, 0 waiting")
