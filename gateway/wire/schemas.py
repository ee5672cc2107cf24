"""What a caller may have an engine compile: JSON schemas, patterns, grammars. All have a size that no honest one has.

An engine makes automata of them before the first token, for all its callers on the same cores. Measured on one core
with vLLM 0.32's default backend: 1,000 optional properties take 0.4 s and 5,000 ten, for the cost grows with their
square; 2,000 characters of patterns up to five seconds; 34,000 characters of a grammar two. Bounds such as `maxLength`
cost the same whatever they say, so they are left to the engine, as is what a schema means.
"""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from gateway.errors import NotJson
from gateway.wire import json_text
from gateway.wire.rules import Rule, Wrong

# OpenAI documents at most 5,000 properties, 10 levels of objects, 1,000 enum values and 120,000 characters in all.
MAX_PROPERTIES = 1000
MAX_SUBSCHEMAS = 5000
MAX_LEVELS = 32
MAX_ENUM_VALUES = 1000
MAX_NAME_CHARS = 120_000
MAX_PATTERN_CHARS = 2048
MAX_GRAMMAR_CHARS = 32_768
MAX_POINTER_CHARS = 2048
MAX_INDEX_DIGITS = 5

# Keywords that hold subschemas by name, and those that hold data; what any other holds may be a subschema.
BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
DATA = frozenset({"const", "default", "dependentRequired", "enum", "example", "examples", "required"})
# Keywords that speak of the same value as the schema that they stand in: a circle of them says nothing.
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")

NO_SCHEMA = Wrong("a JSON schema, which is an object")
TOO_DEEP = Wrong(f"a JSON schema that nests at most {MAX_LEVELS} schemas in each other")
NO_TARGET = Wrong("a JSON schema in which every '$ref' leads to a part of the schema itself: '#/$defs/NAME'")
CIRCULAR = Wrong("a JSON schema in which no '$ref' leads back to itself without a property or an item on the way")


def check_schema(root: Any) -> Wrong | None:
    """Whether a JSON schema has a size that engines can bear, and holds together."""
    if type(root) is not dict:
        return NO_SCHEMA
    survey = _Survey()
    layer = [root]
    for _ in range(MAX_LEVELS):
        layer = survey.inside(layer)
        if (wrong := survey.excess(len(layer))) is not None:
            return wrong
        if not layer:
            return _check_references(root, survey)
    return TOO_DEEP


class _Survey:
    """What was found in a schema so far: how much of what costs, every subschema, and every reference with its place.

    A schema is walked through once and without a function call a part: a call may bring hundreds of small ones.
    """

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []
        self.references: list[tuple[dict[str, Any], str]] = []
        self._properties = self._enum_values = self._name_chars = self._pattern_chars = 0

    def inside(self, layer: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Counts these schemas; the schemas directly inside of them. A property may have a keyword's name."""
        self.schemas += layer
        inner: list[Any] = []
        for schema in layer:
            for keyword, value in schema.items():
                kind = type(value)
                if kind is str:
                    if keyword == "pattern":
                        self._pattern_chars += len(value)
                    elif keyword == "$ref":
                        self.references.append((schema, value))
                elif kind is dict and keyword in BY_NAME:
                    self._count_names(keyword, value)
                    inner += value.values()
                elif (kind is dict or kind is list) and keyword not in DATA:
                    inner += value if kind is list else (value,)
                elif kind is list and keyword == "enum":
                    self._enum_values += len(value)
            if "enum" in schema or "const" in schema:
                self._name_chars += len(json_text.dump([schema.get("enum"), schema.get("const")]))
        return [part for part in inner if type(part) is dict]

    def _count_names(self, keyword: str, named: Mapping[str, Any]) -> None:
        chars = sum(map(len, named))
        self._name_chars += chars
        if keyword == "properties":
            self._properties += len(named)
        elif keyword == "patternProperties":
            self._pattern_chars += chars

    def excess(self, more: int) -> Wrong | None:
        """What there is too much of, with so `more` schemas that are still to be looked at."""
        for found, most, counted in (
            (len(self.schemas) + more, MAX_SUBSCHEMAS, "schemas inside"),
            (self._properties, MAX_PROPERTIES, "properties"),
            (self._enum_values, MAX_ENUM_VALUES, "enum values"),
            (self._name_chars, MAX_NAME_CHARS, "characters in names and enums"),
            (self._pattern_chars, MAX_PATTERN_CHARS, "characters in patterns"),
        ):
            if found > most:
                return Wrong(f"a JSON schema with at most {most} {counted}")
        return None


def _check_references(root: dict[str, Any], survey: _Survey) -> Wrong | None:
    """Whether each reference leads to a schema inside of the root, and none in a circle."""
    if not survey.references:
        return None
    leads_to = {id(schema): list(map(id, _in_place(schema))) for schema in survey.schemas}
    for schema, reference in survey.references:
        target = id(_target(root, reference))
        if target not in leads_to:
            return NO_TARGET
        leads_to[id(schema)].append(target)
    try:
        TopologicalSorter(leads_to).prepare()
    except CycleError:
        return CIRCULAR
    return None


def _in_place(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas inside of one that speak of the same value."""
    for keyword in IN_PLACE:
        value = schema.get(keyword)
        yield from value if type(value) is list else (value,)


def _target(root: dict[str, Any], reference: str) -> Any:
    """What a JSON pointer (RFC 6901) in a fragment leads to; None for any other reference."""
    if len(reference) > MAX_POINTER_CHARS or (reference != "#" and not reference.startswith("#/")):
        return None
    value: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        if type(value) is dict:
            value = value.get(step.replace("~1", "/").replace("~0", "~"))
        elif type(value) is list and step.isdecimal() and len(step) <= MAX_INDEX_DIGITS and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def check_schema_text(value: Any) -> Wrong | None:
    """The same for a JSON schema that may also be given as text."""
    if type(value) is not str:
        return check_schema(value)
    try:
        return check_schema(json_text.parse(value.encode()))
    except NotJson:
        return NO_SCHEMA


def check_structural_tag(root: Any) -> Wrong | None:
    """Whether vLLM's structural tags, an object or a list of JSON, have a size that engines can bear."""
    patterns = letters = 0
    held: list[Any] = [root]
    while held:
        value = held.pop()
        if type(value) is str:
            letters += len(value)
        elif type(value) is list:
            held.extend(value)
        elif type(value) is dict:
            for name, inner in value.items():
                if name in ("json_schema", "schema"):
                    if (wrong := check_schema(inner)) is not None:
                        return wrong
                    continue
                patterns += len(inner) if name == "pattern" and type(inner) is str else 0
                held.append(inner)
    if patterns > MAX_PATTERN_CHARS or letters > MAX_GRAMMAR_CHARS:
        return Wrong(
            f"a structural tag with at most {MAX_GRAMMAR_CHARS} characters, {MAX_PATTERN_CHARS} of them in patterns"
        )
    return None


def check_structural_tag_text(value: Any) -> Wrong | None:
    """The same for structural tags that are given as text."""
    wrong = Wrong("a structural tag: an object of JSON, as text")
    if type(value) is not str:
        return wrong
    try:
        return check_structural_tag(json_text.parse(value.encode()))
    except NotJson:
        return wrong


json_schema = Rule(check_schema, {"type": "object", "description": "A JSON schema."})
json_schema_or_text = Rule(check_schema_text, {"type": ["object", "string"], "description": "A JSON schema."})
structural_tag = Rule(check_structural_tag, {"description": "A structural tag of vLLM."})
structural_tag_text = Rule(check_structural_tag_text, {"type": "string", "description": "A structural tag of vLLM."})
