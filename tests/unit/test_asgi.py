"""gateway/edge/asgi.py: what is written as an app of somebody else's framework answers as our own code does."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from gateway.edge import rendering
from gateway.edge.asgi import AsgiApp, Hosted, Message, Receive, Send, head_of
from gateway.edge.exchange import Exchange
from gateway.errors import CallerLeft, GatewayError
from tests.unit.by_hand import LIMITS, Caller, Listener

MAX_BODY_BYTES = 1000
BODY_TIMEOUT_S = 20.0
CHUNK_BYTES = 40_000


async def told(request: Request) -> Response:
    """What the app sees of a call."""
    return JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "query": str(request.query_params),
            "headers": dict(request.headers),
            "body": (await request.body()).decode(),
            "version": request.scope["http_version"],
        }
    )


async def named(request: Request) -> Response:
    return PlainTextResponse(request.path_params["name"])


async def streamed(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one", b"", b"two"):
            yield part

    return StreamingResponse(parts(), media_type="text/plain")


async def meddling(request: Request) -> Response:
    """Sets what is not the app's to set."""
    headers = {"Connection": "keep-alive", "Transfer-Encoding": "gzip", "X-Kept": "y", "Content-Length": "3"}
    return Response(b"abc", headers=headers)


async def teapot(request: Request) -> Response:
    raise HTTPException(418)


ROUTES = [
    Route("/told", told, methods=["GET", "POST"]),
    Route("/named/{name:path}", named),
    Route("/streamed", streamed),
    Route("/meddling", meddling),
    Route("/teapot", teapot),
    Route("/many", teapot, methods=["PUT", "PATCH", "POST", "OPTIONS", "DELETE", "TRACE"]),
]


class Surface:
    """A hosted app as the gateway serves it: what it raises is answered. `raised` is what that was."""

    def __init__(self, app: AsgiApp) -> None:
        self.raised: list[Exception] = []
        self._hosted = Hosted(app, MAX_BODY_BYTES, BODY_TIMEOUT_S)

    async def __call__(self, exchange: Exchange) -> None:
        try:
            await self._hosted(exchange)
        except (GatewayError, HTTPException) as error:
            self.raised.append(error)
            if not isinstance(error, CallerLeft):
                rendering.tell(exchange, error, b"")

    def accept(self) -> Caller:
        return Listener(self, LIMITS).accept()


def routed() -> Surface:
    return Surface(Router(ROUTES, redirect_slashes=False))


