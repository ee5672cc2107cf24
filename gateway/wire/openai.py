"""The fields of an OpenAI chat call: which ones go on to engines, and what each must look like.

A table, in which a field is forwarded, dropped or refused; nothing that is not in it reaches an engine, because an
engine takes fields that read other tenants' cache, contact other hosts or jump its queue. Values that only the
engine can judge are left to it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from gateway.errors import BadCall, UnsupportedParameter

CHAT_PATH = "/v1/chat/completions"
MAX_MESSAGES = 4096
MAX_PARTS = 4096
MAX_TOKENS = 2**31 - 1

Check = Callable[[Any], str | None]
"""What a value must be, if it is not: `an integer of at least 1`; None if it is."""


class ChatFields(NamedTuple):
    """What of a chat call is read here. `body` is what goes upstream, but for what the gateway adds."""

    model: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool
    choices: int
    max_tokens: int | None


def read_chat(fields: Mapping[str, Any], max_choices: int, also_allowed: Collection[str] = ()) -> ChatFields:
    """Checks a parsed body. Raises BadCall for the first field that is wrong, naming it."""
    given = {name: value for name, value in fields.items() if value is not None}
    body: dict[str, Any] = {}
    for name, value in given.items():
        check = FORWARDED.get(name)
        if check is not None:
            expected = check(value)
            if expected is not None:
                raise BadCall(f"Invalid value for '{name[:64]}': must be {expected}.", name)
            body[name] = value
        elif name in also_allowed:
            body[name] = value
        elif name not in DROPPED:
            raise UnsupportedParameter(name[:64])
    for name in ("model", "messages"):
        if name not in body:
            raise BadCall(f"Missing required parameter: '{name}'.", name)
    choices = body.get("n", 1)
    if choices > max_choices:
        raise BadCall(f"Invalid value for 'n': must be at most {max_choices} (was {choices}).", "n")
    if "stream_options" in body and not body.get("stream"):
        raise BadCall("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    if "max_tokens" in body and "max_completion_tokens" in body and body["max_tokens"] != body["max_completion_tokens"]:
        raise BadCall("'max_tokens' and 'max_completion_tokens' differ; send one of them.", "max_tokens")
    return ChatFields(
        model=body["model"],
        body=body,
        stream=body.get("stream", False),
        wants_usage=body.get("stream_options", {}).get("include_usage") is True,
        choices=choices,
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
    )


def boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def integer(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if ok else f"an integer from {low} to {high}"

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return None if ok else f"a number from {low:g} to {high:g}"

    return check


def text(longest: int) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and 0 < len(value) <= longest else f"text of 1 to {longest} characters"

    return check


def one_or_many(kind: type, word: str, most: int) -> Check:
    def check(value: Any) -> str | None:
        many = value if isinstance(value, list) else [value]
        ok = len(many) <= most and all(type(item) is kind for item in many)
        return None if ok else f"{word}, or a list of at most {most} of them"

    return check


def mapping(most: int) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, dict) and len(value) <= most else f"an object with at most {most} keys"

    return check


def objects(most: int) -> Check:
    def check(value: Any) -> str | None:
        ok = isinstance(value, list) and len(value) <= most and all(isinstance(item, dict) for item in value)
        return None if ok else f"a list of at most {most} objects"

    return check


def text_or_object(value: Any) -> str | None:
    return None if isinstance(value, (str, dict)) else "text or an object"


def stream_options(value: Any) -> str | None:
    ok = (
        isinstance(value, dict)
        and value.keys() <= {"include_usage", "include_obfuscation"}
        and all(isinstance(item, bool) for item in value.values())
    )
    return None if ok else "an object with 'include_usage': true or false"


def messages(value: Any) -> str | None:
    """Messages with a role, whose content is text or parts; media only as data, so that no engine fetches anything."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        return f"a list of 1 to {MAX_MESSAGES} messages"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "a list of objects, each with a 'role'"
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list) or len(content) > MAX_PARTS:
            return f"a list of messages whose 'content' is text or a list of at most {MAX_PARTS} parts"
        for part in content:
            expected = content_part(part)
            if expected is not None:
                return f"a list of messages whose parts are {expected}"
    return None


def content_part(value: Any) -> str | None:
    """One part of a message. From parts of other types engines read tensors, or media that other callers cached."""
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str) or kind not in PARTS:
        return "objects of a 'type' that is one of " + ", ".join(sorted(PARTS))
    if "uuid" in value:
        return "sent whole; 'uuid' is not accepted"
    for name, medium in value.items():
        url = medium.get("url") if isinstance(medium, dict) else medium
        if name.endswith("_url") and not (isinstance(url, str) and url.startswith("data:")):
            return "media given as data: URLs; addresses are not fetched"
    return None


def template_options(value: Any) -> str | None:
    ok = isinstance(value, dict) and value.keys() <= {"enable_thinking", "thinking"}
    return (
        None if ok and all(isinstance(item, bool) for item in value.values()) else "{'enable_thinking': true or false}"
    )


PARTS = frozenset(
    {
        "text",
        "refusal",
        "thinking",
        "image_url",
        "input_audio",
        "audio_url",
        "video_url",
    }
)

FORWARDED: Mapping[str, Check] = {
    "model": text(128),
    "messages": messages,
    "stream": boolean,
    "stream_options": stream_options,
    "n": integer(1, 128),
    "max_tokens": integer(1, MAX_TOKENS),
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": one_or_many(str, "text", 16),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "logit_bias": mapping(1024),
    "response_format": mapping(16),
    "tools": objects(512),
    "tool_choice": text_or_object,
    "parallel_tool_calls": boolean,
    "reasoning_effort": text(32),
    # vLLM's own sampling fields, beyond OpenAI's.
    "top_k": integer(-1, MAX_TOKENS),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 10),
    "stop_token_ids": one_or_many(int, "an integer", 128),
    "include_stop_str_in_output": boolean,
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "include_reasoning": boolean,
    "structured_outputs": mapping(16),
    "chat_template_kwargs": template_options,
}

# Taken and not passed on: they change no token of the reply here, or the gateway decides them.
DROPPED = frozenset(
    {
        "cache_salt",
        "metadata",
        "modalities",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
