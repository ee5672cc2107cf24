"""One trace a call, as a collector receives it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.engines import ScriptedEngines, scripted
from tests.harness import MODEL, PROMPT, bearer, begun, gateway, hello
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

pytestmark = pytest.mark.anyio

CALLERS_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLERS_SPAN = "00f067aa0ba902b7"
SAMPLED = {**bearer(), "traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"}
NOT_SAMPLED = {**bearer(), "traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-00"}
STAGES = {"identity", "edge", "admission", "routing", "upstream", "relay", f"chat {MODEL}"}


@pytest.fixture
async def otlp() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as otlp:
        yield otlp


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a", "b") as engines:
        yield engines


def telemetry(otlp: OtlpReceiver, **fields: Any) -> dict[str, Any]:
    return {"otlp_endpoint": otlp.endpoint, **fields}


def named(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_a_call_is_one_trace_with_a_span_a_stage(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """All stages below one SERVER span, in the order in which a call walks them, ended when the gateway is left."""
    async with gateway({"a": engines["a"].url}, telemetry=telemetry(otlp)) as harness:
        reply = await harness.post(hello(stream=True))
    spans = await otlp.spans(reply.header("x-pagegate-trace"), STAGES)
    (root,) = [span for span in spans if span.parent_id is None]
    assert (root.name, root.kind, root.status) == ("POST /v1/chat/completions", "SERVER", "UNSET")
    assert {span.name for span in spans} == STAGES | {root.name}
    assert {span.parent_id for span in spans if span is not root} == {root.span_id}
    starts = [named(spans, name).start_ns for name in ("identity", "edge", "admission", "routing", "upstream", "relay")]
    assert starts == sorted(starts)
    assert all(root.start_ns <= span.start_ns <= span.end_ns <= root.end_ns for span in spans)
    assert root.resource["service.name"] == "pagegate"
    assert root.resource["service.instance.id"]
    assert harness.calls[0]["trace_id"] == root.trace_id
    assert root.attributes == {
        "pagegate.call": harness.calls[0]["call"],
        "pagegate.outcome": "ok",
        "pagegate.tenant": "default",
        "pagegate.key": "tester",
        "pagegate.attempts": 1,
        "gen_ai.request.model": MODEL,
    }


async def test_the_attempt_has_the_attributes_of_the_genai_conventions(
    engines: ScriptedEngines, otlp: OtlpReceiver
) -> None:
    """What was asked, what came of it, and where; never the words."""
    engines["a"].says("one", " two", " three")
    async with gateway({"a": engines["a"].url}, telemetry=telemetry(otlp)) as harness:
        await harness.post(hello(stream=True, max_tokens=3, temperature=0.5, top_p=0.9, seed=7))
    spans = await otlp.spans(names=STAGES)
    attempt = named(spans, f"chat {MODEL}")
    assert attempt.kind == "CLIENT"
    found = dict(attempt.attributes)
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "server.address": "127.0.0.1",
        "server.port": engines["a"].port,
        "pagegate.replica": "a",
    }
    assert not [word for word in PROMPT.split() if word in str(spans)]


async def test_the_decision_where_to_go_leaves_its_receipt(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """Candidates and their scores, best first."""
    urls = {name: engine.url for name, engine in engines.items()}
    engines["b"].busy(running=1)
    async with gateway(urls, telemetry=telemetry(otlp)) as harness:
        await harness.post()
    routing = named(await otlp.spans(names=STAGES), "routing")
    assert routing.attributes["pagegate.receipt"] == "a=1.500 b=1.000"


async def test_the_engine_continues_the_trace_below_the_attempt(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """It is sent the attempt's own span, sampled."""
    async with gateway({"a": engines["a"].url}, telemetry=telemetry(otlp)) as harness:
        await harness.post()
    attempt = named(await otlp.spans(names=STAGES), f"chat {MODEL}")
    (call,) = engines["a"].calls
    assert call.header("traceparent") == f"00-{attempt.trace_id}-{attempt.span_id}-01"


