"""What is refused at the edge: who has no key, what is no call, what is no route. Always with an OpenAI body."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.engines import ScriptedEngines, scripted
from tests.harness import CHAT, KEY, MODEL, Harness, bearer, gateway, hello, key
from tests.wire_client import Headers, WireClient, WireReply, message

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a") as engines:
        yield engines


@pytest.fixture
async def harness(engines: ScriptedEngines) -> AsyncIterator[Harness]:
    server = {"max_body_bytes": 2000, "body_timeout_s": 0.05}
    async with gateway({"a": engines["a"].url}, server=server) as harness:
        yield harness


def error(reply: WireReply) -> dict[str, Any]:
    """The error of a reply, which has exactly the four keys."""
    assert reply.header("content-type") == "application/json"
    assert reply.header("x-request-id")
    (content,) = reply.json.values()
    assert set(content) == {"message", "type", "param", "code"}
    assert content["message"]
    return dict(content)


def shape(reply: WireReply) -> tuple[int, str, str | None, str | None]:
    content = error(reply)
    return reply.status, content["type"], content["code"], content["param"]


INVALID = "invalid_request_error"

# Who is calling.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer  "},
        {"authorization": f"Basic {KEY}"},
        {"x-api-key": KEY},
        {"cookie": f"api_key={KEY}"},
    ],
)
async def test_a_caller_without_a_bearer_key_is_told_to_bring_one(harness: Harness, headers: Headers) -> None:
    """Only the Authorization header counts."""
    reply = await harness.post(headers=headers)
    assert shape(reply) == (401, INVALID, None, None)
    assert reply.header("www-authenticate") == "Bearer"


async def test_a_key_in_the_url_is_no_key_and_never_logged(harness: Harness) -> None:
    """A URL ends up in other people's logs."""
    assert (await harness.post(headers={}, path=f"{CHAT}?api_key={KEY}")).status == 401


@pytest.mark.parametrize(
    "wrong", ["pg-wrong", KEY[:-1], KEY + "x", KEY.upper(), "' OR 1=1 --", "\xff" * 40, "k" * 9000]
)
async def test_every_wrong_key_gets_the_same_answer(harness: Harness, wrong: str) -> None:
    """Too short, too long, nearly right: one status and one text."""
    reply = await harness.post(headers={"authorization": f"Bearer {wrong}"})
    other = await harness.post(headers=bearer("pg-other"))
    assert shape(reply) == (401, INVALID, "invalid_api_key", None)
    assert reply.body == other.body
    assert wrong.encode("latin-1") not in harness.log.text


async def test_the_scheme_of_a_credential_is_read_in_any_case(harness: Harness) -> None:
    """RFC 9110: authentication schemes are case-insensitive."""
    assert (await harness.post(headers={"authorization": f"bearer {KEY}"})).status == 200


