"""gateway/wire/openai.py: which fields of a chat call go on to engines, and what each must look like."""

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadCall, UnsupportedParameter
from gateway.wire.openai import DROPPED, FORWARDED, ChatFields, read_chat
from tests.unit.chat_fields import BAD, BAD_DROPPED, DATA_URL, GOOD, MAX_CHOICES, function, json_values, said
from tests.unit.splitting import thorough

MESSAGES = [{"role": "user", "content": "hi"}]
MINIMAL = {"model": "tiny", "messages": MESSAGES}
CANARY = "canary-of-a-prompt"


def read(**fields: Any) -> ChatFields:
    return read_chat(MINIMAL | fields, MAX_CHOICES)


def test_the_smallest_call() -> None:
    """A model and messages; all else has a default, and nothing is added to what goes upstream."""
    assert read() == ChatFields(
        model="tiny",
        body=dict(MINIMAL),
        stream=False,
        wants_usage=False,
        wants_usage_always=False,
        choices=1,
        max_tokens=None,
        yielding=False,
    )


@pytest.mark.parametrize(("tier", "yielding"), [("flex", True), ("default", False), ("auto", False)])
def test_a_call_of_the_flexible_tier_may_wait_behind_others(tier: str, yielding: bool) -> None:
    """The tier is the gateway's business; no engine is told of it."""
    found = read(service_tier=tier)
    assert found.yielding is yielding
    assert "service_tier" not in found.body


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_must_be_there(missing: str) -> None:
    """The field that is missing is named; null is as good as missing."""
    for fields in ({**MINIMAL, missing: None}, {name: MINIMAL[name] for name in MINIMAL if name != missing}):
        with pytest.raises(BadCall) as caught:
            read_chat(fields, MAX_CHOICES)
        assert caught.value.param == missing
        assert caught.value.message == f"Missing required parameter: '{missing}'."


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_good_values_go_upstream_as_they_came(name: str, value: Any) -> None:
    """The value itself, in the field itself."""
    assert read(**{name: value}).body[name] == value


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for table in (BAD, BAD_DROPPED) for name in table for value in table[name]]
)
def test_bad_values_are_named_with_what_is_expected(name: str, value: Any) -> None:
    """One error, which names the field and says what it must be, in few words and without the value."""
    with pytest.raises(BadCall) as caught:
        read(**{"stream": True} | {name: value})
    assert caught.value.param == name
    assert re.match(rf"Invalid value for '{name}[^']*': must be ", caught.value.message)
    assert len(caught.value.message) < 350


def test_every_field_of_the_table_is_tested() -> None:
    """A field that is added needs good and bad values here."""
    assert GOOD.keys() | {"stream_options"} == BAD.keys() == FORWARDED.keys()
    assert BAD_DROPPED.keys() == DROPPED.keys()


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        pytest.param({"messages": [*MESSAGES, {"role": 7}]}, "messages[1].role", id="a role"),
        pytest.param({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", id="a content"),
        pytest.param({"messages": said({"type": "text", "text": 7})}, "messages[0].content[0].text", id="a part"),
        pytest.param({"tools": [function(), function(strict=7)]}, "tools[1].function.strict", id="a tool"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
            "response_format.json_schema.schema",
            id="a schema",
        ),
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "f", "x" * 1000: 1}}]},
            f"tools[0].function.{'x' * 63}…",
            id="an unknown word",
        ),
    ],
)
def test_a_refusal_says_where(fields: dict[str, Any], place: str) -> None:
    """The parameter is the field; the place inside of it stands in the message."""
    with pytest.raises(BadCall) as caught:
        read(**fields)
    assert f"'{place}'" in caught.value.message
    assert caught.value.param == next(iter(fields))


