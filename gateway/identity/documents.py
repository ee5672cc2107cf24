"""Documents of issuers over HTTP: one GET each, whole or not at all, within a time and a size.

No redirect is followed and nothing is sent but the URL, so that an issuer can have us ask for what its own document
names and for nothing else. What is in a document is left to `jwks.py`.
"""

import asyncio
import re
from urllib.parse import urlsplit

from gateway.http1 import Address, Broken, Connections
from gateway.identity.jwks import NotFetched
from gateway.settings import HOST_AND_PORT

LIMIT_S = 5.0
LIMIT_BYTES = 512 * 1024
LONGEST_URL = 2048
# No space, control or other letter that a line of a head could end with, and no fragment.
URL = re.compile(r"https?://[!\"$-~]+")


class HttpDocuments:
    """Fetches documents. Use as `async with`; certificates are checked against the system's."""

    def __init__(self, limit_s: float = LIMIT_S, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_s = limit_s
        self._limit_bytes = limit_bytes
        self._connections = Connections(limit_s, limit_s)

    async def __aenter__(self) -> "HttpDocuments":
        await self._connections.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connections.__aexit__(*exc)

    async def fetch(self, url: str) -> bytes:
        """The document at `url`. Raises NotFetched."""
        address, message = _asking(url)
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._exchange(address, message)
        except TimeoutError:
            raise NotFetched(f"no document within {self._limit_s:g} s") from None
        except Broken as broken:
            raise NotFetched(str(broken)) from None

    async def _exchange(self, address: Address, message: bytes) -> bytes:
        connection = await self._connections.acquire(address, fresh=True)
        try:
            connection.send(message)
            head = await connection.head()
            if head.status != 200:
                raise NotFetched(f"answered {head.status}")
            if head.headers.get(b"content-encoding", b"identity") != b"identity":
                raise NotFetched("answered in an encoding that was not asked for")
            parts, size = [], 0
            while part := await connection.read():
                parts.append(part)
                size += len(part)
                if size > self._limit_bytes:
                    raise NotFetched(f"the document is larger than {self._limit_bytes} bytes")
            return b"".join(parts)
        finally:
            connection.abort()

    def __repr__(self) -> str:
        return f"<HttpDocuments over {self._connections!r}>"


def _asking(url: str) -> tuple[Address, bytes]:
    """Where to ask, and the whole message. Raises NotFetched for what is no plain URL."""
    if len(url) > LONGEST_URL or not URL.fullmatch(url):
        raise NotFetched("its URL is not one of http or https")
    try:
        parts = urlsplit(url)
        good = parts.port != 0 and HOST_AND_PORT.fullmatch(parts.netloc)
    except ValueError:
        good = None
    if not good:
        raise NotFetched("its URL has no plain host and port")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = (
        f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\nuser-agent: pagegate\r\n"
        "accept: application/json\r\naccept-encoding: identity\r\nconnection: close\r\n\r\n"
    )
    return Address.of(url), head.encode("ascii")
