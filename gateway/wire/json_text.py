"""Strict JSON: texts that two parsers could read differently are refused, whatever one of them makes of them.

What a caller's permissions were checked on and what an engine is sent must be the same thing. So keys must not
repeat, numbers must be finite, text must be UTF-8 that can be written again, and nesting has a limit. A fast parser
reads first; what it read counts only where it is proven that the strict decoder would read the same.
"""

import json
import re
from typing import Any, NoReturn

import orjson

from gateway.errors import NotJson

MAX_DEPTH = 64
# Values in a body. Ten thousand messages have fewer; an array of millions would cost a second and a gigabyte.
MAX_VALUES = 100_000
# A text in JSON, up to the end of the body where it is not closed: every byte is looked at once.
TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
INT_64 = range(-(2**63), 2**64)
INT_DIGITS = 20
# Escapes that stand for half a character, or for none; a backslash may itself be escaped.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
ESCAPED_NUL = b"\\u0000"
ESCAPED_BACKSLASH = b"\\\\"
ESCAPED_COLONS = (b"\\u003a", b"\\u003A")
# How both of these begin, and all of Latin-1.
ESCAPED_LATIN = b"\\u00"
MARKS = b",:[{"
# What the fast parser makes of an integer beyond 64 bits is a float that does not lie between these.
LEAST_FLOAT, MOST_FLOAT = float(INT_64[0]), float(INT_64[-1] + 1)
# Items of a list that nobody honest exceeds: to write a list, memory is set aside for a long text in each of them.
LONG_LIST = 4096
# A value has a key and is a text at the most; in texts quotes stand escaped.
QUOTES_PER_VALUE = 4


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises NotJson, which says what is wrong and repeats nothing of the text."""
    if len(raw) > MAX_VALUES and raw.count(b'"') - raw.count(b'\\"') > QUOTES_PER_VALUE * MAX_VALUES:
        raise NotJson(f"The body holds more than {MAX_VALUES} values.")
    if len(raw) > MAX_VALUES and _marks(raw) > MAX_VALUES and _marks(TEXT.sub(b"", raw)) > MAX_VALUES:
        raise NotJson(f"The body holds more than {MAX_VALUES} values.")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return decode(raw)
    return value if type(value) is dict and _is_faithful(value, raw) else decode(raw)


def decode(raw: bytes) -> dict[str, Any]:
    """The same as `parse` by the strict decoder alone: it has the last word, and the words for what is wrong."""
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise NotJson(f"The body is not valid UTF-8 (at byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"The body is not valid JSON: {error.msg} (at character {error.pos}).") from None
    except RecursionError:
        raise NotJson(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    if not isinstance(value, dict):
        raise NotJson("The body must be a JSON object.")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise NotJson(f"The body is nested deeper than {MAX_DEPTH} levels.")
    if SURROGATE.search(raw):
        dump(value)
    if ESCAPED_NUL in raw and ESCAPED_NUL in raw.replace(ESCAPED_BACKSLASH, b"  "):
        raise NotJson("The body holds a text with a NUL character.")
    return value


def dump(value: object) -> bytes:
    """`value` as JSON. Raises NotJson for what has no faithful form: lone surrogates, integers beyond 64 bits."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise NotJson(f"The body holds a value that cannot be passed on: {error}.") from None


def _is_faithful(value: dict[str, Any], raw: bytes) -> bool:
    """Whether what the fast parser read is proven to be all that `raw` says; False where in doubt.

    That parser refuses what is no JSON, half characters and infinite numbers. It takes the last of keys that repeat,
    makes floats of integers beyond 64 bits, lets NUL pass and nests deeper.
    """
    escapes = ESCAPED_LATIN in raw
    if (escapes and ESCAPED_NUL in raw) or not _is_plain(value):
        return False
    written = orjson.dumps(value)
    if written == raw:  # Most clients write as we do.
        return True
    # Every member has a colon, and one that was dropped is not written again with its own.
    if escapes and any(colon in raw for colon in ESCAPED_COLONS):
        return False
    return raw.count(b":") == written.count(b":")


def _is_plain(value: object) -> bool:
    """Whether nothing nests too deeply, no list is long, and no number can have been an integer beyond 64 bits."""
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for outer in layer:
            if type(outer) is list and len(outer) > LONG_LIST:
                return False
            for item in outer.values() if type(outer) is dict else outer:
                kind = type(item)
                if kind is dict or kind is list:
                    inner.append(item)
                elif kind is float and not LEAST_FLOAT < item < MOST_FLOAT:
                    return False
        if not inner:
            return True
        layer = inner
    return False


def _marks(raw: bytes) -> int:
    """At least as many as there are values: commas, colons and brackets, those in texts as well."""
    return len(raw) - len(raw.translate(None, MARKS))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise NotJson("The body holds an object in which a key stands twice.")
    return made


def _integer(text: str) -> int:
    if len(text) <= INT_DIGITS and (number := int(text)) in INT_64:
        return number
    raise NotJson("The body holds an integer beyond 64 bits.")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise NotJson("The body holds a number that is too large.")
    return number


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"The body holds {name}, which is not JSON.")


def _deeper(value: object, levels: int) -> bool:
    layer: list[Any] = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return False
    return True


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
)