# Which types a field may have; null is as good as absent everywhere.
TYPES: dict[tuple[type, ...], tuple[str, ...]] = {
    (bool,): (
        *("stream", "logprobs", "parallel_tool_calls", "include_stop_str_in_output", "skip_special_tokens"),
        *("spaces_between_special_tokens", "include_reasoning", "store"),
    ),
    (int,): ("n", "max_tokens", "max_completion_tokens", "seed", "top_logprobs", "top_k", "priority"),
    (int, float): (*("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),),
    (str,): (
        *("model", "reasoning_effort", "cache_salt", "prompt_cache_key", "prompt_cache_retention", "request_id"),
        *("safety_identifier", "service_tier", "user", "verbosity"),
    ),
    (list,): ("messages", "tools", "modalities"),
    (dict,): (
        *("stream_options", "logit_bias", "response_format", "structured_outputs", "chat_template_kwargs"),
        *("metadata", "prediction", "prompt_cache_options"),
    ),
    (str, list): ("stop",),
    (int, list): ("stop_token_ids",),
    (str, dict): ("tool_choice",),
}


def test_every_field_has_its_type_here() -> None:
    """A field that is added is held to its type by the next test."""
    assert sorted(name for names in TYPES.values() for name in names) == sorted([*FORWARDED, *DROPPED])


@thorough
@given(st.data())
def test_no_value_is_coerced(data: st.DataObject) -> None:
    """A value of another type is refused, also where a lenient parser would make the right one of it."""
    types = data.draw(st.sampled_from(sorted(TYPES, key=repr)))
    name = data.draw(st.sampled_from(TYPES[types]))
    likely = st.sampled_from(["1", "true", "false", "null", "", 0, 1, True, 1.0, [], {}, [1], ["a"], {"a": 1}])
    value = data.draw((json_values | likely).filter(lambda one: one is not None and type(one) not in types))
    with pytest.raises(BadCall) as caught:
        read(**{"stream": True} | {name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("name", sorted(FORWARDED.keys() - MINIMAL.keys()) + sorted(DROPPED))
def test_null_is_as_good_as_absent(name: str) -> None:
    """SDKs send null for what was not set; it goes no further."""
    assert read(**{name: None}) == read()


@pytest.mark.parametrize("name", sorted(DROPPED))
def test_what_the_gateway_decides_itself_goes_no_further(name: str) -> None:
    """A caller may send it; neither a priority nor a salt nor an identifier of his reaches an engine."""
    for value in (OWN.get(name, "x"), None):
        assert read(**{name: value}) == read()


OWN: dict[str, Any] = {
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "x"},
    "priority": -5,
    "prompt_cache_options": {"mode": "implicit"},
    "store": True,
}


REPLAYED = {
    "role": "assistant",
    "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "annotations": []}],
    "tool_calls": [
        {
            "id": "1",
            "index": 0,
            "type": "function",
            "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}},
            "server_url": "http://127.0.0.1/",
        }
    ],
    "audio": None,
    "annotations": [],
    "function_call": None,
    "parsed": {"a": 1},
    "reasoning_details": [{"type": "x"}],
    "kv_transfer_params": {"remote_host": "127.0.0.1"},
    "refusal": None,
}


def test_what_is_unknown_in_a_message_goes_no_further() -> None:
    """Clients send a reply back as they got it, whatever its maker put into it: no mistake, but not for engines."""
    (message,) = read(messages=[REPLAYED]).body["messages"]
    assert message == {
        "role": "assistant",
        "content": [{"type": "text", "text": "hi"}],
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "refusal": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        *("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "chat_template", "documents", "prompt_embeds"),
        *("media_io_kwargs", "mm_processor_kwargs", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids"),
        *("use_beam_search", "best_of", "ignore_eos", "min_tokens", "echo", "add_special_tokens"),
        *("continue_final_message", "add_generation_prompt", "return_token_ids", "return_prompt_text"),
        *("return_tokens_as_token_ids", "truncate_prompt_tokens", "session_id", "stream_interval", "bad_words"),
        *("functions", "function_call", "audio", "web_search_options", "moderation", "length_penalty"),
        *("thinking_token_budget", "repetition_detection", "routed_experts_prompt_start", "return_token_offsets"),
        *("prompt", "input", "prompt_token_ids", "guided_json", "guided_regex", "extra_body", "engine"),
        *("background", "previous_response_id", "api_base", "base_url", "mm_payload", "watermarking"),
        *("", "Model", "MODEL", "model ", "messages\u200b", "__class__", "x" * 10_000),
    ],
)
def test_what_is_not_in_the_table_is_refused(name: str) -> None:
    """An allow-list: engines take fields that contact other hosts, read other tenants' caches or cost without limit."""
    with pytest.raises(UnsupportedParameter) as caught:
        read(**{name: CANARY})
    assert caught.value.param == (name if len(name) <= 64 else f"{name[:63]}…")
    assert CANARY not in caught.value.message
    assert len(caught.value.message) < 150


def test_an_operator_may_allow_more() -> None:
    """Fields of `admission.allowed_fields` go on, unchecked; the others are refused as before."""
    fields = MINIMAL | {"ignore_eos": True}
    assert read_chat(fields, MAX_CHOICES, {"ignore_eos"}).body == fields
    with pytest.raises(UnsupportedParameter):
        read_chat(fields | {"min_tokens": 5}, MAX_CHOICES, {"ignore_eos"})
    with pytest.raises(BadCall, match="'stream'"):
        read_chat(fields | {"stream": "yes"}, MAX_CHOICES, {"ignore_eos", "stream"})


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}, id="an address"),
        pytest.param({"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}, id="with TLS"),
        pytest.param({"type": "image_url", "image_url": "http://127.0.0.1/"}, id="as a text"),
        pytest.param({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, id="a file"),
        pytest.param({"type": "image_url", "image_url": {"url": "//127.0.0.1/"}}, id="without a scheme"),
        pytest.param({"type": "image_url", "image_url": {"url": "http:\\\\evil@ok"}}, id="backslashes"),
        pytest.param({"type": "image_url", "image_url": {"url": " data:image/png,"}}, id="a space before data:"),
        pytest.param({"type": "image_url", "image_url": {"url": None}}, id="null"),
        pytest.param({"type": "image_url", "image_url": {}}, id="nothing"),
        pytest.param({"type": "image_url", "image_url": [DATA_URL]}, id="a list"),
        pytest.param({"type": "video_url", "video_url": {"url": "http://127.0.0.1/"}}, id="video"),
        pytest.param({"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/"}}, id="audio"),
        pytest.param({"type": "text", "text": "hi", "image_url": {"url": "http://a/"}}, id="beside a text"),
        pytest.param({"type": "text", "text": "hi", "file_url": "http://a/"}, id="of a kind unknown"),
        pytest.param({"type": "image_url", "image_url": {"url": DATA_URL}, "uuid": "7"}, id="under a cache's name"),
        pytest.param({"type": "image_url", "image_url": None, "uuid": "7"}, id="out of a cache"),
        pytest.param({"type": "text", "image_pil": None, "uuid": None}, id="out of a cache, in disguise"),
        pytest.param({"type": "image_embeds", "image_embeds": "AAAA"}, id="a tensor of an image"),
        pytest.param({"type": "audio_embeds", "audio_embeds": "AAAA"}, id="a tensor of a sound"),
        pytest.param({"type": "prompt_embeds", "data": "AAAA"}, id="a tensor of a prompt"),
        pytest.param({"type": "image_pil", "image_pil": "x"}, id="an object of the engine"),
        pytest.param({"type": "file", "file": {"file_id": "file-1"}}, id="a stored file"),
        pytest.param({"image_url": DATA_URL}, id="without a type"),
    ],
)
def test_no_engine_is_sent_to_fetch_something(part: dict[str, Any]) -> None:
    """Media come inside the call, or not at all: neither addresses, nor tensors, nor other callers' cached media."""
    for messages in (
        [{"role": "user", "content": [part]}],
        [*MESSAGES, {"role": "tool", "content": [{"type": "text", "text": "a"}, part]}],
    ):
        with pytest.raises(BadCall) as caught:
            read(messages=messages)
        assert caught.value.param == "messages"
        assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        pytest.param({}, None, id="neither"),
        pytest.param({"max_tokens": 5}, 5, id="the old name"),
        pytest.param({"max_completion_tokens": 6}, 6, id="the new name"),
        pytest.param({"max_tokens": 7, "max_completion_tokens": 7}, 7, id="both alike"),
        pytest.param({"max_tokens": 7, "max_completion_tokens": None}, 7, id="one of them null"),
    ],
)
def test_one_limit_of_tokens(fields: dict[str, Any], tokens: int | None) -> None:
    """What is reserved is what the engine is told."""
    assert read(**fields).max_tokens == tokens


