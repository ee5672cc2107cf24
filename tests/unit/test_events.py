"""gateway/wire/events.py: the codec gives the same events and the same bytes, however a stream is split."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.events import BOM, DONE, Cutter, Event, decode, encode, encode_json, split
from tests.unit.splitting import choice, cuts, one_by_one, pieces, thorough

ENDS = (b"\n", b"\r\n", b"\r")
LINES = (
    b"data: hello",
    b"data:no space",
    b"data:  two spaces",
    b"data:",
    b"data",
    b"data: a: b",
    b"event: error",
    b"event:",
    b"event: ping",
    b": a comment",
    b":",
    b"id: 7",
    b"retry: 10",
    b"unknown: field",
    b"no field at all",
    'data: {"text":"a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1d\x1ee"}'.encode(),
    "data: naïve 🦄 日本".encode(),
    b"",
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Lines of every kind with line ends of every kind, empty lines included, a BOM before some."""
    lines = draw(st.lists(st.tuples(choice(*LINES), choice(*ENDS)), max_size=14))
    return draw(choice(b"", b"", BOM)) + b"".join(line + end for line, end in lines)


def events_of(stream: bytes) -> list[Event]:
    """The events of a whole stream, by the letter of the standard: character by character, line by line."""
    lines, line, at = [], "", 0
    text = stream.removeprefix(BOM).decode()
    while at < len(text):
        if text[at] in "\r\n":
            at += text.startswith("\r\n", at)
            lines.append(line)
            line = ""
        else:
            line += text[at]
        at += 1
    found, kind, data = [], "", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append(Event(kind or "message", data.removesuffix("\n").encode()))
            kind = data = ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
    return found


def seen(parts: list[bytes]) -> tuple[list[Event], bytes, bytes]:
    """What a stream in parts is cut into: its events, all bytes that were given, and the rest."""
    cutter = Cutter()
    given = b"".join([*map(cutter.feed, parts), cutter.finish()])
    return [event for event in map(decode, split(given)) if event], given, cutter.held


@thorough
@given(streams(), cuts())
def test_any_split_gives_the_events_of_the_standard(stream: bytes, cut: list[int]) -> None:
    """A line end, a character or a word that is split between two reads changes nothing."""
    events, _, _ = seen(pieces(stream, cut))
    assert events == events_of(stream)


@thorough
@given(streams(), cuts())
def test_no_byte_is_lost_or_reordered(stream: bytes, cut: list[int]) -> None:
    """What passes and what is held, joined, is the stream; and what passes does not depend on the split."""
    _, given_whole, rest_whole = seen([stream])
    _, given, rest = seen(pieces(stream, cut))
    assert given + rest == stream
    assert (given, rest) == (given_whole, rest_whole)


@thorough
@given(st.binary(max_size=60), cuts())
def test_bytes_that_are_no_events_at_all_are_cut_and_decoded_without_error(junk: bytes, cut: list[int]) -> None:
    """Whatever an engine sends, nothing raises and nothing is lost."""
    _, given, rest = seen(pieces(junk, cut))
    assert given + rest == junk


@thorough
@given(streams())
def test_a_split_block_joined_is_the_block(stream: bytes) -> None:
    """`split` takes nothing away, also not from a block that ends within an event."""
    assert b"".join(split(stream)) == stream
    assert all(split(stream))


@pytest.mark.parametrize("end", ENDS)
def test_byte_by_byte_is_a_split_as_well(end: bytes) -> None:
    """The smallest reads there are, for each kind of line end."""
    stream = end.join([b"data: one", b"", "data: zwei🦄".encode(), b"data: drei", b"", b"data: rest"])
    events, given, rest = seen(one_by_one(stream))
    assert events == [Event("message", b"one"), Event("message", "zwei🦄\ndrei".encode())]
    assert given + rest == stream
    assert rest == b"data: rest"


