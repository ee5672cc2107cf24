"""The fields of an OpenAI chat call: which ones go on to engines, and what each must look like.

A table, in which a field is forwarded, dropped or refused; nothing that is not in it reaches an engine, because an
engine takes fields that read other tenants' cache, contact other hosts or jump its queue. Values that only the
engine can judge are left to it.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gateway.errors import BadCall, UnsupportedParameter
from gateway.wire import formats, messages, tools
from gateway.wire.rules import (
    Rule,
    Wrong,
    any_object,
    boolean,
    either,
    integer,
    listing,
    number,
    one_of,
    record,
    shown,
    text,
)

CHAT_PATH = "/v1/chat/completions"
MAX_MODEL_CHARS = 128
MAX_TOKENS = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 512
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_TOKEN_DIGITS = 10
MAX_WORD_CHARS = 64
MAX_LABEL_CHARS = 1024


class ChatFields(NamedTuple):
    """What of a chat call is read here. `body` is what goes upstream, but for what the gateway adds.

    `yielding` is what OpenAI calls the service tier `flex`: cheap, and behind all others.
    """

    model: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool
    wants_usage_always: bool
    choices: int
    max_tokens: int | None
    yielding: bool


def read_chat(fields: Mapping[str, Any], max_choices: int, also_allowed: Collection[str] = ()) -> ChatFields:
    """Checks a parsed body. Raises BadCall for the first field that is wrong, naming it."""
    body: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        check = _FORWARDED_CHECKS.get(name)
        if check is not None:
            if (wrong := check(value)) is not None:
                raise _invalid(name, wrong)
            body[name] = value
        elif name in also_allowed:
            body[name] = value
        elif name not in DROPPED:
            raise UnsupportedParameter(shown(name))
        elif (wrong := DROPPED[name].check(value)) is not None:
            raise _invalid(name, wrong)
    for name in REQUIRED:
        if name not in body:
            raise BadCall(f"Missing required parameter: '{name}'.", name)
    stream = body.get("stream", False)
    options = body.get("stream_options", {})
    wants_usage = options.get("include_usage") is True
    if "stream_options" in body and not stream:
        raise BadCall("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    choices = body.get("n", 1)
    if choices > max_choices:
        raise BadCall(f"Invalid value for 'n': must be at most {max_choices} (was {choices}).", "n")
    body["messages"] = messages.without_unknown(body["messages"])
    return ChatFields(
        body["model"],
        body,
        stream,
        wants_usage,
        wants_usage and options.get("continuous_usage_stats") is True,
        choices,
        _max_tokens(body),
        fields.get("service_tier") == "flex",
    )


def _invalid(name: str, wrong: Wrong) -> BadCall:
    return BadCall(f"Invalid value for '{name}{wrong.at}': must be {wrong.expected}.", name)


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """One limit of what may be generated. Which of two an engine takes is not left to it."""
    old: int | None = body.get("max_tokens")
    new: int | None = body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise BadCall("'max_tokens' and 'max_completion_tokens' differ; send one of them.", "max_tokens")
    return old if new is None else new


def _check_biases(value: Any) -> Wrong | None:
    if type(value) is not dict or len(value) > MAX_BIASES:
        return _NO_BIASES
    for token, bias in value.items():
        is_token = token.isascii() and token.isdecimal() and len(token) <= MAX_TOKEN_DIGITS
        if not is_token or _bias.check(bias) is not None:
            return _NO_BIASES
    return None


_bias = number(-100, 100)
_NO_BIASES = Wrong(f"an object that gives at most {MAX_BIASES} token ids, as text, a number from -100 to 100 each")
_biases = Rule(
    _check_biases,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^[0-9]{{1,{MAX_TOKEN_DIGITS}}}$"},
        "additionalProperties": _bias.schema,
        "maxProperties": MAX_BIASES,
    },
)
_stop = text(MAX_STOP_CHARS)
_token = integer(0, MAX_TOKENS)
_label = text(MAX_LABEL_CHARS, 0)
_word = text(MAX_WORD_CHARS)

REQUIRED = ("model", "messages")

FORWARDED: Mapping[str, Rule] = {
    "model": text(MAX_MODEL_CHARS),
    "messages": messages.messages,
    "stream": boolean,
    "stream_options": record(
        {"include_usage": boolean, "include_obfuscation": boolean, "continuous_usage_stats": boolean}
    ),
    "n": integer(1, 128),
    "max_tokens": integer(1, MAX_TOKENS),
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": either(
        f"text of 1 to {MAX_STOP_CHARS} characters, or a list of at most {MAX_STOPS} of them",
        _stop,
        listing(_stop, MAX_STOPS, "texts"),
    ),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "logit_bias": _biases,
    "response_format": formats.response_format,
    "tools": tools.tools,
    "tool_choice": tools.tool_choice,
    "parallel_tool_calls": boolean,
    "reasoning_effort": _word,
    # vLLM's own, beyond OpenAI's.
    "top_k": integer(-1, MAX_TOKENS),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 10),
    "stop_token_ids": either(
        f"a token id, or a list of at most {MAX_STOP_TOKENS} of them",
        _token,
        listing(_token, MAX_STOP_TOKENS, "token ids"),
    ),
    "include_stop_str_in_output": boolean,
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "include_reasoning": boolean,
    "structured_outputs": formats.structured_outputs,
    "chat_template_kwargs": record({"enable_thinking": boolean, "thinking": boolean}),
}
_FORWARDED_CHECKS = {name: rule.check for name, rule in FORWARDED.items()}

# Taken and not passed on: they change no token of the reply here, or the gateway decides them.
DROPPED: Mapping[str, Rule] = {
    "cache_salt": _label,
    "metadata": any_object,
    "modalities": listing(one_of("text"), 1, "kinds of output: 'text'", least=1),
    "prediction": any_object,
    "priority": integer(-(2**63), 2**63 - 1),
    "prompt_cache_key": _label,
    "prompt_cache_options": any_object,
    "prompt_cache_retention": _word,
    "request_id": _label,
    "safety_identifier": _label,
    "service_tier": _word,
    "store": boolean,
    "user": _label,
    "verbosity": _word,
}
