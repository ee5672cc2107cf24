"""What the benchmark's load side finds wrong with a reply: nothing of a right one, and every fault."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import checks
from benchmarks.checks import Durations, StreamCheck, plain_errors
from benchmarks.script import Asked, Behaviour, ask, now_us
from benchmarks.vllm_bytes import Words, plain_body, usage_of

CALL = 41
TOKENS = 6
ASKED = ask("m", Behaviour(), stream=True, tokens=TOKENS, usage=True)
Events = list[bytes]


def unframed(data: bytes) -> bytes:
    """Without the chunks' frames."""
    return b"".join(re.findall(rb"[0-9a-f]+\r\n(data: .*\n\n)\r\n", data))


def events(call: int = CALL, *, length: bool = True, usage: bool = True) -> Events:
    """A right reply: role, tokens, usage and [DONE] (and the finish reason, where the last token does not bring it)."""
    words = Words(call, 1, b"m", TOKENS, length=length, usage=usage_of(9, TOKENS) if usage else None)
    written = words.role() + words.tokens_at_once() + words.closing()
    return [event + b"\n\n" for event in unframed(written).split(b"\n\n")[:-1]]


def found(pieces: list[bytes], asked: Asked = ASKED, *, real: bool = False) -> tuple[Counter[str], Durations]:
    durations = Durations()
    check = StreamCheck(asked, CALL, durations, real=real)
    for piece in pieces:
        check.feed(piece, now_us())
    check.end()
    return check.errors or Counter(), durations


@pytest.mark.parametrize("length", [True, False], ids=["cut at max_tokens", "ended by itself"])
@given(cuts=st.lists(st.integers(min_value=0, max_value=3000)))
def test_a_right_reply_is_right_however_it_is_cut(length: bool, cuts: list[int]) -> None:
    """Reads end anywhere: each token is counted once."""
    whole = b"".join(events(length=length))
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    errors, durations = found([whole[start:end] for start, end in pairwise(edges)])
    assert not errors
    assert len(durations.delay) == TOKENS
    assert all(delay >= 0 for delay in durations.delay)


def lost(events: Events) -> Events:
    return events[:3] + events[4:]


def lost_at_the_end(events: Events) -> Events:
    return events[:4] + events[6:]


def swapped(events: Events) -> Events:
    return [*events[:3], events[4], events[3], *events[5:]]


def doubled(events: Events) -> Events:
    return [*events[:4], events[3], *events[4:]]


def another_calls(found: Events) -> Events:
    return [*found[:3], events(7)[3], *found[4:]]


def changed(events: Events) -> Events:
    return [event.replace(b"@00000041.00003", b"#00000041.00003") for event in events]


def unfinished(events: Events) -> Events:
    return [event.replace(b'"finish_reason":"length"', b'"finish_reason":null') for event in events]


def finished_twice(events: Events) -> Events:
    return [
        event.replace(b'"finish_reason":null,"token_ids"', b'"finish_reason":"stop","token_ids"') for event in events
    ]


def not_done(events: Events) -> Events:
    return events[:-1]


def after_done(events: Events) -> Events:
    return [*events, events[2]]


def without_usage(events: Events) -> Events:
    return events[:-2] + events[-1:]


def miscounted(events: Events) -> Events:
    return [event.replace(b'"completion_tokens":6', b'"completion_tokens":5') for event in events]


def no_json(events: Events) -> Events:
    return [*events[:2], b'data: {"choices":[\n\n', *events[2:]]


def no_event(events: Events) -> Events:
    return [*events[:2], b"<html>\n\n", *events[2:]]


def an_error(events: Events) -> Events:
    return [*events[:2], b'data: {"error":{"message":"dead"}}\n\n', *events[2:]]