async def test_a_callers_trace_is_joined(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """The root hangs below the caller's span, and the caller decides whether it is sampled."""
    async with gateway({"a": engines["a"].url}, telemetry=telemetry(otlp, sample_ratio=0)) as harness:
        await harness.post(headers=NOT_SAMPLED)
        reply = await harness.post(headers=SAMPLED)
    spans = await otlp.spans(CALLERS_TRACE, STAGES)
    assert named(spans, "POST /v1/chat/completions").parent_id == CALLERS_SPAN
    assert len(spans) == len(otlp.seen) == len(STAGES) + 1
    assert reply.header("x-pagegate-trace") == CALLERS_TRACE


async def test_a_call_that_is_not_sampled_tells_the_engine_so(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """Flags 00, with the caller's trace where there is one: an engine does not start a trace of its own."""
    async with gateway({"a": engines["a"].url}, telemetry=telemetry(otlp, sample_ratio=0)) as harness:
        reply = await harness.post()
        await harness.post(headers=NOT_SAMPLED)
    own, callers = [(call.header("traceparent") or "").split("-") for call in engines["a"].calls]
    assert (own[1], own[3]) == (reply.header("x-pagegate-trace"), "00")
    assert (callers[1], callers[3]) == (CALLERS_TRACE, "00")
    assert callers[2] != CALLERS_SPAN
    assert otlp.seen == []


async def test_callers_need_not_be_trusted_with_traces(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """With `join_callers_trace` off a traceparent is as good as none."""
    settings = telemetry(otlp, join_callers_trace=False, sample_ratio=0)
    async with gateway({"a": engines["a"].url}, telemetry=settings) as harness:
        reply = await harness.post(headers=SAMPLED)
    assert reply.header("x-pagegate-trace") != CALLERS_TRACE
    assert CALLERS_TRACE not in (engines["a"].calls[0].header("traceparent") or "")
    assert otlp.seen == []


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        f"00-{'0' * 32}-{CALLERS_SPAN}-01",
        f"ff-{CALLERS_TRACE}-{CALLERS_SPAN}-01",
        f"00-{CALLERS_TRACE}-1-01",
    ],
)
async def test_a_traceparent_that_is_none_begins_a_new_trace(
    engines: ScriptedEngines, otlp: OtlpReceiver, header: str
) -> None:
    """W3C: what cannot be parsed is dropped."""
    async with gateway({"a": engines["a"].url}, telemetry=telemetry(otlp)) as harness:
        reply = await harness.post(headers={**bearer(), "traceparent": header})
    (root,) = [span for span in await otlp.spans(names=STAGES) if span.parent_id is None]
    assert root.trace_id == reply.header("x-pagegate-trace") != CALLERS_TRACE


async def test_each_attempt_has_a_span_and_failed_ones_say_why(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """A retry is seen: two attempts, one of them with an error, and a call that ended well."""
    for engine in engines.values():
        engine.fails_with(500, calls=1)
    urls = {name: engine.url for name, engine in engines.items()}
    async with gateway(urls, telemetry=telemetry(otlp), upstream={"attempts": 2}) as harness:
        engines["b"].behaves()
        engines["b"].busy(running=1)
        await engines["b"].until(lambda: engines["b"].paths["GET /metrics"] >= 3)
        assert (await harness.post()).status == 200
    spans = await otlp.spans(names=STAGES)
    first, second = [span for span in spans if span.name == f"chat {MODEL}"]
    assert (first.attributes["pagegate.replica"], second.attributes["pagegate.replica"]) == ("a", "b")
    assert (first.status, first.attributes["error.type"]) == ("ERROR", "EngineFailed")
    assert (second.status, second.attributes.get("error.type")) == ("UNSET", None)
    root = named(spans, "POST /v1/chat/completions")
    assert (root.status, root.attributes["pagegate.attempts"]) == ("UNSET", 2)


async def test_how_a_call_ended_is_in_its_root(engines: ScriptedEngines, otlp: OtlpReceiver) -> None:
    """Errors by their class; a caller who left is no error."""
    engine = engines["a"]
    async with gateway({"a": engine.url}, telemetry=telemetry(otlp)) as harness:
        await harness.post(headers={**SAMPLED, "authorization": "Bearer pg-wrong"})
        engine.says("x", forever=True)
        engine.steps()
        async with harness.sent(hello(stream=True)) as client:
            await engine.saw()
            engine.step()
            await begun(client)
        left = await harness.ended(2)
    (refused,) = [span for span in await otlp.spans(CALLERS_TRACE) if span.kind == "SERVER"]
    assert (refused.status, refused.attributes["error.type"]) == ("ERROR", "UnknownKey")
    assert {span.name for span in await otlp.spans(CALLERS_TRACE)} == {"POST /v1/chat/completions", "identity"}
    spans = await otlp.spans(left["trace_id"], STAGES)
    root = named(spans, "POST /v1/chat/completions")
    assert (root.status, root.attributes["error.type"]) == ("UNSET", "CallerLeft")
    assert root.attributes["pagegate.outcome"] == "cancelled"


async def test_a_collector_that_is_away_costs_no_call(engines: ScriptedEngines) -> None:
    """Spans are lost then, and leaving does not hang."""
    async with OtlpReceiver() as gone:
        endpoint = gone.endpoint
    async with gateway({"a": engines["a"].url}, telemetry={"otlp_endpoint": endpoint}) as harness:
        assert (await harness.post()).status == 200