async def test_a_key_is_checked_before_the_body_is_read(harness: Harness) -> None:
    """The answer comes while the body is still to be sent, and the connection ends with it."""
    async with WireClient(harness.url) as client:
        await client.send_raw(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n{{".encode())
        reply = await client.reply()
        assert (reply.status, reply.header("connection")) == (401, "close")
        assert await client.read_to_end() == b""


async def test_a_caller_that_first_asks_whether_to_send_is_refused_before_it_does(harness: Harness) -> None:
    """`Expect: 100-continue` is answered with the refusal; with a good key the body is asked for."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    async with WireClient(harness.url) as client:
        await client.send_raw(f"{head}content-length: 10\r\n\r\n".encode())
        assert (await client.reply()).status == 401
        assert client.interim == []
    body = message("POST", CHAT, json=hello()).partition(b"\r\n\r\n")[2]
    async with WireClient(harness.url) as client:
        await client.send_raw(f"{head}authorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        assert (await client.read()).startswith(b"HTTP/1.1 100 ")
        await client.send_raw(body)
        assert (await client.reply()).status == 200


async def test_a_forbidden_model_looks_like_one_that_does_not_exist(engines: ScriptedEngines) -> None:
    """Byte for byte, also where an alias would give the real name away."""
    models = [
        {"name": MODEL, "replicas": [{"name": "a", "url": engines["a"].url}]},
        {"name": "hush", "aliases": ["hash"]},
    ]
    async with gateway({}, models=models, identity={"keys": [key("k", models=[MODEL])]}, wait=False) as harness:
        for forbidden in ("hush", "hash"):
            one = await harness.post(hello() | {"model": forbidden})
            other = await harness.post(hello() | {"model": "hxsh"})
            assert shape(one) == shape(other) == (404, INVALID, "model_not_found", None)
            assert one.body == other.body.replace(b"hxsh", forbidden.encode())
            assert [name for name, _ in one.headers] == [name for name, _ in other.headers]
    assert engines["a"].calls == []


# What is no call.


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "", "multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/jsonp"],
)
async def test_a_body_must_be_sent_as_json(harness: Harness, kind: str) -> None:
    """A form of another site cannot be mistaken for a call."""
    headers = {**bearer(), "content-type": kind}
    assert shape(await harness.post(headers=headers)) == (415, INVALID, None, None)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_may_be_spelled_as_it_is_usual(harness: Harness, kind: str) -> None:
    """Media types are case-insensitive; UTF-8 may be named."""
    assert (await harness.post(headers={**bearer(), "content-type": kind})).status == 200


async def test_a_body_that_is_declared_too_large_is_refused_unread(harness: Harness) -> None:
    """The length alone is enough."""
    async with WireClient(harness.url) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        await client.send_raw(f"{head}content-length: 10000000000\r\n\r\n".encode())
        assert shape(await client.reply()) == (413, INVALID, "request_too_large", None)


async def test_a_body_without_a_length_is_refused_when_it_gets_too_large(harness: Harness) -> None:
    """Chunks are counted as they come."""
    async with WireClient(harness.url) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        await client.send_raw(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            await client.send_raw(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert shape(await client.reply()) == (413, INVALID, "request_too_large", None)


async def test_a_body_that_does_not_arrive_is_not_waited_for(harness: Harness) -> None:
    """408, which SDKs try again, and the connection ends: its rest would be taken for another call."""
    async with WireClient(harness.url) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        await client.send_raw(f"{head}content-length: 100\r\n\r\n{{".encode())
        reply = await client.reply()
    assert shape(reply) == (408, INVALID, None, None)
    assert reply.header("connection") == "close"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"text"', None),
        (b'\xff{"model":"tiny"}', None),
        (b'{"model":"tiny","model":"tiny","messages":[]}', None),
        (b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":NaN}', None),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"tiny"}', "messages"),
        (b'{"model":"tiny","messages":[]}', "messages"),
        (b'{"model":["tiny"],"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":"false"}', "stream"),
        (b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":"9"}', "max_tokens"),
        (b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"n":99}', "n"),
        (b"[" * 1900, None),
    ],
)
async def test_what_is_no_call_is_the_callers_fault(
    harness: Harness, engines: ScriptedEngines, body: bytes, param: str | None
) -> None:
    """400 with the field's name, and nothing of it reaches an engine."""
    reply = await harness.post(hello(), headers=bearer())
    assert reply.status == 200
    async with WireClient(harness.url) as client:
        headers = {**bearer(), "content-type": "application/json"}
        reply = await client.post(CHAT, body=body, headers=headers)
        assert shape(reply) == (400, INVALID, None, param)
        # It was read whole, so the connection can go on.
        assert (await client.post(CHAT, json=hello(), headers=bearer())).status == 200
    assert len(engines["a"].calls) == 2
    assert harness.calls[1]["outcome"] == "bad_call"


# What is no route.


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/../metrics/x",
        "/v1/%2e%2e/health",
        "/V1/chat/completions",
        "/v1/chat/completions;x",
        "/v1/chat/completions%00",
        "/v1\\chat\\completions",
        "/health",
        "/tokenize",
        "/version",
        "/load",
        "/ping",
        "/invocations",
        "/docs",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/sleep",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/%00",
        "/%ff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_no_route_is_404_with_or_without_a_key(
    harness: Harness, engines: ScriptedEngines, method: str, path: str
) -> None:
    """Paths match exactly; none is redirected, and none leads to an engine."""
    for headers in (bearer(), {}):
        async with WireClient(harness.url) as client:
            await client.send(method, path, headers=headers)
            assert shape(await client.reply()) == (404, INVALID, None, None)
    assert engines["a"].calls == []
    assert set(engines["a"].paths) <= {"GET /health", "GET /v1/models", "GET /metrics"}


@pytest.mark.parametrize("name", ["%2e%2e%2fadmin", "..", "../../metrics", "x/y", "tiny/", "TINY", "*"])
async def test_the_name_of_a_model_is_looked_up_and_never_followed(harness: Harness, name: str) -> None:
    """Whatever it looks like, it is no path and no pattern."""
    assert shape(await harness.get(f"/v1/models/{name}"))[:3] == (404, INVALID, "model_not_found")


@pytest.mark.parametrize(
    ("path", "methods", "allowed"),
    [
        (CHAT, ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"), "POST"),
        ("/v1/models", ("POST", "PUT", "DELETE", "OPTIONS"), "GET, HEAD"),
        ("/v1/models/tiny", ("POST", "DELETE", "OPTIONS"), "GET, HEAD"),
        ("/livez", ("POST", "OPTIONS"), "GET, HEAD"),
        ("/readyz", ("POST",), "GET, HEAD"),
        ("/metrics", ("POST",), "GET, HEAD"),
    ],
)
async def test_the_wrong_method_is_405_and_names_the_right_one(
    harness: Harness, path: str, methods: tuple[str, ...], allowed: str
) -> None:
    """No method is answered without a look at the route's own, with or without a key; no override counts."""
    for method in methods:
        for headers in ({}, {**bearer(), "x-http-method-override": "POST"}):
            async with WireClient(harness.url) as client:
                await client.send(method, path, headers=headers)
                reply = await client.reply()
            assert shape(reply) == (405, INVALID, None, None)
            assert reply.header("allow") == allowed


@pytest.mark.parametrize(("path", "status"), [(CHAT, 405), ("/v1/models", 401), ("/livez", 200), ("/nowhere", 404)])
async def test_head_is_answered_without_a_body(harness: Harness, path: str, status: int) -> None:
    """And the connection can be used for the next call."""
    async with WireClient(harness.url) as client:
        await client.send("HEAD", path)
        assert (await client.head()).status == status
        assert (await client.get("/livez")).status == 200


async def test_only_probes_are_answered_without_a_key(harness: Harness) -> None:
    """Every route that knows a method asks for a key, but for those that say how the gateway is."""
    open_to_all = set()
    for template in harness.serving.gateway.public.paths:
        path = template.replace("{name}", MODEL)
        for method in ("GET", "POST"):
            async with WireClient(harness.url) as client:
                await client.send(method, path)
                if (await client.reply()).status not in (401, 405):
                    open_to_all.add(path)
    assert open_to_all == {"/livez", "/readyz", "/metrics", "/openapi.json"}
