"""One trace a call, from the socket to the engine's own span."""

import pytest

from tests.harness import Harness
from tests.otlp_receiver import OtlpReceiver
from tests.real.conftest import MODEL
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

STAGES = {"edge", "identity", "admission", "routing", "upstream", "relay"}


async def test_a_call_gives_one_whole_trace(harness: Harness, otlp: OtlpReceiver) -> None:
    """The caller's context is the parent, the engine's span hangs below the attempt, with its phases in seconds."""
    trace_id, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    async with WireClient(harness.url, within_s=60) as client:
        headers = {**harness.headers, "traceparent": f"00-{trace_id}-{caller}-01"}
        async with client.stream("/v1/chat/completions", json=body, headers=headers) as stream:
            await stream.events()
    root_name, attempt_name = "POST /v1/chat/completions", f"chat {MODEL}"
    names = {*STAGES, root_name, attempt_name, "llm_request"}
    spans = {span.name: span for span in await otlp.spans(trace_id, names, within_s=30)}

    root, attempt, engine = spans[root_name], spans[attempt_name], spans["llm_request"]
    assert (root.kind, root.parent_id) == ("SERVER", caller)
    assert {spans[stage].parent_id for stage in STAGES} == {root.span_id}
    assert (attempt.kind, attempt.parent_id) == ("CLIENT", root.span_id)
    assert engine.parent_id == attempt.span_id
    assert attempt.attributes["gen_ai.usage.output_tokens"] == engine.attributes["gen_ai.usage.completion_tokens"] == 8
    for phase in ("time_in_queue", "time_to_first_token", "time_in_model_prefill", "time_in_model_decode"):
        assert engine.attributes[f"gen_ai.latency.{phase}"] >= 0
    assert root.start_ns <= attempt.start_ns <= engine.start_ns
    assert spans["routing"].attributes["pagegate.receipt"].startswith("real=")
