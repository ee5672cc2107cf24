"""ASGI apps on our connections: whatever is no call is written as a Starlette app, and served through here.

The only module that knows ASGI 3. Lifespan and web sockets are not served.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from gateway.edge.address import caller_address
from gateway.edge.exchange import Exchange
from gateway.edge.head import Head
from gateway.errors import NoSuchRoute, WrongMethod
from gateway.settings import Network

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
HEAD = "pagegate.head"
CALL = "pagegate.call"
# The connection decides these.
OURS = frozenset({b"connection", b"content-length", b"transfer-encoding"})


def head_of(request: Request) -> Head:
    """The head that a request came with, as we read it."""
    head: Head = request.scope["extensions"][HEAD]
    return head


def address_of(request: Request) -> str:
    """Where the caller is, as far as that can be believed."""
    return request.client.host if request.client is not None else ""


class Hosted:
    """An ASGI app that answers exchanges; bodies are read whole, up to `max_body_bytes`, when the app asks for them."""

    def __init__(
        self, app: AsgiApp, max_body_bytes: int, body_timeout_s: float, trusted_proxies: tuple[Network, ...] = ()
    ) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, exchange: Exchange) -> None:
        """Raises what the app raises; of its HTTPExceptions those of routing become ours."""
        head = exchange.head
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.0" if head.http_1_0 else "1.1",
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.path.encode(),
            "query_string": head.query,
            "root_path": "",
            "headers": list(head.headers.items()),
            "client": (caller_address(exchange.address, head, self._trusted_proxies), 0),
            "server": None,
            "extensions": {HEAD: head, CALL: exchange.id},
            # Starlette's router leaves refusals to its app; here that is us.
            "app": self,
        }
        talk = _Talk(exchange, self._max_body_bytes, self._body_timeout_s)
        try:
            await self._app(scope, talk.receive, talk.send)
        except HTTPException as refused:
            match refused.status_code:
                case 404:
                    raise NoSuchRoute(head.method, head.path) from None
                case 405:
                    # Starlette joins a set: in the order of the moment.
                    allowed = sorted((refused.headers or {})["Allow"].split(", "))
                    raise WrongMethod(head.method, ", ".join(allowed)) from None
                case _:
                    raise


class _Talk:
    """What an app receives and sends in one exchange."""

    def __init__(self, exchange: Exchange, max_body_bytes: int, body_timeout_s: float) -> None:
        self._exchange = exchange
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._read = False
        self._start: Message = {}

    async def receive(self) -> Message:
        if not self._read:
            self._read = True
            body = await self._exchange.body(self._max_body_bytes, self._body_timeout_s)
            return {"type": "http.request", "body": body, "more_body": False}
        gone = asyncio.Event()
        self._exchange.when_departed(lambda error: gone.set())
        if self._exchange.departed is None and not self._exchange.ended:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if message["type"] == "http.response.start":
            self._start = message
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not (more or exchange.started):
            exchange.whole(self._start["status"], self._lines(), body)
            return
        if not exchange.started:
            exchange.begin(self._start["status"], self._lines())
        if more:
            exchange.write(body)
            await exchange.room()
        else:
            exchange.end(body)

    def _lines(self) -> bytes:
        return b"".join(
            b"%b: %b\r\n" % (name, value) for name, value in self._start.get("headers", ()) if name.lower() not in OURS
        )
