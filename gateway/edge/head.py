"""A call's head: what it says, if it can be read in one way only.

Pure. The parser (llhttp) has refused what is no HTTP/1.x; here goes what a proxy before us might have read
differently.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

import httptools

from gateway.errors import ExpectationFailed, NotHttp, RepeatedHeader

HTTP_1_0, HTTP_1_1 = VERSIONS = ("1.0", "1.1")
# Headers that decide something: of two, a proxy before us may have looked at the other one.
SINGLE = (b"authorization", b"content-encoding", b"content-type", b"expect", b"traceparent")
# A name, an IPv4 or a bracketed IPv6 address, and a port (RFC 9112, 3.2). An empty one is legal.
HOST = re.compile(rb"(?:[\w.~%!$&'()*+,;=-]*|\[[\w:.%]+\])(?::\d*)?", re.ASCII)


class Head(NamedTuple):
    """Method, decoded path and headers of one call; names of headers in lower case, of repeated ones the last value.

    `repeated` is one of `SINGLE` that is given more than once. `keep_alive`: the caller is content to go on.
    """

    method: str
    path: str
    query: bytes
    headers: dict[bytes, bytes]
    repeated: bytes | None
    http_1_0: bool
    keep_alive: bool
    expects: bool

    def header(self, name: bytes) -> str:
        """A header's value as text; empty where it is not given."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def bearer(self) -> str | None:
        """The bearer token (RFC 6750), where there is one. Never from the URL. Raises RepeatedHeader."""
        if self.repeated is not None:
            raise RepeatedHeader(self.repeated.decode())
        scheme, _, token = self.headers.get(b"authorization", b"").partition(b" ")
        return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


def read_head(
    method: bytes, target: bytes, pairs: Sequence[tuple[bytes, bytes]], version: str, *, keep_alive: bool
) -> Head:
    """Raises NotHttp for what could be read in two ways, ExpectationFailed."""
    headers = dict(pairs)
    repeated = None
    if len(headers) != len(pairs):
        repeated = _repeated(pairs)
    if version not in VERSIONS:
        raise NotHttp("its version is neither HTTP/1.0 nor HTTP/1.1")
    host = headers.get(b"host")
    if host is None and version == HTTP_1_1:
        raise NotHttp("it has no Host header")
    if host is not None and not HOST.fullmatch(host):
        raise NotHttp("its Host header is no name of a host")
    encoding = headers.get(b"transfer-encoding")
    if encoding is not None and (encoding.lower() != b"chunked" or version == HTTP_1_0):
        raise NotHttp("its Transfer-Encoding is not `chunked` alone")
    expect = headers.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise ExpectationFailed
    path, query = _path(target)
    return Head(
        method=method.decode("ascii"),
        path=path,
        query=query,
        headers=headers,
        repeated=repeated,
        http_1_0=version == HTTP_1_0,
        keep_alive=keep_alive,
        expects=expect != b"" and version == HTTP_1_1,
    )


def _repeated(pairs: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Of the headers that must stand once the first that does not. Raises NotHttp for those that frame the call."""
    names = [name for name, _ in pairs]
    for name in (b"transfer-encoding", b"content-length", b"host"):
        if names.count(name) > 1:
            raise NotHttp(f"it has more than one {name.decode()} header")
    return next((name for name in SINGLE if names.count(name) > 1), None)


def _path(target: bytes) -> tuple[str, bytes]:
    """The decoded path, and the query as it came, of a target in origin or absolute form (RFC 9112, 3.2)."""
    if not target.startswith(b"/"):
        try:
            url = httptools.parse_url(target)
        except httptools.HttpParserInvalidURLError:
            raise NotHttp("its target is no path") from None
        if not (url.schema and url.host):
            raise NotHttp("its target is no path")
        target = (url.path or b"/") + (b"?" + url.query if url.query else b"")
    raw, _, query = target.partition(b"?")
    path = raw.decode("latin-1")
    return (unquote(path) if "%" in path else path), query
