"""gateway/wire/openai.py: which fields of a chat call go on to engines, and what each must look like."""

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadCall, UnsupportedParameter
from gateway.wire.messages import MAX_MESSAGES, MAX_PARTS
from gateway.wire.openai import DROPPED, FORWARDED, MAX_STOP_CHARS, ChatFields, read_chat
from gateway.wire.tools import MAX_TOOLS
from tests.unit.splitting import thorough

MESSAGES = [{"role": "user", "content": "hi"}]
MINIMAL = {"model": "tiny", "messages": MESSAGES}
MAX_CHOICES = 8
DATA_URL = "data:image/png;base64,AAAA"
CANARY = "canary-of-a-prompt"


def read(**fields: Any) -> ChatFields:
    return read_chat(MINIMAL | fields, MAX_CHOICES)


def test_the_smallest_call() -> None:
    """A model and messages; all else has a default, and nothing is added to what goes upstream."""
    assert read() == ChatFields(
        model="tiny", body=dict(MINIMAL), stream=False, wants_usage=False, choices=1, max_tokens=None
    )


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_must_be_there(missing: str) -> None:
    """The field that is missing is named; null is as good as missing."""
    for fields in ({**MINIMAL, missing: None}, {name: MINIMAL[name] for name in MINIMAL if name != missing}):
        with pytest.raises(BadCall) as caught:
            read_chat(fields, MAX_CHOICES)
        assert caught.value.param == missing
        assert caught.value.message == f"Missing required parameter: '{missing}'."


def function(name: str = "f", **fields: Any) -> dict[str, Any]:
    """A tool that a caller has."""
    return {"type": "function", "function": {"name": name, **fields}}


def said(*parts: Any) -> list[dict[str, Any]]:
    """A message of parts."""
    return [{"role": "user", "content": list(parts)}]


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}

