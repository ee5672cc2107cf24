"""The messages of a chat: who speaks, and the parts of what is said. Media come inside the call or not at all.

From parts of other types than those here an engine reads tensors, files, or media that other callers cached. Clients
send replies of other makers back as they got them: a field that is not here is no mistake, and goes no further.
"""

import re
from collections.abc import Mapping
from typing import Any

from gateway.wire.rules import (
    Rule,
    Wrong,
    any_object,
    any_text,
    either,
    listing,
    one_of,
    or_null,
    record,
    tagged,
    text,
    within,
)
from gateway.wire.tools import MAX_NAME_CHARS, MAX_TOOLS, tools

MAX_MESSAGES = 4096
MAX_PARTS = 4096
MAX_ID_CHARS = 256
MAX_WORD_CHARS = 64
# Templates of some models know other roles than these.
ROLES = frozenset({"assistant", "developer", "function", "system", "tool", "user"})
ROLE = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_WORD_CHARS}}}")

NO_MESSAGE = Wrong("an object with a 'role'")
NO_ROLE = Wrong(f"{', '.join(sorted(ROLES))}, or another role that the model's template knows", ".role")
NO_CONTENT = Wrong("text or a list of parts", ".content")
NOT_FETCHED = "a data: URL; addresses are not fetched"


def _data_url(value: Any) -> Wrong | None:
    return None if type(value) is str and value.startswith("data:") else Wrong(NOT_FETCHED)


_url = Rule(_data_url, {"type": "string", "pattern": "^data:"})
_medium = either(NOT_FETCHED, _url, record({"url": _url, "detail": text(MAX_WORD_CHARS)}, needed=("url",)))
_sound = record({"data": any_text, "format": text(MAX_WORD_CHARS)}, needed=("data", "format"))
_PART_FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "text": {"text": any_text},
    "refusal": {"refusal": any_text},
    "image_url": {"image_url": _medium},
    "input_audio": {"input_audio": _sound},
    # vLLM's own.
    "audio_url": {"audio_url": _medium},
    "video_url": {"video_url": _medium},
    "thinking": {"thinking": any_text},
    "tool_reference": {"name": text(MAX_NAME_CHARS)},
}
_known_part = tagged(
    "type",
    {
        kind: record({"type": one_of(kind), **fields}, needed=("type", *fields), others=True)
        for kind, fields in _PART_FIELDS.items()
    },
)


def _check_part(value: Any) -> Wrong | None:
    """A part of a type that is known; not even beside it may anything stand that leads to media elsewhere."""
    if (wrong := _known_part.check(value)) is not None:
        return wrong
    for name in value:
        if name == "uuid" or (name.endswith("_url") and name != value["type"]):
            return Wrong("left out: media are sent whole, in parts of their own type", f".{name[:MAX_WORD_CHARS]}")
    return None


_parts = listing(Rule(_check_part, _known_part.schema), MAX_PARTS, "parts")
_call = record(
    {
        "id": text(MAX_ID_CHARS, 0),
        "type": one_of("function"),
        "function": record(
            {
                "name": text(MAX_NAME_CHARS),
                "arguments": either("text, or an object", any_text, any_object),
            },
            needed=("name",),
            others=True,
        ),
    },
    needed=("function",),
    others=True,
)
# What a message may hold beside its role and content.
_OTHER_FIELDS: Mapping[str, Rule] = {
    "name": text(MAX_NAME_CHARS, 0),
    "tool_call_id": text(MAX_ID_CHARS, 0),
    "tool_calls": listing(_call, MAX_TOOLS, "calls of tools"),
    "refusal": any_text,
    # vLLM's own.
    "reasoning": any_text,
    "reasoning_content": any_text,
    "task": text(MAX_WORD_CHARS),
    "tools": tools,
}


def _check_message(value: Any) -> Wrong | None:
    if type(value) is not dict:
        return NO_MESSAGE
    role = value.get("role")
    if type(role) is not str or (role not in ROLES and not ROLE.fullmatch(role)):
        return NO_ROLE
    content = value.get("content")
    if type(content) is str and len(value) == 2:
        return None
    if type(content) is list:
        if (wrong := _parts.check(content)) is not None:
            return within(".content", wrong)
    elif content is not None and type(content) is not str:
        return NO_CONTENT
    for name, rule in _OTHER_FIELDS.items():
        inner = value.get(name)
        if inner is not None and (wrong := rule.check(inner)) is not None:
            return within(f".{name}", wrong)
    return None


_message = Rule(
    _check_message,
    {
        "type": "object",
        "properties": {
            "role": {"type": "string", "pattern": f"^{ROLE.pattern}$"},
            "content": {"anyOf": [any_text.schema, _parts.schema, {"type": "null"}]},
            **{name: or_null(rule.schema) for name, rule in _OTHER_FIELDS.items()},
        },
        "required": ["role"],
    },
)

messages = listing(_message, MAX_MESSAGES, "messages", least=1)


def without_unknown(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that were checked, without the fields that are not known here."""
    return [
        message if len(message) == 2 and type(message.get("content")) is str else _known(message) for message in given
    ]


def _known(message: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in message.items() if name in ("role", "content") or name in _OTHER_FIELDS}
    if type(known.get("content")) is list:
        known["content"] = [
            {name: value for name, value in part.items() if name == "type" or name in _PART_FIELDS[part["type"]]}
            for part in known["content"]
        ]
    if known.get("tool_calls") is not None:
        known["tool_calls"] = [_known_call(call) for call in known["tool_calls"]]
    return known


def _known_call(call: dict[str, Any]) -> dict[str, Any]:
    function = {name: call["function"][name] for name in ("name", "arguments") if name in call["function"]}
    return {name: call[name] for name in ("id", "type") if name in call} | {"function": function}
