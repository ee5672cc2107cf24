"""gateway/wire/json_text.py: what two parsers could read differently is refused, and nothing is repeated of it."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadCall, NotJson
from gateway.wire.json_text import INT_64, LONG_LIST, MAX_DEPTH, MAX_VALUES, decode, dump, parse
from tests.unit.splitting import choice, thorough


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    """An object whose deepest container is at that level; the object itself is the first."""
    return f'{{"a":{opening * (levels - 1)}{closing * (levels - 1)}}}'.encode()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        # P02: nesting.
        pytest.param(nested(MAX_DEPTH + 1), "deeper", id="one level too deep"),
        pytest.param(nested(500), "deeper", id="500 levels"),
        pytest.param(nested(90_000), "deeper", id="90,000 levels"),
        pytest.param(b'{"a":' + b"[" * 1_000_000, "values", id="a million, never closed"),
        # Values: what they cost is paid before anybody is charged.
        pytest.param(b'{"a":[' + b"1," * MAX_VALUES + b"1]}", "values", id="numbers without end"),
        pytest.param(b'{"a":[' + b"{}," * MAX_VALUES + b"{}]}", "values", id="objects without end"),
        pytest.param(b'{"a":[' + b'"\\"",' * MAX_VALUES + b"1]}", "values", id="texts without end"),
        pytest.param(b'{"a":' * 40_000 + b"1" + b"}" * 40_000, "deeper", id="40,000 objects"),
        # P03: keys that stand twice.
        pytest.param(b'{"model":"allowed","model":"secret"}', "twice", id="a key twice"),
        pytest.param(b'{"stream":true,"strea\\u006d":false}', "twice", id="a key twice, once escaped"),
        pytest.param(b'{"messages":[{"role":"user","role":"system"}]}', "twice", id="a key twice, inside"),
        pytest.param(b'{"a":[{"b":{"c":1,"c":1}}]}', "twice", id="a key twice, deep, with the same value"),
        # P04: numbers.
        pytest.param(b'{"max_tokens":NaN}', "NaN", id="NaN"),
        pytest.param(b'{"temperature":Infinity}', "Infinity", id="Infinity"),
        pytest.param(b'{"temperature":-Infinity}', "-Infinity", id="minus Infinity"),
        pytest.param(b'{"temperature":1e999}', "too large", id="1e999"),
        pytest.param(b'{"temperature":-1e999}', "too large", id="-1e999"),
        pytest.param(b'{"temperature":' + b"9" * 400 + b".0}", "too large", id="a float of 400 digits"),
        pytest.param(b'{"seed":18446744073709551616}', "64 bits", id="2^64"),
        pytest.param(b'{"seed":-9223372036854775809}', "64 bits", id="-2^63 - 1"),
        pytest.param(b'{"seed":' + b"9" * 5000 + b"}", "64 bits", id="an integer of 5,000 digits"),
        pytest.param(b'{"n":01}', "not valid JSON", id="a leading zero"),
        pytest.param(b'{"n":+1}', "not valid JSON", id="a plus sign"),
        pytest.param(b'{"n":0x10}', "not valid JSON", id="hexadecimal"),
        # P06: text.
        pytest.param(b'{"a":"\\ud800"}', "surrogates", id="half a character"),
        pytest.param(b'{"a":"\\udc00\\ud800"}', "surrogates", id="two halves the wrong way round"),
        pytest.param(b'{"\\uDBFF":1}', "surrogates", id="half a character as a key"),
        pytest.param(b'{"metadata":{"a":["\\ud83d"]}}', "surrogates", id="half a character, inside"),
        pytest.param(b'{"a":"\\u0000"}', "NUL", id="NUL"),
        pytest.param(b'{"a":"\\\\\\u0000"}', "NUL", id="NUL behind a backslash"),
        pytest.param(b'{"a":"\x00"}', "not valid JSON", id="NUL, raw"),
        pytest.param(b'{"a":"\n"}', "not valid JSON", id="a raw line end in a text"),
        pytest.param(b'{"a":"\xff"}', "UTF-8", id="no UTF-8"),
        pytest.param(b'{"a":"\xc0\xaf"}', "UTF-8", id="overlong UTF-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', "UTF-8", id="half a character in UTF-8"),
        pytest.param('{"a":1}'.encode("utf-16"), "UTF-8", id="UTF-16"),
        pytest.param('{"a":1}'.encode("utf-16-le"), "not valid JSON", id="UTF-16 without a mark"),
        pytest.param('{"a":1}'.encode("utf-8-sig"), "not valid JSON", id="a byte order mark"),
        # P09: something else than an object.
        pytest.param(b"[]", "object", id="a list"),
        pytest.param(b'"text"', "object", id="a text"),
        pytest.param(b"null", "object", id="null"),
        pytest.param(b"7", "object", id="a number"),
        pytest.param(b"", "not valid JSON", id="nothing"),
        pytest.param(b"{", "not valid JSON", id="half an object"),
        pytest.param(b'{"a":1}{"b":2}', "not valid JSON", id="two objects"),
        pytest.param(b'{"a":1} x', "not valid JSON", id="something behind it"),
        pytest.param(b'{"a":1,}', "not valid JSON", id="a trailing comma"),
        pytest.param(b"{'a':1}", "not valid JSON", id="single quotes"),
        pytest.param(b'{"a":1/*c*/}', "not valid JSON", id="a comment"),
        pytest.param(b"model=tiny", "not valid JSON", id="a form"),
    ],
)
def test_what_is_refused(raw: bytes, told: str) -> None:
    """The caller's error, said in one line."""
    with pytest.raises(NotJson) as caught:
        parse(raw)
    assert told in caught.value.message
    assert len(caught.value.message) < 120
    assert caught.value.param is None


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        pytest.param(b"{}", {}, id="an empty object"),
        pytest.param(b' \r\n\t{"a" : [1 , 2.5]}\n ', {"a": [1, 2.5]}, id="white space"),
        pytest.param(nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH)), id="as deep as may be"),
        pytest.param(b'{"a":"' + b"[{" * 500 + b'"}', {"a": "[{" * 500}, id="brackets in a text are no nesting"),
        pytest.param(b'{"a":[' + b"{}," * 200 + b"{}]}", {"a": [{}] * 201}, id="many, but not deep"),
        pytest.param(b'{"a":1,"b":{"a":1}}', {"a": 1, "b": {"a": 1}}, id="a key on two levels"),
        pytest.param(b'{"a":1,"A":2}', {"a": 1, "A": 2}, id="keys that differ by case"),
        pytest.param(b'{"a":-0,"b":-0.0,"c":1E2,"d":1e-999}', {"a": 0, "b": 0, "c": 100, "d": 0}, id="odd numbers"),
        pytest.param(b'{"a":18446744073709551615}', {"a": 2**64 - 1}, id="2^64 - 1"),
        pytest.param(b'{"a":-9223372036854775808}', {"a": -(2**63)}, id="-2^63"),
        pytest.param(b'{"a":"\\ud83e\\udd84"}', {"a": "🦄"}, id="two halves make a character"),
        pytest.param('{"a":"🦄\u2028\u0085"}'.encode(), {"a": "🦄\u2028\u0085"}, id="text beyond ASCII"),
        pytest.param(b'{"a":"\\\\u0000 \\\\ud800"}', {"a": "\\u0000 \\ud800"}, id="escaped backslashes"),
        pytest.param(b'{"a":"\\u0001\\u001f\\u007f"}', {"a": "\x01\x1f\x7f"}, id="other control characters"),
        pytest.param(b'{"a":null,"b":true,"c":false}', {"a": None, "b": True, "c": False}, id="words"),
    ],
)
def test_what_is_accepted(raw: bytes, value: dict[str, Any]) -> None:
    """Strict is not narrow: all of JSON that every parser reads alike."""
    assert parse(raw) == value


