"""gateway/wire/schemas.py: what engines are asked to compile has a bearable size, and holds together."""

from typing import Any, Literal

import orjson
import pytest
from openai.lib._parsing import type_to_response_format_param
from pydantic import BaseModel, Field

from gateway.wire.formats import response_format
from gateway.wire.schemas import (
    MAX_ENUM_VALUES,
    MAX_GRAMMAR_CHARS,
    MAX_LEVELS,
    MAX_NAME_CHARS,
    MAX_PATTERN_CHARS,
    MAX_PROPERTIES,
    MAX_SUBSCHEMAS,
    check_schema,
    check_schema_text,
    check_structural_tag,
)


def properties(count: int, **schema: Any) -> dict[str, Any]:
    """An object schema with so many properties."""
    return {"type": "object", "properties": {f"p{number}": schema for number in range(count)}}


def nested(levels: int, keyword: str = "items") -> dict[str, Any]:
    """Schemas in schemas; the outermost is the first level."""
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {keyword: schema}
    return schema


RECURSIVE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({}, id="anything"),
        pytest.param(properties(MAX_PROPERTIES, anyOf=[{"type": "string"}, {"type": "null"}]), id="many properties"),
        pytest.param({"enum": [f"v{number}" for number in range(MAX_ENUM_VALUES)]}, id="a long enum"),
        pytest.param({"anyOf": [{}] * (MAX_SUBSCHEMAS - 1)}, id="many alternatives"),
        pytest.param({"pattern": "a" * MAX_PATTERN_CHARS}, id="a long pattern"),
        pytest.param({"pattern": "(a+)+$", "minLength": 10**9, "maxItems": 2**63}, id="what costs little"),
        pytest.param(nested(MAX_LEVELS), id="as deep as may be"),
        pytest.param(RECURSIVE, id="a schema that contains itself"),
        pytest.param({"items": {"$ref": "#"}}, id="a list of lists of lists"),
        pytest.param({"$defs": {"a/b~c d": {}}, "$ref": "#/$defs/a~1b~0c%20d"}, id="a pointer with escapes"),
        pytest.param({"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/0"}]}, id="a pointer into a list"),
        pytest.param(
            {"properties": {name: {"type": "string"} for name in ("$ref", "enum", "pattern", "default", "allOf")}},
            id="properties with names of keywords",
        ),
        pytest.param(
            {"default": {"$ref": "x"}, "const": {"$ref": "x"}, "enum": [{"$ref": "x"}]}, id="data like keywords"
        ),
        pytest.param(
            {"type": ["string", "null"], "items": True, "title": "x", "x-hint": [1, {"a": 1}]}, id="other keywords"
        ),
    ],
)
def test_what_is_accepted(schema: dict[str, Any]) -> None:
    """What the schema means is the engine's affair."""
    assert check_schema(schema) is None
    assert check_schema_text(orjson.dumps(schema).decode()) is None


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        pytest.param([], "an object", id="no schema"),
        pytest.param(properties(MAX_PROPERTIES + 1), "1000 properties", id="too many properties"),
        pytest.param({"anyOf": [properties(400)] * 3}, "1000 properties", id="too many properties together"),
        pytest.param({"$defs": {"default": properties(2000)}}, "properties", id="under a name that is also a keyword"),
        pytest.param({"enum": list(range(10_000))}, "1000 enum values", id="too many enum values"),
        pytest.param({"items": [{"enum": [1, 2]}] * 501}, "1000 enum values", id="too many together"),
        pytest.param({"anyOf": [{}] * MAX_SUBSCHEMAS}, "5000 schemas", id="too many alternatives"),
        pytest.param({"enum": ["x" * MAX_NAME_CHARS]}, "characters", id="an enum value without end"),
        pytest.param({"const": {"a": ["x" * MAX_NAME_CHARS]}}, "characters", id="a constant without end"),
        pytest.param({"properties": {"x" * (MAX_NAME_CHARS + 1): {}}}, "characters", id="a name without end"),
        pytest.param({"$defs": {"x" * (MAX_NAME_CHARS + 1): {}}}, "characters", id="a definition's name"),
        pytest.param({"pattern": "a" * (MAX_PATTERN_CHARS + 1)}, "patterns", id="a pattern without end"),
        pytest.param({"patternProperties": {"a" * (MAX_PATTERN_CHARS + 1): {}}}, "patterns", id="as a property's name"),
        pytest.param(properties(10, pattern="a" * 300), "patterns", id="many patterns"),
        *[
            pytest.param(nested(MAX_LEVELS + 1, keyword), "32", id=f"too deep in {keyword}")
            for keyword in ("items", "not", "additionalProperties", "unheard-of")
        ],
        pytest.param({"$ref": "#/$defs/a"}, "$ref", id="a reference to nothing"),
        pytest.param({"$ref": "http://127.0.0.1:9/schema.json"}, "$ref", id="a reference to another host"),
        pytest.param({"$ref": "file:///etc/passwd"}, "$ref", id="a reference to a file"),
        pytest.param({"$ref": "other.json#/a"}, "$ref", id="a reference to a neighbour"),
        pytest.param({"$ref": ""}, "$ref", id="an empty reference"),
        pytest.param({"$anchor": "a", "$ref": "#a"}, "$ref", id="an anchor"),
        pytest.param({"default": {}, "$ref": "#/default"}, "$ref", id="a reference to data"),
        pytest.param({"enum": [{}], "$ref": "#/enum/0"}, "$ref", id="a reference to data in a list"),
        pytest.param({"enum": [{}], "$ref": "#/enum/" + "9" * 5000}, "$ref", id="a reference to a distant item"),
        pytest.param({"$ref": "#"}, "back to itself", id="itself"),
        pytest.param(
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            "back to itself",
            id="two that name each other",
        ),
        pytest.param({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "back to itself", id="itself among others"),
        pytest.param({"items": {"not": {"allOf": [{"$ref": "#/items"}]}}}, "back to itself", id="itself, further in"),
    ],
)
def test_what_is_refused(schema: Any, told: str) -> None:
    """Said in one line, without a word of the schema."""
    wrong = check_schema(schema)
    assert wrong is not None
    assert told in wrong.expected
    assert len(wrong.expected) < 120
    assert "127.0.0.1" not in wrong.expected


