"""gateway/relay/watch.py: what passes is what came, less the usage nobody asked for; no failure passes as success."""

from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Delivery, Usage
from gateway.errors import EngineBroke, ReplyIncomplete, Severed
from gateway.relay.watch import StreamWatch
from gateway.wire.events import BOM, DONE
from tests.unit.calls import a_call
from tests.unit.splitting import choice, cuts, one_by_one, pieces, thorough
from tests.vllm_wire import recorded

LIMIT = 4096


def event(value: Any, end: bytes = b"\n") -> bytes:
    """One event as vLLM lays it out."""
    return b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + 2 * end


def token(text: str, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


def usage(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}


A = event(token("a"))
STOP = event(token("", finish="stop"))
USAGE = event(usage(7, 2))
ERROR = {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}


@dataclass
class Watched:
    """What became of a stream: what passed, and how it ended."""

    passed: bytes
    fault: Severed | None
    delivery: Delivery
    done: bool


def asked(wants_usage: bool, choices: int) -> Call:
    return a_call(stream=True, wants_usage=wants_usage, choices=choices)


def watch(parts: list[bytes], *, wants_usage: bool = False, choices: int = 1, limit: int = LIMIT) -> Watched:
    """Watches a stream as the relay does, to its end or its fault."""
    delivery = Delivery()
    watching, passed = StreamWatch(asked(wants_usage, choices), delivery, limit), b""
    for part in parts:
        passed += watching.pass_on(part)
        if watching.fault or watching.done:
            return Watched(passed, watching.fault, delivery, watching.done)
    try:
        passed += watching.end()
    except Severed as fault:
        return Watched(passed, fault, delivery, watching.done)
    return Watched(passed, None, delivery, watching.done)


@pytest.mark.parametrize(
    ("stream", "wanted", "passed"),
    [
        pytest.param(A + STOP + USAGE + DONE, False, A + STOP + DONE, id="not asked for: taken out"),
        pytest.param(A + STOP + USAGE + DONE, True, A + STOP + USAGE + DONE, id="asked for: stays"),
        pytest.param(USAGE + A + STOP + DONE, False, A + STOP + DONE, id="wherever it stands"),
        pytest.param(A + STOP + USAGE + USAGE + DONE, False, A + STOP + DONE, id="however often it comes"),
        pytest.param(
            A + STOP + event(usage("7", None)) + DONE, False, A + STOP + DONE, id="also one that nobody can use"
        ),
        pytest.param(
            A + event({**token("b", finish="stop"), "usage": {"prompt_tokens": 7, "completion_tokens": 2}}) + DONE,
            False,
            A + event({**token("b", finish="stop"), "usage": {"prompt_tokens": 7, "completion_tokens": 2}}) + DONE,
            id="beside a choice it stays, for the choice's sake",
        ),
        pytest.param(
            event({**token("a"), "usage": None}) + STOP + DONE,
            False,
            event({**token("a"), "usage": None}) + STOP + DONE,
            id="null is no usage",
        ),
        pytest.param(
            event({"choices": [], "prompt_filter_results": []}) + A + STOP + DONE,
            False,
            event({"choices": [], "prompt_filter_results": []}) + A + STOP + DONE,
            id="an event without choices and without usage stays",
        ),
    ],
)
def test_the_usage_event_is_taken_out_if_and_only_if_the_caller_did_not_ask(
    stream: bytes, wanted: bool, passed: bytes
) -> None:
    """The gateway asks the engine for usage always; a caller sees it only where he asked too."""
    watched = watch([stream], wants_usage=wanted)
    assert watched.passed == passed
    assert watched.fault is None
    assert watched.done


@pytest.mark.parametrize(
    ("events", "measured"),
    [
        pytest.param([usage(7, 2)], Usage(7, 2), id="once"),
        pytest.param([usage(7, 2), usage(7, 2)], Usage(7, 2), id="twice is charged once"),
        pytest.param([usage(7, 1), usage(7, 2)], Usage(7, 2), id="a running count: the last one"),
        pytest.param([usage(7, 2), usage(7, 1)], Usage(7, 2), id="in whatever order"),
        pytest.param([usage(7, 0), usage(0, 9)], Usage(7, 9), id="each half in an event of its own"),
        pytest.param([usage(7, None)], Usage(7, 0), id="no completion tokens yet"),
        pytest.param(
            [usage(7, 2, prompt_tokens_details={"cached_tokens": 5})], Usage(7, 2, cached_tokens=5), id="cached"
        ),
        pytest.param(
            [usage(7, 2, prompt_tokens_details={"cached_tokens": "5"})], Usage(7, 2), id="cached, but no number"
        ),
        pytest.param([usage("7", 2)], None, id="text"),
        pytest.param([usage(True, 2)], None, id="a truth value is no count"),
        pytest.param([usage(-7, 2)], None, id="negative"),
        pytest.param([usage(2**60, 2)], None, id="beyond belief"),
        pytest.param([{"choices": [], "usage": 7}], None, id="not an object"),
        pytest.param([], None, id="never"),
    ],
)
def test_what_the_engine_measured(events: list[Any], measured: Usage | None) -> None:
    """Counts only grow, and what is no count is not taken for one."""
    watched = watch([A + STOP + b"".join(map(event, events)) + DONE])
    assert watched.delivery.usage == measured
    assert watched.fault is None


@pytest.mark.parametrize(
    ("stream", "choices", "passed", "fault"),
    [
        pytest.param(A + STOP + DONE, 1, A + STOP + DONE, None, id="as it should be"),
        pytest.param(A + STOP, 1, A + STOP + DONE, None, id="a missing end mark is added"),
        pytest.param(A + STOP + USAGE, 1, A + STOP + DONE, None, id="also after the usage"),
        pytest.param(A + STOP + b"data: [DONE]\n", 1, A + STOP + DONE, None, id="one without its empty line is mended"),
        pytest.param(A + STOP + b"data: [DONE]", 1, A + STOP + DONE, None, id="one without any line end too"),
        pytest.param(A + STOP + b"data:[DONE]\n\n", 1, A + STOP + b"data:[DONE]\n\n", None, id="without a space"),
        pytest.param(A + STOP + b"data: [DONE] \n\n", 1, A + STOP + b"data: [DONE] \n\n", None, id="as SDKs see it"),
        pytest.param(A + STOP + DONE + A, 1, A + STOP + DONE, None, id="nothing passes after the end"),
        pytest.param(A + STOP + DONE + b"data: {", 1, A + STOP + DONE, None, id="nor breaks off after the end"),
        pytest.param(
            A + STOP + b"data: [DONE]\r\r",
            1,
            A + STOP + b"data: [DONE]\r\r",
            None,
            id="one that ends in CR, at the end",
        ),
        pytest.param(A + STOP + b'data: {"error":1}\r\r', 1, A + STOP, EngineBroke, id="an error that ends in CR"),
        pytest.param(A, 1, A, ReplyIncomplete, id="no finish, no end mark"),
        pytest.param(A + DONE, 1, A, ReplyIncomplete, id="an end mark alone is not success"),
        pytest.param(A + b"data: [DONE] \n\n", 1, A, ReplyIncomplete, id="in whatever form an SDK would take it"),
        pytest.param(DONE, 1, b"", ReplyIncomplete, id="nothing but an end mark"),
        pytest.param(A + STOP + b'data: {"choices":[],"usa', 1, A + STOP, ReplyIncomplete, id="an event broke off"),
        pytest.param(A + STOP[:-2], 1, A, ReplyIncomplete, id="the finish broke off"),
        pytest.param(A + STOP[:-1], 1, A, ReplyIncomplete, id="the finish lacks its empty line"),
        pytest.param(A + STOP + DONE, 2, A + STOP, ReplyIncomplete, id="one of two choices"),
        pytest.param(STOP + STOP + DONE, 2, STOP + STOP, ReplyIncomplete, id="one of two choices, twice"),
        pytest.param(
            STOP + event(token("", 1, "length")) + DONE, 2, STOP + event(token("", 1, "length")) + DONE, None, id="two"
        ),
        pytest.param(
            event(token("", 5, "stop")) + DONE, 1, event(token("", 5, "stop")), ReplyIncomplete, id="another's index"
        ),
        pytest.param(
            event({"choices": [{"finish_reason": "stop"}]}) + DONE,
            1,
            event({"choices": [{"finish_reason": "stop"}]}) + DONE,
            None,
            id="no index means the first",
        ),
        pytest.param(
            b'data: {"choices": [{"index": 0, "finish_reason": "stop"}]}\n\n' + DONE,
            1,
            b'data: {"choices": [{"index": 0, "finish_reason": "stop"}]}\n\n' + DONE,
            None,
            id="JSON with spaces",
        ),
        pytest.param(A + event(token("", finish="abort")) + DONE, 1, A, ReplyIncomplete, id="vLLM's word for cut off"),
        pytest.param(A + event(token("", finish="error")) + DONE, 1, A, ReplyIncomplete, id="and for a fault"),
        pytest.param(b": keep-alive\n\n" * 3, 1, b": keep-alive\n\n" * 3, ReplyIncomplete, id="only comments"),
        pytest.param(b"", 1, b"", ReplyIncomplete, id="nothing at all"),
    ],
)
def test_success_is_a_finish_for_every_choice(
    stream: bytes, choices: int, passed: bytes, fault: type[Severed] | None
) -> None:
    """A reply is whole when every choice said why it ended, and only then the caller sees an end mark."""
    for parts in ([stream], one_by_one(stream)):
        watched = watch(parts, choices=choices)
        assert watched.passed == passed
        assert (watched.fault and type(watched.fault)) == fault
        assert watched.done is (fault is None)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(event(ERROR), id="vLLM's, compact"),
        pytest.param(b'data: {"error": {"message": "x", "code": 500}}\n\n', id="vLLM's, as it prints it"),
        pytest.param(event({"error": "boom"}), id="a text"),
        pytest.param(event({"error": {"message": "x"}, "choices": []}), id="beside choices"),
        pytest.param(b"event: error\n" + event({"message": "x"}), id="a named event"),
        pytest.param(b"event:error\n" + event({"message": "x"}), id="a named event without a space"),
        pytest.param(b"event: error\ndata: plain words\n\n", id="a named event that is not JSON"),
        pytest.param(b"data: plain words\r\nevent: error\r\n\r\n", id="its name last, CR LF"),
    ],
)
def test_an_error_inside_a_200_is_a_fault(error: bytes) -> None:
    """Neither the engine's words nor the end mark after them reach the caller: the edge tells him in ours."""
    for parts in ([A + error + DONE], one_by_one(A + error + DONE), [A + STOP, error, DONE]):
        watched = watch(parts)
        assert watched.passed in (A, A + STOP)
        assert isinstance(watched.fault, EngineBroke)
        assert "x" not in str(watched.fault).split()
        assert not watched.done