def call(target: str = "/told", method: str = "GET", lines: bytes = b"", body: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nhost: g\r\n%b%b\r\n%b" % (method.encode(), target.encode(), length, lines, body)


def answer(sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and raw body of the one answer that was sent; no header stands twice."""
    head, _, body = sent.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert len(headers) == len(lines)
    return int(line.split()[1]), headers, body


def test_an_app_sees_the_call_and_answers_it() -> None:
    """Method, path, query, headers and body; the answer is one document with the connection's own headers."""
    caller = routed().accept().send(call("/told?a=%20b", "POST", b"X: y\r\n", b"hello"))
    status, headers, body = answer(caller.wire.sent)
    assert status == 200
    assert Response(body).body == (
        b'{"method":"POST","path":"/told","query":"a=+b",'
        b'"headers":{"host":"g","content-length":"5","x":"y"},"body":"hello","version":"1.1"}'
    )
    assert headers == {
        "x-request-id": "id-1",
        "cache-control": "no-store",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    assert caller.wire.writes == 1


def test_an_old_caller_is_told_apart() -> None:
    """HTTP/1.0, and his connection ends."""
    caller = routed().accept().send(b"GET /told HTTP/1.0\r\n\r\n")
    _, headers, body = answer(caller.wire.sent)
    assert b'"version":"1.0"' in body
    assert headers["connection"] == "close"


def test_paths_are_decoded_once() -> None:
    """By us: the app sees what the routes of calls see."""
    _, _, body = answer(routed().accept().send(call("/named/a%2Fb%252F%20c")).wire.sent)
    assert body == b"a/b%2F c"


def test_an_app_may_ask_for_the_head_as_we_read_it() -> None:
    """Some of what it says is in no scope."""
    bearers: list[str | None] = []

    async def who(request: Request) -> Response:
        bearers.append(head_of(request).bearer)
        return Response()

    caller = Surface(Router([Route("/", who)])).accept()
    caller.send(call("/", lines=b"Authorization: Bearer key\r\n"), call("/"))
    assert bearers == ["key", None]


@pytest.mark.parametrize(
    ("target", "method", "status", "allow"),
    [
        ("/nowhere", "GET", 404, None),
        ("/", "POST", 404, None),
        ("/told/", "GET", 404, None),
        ("//told", "GET", 404, None),
        ("/TOLD", "GET", 404, None),
        ("/told", "DELETE", 405, "get, head, post"),
        ("/streamed", "POST", 405, "get, head"),
        ("/many", "GET", 405, "delete, options, patch, post, put, trace"),
    ],
)
def test_what_is_not_routed_is_refused_in_our_words(target: str, method: str, status: int, allow: str | None) -> None:
    """An OpenAI error, as for calls; what is allowed is told, in one order. The connection is kept."""
    caller = routed().accept().send(call(target, method))
    found, headers, body = answer(caller.wire.sent)
    assert found == status
    assert b'"type":"invalid_request_error"' in body
    assert headers.get("allow") == allow
    assert "connection" not in headers
    assert caller.listener.deadlines == "1 idle"


def test_other_refusals_of_an_app_are_its_own() -> None:
    """They are not taken for routing."""
    surface = routed()
    caller = surface.accept().send(call("/teapot"))
    assert [getattr(error, "status_code", None) for error in surface.raised] == [418]
    assert answer(caller.wire.sent)[0] == 500


def test_head_is_answered_as_get_is_and_without_a_body() -> None:
    """With the length that the body would have; a stream has none, and no chunk either."""
    surface = routed()
    _, get, body = answer(surface.accept().send(call("/named/x")).wire.sent)
    status, head, nothing = answer(surface.accept().send(call("/named/x", "HEAD")).wire.sent)
    assert (status, head, nothing) == (200, get, b"")
    assert head["content-length"] == str(len(body))
    caller = surface.accept().send(call("/streamed", "HEAD"), call("/named/next"))
    assert answer(caller.wire.sent)[2].startswith(b"HTTP/1.1 200 OK\r\nx-request-id: id-2\r\n")


def test_what_the_connection_decides_is_not_the_apps() -> None:
    """Its framing is not said twice, nor anything about the connection; other headers are kept."""
    status, headers, body = answer(routed().accept().send(call("/meddling")).wire.sent)
    assert status == 200
    assert body == b"abc"
    assert headers["content-length"] == "3"
    assert headers["x-kept"] == "y"
    assert "connection" not in headers
    assert "transfer-encoding" not in headers


def test_a_stream_is_sent_in_chunks() -> None:
    """Its head with the first of them, and no chunk for nothing."""
    caller = routed().accept().send(call("/streamed"))
    status, headers, body = answer(caller.wire.sent)
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert caller.listener.deadlines == "1 idle"


class Pieces:
    """An app that streams pieces until it is stopped, and counts them."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        while True:
            self.sent += 1
            assert self.sent < 100, "nothing holds it back"
            await send({"type": "http.response.body", "body": bytes(CHUNK_BYTES), "more_body": True})


def test_a_slow_reader_holds_an_app_back() -> None:
    """It goes on when there is room, and is told when he is gone: nothing piles up."""
    app = Pieces()
    surface = Surface(app)
    caller = surface.accept()
    caller.wire.reads = False
    caller.send(call("/"))
    assert app.sent == 2
    for number in (4, 6):
        caller.wire.take()
        caller.loop.turn()
        assert app.sent == number
    caller.leave()
    assert [type(error) for error in surface.raised] == [CallerLeft]
    assert app.sent == 6
    assert repr(caller.listener.callers) == "<Callers 0 connections, 0 exchanges>"


def test_a_slow_reader_has_his_time() -> None:
    """Then the app is rid of him."""
    surface = Surface(app := Pieces())
    caller = surface.accept()
    caller.wire.reads = False
    caller.send(call("/"))
    caller.loop.pass_time(LIMITS.slow_reader_s)
    assert caller.wire.cut
    assert app.sent == 2
    assert repr(caller.listener.callers) == "<Callers 0 connections, 0 exchanges>"


@pytest.mark.parametrize(
    ("size", "status"), [pytest.param(MAX_BODY_BYTES, 200, id="fits"), pytest.param(MAX_BODY_BYTES + 1, 413, id="not")]
)
def test_an_app_gets_a_body_whole_or_not_at_all(size: int, status: int) -> None:
    """Up to the limit, in one message."""
    caller = routed().accept().send(call("/told", "POST", body=b"x" * size))
    assert answer(caller.wire.sent)[0] == status


def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    """The app need not know about time."""
    caller = routed().accept().send(call("/told", "POST", body=b"x" * 10)[:-1])
    caller.loop.pass_time(BODY_TIMEOUT_S)
    status, headers, _ = answer(caller.wire.sent)
    assert (status, headers["connection"]) == (408, "close")


def test_an_app_that_asks_for_no_body_is_sent_none() -> None:
    """What is left unread ends the connection."""

    async def deaf(request: Request) -> Response:
        return Response(b"ok")

    caller = Surface(Router([Route("/", deaf, methods=["POST"])])).accept()
    caller.send(call("/", "POST", body=b"x" * 10)[:-1])
    assert answer(caller.wire.sent)[1]["connection"] == "close"


@pytest.mark.parametrize("before", [True, False])
def test_an_app_can_see_that_its_caller_left(before: bool) -> None:
    """Whether it asks before that or after it; until then it waits."""
    messages, go = list[str](), asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        messages.append((await receive())["type"])
        if not before:
            await go.wait()
        messages.append((await receive())["type"])

    caller = Surface(app).accept().send(call("/"))
    assert messages == ["http.request"]
    caller.leave()
    go.set()
    caller.loop.turn()
    assert messages == ["http.request", "http.disconnect"]
    assert repr(caller.listener.callers) == "<Callers 0 connections, 0 exchanges>"


def test_an_app_that_has_answered_sees_the_end() -> None:
    """As ASGI says: nothing is left to wait for, on a connection that goes on."""
    messages: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        messages.append((await receive())["type"])

    caller = Surface(app).accept().send(call("/"))
    assert messages == ["http.disconnect"]
    assert not caller.wire.closing


def test_an_app_that_does_not_answer_loses_its_connection() -> None:
    """The caller must not take half an answer for a whole one."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    caller = Surface(app).accept().send(call("/"))
    assert caller.wire.cut
    assert not caller.wire.sent.endswith(b"0\r\n\r\n")
