"""What is told of a call: one line of JSON, whatever became of it."""

import pytest

from tests.engines import scripted
from tests.harness import MODEL, bearer, gateway, hello

pytestmark = pytest.mark.anyio


async def test_a_call_leaves_one_line_with_what_an_operator_asks_for() -> None:
    """Who, what, where, how long, how much; never the words."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says("secretly", " spoken")
        reply = await harness.post(hello(stream=True))
        (line,) = harness.calls
        assert b"spoken" not in harness.log.text
    times = {name: line.pop(name) for name in ("timestamp", "first_token_ms", "engine_ms", "duration_ms")}
    assert line == {
        "level": "info",
        "event": "call",
        "call": reply.header("x-request-id"),
        "trace_id": reply.header("x-pagegate-trace"),
        "outcome": "ok",
        "tenant": "default",
        "key": "tester",
        "model": MODEL,
        "stream": True,
        "replica": "a",
        "attempts": 1,
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "measured": True,
    }
    assert 0 < times["engine_ms"] <= times["first_token_ms"] <= times["duration_ms"]


async def test_every_end_of_a_call_has_its_word() -> None:
    """The same words in the log and in the metrics; a caller's mistakes are no warnings."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].fails_with(500, calls=2)
        await harness.post()
        engines["a"].dies_after(2, calls=1)
        await harness.post(hello(stream=True))
        await harness.post(hello(nonsense=1))
        await harness.post(headers=bearer("pg-wrong"))
        found = [(line["outcome"], line["error"], line["level"]) for line in harness.calls]
        assert found == [
            ("unserved", "EngineFailed", "info"),
            ("severed", "EngineLost", "warning"),
            ("bad_call", "UnsupportedParameter", "info"),
            ("refused", "UnknownKey", "info"),
        ]
        for outcome, error, _ in found:
            assert harness.metric("pagegate_calls_total", outcome=outcome) == 1
            assert harness.metric("pagegate_errors_total", error=error) == 1


async def test_lines_can_be_switched_off_and_metrics_stay() -> None:
    """`telemetry.log_calls` is about lines alone."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, telemetry={"log_calls": False}) as harness,
    ):
        await harness.post()
        assert harness.metric("pagegate_calls_total", outcome="ok") == 1
        assert harness.calls == []
