"""gateway/admin/bodies.py and cursors.py: whatever is sent is read as it was meant, or is the sender's mistake."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.admin import bodies, cursors
from gateway.admin.bodies import Body
from gateway.admin.operations import OPERATIONS
from gateway.errors import BadCall

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
IN_BODIES = sorted({each.takes for each in OPERATIONS if each.in_body}, key=lambda kind: kind.__name__)
IN_QUERIES = sorted({each.takes for each in OPERATIONS if not each.in_body}, key=lambda kind: kind.__name__)

texts = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.sampled_from(["2027-01-01T00:00:00Z", "*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def fields_of(kind: type[Body]) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies with the right names and any values."""
    return st.dictionaries(st.sampled_from(sorted(kind.model_fields) or ["none"]) | texts, values, max_size=5)


@pytest.mark.parametrize("kind", IN_BODIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_body_is_read_or_refused(kind: type[Body], data: st.DataObject) -> None:
    """Nothing but BadCall comes out, and its message has no line end that could end a header or a log line."""
    raw = json.dumps(data.draw(fields_of(kind) | values)).encode()
    try:
        body = bodies.read(kind, raw)
        if isinstance(body, bodies.NewKey | bodies.KeyChange):
            body.ends_at(NOW)
    except BadCall as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("kind", IN_QUERIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_query_is_read_or_refused(kind: type[Body], data: st.DataObject) -> None:
    """The same of queries; and what was read can be reckoned with."""
    names = st.sampled_from(sorted(kind.model_fields) or ["none"]) | texts
    words = texts | st.sampled_from(["2026-03-14", "2199-12-31", "2000-01-01T00:00:00+14:00", "5", "true", "day,key"])
    try:
        query = bodies.query(kind, data.draw(st.dictionaries(names, words, max_size=4)))
        if isinstance(query, bodies.Days):
            query.range(NOW.date())
        if isinstance(query, bodies.Span):
            assert all(at is None or at.tzinfo is UTC for at in (query.start, query.end))
    except BadCall as error:
        assert str(error).isprintable()


def test_many_problems_make_a_short_message() -> None:
    """Who sends a thousand of them is not sent as much back."""
    with pytest.raises(BadCall, match="and 981 more") as raised:
        bodies.read(bodies.NewKey, json.dumps({f"{number}-{'x' * 10_000}": 1 for number in range(1000)}).encode())
    assert len(str(raised.value)) < 6000


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
@example("WyJhIiwiYiJd")
@example("W1tbW1tbW1tbW1tbW1tbW1tb")
def test_a_cursor_that_we_did_not_make_is_refused(text: str) -> None:
    """Or leads somewhere: it is no secret, and grants nothing."""
    for read in (lambda: cursors.place(text, 2), lambda: cursors.moment_and_id(text)):
        with suppress(BadCall):
            read()


@given(st.text(), st.text())
def test_a_cursor_leads_back_to_where_it_was_made(first: str, second: str) -> None:
    """Whatever the row was called."""
    assert cursors.place(cursors.cursor(first, second), 2) == [first, second]


@pytest.mark.parametrize(
    ("old", "change", "new"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": None}, {}),
        ({"a": 1}, {"b": None}, {"a": 1}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    ],
)
def test_a_merge_patch_changes_what_it_names(old: dict[str, Any], change: dict[str, Any], new: dict[str, Any]) -> None:
    """RFC 7396, of one level."""
    assert bodies.merged(old, change) == new