GOOD: dict[str, list[Any]] = {
    "model": ["a", "a" * 128, "org/model:tag", "m\u0430del", "../../etc/passwd"],
    "messages": [
        [{"role": "user"}],
        [{"role": "developer", "content": "Be brief.", "name": "ops"}],
        [{"role": "ipython", "content": "a role that some templates know"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", **function()}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
        [{"role": "assistant", "content": "hi", "refusal": None, "reasoning": "well", "tool_calls": None}],
        [{"role": "tool", "tool_call_id": "1", "content": "42"}],
        [{"role": "tool", "tool_call_id": "1", "content": [{"type": "tool_reference", "name": "f"}]}],
        said(),
        said({"type": "text", "text": "http://not.fetched/"}),
        said({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}),
        said({"type": "image_url", "image_url": DATA_URL}),
        said({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        said({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}),
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
        [{"role": "user", "content": "hi"}] * MAX_MESSAGES,
    ],
    "n": [1, MAX_CHOICES],
    "max_tokens": [1, 2**31 - 1],
    "max_completion_tokens": [1, 2**31 - 1],
    "temperature": [0, 2, 0.7, -0.0, 1e-300],
    "top_p": [0, 1, 0.5],
    "frequency_penalty": [-2, 2],
    "presence_penalty": [-2.0, 2.0],
    "seed": [0, -(2**63), 2**63 - 1],
    "stop": ["a", [], ["a"] * 16, "x" * MAX_STOP_CHARS],
    "logprobs": [True, False],
    "top_logprobs": [0, 20],
    "logit_bias": [{}, {"50256": -100}, {"7": 0.5, "8": 100}],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": None, "description": None, "strict": None}},
        {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SCHEMA}},
        {
            "type": "structural_tag",
            "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
            "triggers": ["<"],
        },
    ],
    "tools": [
        [],
        [function()],
        [function(description="d" * 10_000, parameters=SCHEMA, strict=True)],
        [function("mcp__server__tool.name", parameters={}, strict=None)],
        [function() | {"cache_control": {"type": "ephemeral"}}],
        [function()] * MAX_TOOLS,
    ],
    "tool_choice": ["auto", "none", "required", function()],
    "parallel_tool_calls": [True],
    "reasoning_effort": ["low", "xhigh"],
    "stream": [True, False],
    "top_k": [-1, 0, 50],
    "min_p": [0, 1],
    "repetition_penalty": [0.01, 1.1],
    "stop_token_ids": [[1, 2], 7, []],
    "include_stop_str_in_output": [True],
    "skip_special_tokens": [False],
    "spaces_between_special_tokens": [False],
    "include_reasoning": [False],
    "structured_outputs": [
        {"regex": "(a+)+$"},
        {"json": SCHEMA, "disable_any_whitespace": True},
        {"json": orjson.dumps(SCHEMA).decode(), "regex": None},
        {"choice": ["yes", "no"]},
        {"grammar": 'root ::= "a"', "whitespace_pattern": " ?"},
        {"json_object": True},
        {"structural_tag": '{"type":"structural_tag","format":{}}'},
    ],
    "chat_template_kwargs": [{}, {"enable_thinking": False}, {"thinking": None}],
}

BAD: dict[str, list[Any]] = {
    "model": ["", "a" * 129, "x" * 1_000_000, 7, ["a"], {}, True],
    "messages": [
        [],
        "hi",
        {},
        7,
        ["hi"],
        [{}],
        [{"content": "hi"}],
        [{"role": 7}],
        [{"role": ""}],
        [{"role": "user\n"}],
        [{"role": "<|im_end|>"}],
        [{"role": "r" * 65}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": {}}],
        [{"role": "user", "content": "hi", "name": 7}],
        [{"role": "user", "content": "hi", "name": "n" * 129}],
        [{"role": "tool", "content": "hi", "tool_call_id": ["1"]}],
        [{"role": "tool", "content": "hi", "tool_call_id": "i" * 257}],
        [{"role": "assistant", "tool_calls": {}}],
        [{"role": "assistant", "tool_calls": [{"id": "1"}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 7}}]}],
        [{"role": "assistant", "tool_calls": [{"type": "mcp", "function": {"name": "f"}}]}],
        [{"role": "assistant", "tool_calls": [function()] * (MAX_TOOLS + 1)}],
        [{"role": "assistant", "content": "", "reasoning": {}}],
        [{"role": "developer", "content": "", "tools": [{"type": "mcp"}]}],
        said("hi"),
        said({"text": "no type"}),
        said({"type": ["text"], "text": "hi"}),
        said({"type": "text"}),
        said({"type": "text", "text": None}),
        said({"type": "text", "text": 7}),
        said({"type": "input_audio", "input_audio": "AAAA"}),
        said({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav", "url": DATA_URL}}),
        said({"type": "tool_reference", "name": 7}),
        [{"role": "user", "content": "hi"}] * (MAX_MESSAGES + 1),
        said(*[{"type": "text", "text": "hi"}] * (MAX_PARTS + 1)),
    ],
    "n": [0, -1, 129, True, 1.0, "1", [1], 2**70],
    "max_tokens": [0, -1, 2**31, "99999", True, 1.5, [7], {}],
    "max_completion_tokens": [0, -1, 2**31, "99999", True],
    "temperature": [-0.1, 2.1, "0.7", True, [0]],
    "top_p": [-0.1, 1.1, "1", False],
    "frequency_penalty": [-2.1, 2.1, "0"],
    "presence_penalty": [-2.1, 2.1, True],
    "seed": ["7", 1.5, True, 2**63, -(2**63) - 1],
    "stop": [7, "", [""], ["a"] * 17, [7], [None], [["a"]], {"a": 1}, True, "x" * (MAX_STOP_CHARS + 1)],
    "logprobs": ["true", 1, 0, []],
    "top_logprobs": [-1, 21, "5", True],
    "logit_bias": [
        [],
        "x",
        {str(number): 1 for number in range(1025)},
        {"a": 1},
        {"": 1},
        {"-1": 1},
        {"1.0": 1},
        {"\u0661": 1},
        {"1" * 11: 1},
        {"1": 101},
        {"1": -100.5},
        {"1": "5"},
        {"1": True},
        {"1": None},
        {"1": [1]},
    ],
    "response_format": [
        "json_object",
        [],
        {},
        {"type": "xml"},
        {"type": None},
        {"type": ["text"]},
        {"type": "text", "schema": SCHEMA},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": []}},
        {"type": "json_schema", "json_schema": {"name": "x" * 257, "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": "true"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "a" * 2049}}},
        {"type": "structural_tag", "format": {"type": "regex", "pattern": "a" * 2049}},
        {"type": "structural_tag", "format": {"json_schema": {"$ref": "http://127.0.0.1/"}}},
        {"type": "structural_tag", "format": {"type": "grammar", "grammar": "a" * 32_769}},
    ],
    "tools": [
        {},
        "x",
        ["f"],
        [{}],
        [{"type": "function"}],
        [{"function": {"name": "f"}}],
        [{"type": "function", "function": {}}],
        [function("")],
        [function("f" * 129)],
        [function(parameters=[])],
        [function(parameters="{}")],
        [function(parameters={"$ref": "#/$defs/nowhere"})],
        [function(description=7)],
        [function(strict="true")],
        [function(server_url="http://127.0.0.1/")],
        [function() | {"server_url": "http://127.0.0.1/"}],
        [{"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1/"}],
        [{"type": "web_search"}],
        [{"type": "web_search_preview"}],
        [{"type": "code_interpreter", "container": {"type": "auto"}}],
        [{"type": "file_search", "vector_store_ids": []}],
        [{"type": "computer_use_preview"}],
        [{"type": "custom", "custom": {"name": "x", "format": {"type": "grammar"}}}],
        [function()] * (MAX_TOOLS + 1),
    ],
    "tool_choice": [
        7,
        [],
        True,
        "any",
        {},
        {"type": "function"},
        {"type": "function", "function": {}},
        {"type": "mcp", "server_label": "x"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
    ],
    "parallel_tool_calls": ["true", 1],
    "reasoning_effort": [1, "", "a" * 65],
    "stream": ["false", "true", 1, 0, [], {}],
    "stream_options": [[], "x", {"include_usage": "true"}, {"continuous_usage_stats": True}, {"include_usage": 1}],
    "top_k": [-2, 1.5, "5"],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, 11, "1"],
    "stop_token_ids": [["a"], "7", [True], [1.0], [-1], -1, [2**31], [[7]], [7] * 129],
    "include_stop_str_in_output": [1],
    "skip_special_tokens": ["no"],
    "spaces_between_special_tokens": [0],
    "include_reasoning": ["x"],
    "structured_outputs": [
        "a+",
        [1],
        {},
        {"regex": None},
        {"regex": "a", "choice": ["a"]},
        {"regex": 7},
        {"regex": "a" * 2049},
        {"choice": "yes"},
        {"choice": []},
        {"choice": ["x"] * 1001},
        {"choice": ["x" * 100_000, "y" * 100_000]},
        {"grammar": "a" * 32_769},
        {"json": "{"},
        {"json": 7},
        {"json": '{"a":1,"a":2}'},
        {"json": "[]"},
        {"json": {"enum": list(range(1001))}},
        {"json": '{"pattern":"' + "a" * 2049 + '"}'},
        {"json_object": "yes"},
        {"json_object": True, "whitespace_pattern": "a" * 2049},
        {"structural_tag": {}},
        {"structural_tag": "{"},
        {"structural_tag": '{"format":{"pattern":"' + "a" * 2049 + '"}}'},
        {"regex": "a", "_backend": "outlines"},
    ],
    "chat_template_kwargs": [{"tokenize": True}, {"enable_thinking": "yes"}, [], {"chat_template": "x"}],
}

BAD_DROPPED: dict[str, list[Any]] = {
    "cache_salt": [7, {}, ["x"]],
    "metadata": ["x", 7, []],
    "modalities": ["text", [], ["text", "audio"], ["audio"], [7]],
    "prediction": ["x", []],
    "priority": ["high", 1.5, True, {}],
    "prompt_cache_key": [7, {}, "x" * 1025],
    "prompt_cache_options": ["x", []],
    "prompt_cache_retention": [24, {}],
    "request_id": [7, {}],
    "safety_identifier": [7, {}],
    "service_tier": [7, {}, ["auto"]],
    "store": ["true", 1, {}],
    "user": [7, {}, ["x"], True],
    "verbosity": [7, {}],
}


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


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