@pytest.mark.parametrize(
    "harmless",
    [
        pytest.param(token('she said "usage": {"prompt_tokens": 999}'), id="a usage in the text"),
        pytest.param(token('{"error": {"message": "not mine"}}'), id="an error in the text"),
        pytest.param(token("data: [DONE]\n\n"), id="an end mark in the text"),
        pytest.param(token('"finish_reason":"stop"'), id="a finish in the text"),
        pytest.param(token("event: error"), id="an event's name in the text"),
        pytest.param({**token("a"), "error": None}, id="an error that is none"),
        pytest.param({**token("a"), "error": {}}, id="an empty error, as SDKs see it"),
        pytest.param(
            {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "error"}]}}]}, id="a token"
        ),
        pytest.param(["usage", "error"], id="not an object"),
        pytest.param("error", id="a text alone"),
        pytest.param({"choices": 7, "usage": None}, id="choices that are none"),
        pytest.param(
            {"choices": [7, None, {"finish_reason": 3, "index": "x"}], "usage": None}, id="choices of nothing"
        ),
        pytest.param(
            {"choices": [{"index": "0", "finish_reason": "stop"}, {"index": -1, "finish_reason": "stop"}]},
            id="no index",
        ),
    ],
)
def test_what_only_looks_like_news_passes_and_counts_for_nothing(harmless: Any) -> None:
    """What stands in a reply's text stands escaped, and is the caller's."""
    odd = event(harmless)
    for parts in ([odd + A], one_by_one(odd + A)):
        watched = watch(parts)
        assert watched.passed == odd + A
        assert isinstance(watched.fault, ReplyIncomplete)
        assert watched.delivery.usage is None
        assert watched.delivery.finish_reasons == []


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b'data: {"choices":[{"delta":{"content":"a\n\n', id="truncated"),
        pytest.param(b'data: {"usage": {"prompt_tokens": 7\n\n', id="a truncated usage"),
        pytest.param(b'data: {"error": \n\n', id="a truncated error"),
        pytest.param(b'data: {"finish_reason":"stop"\n\n', id="a truncated finish"),
        pytest.param(b"data: \xff\xfe usage\n\n", id="not UTF-8"),
        pytest.param(b'data: "usage"\x00\n\n', id="NUL"),
        pytest.param(b'data: {"usage": NaN}\n\n', id="not a number"),
        pytest.param(b'data "usage"\n\n', id="no colon"),
        pytest.param(b"what: is this\n\n", id="an unknown field"),
        pytest.param(b"data: " + b"[" * 2000 + b'"usage"\n\n', id="deep"),
    ],
)
def test_an_event_that_is_not_json_passes_untouched_and_teaches_nothing(broken: bytes) -> None:
    """Bytes through: the caller's own parser judges them. Nothing is learnt, and nothing raises."""
    for parts in ([A + broken + STOP + DONE], one_by_one(A + broken + STOP + DONE)):
        watched = watch(parts)
        assert watched.passed == A + broken + STOP + DONE
        assert watched.delivery.usage is None
        assert watched.done