@pytest.mark.parametrize("canary", ["pg-canary-key", "canary prompt"])
def test_nothing_of_the_text_is_repeated(canary: str) -> None:
    """What a body holds is nobody's business, also not where it is wrong."""
    for raw in (
        f'{{"{canary}":1,"{canary}":2}}',
        f'{{"a":"{canary}"',
        f'{{"a":"{canary}\\q"}}',
        f'{{"a":"{canary}\\ud800"}}',
        f'{{"a":"{canary}\\u0000"}}',
        f'["{canary}"]',
        f'"{canary}"',
        f"{canary}",
    ):
        with pytest.raises(NotJson) as caught:
            parse(raw.encode())
        assert canary not in repr(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "value", [{"a": "\ud800"}, {"\udfff": 1}, {"a": 2**64}, {"a": -(2**63) - 1}, {"a": {1, 2}}, {1: "a"}]
)
def test_what_has_no_faithful_form_is_not_written(value: object) -> None:
    """Better an error than something else than was meant."""
    with pytest.raises(NotJson):
        dump(value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INT_64[0], INT_64[-1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc\\u{0é🦄", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@thorough
@given(st.dictionaries(st.text("abcé🦄", max_size=3), values, max_size=4), st.booleans())
def test_what_is_written_reads_back_equal(value: dict[str, Any], ascii_only: bool) -> None:
    """The body that goes upstream is the object that was checked, however the caller had spelt it."""
    parsed = parse(json.dumps(value, ensure_ascii=ascii_only).encode())
    assert parsed == value
    assert parse(dump(parsed)) == parsed


pieces = choice(
    *'{}[]",:\\ ',
    *(
        "null",
        "true",
        "NaN",
        "1e999",
        "-0",
        "9" * 30,
        "1.5",
        "\\u0000",
        "\\ud800",
        "\\udc00",
        "\\u00e9",
        "\x00",
        "é",
        "\ufeff",
    ),
    *('"a"', '"a":1', '{"a":', '"a":{"a":[', "model"),
)


@thorough
@given(st.lists(pieces, max_size=20).map(lambda parts: "".join(parts).encode()) | st.binary(max_size=40))
def test_no_bytes_raise_anything_but_the_callers_error(raw: bytes) -> None:
    """And what is accepted can be passed on as it was understood."""
    for text in (raw, b'{"a":' + raw + b"}", b'{"a":"' + raw + b'"}'):
        try:
            value = parse(text)
        except BadCall as error:
            assert error.message.isprintable()
        else:
            assert parse(dump(value)) == value


# The fast parser is believed only where it reads what the strict decoder reads.


def outcome(read: Callable[[bytes], Any], raw: bytes) -> str:
    """What comes of reading `raw`: the value with its types, and the order of its keys; or the refusal."""
    try:
        return repr(read(raw))
    except NotJson as error:
        return f"refused: {error.message}"


def spelled(value: Any, draw: st.DrawFn) -> str:
    """A value as JSON, in any of the spellings that JSON knows."""
    gap = draw(choice("", "", "", " ", "\n\t"))
    if isinstance(value, dict):
        members = [f"{gap}{spelled(name, draw)}{gap}:{gap}{spelled(value[name], draw)}" for name in value]
        return "{" + ",".join(members) + gap + "}"
    if isinstance(value, list):
        return "[" + ",".join(gap + spelled(item, draw) for item in value) + gap + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=draw(st.booleans())).replace(*draw(choice(*ESCAPES)))
    if isinstance(value, float):
        return draw(choice("{}", "{:e}", "{:.20f}", "{:.0f}")).format(value)
    return json.dumps(value)


ESCAPES = (("a", "a"), ("a", "\\u0061"), (":", "\\u003a"), (":", "\\u003A"), ("/", "\\/"), ("b", "\\u0000"))
digits = st.text("0123456789", min_size=17, max_size=22)
texts = st.text(st.sampled_from('ab:/{[,\\"\n\0é🦄\ud800') | st.characters(), max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(INT_64[0] - 2, INT_64[-1] + 2) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@st.composite
def json_texts(draw: st.DrawFn) -> bytes:
    """JSON, and what is nearly JSON: members that stand twice, long numbers, something put in or left out."""
    raw = spelled(draw(st.dictionaries(texts, anything, max_size=4)), draw)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        member = raw[raw.find('"', at) : raw.find(",", at)]
        put = draw(pieces | digits | choice(",", f",{member}", f'"a":{draw(digits)},', '"a":1,"a":2,', "[" * 70))
        raw = raw[:at] + put + raw[at + draw(choice(0, 0, 1, 5)) :]
    return raw.encode("utf-8", draw(choice("surrogatepass", "replace")))


@settings(thorough, max_examples=800)
@given(json_texts() | st.binary(max_size=30))
def test_a_body_is_read_as_the_strict_decoder_reads_it(raw: bytes) -> None:
    """The same value, or the same refusal in the same words."""
    for body in (raw, b'{"a":' + raw + b"}"):
        assert outcome(parse, body) == outcome(decode, body)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'{"a":":","a":"b","c":1}', id="a colon in the text that is dropped"),
        pytest.param(b'{"a":1,"a":"\\u003a"}', id="an escaped colon for the one that is dropped"),
        pytest.param(b'{"a":1,"a":"\\u003A"}', id="the same in capitals"),
        pytest.param(b'{"a":1,"\\u003a":{"a":1,"a":2}}', id="an escaped colon in a key"),
        pytest.param(b'{"a":18446744073709551616}', id="the least integer that becomes a float"),
        pytest.param(b'{"a":-9223372036854775809}', id="the greatest negative one"),
        pytest.param(b'{"a":18446744073709551615,"b":-9223372036854775808}', id="the last that do not"),
        pytest.param(b'{"a":1.8446744073709552e19}', id="a float as large"),
        pytest.param(b'{"a":[' + b"1.5," * LONG_LIST + b"1.5]}", id="a long list"),
        pytest.param(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, id="objects as deep as may be"),
        pytest.param(nested(MAX_DEPTH + 1), id="a level too deep"),
        pytest.param(nested(1100), id="deeper than the fast parser goes"),
        pytest.param(b'{"a":"\\\\u0000"}', id="NUL that is none"),
    ],
)
def test_where_the_fast_parser_reads_otherwise_the_strict_one_decides(raw: bytes) -> None:
    """Each of these is a case that a proof could get wrong."""
    assert outcome(parse, raw) == outcome(decode, raw)


@pytest.mark.parametrize("part", [b"[]", b"{}", b'{"a":0}', b'""', b"0", b'"ab"', b"1.5", b'":"'])
def test_a_body_costs_less_than_a_hundred_times_its_size(part: bytes) -> None:
    """Nobody can make the gateway hold much with little."""
    raw = b'{"a":[' + b",".join([part] * 20_000) + b"]}"
    tracemalloc.start()
    try:
        parse(raw)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 * len(raw)


@pytest.mark.parametrize("text", ["a, b: [c] {d} " * 100_000, '\\" , ' * 100_000], ids=["prose", "escaped quotes"])
def test_what_stands_in_a_text_is_no_value(text: str) -> None:
    """A long prompt may hold any number of commas and brackets."""
    assert parse(json.dumps({"a": text}).encode()) == {"a": text}


def test_a_text_that_is_never_closed_is_looked_at_once() -> None:
    """Every quote could begin a text: looking for its end again and again would take hours."""
    with pytest.raises(NotJson):
        parse(b'{"a":"' + b'\\"' * 2_000_000)