def cut_in_an_event(events: Events) -> Events:
    return [*events[:-1], events[-1][:8]]


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (lost, {checks.LOST: 1}),
        (lost_at_the_end, {checks.LOST: 2, checks.FINISH_TWICE: 0, checks.NO_FINISH: 0}),
        (swapped, {checks.REORDERED: 1}),
        (doubled, {checks.DUPLICATE: 1}),
        (another_calls, {checks.FOREIGN: 1, checks.LOST: 1}),
        (changed, {checks.CONTENT: 1, checks.LOST: 1}),
        (unfinished, {checks.NO_FINISH: 1}),
        (finished_twice, {checks.FINISH_TWICE: 5}),
        (not_done, {checks.NO_DONE: 1}),
        (after_done, {checks.AFTER_DONE: 1}),
        (without_usage, {checks.NO_USAGE: 1}),
        (miscounted, {checks.WRONG_USAGE: 1}),
        (no_json, {checks.NOT_JSON: 1}),
        (no_event, {checks.NOT_AN_EVENT: 1}),
        (an_error, {checks.ERROR_EVENT: 1}),
        (cut_in_an_event, {checks.NOT_AN_EVENT: 1, checks.NO_DONE: 1}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.parametrize("at_once", [True, False], ids=["in one read", "an event a read"])
def test_every_fault_of_a_stream_is_an_error_of_its_kind(
    fault: Callable[[Events], Events], kinds: dict[str, int], at_once: bool
) -> None:
    """However the bytes come: nothing that a gateway spoils goes by as a reply."""
    pieces = fault(events())
    errors, _ = found([b"".join(pieces)] if at_once else pieces)
    assert errors == Counter({kind: count for kind, count in kinds.items() if count})


def test_a_gateway_may_write_the_same_in_other_words() -> None:
    """Comments, other spaces, CRLF and another order of keys are no errors."""
    token = (
        b'data:{"choices": [{"delta": {"content": "@00000041.00001.00000000000007 "}, "index": 0}], "id": "x"}\r\n\r\n'
    )
    errors, durations = found([b": ping\n\n", events()[0], b"event: message\n" + token, *events()[2:]])
    assert not errors
    assert len(durations.delay) == TOKENS


def test_tokens_that_were_put_together_are_still_checked_one_by_one() -> None:
    """A gateway may send two tokens as one chunk; order and number must hold."""
    tokens = b"@00000041.00001.00000000000007 @00000041.00002.00000000000008 "
    both = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % tokens
    errors, durations = found([events()[0], both, *events()[3:]])
    assert not errors
    assert len(durations.delay) == TOKENS


def test_usage_is_not_missed_where_it_was_not_asked_for() -> None:
    """It is the caller who asks."""
    assert not found(events(usage=False), ask("m", Behaviour(), stream=True, tokens=TOKENS))[0]


def test_a_real_engine_may_say_anything_but_must_end_rightly() -> None:
    """Its words are not known; finish reason, [DONE] and usage are."""
    words = [
        b'data: {"choices":[{"delta":{"content":"Paris"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"."}}]}\n\n',
    ]
    ended = b'data: {"choices":[{"delta":{"content":""},"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    done = b"data: [DONE]\n\n"
    assert not found([*words, ended, usage, done], real=True)[0]
    assert found([ended, usage, done], real=True)[0] == Counter([checks.CONTENT])
    assert found([*words, usage, done], real=True)[0] == Counter([checks.NO_FINISH])


PLAIN = ask("m", Behaviour(), stream=False, tokens=TOKENS)


def body(call: int = CALL) -> bytes:
    return plain_body(call, 1, "m", 9, TOKENS, length=True)


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        (body(), []),
        (body(7), [checks.FOREIGN]),
        (body().replace(b"brown", b"green"), [checks.CONTENT]),
        ("naïve".encode().join(body().split("naïve".encode())).replace("é".encode(), b"e"), [checks.CONTENT]),
        (body().replace(b'"finish_reason":"length"', b'"finish_reason":null'), [checks.NO_FINISH]),
        (body().replace(b'"completion_tokens":6', b'"completion_tokens":7'), [checks.WRONG_USAGE]),
        (body()[:-1], [checks.NOT_JSON]),
        (b'{"choices":[]}', [checks.CONTENT]),
        (b"", [checks.NOT_JSON]),
    ],
    ids=["right", "of another call", "changed", "re-encoded", "unfinished", "miscounted", "cut", "empty", "nothing"],
)
def test_every_fault_of_a_plain_reply_is_an_error_of_its_kind(reply: bytes, kinds: list[str]) -> None:
    """A status of 200 is not enough."""
    assert plain_errors(PLAIN, CALL, reply, real=False) == Counter(kinds)