@pytest.mark.parametrize(
    ("parts", "given"),
    [
        pytest.param([b"data: a\n\n"], [b"data: a\n\n"], id="a whole event passes at once"),
        pytest.param([b"data: a\n", b"\n"], [b"", b"data: a\n\n"], id="an event waits for its empty line"),
        pytest.param([b"data: a\r\n", b"\r\n"], [b"", b"data: a\r\n\r\n"], id="CR LF twice, split in between"),
        pytest.param([b"data: a\r\n\r", b"\n"], [b"", b"data: a\r\n\r\n"], id="the last CR LF itself split"),
        pytest.param([b"data: a\r", b"\ndata: b\n\n"], [b"", b"data: a\r\ndata: b\n\n"], id="one CR LF is one end"),
        pytest.param([b"data: a\r\r", b"data: b"], [b"", b"data: a\r\r"], id="a CR shows itself with the next byte"),
        pytest.param([b"data: a\n\ndata: b"], [b"data: a\n\n"], id="the beginning of the next event waits"),
        pytest.param([b"data: a\n\n", b"\n", b"\r"], [b"data: a\n\n", b"\n", b"\r"], id="empty lines wait for nothing"),
        pytest.param([b"\n", b"data: a\n\n"], [b"\n", b"data: a\n\n"], id="empty lines before the first event"),
    ],
)
def test_what_passes_when(parts: list[bytes], given: list[bytes]) -> None:
    """An event passes with the read that makes it whole, and not before."""
    cutter = Cutter()
    assert [cutter.feed(part) for part in parts] == given


@pytest.mark.parametrize(
    ("raw", "event"),
    [
        pytest.param(b"data: x\n\n", Event("message", b"x"), id="data"),
        pytest.param(b"data:x\n\n", Event("message", b"x"), id="one space after the colon is not data"),
        pytest.param(b"data:  x\n\n", Event("message", b" x"), id="the second one is"),
        pytest.param(b"data\n\n", Event("message", b""), id="a field without a colon"),
        pytest.param(b"data: a\ndata: b\r\ndata: c\n\n", Event("message", b"a\nb\nc"), id="lines joined by LF"),
        pytest.param(b"event: error\ndata: x\n\n", Event("error", b"x"), id="a named event"),
        pytest.param(b"event:\ndata: x\n\n", Event("message", b"x"), id="an empty name is none"),
        pytest.param(b"event: \xff\ndata: x\n\n", Event("\ufffd", b"x"), id="a name that is not UTF-8"),
        pytest.param(BOM + b"data: x\n\n", Event("message", b"x"), id="after a byte order mark"),
        pytest.param(b": keep-alive\n\n", None, id="a comment"),
        pytest.param(b"event: ping\n\n", None, id="no data"),
        pytest.param(b"\n", None, id="an empty line"),
        pytest.param(b"data : x\n\n", None, id="another field, by a space"),
        pytest.param(b"\x00\x00", None, id="NUL"),
    ],
)
def test_what_an_event_says(raw: bytes, event: Event | None) -> None:
    """Fields are read as the standard says."""
    assert decode(raw) == event


def test_what_is_encoded_decodes_to_the_same() -> None:
    """The gateway's own events read back."""
    assert decode(encode(b"[DONE]")) == decode(DONE) == Event("message", b"[DONE]")
    told = decode(encode_json({"a": "b\nc\u2028"}))
    assert told is not None
    assert orjson.loads(told.data) == {"a": "b\nc\u2028"}


def test_a_long_event_in_small_reads_costs_what_its_bytes_cost() -> None:
    """Were what is held searched or copied again with every read, this would take an hour instead of a moment."""
    cutter, reads = Cutter(), 2**18
    assert not any(cutter.feed(b"0123456789abcdef") for _ in range(reads))
    assert cutter.held_bytes == 16 * reads
    assert len(cutter.feed(b"\n\n")) == 16 * reads + 2
    assert cutter.held_bytes == 0
