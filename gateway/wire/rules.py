"""What a value of a call must be: one rule a kind of value, as a check and as the JSON Schema that says the same.

A table of rules is what a caller's fields are held to and what the served document tells of them. Nothing is coerced
and no value is repeated: a rule says what would have been right, and where.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

SHOWN_CHARS = 64


class Wrong(NamedTuple):
    """What should stand there, to be read after `must be`; `at` is the place inside of the value: `[3].role`."""

    expected: str
    at: str = ""


Check = Callable[[Any], Wrong | None]


class Rule(NamedTuple):
    """`check` gives None for a value that is right. `schema` accepts every such value, and hardly another."""

    check: Check
    schema: Mapping[str, Any]


def shown(word: str) -> str:
    """A caller's own word, made short enough to be repeated."""
    return word if len(word) <= SHOWN_CHARS else word[: SHOWN_CHARS - 1] + "…"


def within(place: str, wrong: Wrong) -> Wrong:
    """The same, seen from one level further up."""
    return Wrong(wrong.expected, place + wrong.at)


def or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same, or null, which is as good as absent."""
    return {"anyOf": [schema, {"type": "null"}]}


# Single values. What JSON gives has exactly these types: true is no 1, and a subclass never comes.


def _boolean(value: Any) -> Wrong | None:
    return None if type(value) is bool else Wrong("true or false")


boolean = Rule(_boolean, {"type": "boolean"})


def integer(low: int, high: int) -> Rule:
    wrong = Wrong(f"an integer from {low} to {high}")

    def check(value: Any) -> Wrong | None:
        return None if type(value) is int and low <= value <= high else wrong

    return Rule(check, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float) -> Rule:
    wrong = Wrong(f"a number from {low:g} to {high:g}")

    def check(value: Any) -> Wrong | None:
        return None if (type(value) is float or type(value) is int) and low <= value <= high else wrong

    return Rule(check, {"type": "number", "minimum": low, "maximum": high})


def text(longest: int, shortest: int = 1) -> Rule:
    """Text of so many characters."""
    wrong = Wrong(f"text of {shortest} to {longest} characters")

    def check(value: Any) -> Wrong | None:
        return None if type(value) is str and shortest <= len(value) <= longest else wrong

    return Rule(check, {"type": "string", "minLength": shortest, "maxLength": longest})


def _any_text(value: Any) -> Wrong | None:
    return None if type(value) is str else Wrong("text")


any_text = Rule(_any_text, {"type": "string"})


def _any_object(value: Any) -> Wrong | None:
    return None if type(value) is dict else Wrong("an object")


any_object = Rule(_any_object, {"type": "object"})


def one_of(*words: str) -> Rule:
    wrong = Wrong(" or ".join(f"'{word}'" for word in words))

    def check(value: Any) -> Wrong | None:
        return None if type(value) is str and value in words else wrong

    return Rule(check, {"type": "string", "enum": list(words)})


# Values made of others.


def listing(item: Rule, most: int, what: str, least: int = 0) -> Rule:
    """A list of so many items, called `what` in a refusal. The first item that is wrong is told."""
    wrong = Wrong(f"a list of {least} to {most} {what}")
    check_item = item.check

    def check(value: Any) -> Wrong | None:
        if type(value) is not list or not least <= len(value) <= most:
            return wrong
        for index, inner in enumerate(value):
            found = check_item(inner)
            if found is not None:
                return within(f"[{index}]", found)
        return None

    return Rule(check, {"type": "array", "items": item.schema, "minItems": least, "maxItems": most})


def either(what: str, *rules: Rule) -> Rule:
    """What any of the rules accepts; `what` says it in words."""

    def check(value: Any) -> Wrong | None:
        return None if any(rule.check(value) is None for rule in rules) else Wrong(what)

    return Rule(check, {"anyOf": [rule.schema for rule in rules]})


def record(fields: Mapping[str, Rule], needed: Collection[str] = (), *, others: bool = False) -> Rule:
    """An object of these fields. All but the `needed` may be missing or null; `others` lets unknown ones be."""
    checks = {name: rule.check for name, rule in fields.items()}
    wrong = Wrong("an object" + (f" with {' and '.join(map(repr, needed))}" if needed else ""))
    unknown = Wrong(f"left out (what is known there: {', '.join(fields)})")

    def check(value: Any) -> Wrong | None:
        if type(value) is not dict or any(value.get(name) is None for name in needed):
            return wrong
        for name, inner in value.items():
            check_field = checks.get(name)
            if check_field is not None:
                found = None if inner is None else check_field(inner)
            else:
                found = None if others else unknown
            if found is not None:
                return within(f".{shown(name)}", found)
        return None

    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: rule.schema if name in needed else or_null(rule.schema) for name, rule in fields.items()},
        "required": list(needed),
        "additionalProperties": others,
    }
    return Rule(check, schema)


def tagged(tag: str, variants: Mapping[str, Rule], why: str = "") -> Rule:
    """An object whose field `tag` says which of the rules it keeps. `why` ends what is said of other tags."""
    wrong = Wrong(f"an object whose '{tag}' is {' or '.join(map(repr, variants))}{why}")

    def check(value: Any) -> Wrong | None:
        kind = value.get(tag) if type(value) is dict else None
        rule = variants.get(kind) if type(kind) is str else None
        return wrong if rule is None else rule.check(value)

    return Rule(check, {"oneOf": [rule.schema for rule in variants.values()]})
