"""What orchestrators and scrapers see."""

import pytest

from tests.engines import scripted
from tests.harness import MODEL, bearer, gateway, hello
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio


async def test_readiness_says_which_models_can_be_called() -> None:
    """Ready as long as one model has a replica that is up."""
    async with scripted("a") as engines:
        models = [
            {"name": MODEL, "replicas": [{"name": "a", "url": engines["a"].url}]},
            {"name": "away"},
        ]
        async with gateway({}, models=models) as harness:
            reply = await harness.get("/readyz", {})
            assert (reply.status, reply.json["status"], reply.json["draining"]) == (200, "ready", False)
            assert reply.json["models"] == {MODEL: {"up": 1, "replicas": 1}, "away": {"up": 0, "replicas": 0}}
            engines["a"].health_is(503)
            await harness.until_down("a")
            assert (await harness.get("/readyz", {})).status == 503
            assert (await harness.get("/livez", {})).status == 200


async def test_where_strangers_call_readiness_names_no_model() -> None:
    """With a listener for operators the details are there alone."""
    server = {"port": 0, "metrics_port": 0}
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, server=server) as harness:
        reply = await harness.get("/readyz", {})
        assert (reply.status, reply.json) == (200, {"status": "ready"})
        async with WireClient(harness.operations_url) as client:
            assert MODEL in (await client.get("/readyz")).json["models"]


async def test_metrics_count_calls_by_model_and_outcome() -> None:
    """Everything that a dashboard asks for, read as a scraper reads it."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says("one", " two", " three")
        await harness.post()
        await harness.post(hello(stream=True))
        await harness.post(hello(stream=True) | {"model": "unknown-model"})
        await harness.post(headers=bearer("pg-wrong"))
        reply = await harness.get("/metrics", {})
        assert reply.header("content-type") == "text/plain; version=1.0.0; charset=utf-8"
        text = reply.body.decode()
    for line in (
        'pagegate_calls_total{model="tiny",outcome="ok"} 2.0',
        'pagegate_calls_total{model="none",outcome="bad_call"} 1.0',
        'pagegate_calls_total{model="none",outcome="refused"} 1.0',
        'pagegate_errors_total{error="UnknownModel",model="none"} 1.0',
        'pagegate_errors_total{error="UnknownKey",model="none"} 1.0',
        'pagegate_tokens_total{kind="prompt",model="tiny"} 4.0',
        'pagegate_tokens_total{kind="completion",model="tiny"} 6.0',
        'pagegate_attempts_total{model="tiny",replica="a",result="answered"} 2.0',
        'pagegate_call_duration_seconds_count{model="tiny",outcome="ok"} 2.0',
        'pagegate_time_to_first_token_seconds_count{model="tiny"} 1.0',
        'pagegate_overhead_seconds_count{model="tiny"} 2.0',
        'pagegate_replica_up{model="tiny",replica="a"} 1.0',
        "pagegate_running_calls 0.0",
    ):
        assert f"\n{line}\n" in text
    assert 'pagegate_inter_token_latency_seconds_count{model="tiny"}' in text
    assert "unknown-model" not in text


async def test_metrics_may_have_a_listener_of_their_own() -> None:
    """Then they are nowhere else, and that listener takes no calls."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"metrics_port": 0}) as harness,
    ):
        assert (await harness.get("/metrics", {})).status == 404
        assert (await harness.get("/readyz", {})).status == 200
        async with WireClient(harness.operations_url) as client:
            assert b"pagegate_replica_up" in (await client.get("/metrics")).body
            assert (await client.get("/livez")).status == 200
            assert (await client.get("/readyz")).json["status"] == "ready"
            refused = await client.post("/v1/chat/completions", json=hello(), headers=bearer())
            assert (refused.status, refused.json["error"]["code"]) == (404, None)
            assert refused.header("x-request-id")