@pytest.mark.parametrize("size", [1, 7, 100, LIMIT])
def test_an_event_without_end_is_stopped_at_the_limit(size: int) -> None:
    """An engine can make the gateway hold as much as the limit says and one read more."""
    watched = watch([A + b"data: ", *[b"x" * size] * (2 * LIMIT // size)])
    assert watched.passed == A
    assert isinstance(watched.fault, EngineBroke)
    assert "size limit" in str(watched.fault)


def test_what_follows_the_end_is_no_event_without_end() -> None:
    """Whatever an engine sends after the end mark, the reply was whole."""
    watched = watch([A + STOP + DONE + b"x" * 2 * LIMIT])
    assert watched.passed == A + STOP + DONE
    assert watched.fault is None


def test_after_the_end_there_is_nothing_to_add() -> None:
    """An end mark that came is not given twice."""
    delivery = Delivery()
    watching = StreamWatch(asked(wants_usage=False, choices=1), delivery, LIMIT)
    assert watching.pass_on(A + STOP + DONE) == A + STOP + DONE
    assert watching.end() == b""


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(A * 3, 3, id="tokens"),
        pytest.param(A * 3 + STOP + USAGE + DONE, 4, id="neither usage nor end mark"),
        pytest.param(b": keep-alive\n\n" + A, 1, id="comments are none"),
        pytest.param(event(token("data: data: x")) * 2, 2, id="not what stands in the text"),
        pytest.param(event(token("a"), b"\r\n") * 3, 3, id="CR LF"),
        pytest.param(event(token("a"), b"\r") * 3, 3, id="CR"),
        pytest.param(A * 2 + event(ERROR) + A * 5, 2, id="nothing after a fault"),
    ],
)
def test_events_that_reached_the_caller_are_counted(stream: bytes, events: int) -> None:
    """About one a token: what a call is charged where the engine never says."""
    assert watch([stream]).delivery.events == events
    assert watch(one_by_one(stream)).delivery.events == events


def test_finish_reasons_are_noted_once_a_choice() -> None:
    """However often an engine repeats itself, the record stays small."""
    reasons = watch([STOP * 50 + event(token("", 1, "length")) * 50 + DONE], choices=2).delivery.finish_reasons
    assert reasons == ["stop", "length"]


@pytest.mark.parametrize("name", ["stream", "stream_usage", "stream_n2", "stream_logprobs", "stream_length"])
def test_recorded_streams_pass_but_for_their_usage(name: str) -> None:
    """What a real engine sent, split at every place, reaches the caller byte for byte."""
    sent = unframed(recorded(name).body)
    asked = b"".join(part for part in sent.split(b"\n\n") if b'"choices":[]' in part)
    without = sent.replace(asked + b"\n\n", b"") if asked else sent
    choices = 2 if name == "stream_n2" else 1
    for at in range(len(sent)):
        assert watch([sent[:at], sent[at:]], choices=choices).passed == without
        assert watch([sent[:at], sent[at:]], choices=choices, wants_usage=True).passed == sent


def test_a_recorded_death_of_the_engine_is_a_fault() -> None:
    """vLLM's core was killed in the middle: an error event and an end mark, which is no success."""
    sent = unframed(recorded("stream_core_killed").body)
    watched = watch([sent])
    assert isinstance(watched.fault, EngineBroke)
    assert watched.passed == sent[: sent.index(b'data: {"error"')]


def unframed(body: bytes) -> bytes:
    """The stream inside the HTTP chunks of a recorded reply."""
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        found, body = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return found


USUAL = (
    token("naïve 🦄 \u2028\u0085"),
    token('"usage" "error" [DONE] event: data:'),
    token("", 1, "length"),
    {**token("x"), "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
)
USAGES = (usage(7, 2), usage("x", 2), usage(8, 1, prompt_tokens_details={"cached_tokens": 1}))
ODD = (b": keep-alive", b"data: {not json", b"event: ping\ndata: {}", b"id: 4", b"data: [1]", b"data")
BAD = (b"data: [DONE]", b'data: {"error": 1}', b"event: error\ndata: x")


@st.composite
def raw_events(draw: st.DrawFn, told: st.SearchStrategy[bytes]) -> bytes:
    """An event with line ends of its own choosing, and sometimes an empty line behind it."""
    end = draw(choice(b"\n", b"\n", b"\r\n", b"\r"))
    return draw(told).replace(b"\n", end) + 2 * end


def said(*values: Any) -> st.SearchStrategy[bytes]:
    return choice(*(b"data: " + orjson.dumps(value) for value in values))


@thorough
@given(
    st.lists(raw_events(said(*USUAL, *USAGES, token("", finish="stop")) | choice(*ODD, *BAD, b"")), max_size=12),
    choice(b"", b"data: {", b"data: [DONE]", b"\r", b": x"),
    cuts(),
    st.booleans(),
    st.integers(1, 2),
)
def test_any_split_gives_the_caller_the_same(
    events: list[bytes], rest: bytes, cut: list[int], wants_usage: bool, choices: int
) -> None:
    """The same bytes, the same end and the same usage, whatever came in one read."""
    stream = b"".join(events) + rest
    whole = watch([stream], wants_usage=wants_usage, choices=choices)
    for parts in (pieces(stream, cut), one_by_one(stream)):
        split = watch(parts, wants_usage=wants_usage, choices=choices)
        assert split.passed == whole.passed
        assert type(split.fault) is type(whole.fault)
        assert split.delivery.usage == whole.delivery.usage
        assert split.delivery.finish_reasons == whole.delivery.finish_reasons


@thorough
@given(
    st.lists(
        st.tuples(raw_events(said(*USUAL) | choice(*ODD)), st.just(True))
        | st.tuples(raw_events(said(*USAGES)), st.just(False))
        | st.tuples(choice(b"\n", b"\r\n", b"\r"), st.just(True)),
        max_size=12,
    ),
    choice(b"", BOM),
    cuts(),
    st.booleans(),
)
def test_what_comes_out_is_what_went_in_minus_exactly_the_usage(
    told: list[tuple[bytes, bool]], mark: bytes, cut: list[int], wants_usage: bool
) -> None:
    """Nothing is lost, changed, added or put in another order."""
    # A line end between two events belongs to the event before it where it can: here it never can.
    told = [(b": between\n\n" + raw, kept) if raw in b"\r\n" else (raw, kept) for raw, kept in told]
    first = mark + event(token("first"))
    stream = first + b"".join(raw for raw, _ in told) + STOP + DONE
    expected = first + b"".join(raw for raw, kept in told if kept or wants_usage) + STOP + DONE
    watched = watch(pieces(stream, cut), wants_usage=wants_usage)
    assert watched.passed == expected
    assert watched.done
