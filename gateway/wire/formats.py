"""The form that a caller asks a reply to have: OpenAI's `response_format` and vLLM's `structured_outputs`.

How large a schema, pattern or grammar may be is `schemas.py`; which of several forms counts is left to the engine.
"""

from typing import Any

from gateway.wire.rules import Rule, Wrong, any_text, boolean, listing, one_of, record, tagged, text
from gateway.wire.schemas import (
    MAX_ENUM_VALUES,
    MAX_GRAMMAR_CHARS,
    MAX_NAME_CHARS,
    MAX_PATTERN_CHARS,
    json_schema,
    json_schema_or_text,
    structural_tag,
    structural_tag_text,
)

MAX_TITLE_CHARS = 256

_named_schema = record(
    {"name": text(MAX_TITLE_CHARS), "description": any_text, "schema": json_schema, "strict": boolean},
    needed=("name",),
)

response_format = tagged(
    "type",
    {
        "text": record({"type": one_of("text")}, needed=("type",)),
        "json_object": record({"type": one_of("json_object")}, needed=("type",)),
        "json_schema": record(
            {"type": one_of("json_schema"), "json_schema": _named_schema}, needed=("type", "json_schema")
        ),
        # vLLM's own, in its new and in its old form.
        "structural_tag": record(
            {
                "type": one_of("structural_tag"),
                "format": structural_tag,
                "structures": structural_tag,
                "triggers": structural_tag,
            },
            needed=("type",),
        ),
    },
)

_choices = listing(text(MAX_NAME_CHARS), MAX_ENUM_VALUES, "texts", least=1)


def _check_choices(value: Any) -> Wrong | None:
    wrong = _choices.check(value)
    if wrong is None and sum(map(len, value)) > MAX_NAME_CHARS:
        wrong = Wrong(f"texts of {MAX_NAME_CHARS} characters together")
    return wrong


CONSTRAINTS = {
    "json": json_schema_or_text,
    "regex": text(MAX_PATTERN_CHARS),
    "choice": Rule(_check_choices, _choices.schema),
    "grammar": text(MAX_GRAMMAR_CHARS),
    "json_object": boolean,
    "structural_tag": structural_tag_text,
}
_constrained = record(
    {
        **CONSTRAINTS,
        "disable_any_whitespace": boolean,
        "disable_additional_properties": boolean,
        "whitespace_pattern": text(MAX_PATTERN_CHARS),
    }
)


def _check_constrained(value: Any) -> Wrong | None:
    wrong = _constrained.check(value)
    if wrong is None and sum(value.get(name) is not None for name in CONSTRAINTS) != 1:
        wrong = Wrong(f"an object with exactly one of {', '.join(CONSTRAINTS)}")
    return wrong


structured_outputs = Rule(_check_constrained, _constrained.schema)
