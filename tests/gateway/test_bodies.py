"""Bodies that mean harm, through the whole gateway: refused in few words, and no engine hears of them."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.engines import ScriptedEngine, ScriptedEngines, scripted
from tests.harness import CHAT, MODEL, Harness, bearer, gateway, hello
from tests.wire_client import WireClient, WireReply

pytestmark = pytest.mark.anyio

JSON = {**bearer(), "content-type": "application/json"}
LONGEST_REFUSAL = 700


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a", "canary") as engines:
        yield engines


@pytest.fixture
def engine(engines: ScriptedEngines) -> ScriptedEngine:
    return engines["a"]


@pytest.fixture
async def harness(engine: ScriptedEngine) -> AsyncIterator[Harness]:
    async with gateway({"a": engine.url}) as harness:
        yield harness


def call(fields: str) -> bytes:
    """A call, and fields written out as they are to be sent."""
    return ('{"model":"tiny","messages":[{"role":"user","content":"x"}],' + fields + "}").encode(
        "utf-8", "surrogatepass"
    )


async def posted(harness: Harness, body: bytes, content_type: str = "application/json") -> WireReply:
    """The reply to these bytes; the same connection then takes a good call."""
    async with WireClient(harness.url) as client:
        reply = await client.post(CHAT, body=body, headers={**bearer(), "content-type": content_type})
        assert (await client.post(CHAT, json=hello(), headers=bearer())).status == 200
    return reply


def assert_refused(reply: WireReply, engine: ScriptedEngine, status: int, param: str | None) -> None:
    """In the shape of an OpenAI error, and the engine saw the good call alone."""
    error = reply.json["error"]
    assert (reply.status, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert len(reply.body) < LONGEST_REFUSAL
    assert len(engine.calls) == 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(call('"n":1,"n":2'), id="P03: a key twice"),
        pytest.param(b'{"model":"tiny",' + call('"model":"secret"')[1:], id="P03: the model twice"),
        pytest.param(call('"stream":true,"strea\\u006d":false'), id="P03: a key twice, once escaped"),
        pytest.param(call('"tools":[{"type":"function","type":"mcp"}]'), id="P03: a key twice, inside"),
        pytest.param(call('"metadata":{"a":{"b":[{"c":1,"c":2}]}}'), id="P03: a key twice, in what is dropped"),
        pytest.param(call('"temperature":NaN'), id="P04: NaN"),
        pytest.param(call('"max_tokens":Infinity'), id="P04: Infinity"),
        pytest.param(call('"temperature":-Infinity'), id="P04: -Infinity"),
        pytest.param(call('"temperature":1e999'), id="P04: 1e999"),
        pytest.param(call('"seed":18446744073709551616'), id="P04: beyond 64 bits"),
        pytest.param(call('"seed":' + "9" * 100_000), id="P04: a hundred thousand digits"),
        pytest.param(call('"metadata":{"a":-9223372036854775809}'), id="P04: beyond 64 bits, in what is dropped"),
        pytest.param(call('"user":"\\ud800"'), id="P06: half a character"),
        pytest.param(call('"user":"\ud800"'), id="P06: half a character in UTF-8"),
        pytest.param(call('"user":"\\u0000"'), id="P06: NUL"),
        pytest.param(call('"user":"\x00"'), id="P06: NUL, raw"),
        pytest.param(call('"user":"').removesuffix(b"}") + b'\xc0\xaf"}', id="P06: overlong UTF-8"),
        pytest.param(call('"user":"').removesuffix(b"}") + b'\xff"}', id="P06: no UTF-8"),
        pytest.param(call('"n":1').decode().encode("utf-16"), id="P06: UTF-16"),
        pytest.param(call('"n":1').decode().encode("utf-32-le"), id="P06: UTF-32"),
        pytest.param(b"\xef\xbb\xbf" + call('"n":1'), id="P06: a byte order mark"),
        pytest.param(call('"metadata":' + '{"a":' * 64 + "1" + "}" * 64), id="P02: 65 levels"),
        pytest.param(call('"messages":' + "[" * 100_000), id="P02: a hundred thousand levels"),
        pytest.param(call('"x":[' + "[]," * 200_000 + "[]]"), id="P08: lists without end"),
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused(
    harness: Harness, engine: ScriptedEngine, body: bytes
) -> None:
    """400, before anything was decided on what one of them read."""
    assert_refused(await posted(harness, body), engine, 400, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        # P08: many of something.
        pytest.param({"messages": [{"role": "user", "content": ""}] * 5000}, "messages", id="messages"),
        pytest.param({"messages": [{}] * 40_000}, "messages", id="empty messages"),
        pytest.param({"messages": [{"role": "user", "content": [7] * 4000}]}, "messages", id="parts"),
        pytest.param({"stop": ["x"] * 50_000}, "stop", id="stop"),
        pytest.param({"stop": ["x" * 100_000]}, "stop", id="a long stop"),
        pytest.param({"logit_bias": {str(token): 1 for token in range(20_000)}}, "logit_bias", id="logit_bias"),
        pytest.param({"tools": [{}] * 20_000}, "tools", id="tools"),
        pytest.param({"stop_token_ids": list(range(50_000))}, "stop_token_ids", id="stop_token_ids"),
        pytest.param({"x" * 100_000: 1}, "x" * 63 + "…", id="a long name"),
        pytest.param({f"field{number}": 1 for number in range(20_000)}, "field0", id="names"),
        pytest.param({"model": "m" * 1_000_000}, "model", id="a long model"),
        # Q02, Q03: how much is generated.
        pytest.param({"n": 16_384}, "n", id="Q03: n"),
        pytest.param({"n": 9}, "n", id="Q03: n over the settings' limit"),
        pytest.param({"max_tokens": 0}, "max_tokens", id="Q02: none"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="Q02: less than none"),
        pytest.param({"max_tokens": 2**40}, "max_tokens", id="Q02: too many"),
        pytest.param({"max_tokens": 5, "max_completion_tokens": 5000}, "max_tokens", id="Q02: two limits"),
        # P11: what an engine would have to compile.
        pytest.param({"structured_outputs": {"regex": "(a|b)*" * 500}}, "structured_outputs", id="a long pattern"),
        pytest.param({"structured_outputs": {"grammar": "a" * 100_000}}, "structured_outputs", id="a long grammar"),
        pytest.param({"structured_outputs": {"choice": ["x"] * 10_000}}, "structured_outputs", id="choices"),
        *[
            pytest.param(
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                "response_format",
                id=f"P11: {name}",
            )
            for name, schema in {
                "10k enum": {"enum": list(range(10_000))},
                "10k properties": {"properties": {f"p{number}": {} for number in range(10_000)}},
                "1 MB": {"properties": {"x" * 1_000_000: {}}},
                "a loop": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
                "an address": {"$ref": "http://127.0.0.1/"},
            }.items()
        ],
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": list(range(10_000))}}}]},
            "tools",
            id="P11: a function's parameters",
        ),
        # P12.
        pytest.param({"chat_template": "{{ 1 }}"}, "chat_template", id="P12: a template"),
        pytest.param({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", id="P12: its arguments"),
    ],
)
async def test_what_costs_too_much_is_refused_in_few_words(
    harness: Harness, engine: ScriptedEngine, fields: dict[str, Any], param: str
) -> None:
    """400 with the field's name; an error is told once, and without what was sent."""
    assert_refused(await posted(harness, orjson.dumps(hello() | fields)), engine, 400, param)


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("application/json; charset=utf-16", "application/json; charset=latin-1", "application/json; boundary=x"),
        *("application/json, text/plain", "application/jsonp", "application/*", "json", " ", "application/json\x00"),
    ],
)
async def test_a_body_of_another_type_is_refused(harness: Harness, engine: ScriptedEngine, content_type: str) -> None:
    """P07: a form of another site is no call, and no charset but UTF-8 is guessed."""
    async with WireClient(harness.url) as client:
        reply = await client.post(CHAT, body=call('"n":1'), headers={**bearer(), "content-type": content_type})
    assert reply.status == (400 if "\x00" in content_type else 415)
    assert len(reply.body) < LONGEST_REFUSAL
    assert engine.calls == []