@pytest.mark.parametrize(
    ("tag", "accepted"),
    [
        pytest.param({"type": "regex", "pattern": "a+"}, True, id="a pattern"),
        pytest.param({"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}, True, id="a tag"),
        pytest.param({"elements": [{"type": "json_schema", "json_schema": {"enum": [1]}}]}, True, id="a schema"),
        pytest.param({"elements": [{"type": "regex", "pattern": "a" * 1000}] * 3}, False, id="long patterns"),
        pytest.param({"elements": [{"json_schema": {"enum": list(range(1001))}}]}, False, id="a large schema"),
        pytest.param(
            {"elements": [{"type": "grammar", "grammar": "a" * (MAX_GRAMMAR_CHARS + 1)}]}, False, id="a grammar"
        ),
        pytest.param([{"begin": "<a>", "schema": {"$ref": "#"}, "end": ""}], False, id="a circle, in the old form"),
    ],
)
def test_structural_tags_are_held_to_the_same(tag: Any, accepted: bool) -> None:
    """Schemas, patterns and grammars inside of them cost as much as elsewhere."""
    assert (check_structural_tag(tag) is None) == accepted


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(max_length=200)
    country: Literal["de", "fr", "it"] | None = None


class Person(BaseModel):
    """Somebody, with all that pydantic likes to write into a schema."""

    name: str = Field(pattern=r"^[A-Z][a-z]+$")
    friends: list["Person"] = []
    addresses: dict[str, Address] = {}
    age: int | None = Field(None, ge=0, le=150)


def test_what_the_openai_client_makes_of_a_model_is_accepted() -> None:
    """`parse()` with a pydantic model, one that contains itself."""
    assert response_format.check(type_to_response_format_param(Address)) is None
    assert check_schema(Person.model_json_schema()) is None


@pytest.mark.parametrize(
    ("schema", "accepted"),
    [
        pytest.param({"anyOf": [{"$ref": "#/items"}] * 4000, "items": {}}, True, id="references"),
        pytest.param({"$ref": "#/" + "a/" * 500_000}, False, id="a pointer without end"),
        pytest.param({"a": [[[]]] * 100_000}, True, id="lists"),
        pytest.param({"a": [{}] * 100_000}, False, id="objects"),
        pytest.param({"const": [[{}]] * 100_000}, False, id="data"),
    ],
)
def test_a_large_schema_is_judged_as_a_small_one(schema: dict[str, Any], accepted: bool) -> None:
    """No verdict depends on how much was looked at before it."""
    assert (check_schema(schema) is None) == accepted
