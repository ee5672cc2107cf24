"""gateway/wire/openapi.py: the document is valid, and says of calls and replies what is true of them."""

from typing import Any

import jsonschema_rs
import orjson
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.rendering import ANSWERS
from gateway.wire.events import decode, split
from gateway.wire.openai import DROPPED, FORWARDED, REQUIRED
from gateway.wire.openapi import document
from tests.unit.chat_fields import BAD, BAD_DROPPED, GOOD, MAX_CHOICES, json_values
from tests.unit.splitting import thorough
from tests.vllm_wire import recorded
from tests.wire_client import Body, Head

DOCUMENT = document("1.2.3", MAX_CHOICES, also_allowed=["ignore_eos"], with_metrics=True)
MINIMAL = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def schema_of(name: str) -> jsonschema_rs.Draft202012Validator:
    """One of the document's schemas."""
    return jsonschema_rs.Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{name}"})


CALL = schema_of("ChatCall")


def test_the_document_is_valid() -> None:
    """OpenAPI 3.1, and JSON Schema 2020-12 in it."""
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    assert orjson.loads(orjson.dumps(DOCUMENT)) == DOCUMENT


def test_it_is_as_the_settings_are() -> None:
    """The version, the limit of choices, the fields that an operator allows, and whether metrics are public."""
    fields = DOCUMENT["components"]["schemas"]["ChatCall"]["properties"]
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert set(fields) == {*FORWARDED, *DROPPED, "ignore_eos"}
    assert CALL.is_valid({**MINIMAL, "n": MAX_CHOICES, "ignore_eos": True})
    assert not CALL.is_valid({**MINIMAL, "n": MAX_CHOICES + 1})
    other = document("1.2.3", MAX_CHOICES)
    assert set(DOCUMENT["paths"]) - set(other["paths"]) == {"/metrics"}
    assert "ignore_eos" not in other["components"]["schemas"]["ChatCall"]["properties"]


def test_every_status_of_an_error_is_in_it() -> None:
    """No error is answered with a status that the document does not know, and none is made up."""
    statuses = {str(answer.status) for answer in ANSWERS.values()}
    assert set(DOCUMENT["components"]["responses"]) == statuses
    chat = DOCUMENT["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {"200", *statuses}


def test_calls_need_a_key_and_probes_do_not() -> None:
    """What may be asked without a key has no 401."""
    open_to_all = set()
    for path, item in DOCUMENT["paths"].items():
        for operation in (item.get("get"), item.get("post")):
            if operation is not None and not operation["security"]:
                assert "401" not in operation["responses"]
                open_to_all.add(path)
    assert open_to_all == {"/livez", "/readyz", "/metrics", "/openapi.json"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_a_call_may_hold_is_in_it(name: str, value: Any) -> None:
    """Whatever the table accepts, the document allows."""
    assert CALL.is_valid(MINIMAL | {name: value})
    assert CALL.is_valid(MINIMAL | {name: None}) == (name not in REQUIRED)


@thorough
@given(st.sampled_from([*FORWARDED, *DROPPED]), st.data())
def test_what_it_forbids_is_refused(name: str, data: st.DataObject) -> None:
    """A client that is held to the document is never refused for what the document allows it to leave out."""
    tables = [*GOOD.get(name, []), *BAD.get(name, []), *BAD_DROPPED.get(name, [])]
    value = data.draw((json_values | st.sampled_from(tables)).filter(lambda one: one is not None))
    rule = {**FORWARDED, **DROPPED}[name]
    if rule.check(value) is None:
        assert jsonschema_rs.is_valid(dict(rule.schema), value)


# Wrong in a way that a schema does not say: how much there is of something in all, or what belongs together.
UNSAID = {"structured_outputs", "response_format", "tools", "messages"}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for table in (BAD, BAD_DROPPED) for name in table if name not in UNSAID for value in table[name]],
)
def test_what_is_refused_it_forbids(name: str, value: Any) -> None:
    """So a client can be told by the document before it is told by us. 1.0 is an integer to JSON Schema."""
    assert not CALL.is_valid(MINIMAL | {name: value}) or value in (1.0, [1.0])


def body_of(name: str) -> bytes:
    """A recorded reply without its framing."""
    raw_head, _, rest = recorded(name).reply.partition(b"\r\n\r\n")
    body = Body(Head(raw_head + b"\r\n\r\n"))
    body.feed(rest)
    return bytes(body.data)


@pytest.mark.parametrize(
    "name",
    [
        "chat",
        "chat_length",
        "chat_logprobs",
        "chat_n2",
        "chat_request_id",
        "chat_stop_string",
        "chat_token_ids",
    ],
)
def test_a_recorded_reply_is_as_it_says(name: str) -> None:
    """What a real engine answered."""
    schema_of("ChatReply").validate(orjson.loads(body_of(name)))


@pytest.mark.parametrize(
    "name",
    [
        *("stream", "stream_continuous_usage", "stream_length", "stream_logprobs", "stream_n2", "stream_stop_string"),
        *("stream_token_ids", "stream_usage", "stream_waiting"),
    ],
)
def test_a_recorded_stream_is_as_it_says(name: str) -> None:
    """Every event but the last, which is `[DONE]`."""
    events = [event.data for event in map(decode, split(body_of(name))) if event is not None]
    assert events.pop() == b"[DONE]"
    for data in events:
        schema_of("ChatChunk").validate(orjson.loads(data))