async def test_an_engine_is_sent_what_was_understood_and_not_what_was_written(
    harness: Harness, engine: ScriptedEngine
) -> None:
    """P03: however a body is spelled, the engine's is written anew: no second reading, no second key."""
    messages = b'[{"role":"user","content":"\\ud83e\\udd84 \\u00e9"}]'
    spelled = b'{ "\\u006dodel" :"t\\u0069ny",\n"messages":' + messages + b',"seed":-0,"top_p":1E0 }'
    assert (await posted(harness, spelled)).status == 200
    raw = engine.calls[0].raw_body
    salt = engine.calls[0].body["cache_salt"]
    expected = {"model": MODEL, "messages": [{"role": "user", "content": "🦄 é"}], "seed": 0, "top_p": 1.0}
    assert raw == orjson.dumps(expected | {"cache_salt": salt})


def fetching(url: str) -> dict[str, dict[str, Any]]:
    """Calls that would make somebody fetch the URL."""

    def said(kind: str, **fields: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": kind, **fields}]}]}

    return {
        "S01: a base": {"base_url": url},
        "S01: another base": {"api_base": url},
        "S02: an image": said("image_url", image_url={"url": url}),
        "S02: an image as text": said("image_url", image_url=url),
        "S02: a video": said("video_url", video_url={"url": url}),
        "S02: a sound": said("audio_url", audio_url={"url": url}),
        "S02: a sound inside": said("input_audio", input_audio={"url": url}),
        "S02: a file": said("file", file={"file_url": url}),
        "S02: an input of another API": said("input_image", image_url=url),
        "S02: beside a text": said("text", text="x", image_url={"url": url}),
        "S02: media options": {"media_io_kwargs": {"image": {"url": url}}},
        "S03: a cache to read from": {"kv_transfer_params": {"remote_host": url, "remote_port": 1}},
        "S03: another one": {"ec_transfer_params": {"remote_host": url}},
        "S04: a tool server": {"tools": [{"type": "mcp", "server_label": "x", "server_url": url}]},
        "S04: a search": {"tools": [{"type": "web_search_preview", "url": url}]},
        "S04: an interpreter": {"tools": [{"type": "code_interpreter", "container": url}]},
        "S04: beside a function": {"tools": [{"type": "function", "function": {"name": "f"}, "server_url": url}]},
        "S04: a choice of one": {"tool_choice": {"type": "mcp", "server_url": url}},
        "P11: a schema": {"structured_outputs": {"json": {"$ref": url}}},
        "S05: a model": {"model": url},
    }


ADDRESSES = {
    "plain": "http://127.0.0.1:{port}/x",
    "backslashes": "http:\\\\127.0.0.1:{port}\\@ok",
    "decimal": "http://2130706433:{port}/",
    "octal": "http://0177.0.0.1:{port}/",
    "mapped": "http://[::ffff:127.0.0.1]:{port}/",
    "without a scheme": "//127.0.0.1:{port}/",
    "a file": "file://127.0.0.1:{port}/etc/passwd",
    "nearly data": "data://127.0.0.1:{port}/".replace("data:", " data:"),
}


@pytest.mark.parametrize("place", fetching(""))
async def test_nobody_fetches_what_a_caller_names(harness: Harness, engines: ScriptedEngines, place: str) -> None:
    """Refused by name; neither the gateway nor, as it is told nothing, an engine connects to it."""
    for address in ADDRESSES.values():
        url = address.format(port=engines["canary"].port)
        reply = await harness.post(hello() | fetching(url)[place])
        assert reply.status == (404 if place == "S05: a model" else 400)
    assert engines["canary"].connections_made == 0
    assert engines["a"].calls == []


@pytest.mark.parametrize(
    "model",
    [
        *("../../etc/passwd", "http://evil.test/", "*", "tin*", "TINY", "tiny ", " tiny", "tiny\n", "t\u0456ny"),
        *("tiny\u200b", "\uff54iny", "tiny/", "./tiny", "%74iny", "tiny@main", "tiny:lora", "m" * 128),
    ],
)
async def test_a_model_is_looked_up_and_never_followed(harness: Harness, engine: ScriptedEngine, model: str) -> None:
    """S05: a name is the same text or it is another one; the answer repeats little of it."""
    reply = await harness.post(hello() | {"model": model})
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
    assert len(reply.body) < LONGEST_REFUSAL
    assert engine.calls == []
