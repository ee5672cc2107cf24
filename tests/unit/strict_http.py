"""A strict reader of HTTP/1.1 calls, to hold against the one that serves: RFC 9112, and nothing lenient.

Where a parser of ours sees a call, this one must see the same call, at the same bytes; what is read in two ways is
how calls are smuggled. It may see more calls than we serve: limits and order are not its business.
"""

import re
from typing import NamedTuple

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# The parser takes RTSP and ICE for HTTP, of the same versions and in the same form.
REQUEST_LINE = re.compile(rb"([A-Z-]+) +([\x21-\x7e]+) +(?:HTTP|RTSP|ICE)/(1\.[01])")
FIELD = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % TOKEN)
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)(?:;[^\r\n\x00]*)?")
END = b"\r\n"

Fields = list[tuple[bytes, bytes]]


class Seen(NamedTuple):
    """A call whose head is there; `complete`: its body is there as well."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes
    complete: bool


def calls_in(data: bytes) -> list[Seen]:
    """The calls at the beginning of `data`, up to the first byte that is no HTTP/1.1 or the end."""
    found: list[Seen] = []
    while True:
        head, end, rest = data.lstrip(b"\r\n").partition(END + END)
        lines = head.split(END)
        request_line = REQUEST_LINE.fullmatch(lines[0])
        fields = _fields(lines[1:])
        if not end or request_line is None or fields is None:
            return found
        method, target, version = request_line.groups()
        body, complete, data = _body(fields, version, rest)
        if body is None:
            return found
        found.append(Seen(method, target, fields, body, complete))
        if not complete:
            return found


def _fields(lines: list[bytes]) -> Fields | None:
    matches = [FIELD.fullmatch(line) for line in lines]
    found = [(match[1].lower(), match[2]) for match in matches if match]
    return found if len(found) == len(lines) else None


def _body(fields: Fields, version: bytes, rest: bytes) -> tuple[bytes | None, bool, bytes]:
    """The body as far as it is there, whether it is whole, and what is behind it; None where its framing is wrong."""
    encodings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    lengths = [value for name, value in fields if name == b"content-length"]
    if encodings and (encodings != [b"chunked"] or lengths or version == b"1.0"):
        return None, False, b""
    if encodings:
        return _chunks(rest)
    if not lengths:
        return b"", True, rest
    if len(lengths) > 1 or not lengths[0].isdigit():
        return None, False, b""
    size = int(lengths[0])
    return rest[:size], len(rest) >= size, rest[size:]


def _chunks(rest: bytes) -> tuple[bytes, bool, bytes]:
    body = b""
    while True:
        line, end, behind = rest.partition(END)
        match = CHUNK_SIZE.fullmatch(line)
        if not end or match is None:
            return body, False, b""
        size = int(match[1], 16)
        if size == 0:
            break
        body += behind[:size]
        if not behind[size:].startswith(END):
            return body, False, b""
        rest = behind[size + len(END) :]
    # The trailer: nothing, or fields and an empty line.
    while True:
        line, end, behind = behind.partition(END)
        if end and not line:
            return body, True, behind
        if not end or _fields([line]) is None:
            return body, False, b""