def test_two_limits_of_tokens_are_refused() -> None:
    """Which of them an engine would take is not left to it."""
    with pytest.raises(BadCall) as caught:
        read(max_tokens=5, max_completion_tokens=5000)
    assert caught.value.param == "max_tokens"


def test_more_choices_than_allowed_are_refused() -> None:
    """`n` multiplies what a call costs."""
    assert read(n=MAX_CHOICES).choices == MAX_CHOICES
    with pytest.raises(BadCall) as caught:
        read(n=MAX_CHOICES + 1)
    assert caught.value.param == "n"
    assert str(MAX_CHOICES) in caught.value.message


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param({"include_usage": True}, True, id="asked"),
        pytest.param({"include_usage": False}, False, id="declined"),
        pytest.param({}, False, id="empty"),
        pytest.param({"include_obfuscation": False}, False, id="another option"),
        pytest.param(None, False, id="null"),
    ],
)
def test_who_wants_usage(options: Any, wanted: bool) -> None:
    """Only true is yes."""
    assert read(stream=True, stream_options=options).wants_usage is wanted


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
def test_stream_options_need_a_stream(stream: dict[str, Any]) -> None:
    """As OpenAI has it."""
    with pytest.raises(BadCall) as caught:
        read(stream_options={"include_usage": True}, **stream)
    assert caught.value.param == "stream_options"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"messages": [{}] * 100_000}, id="messages"),
        pytest.param({"stop": ["x"] * 100_000}, id="stop"),
        pytest.param({"logit_bias": {str(number): 1 for number in range(100_000)}}, id="logit_bias"),
        pytest.param({"tools": [{}] * 10_000}, id="tools"),
        pytest.param({"x" * 100_000: 1}, id="a long name"),
        pytest.param({f"field{number}": 1 for number in range(10_000)}, id="many names"),
        pytest.param({"messages": [{"role": "user", "content": [7] * 4000}]}, id="parts"),
    ],
)
def test_a_large_mistake_gets_a_small_answer(fields: dict[str, Any]) -> None:
    """The first thing that is wrong is told, and no more."""
    with pytest.raises(BadCall) as caught:
        read(**fields)
    assert len(caught.value.message) + len(caught.value.param or "") < 400


@thorough
@given(st.dictionaries(st.sampled_from([*FORWARDED, *DROPPED]), json_values, max_size=6))
def test_whatever_is_sent_is_read_or_is_the_callers_mistake(fields: dict[str, Any]) -> None:
    """Nothing raises anything else, and what is read is what was sent, less what goes no further."""
    try:
        found = read(**fields)
    except BadCall as error:
        assert error.param in fields  # Either way is right; each has its own rule.
    else:
        sent = MINIMAL | fields
        passed = {name: sent[name] for name in sent if sent[name] is not None and name not in DROPPED}
        assert found.body | {"messages": None} == passed | {"messages": None}
        assert isinstance(found.stream, bool)
        assert 1 <= found.choices <= MAX_CHOICES
        assert orjson.loads(orjson.dumps(found.body)) == found.body
