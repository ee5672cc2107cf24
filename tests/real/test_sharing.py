"""A real engine that tenants share: whose turn it is, what is reserved, and what stands in the books."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.harness import CHAT, administered, bearer, gateway, key
from tests.real.conftest import MODEL, Worker
from tests.wire_client import WireClient, WireReply

pytestmark = pytest.mark.anyio
OTHER = "pg-other-key"


def story(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Tell me of a fox."}], "temperature": 0} | fields


def before(worker: Worker, **model: Any) -> dict[str, Any]:
    """Sections for a gateway before the real engine."""
    replica = {"name": "real", "url": worker.url}
    return {
        "models": [{"name": MODEL, "replicas": [replica], **model}],
        "fleet": {"probe_interval_s": 0.2, "probe_timeout_s": 10},
    }


async def asked(url: str, body: dict[str, Any], secret: str) -> WireReply:
    async with WireClient(url, within_s=120) as client:
        return await client.post(CHAT, json=body, headers=bearer(secret))


async def test_a_tenant_with_many_calls_does_not_hold_up_one_with_a_single_call(worker: Worker) -> None:
    """The single call is behind those that the engine has already, and not behind the crowd."""
    identity = {
        "tenants": [{"name": "greedy"}, {"name": "modest"}],
        "keys": [key("crowd", tenant="greedy"), key("one", OTHER, tenant="modest")],
    }
    async with gateway({}, **before(worker, calls_per_replica=2), identity=identity) as harness:
        async with asyncio.TaskGroup() as group:
            crowd = [group.create_task(asked(harness.url, story(max_tokens=16), "pg-test-key")) for _ in range(20)]
            async with asyncio.timeout(60):
                while " 17 waiting" not in harness.gate:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert (await asked(harness.url, story(max_tokens=4), OTHER)).status == 200
            served = sum(task.done() for task in crowd)
        assert served <= 6
        assert [task.result().status for task in crowd] == [200] * 20


async def test_what_is_reserved_exactly_is_what_the_engine_then_reads(worker: Worker) -> None:
    """The engine's own tokenizer and template count the prompt before the call; only the completion is a guess."""
    identity = {"keys": [key("tester", limits={"tokens_per_minute": 1000})]}
    sections = {**before(worker), "admission": {"count_tokens": "exact"}, "identity": identity}
    async with gateway({}, **sections) as harness:
        reply = await asked(harness.url, story(max_tokens=8), "pg-test-key")
        reserved = 1000 - int(reply.header("x-ratelimit-remaining-tokens") or 0)
        assert reserved == reply.json["usage"]["prompt_tokens"] + 8


async def test_the_books_agree_with_the_engines_own_counters(worker: Worker, tmp_path: Path) -> None:
    """What is charged is what the engine worked, call by call and in sum."""
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    was = [await worker.counter(name) for name in names]
    async with gateway({}, **before(worker), **administered(tmp_path / "db")) as harness:
        bodies = [story(max_tokens=number) for number in (3, 5, 9)] + [story(max_tokens=4, stream=True)]
        await asyncio.gather(*(asked(harness.url, body, "pg-test-key") for body in bodies))
        await worker.until_idle(within_s=30)
        async with asyncio.timeout(30):
            while len(found := (await harness.administer("GET", "/usage/records")).json["data"]) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    sums = [sum(record[name] for record in found) for name in ("prompt_tokens", "completion_tokens")]
    assert sums == [await worker.counter(name) - value for name, value in zip(names, was, strict=True)]
    assert all(record["measured"] and record["cost"] > 0 for record in found)


async def test_a_prompt_that_one_tenant_sent_is_in_no_others_cache(worker: Worker) -> None:
    """Whether somebody else asked the same cannot be told: a second tenant's prompt is read anew, his own is not."""
    identity = {
        "tenants": [{"name": "greedy"}, {"name": "modest"}],
        "keys": [key("one", tenant="greedy"), key("other", OTHER, tenant="modest")],
    }
    secret = [{"role": "user", "content": "A merger that nobody may hear of. " * 30}]
    async with gateway({}, **before(worker), identity=identity) as harness:
        hits = []
        for caller in ("pg-test-key", OTHER, OTHER):
            was = await worker.counter("vllm:prefix_cache_hits_total")
            assert (await asked(harness.url, story(messages=secret, max_tokens=1), caller)).status == 200
            hits.append(await worker.counter("vllm:prefix_cache_hits_total") - was)
    assert hits[0] == hits[1] == 0
    assert hits[2] > 0
