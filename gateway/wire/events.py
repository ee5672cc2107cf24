"""Server-sent events on the level of bytes: where one ends, and what it says (WHATWG HTML, 9.2).

No I/O and no text decoding of what is not a whole event: a character that is split between two reads never
meets a decoder. Line ends are LF, CR LF and CR, and nothing else that Python takes for one.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import orjson

# Two line ends in a row. Atomic, so that the CR and the LF of one CR LF are never taken for two.
BOUNDARY = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
LINE_END = re.compile(rb"\r\n|\n|\r")
BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"


class Event(NamedTuple):
    """One event: its type (`message` unless named) and its data, lines joined by LF."""

    type: str
    data: bytes


def cut(buffer: bytes) -> tuple[bytes, bytes]:
    """`buffer` as (whole events, the rest): the rest is the beginning of an event, or empty."""
    if buffer.endswith(b"\n\n"):
        return buffer, b""
    end = 0
    for match in BOUNDARY.finditer(buffer):
        end = match.end()
    return buffer[:end], buffer[end:]


def split(block: bytes) -> Iterator[bytes]:
    """The raw events of a block of whole events, each with its boundary: joined they are the block."""
    start = 0
    for match in BOUNDARY.finditer(block):
        yield block[start : match.end()]
        start = match.end()
    if start < len(block):
        yield block[start:]


def decode(raw: bytes) -> Event | None:
    """What one raw event says; None for a comment or an event without data."""
    kind, data = "message", []
    for line in LINE_END.split(raw.removeprefix(BOM)):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value.decode("utf-8", "replace")
    return Event(kind, b"\n".join(data)) if data else None


def encode(data: bytes) -> bytes:
    """One event with a single line of data."""
    return b"data: " + data + b"\n\n"


def encode_json(value: object) -> bytes:
    return encode(orjson.dumps(value))
