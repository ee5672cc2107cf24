"""What a caller may read of an engine's own words."""

import orjson
import pytest

from gateway.upstream.engines import PRIVATE, TOLD_CHARS, _explained, _leading_error
from gateway.wire.events import Event


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Cannot reach 10.0.0.11:8000 or gpu-7.internal:9000", "Cannot reach … or …"),
        ("see HTTP://EVIL.example/x?token=zzz now", "see … now"),
        (r"no C:\models\x and /models/smol-2/config.json?b=c", "no … and …"),
        ("temperature must be non-negative, got -1.0.", "temperature must be non-negative, got -1.0."),
        ("at most 2048 tokens, you asked for 3 / 4 of 9:30", "at most 2048 tokens, you asked for 3 / 4 of 9:30"),
    ],
)
def test_addresses_and_paths_are_the_operators(said: str, told: str) -> None:
    """The reason for a rejection is told, where the engine lives is not."""
    assert _explained(orjson.dumps({"error": {"message": said}})) == told


@pytest.mark.parametrize("word", ["a", "a.", "a-", "a+", "1.", "/a", "a:"])
def test_looking_words_over_takes_time_for_each_character_once(word: str) -> None:
    """An engine may quote a caller's whole text. This would take minutes if every character began a search."""
    said = word * 100_000
    assert len(PRIVATE.sub("…", said)) <= len(said)
    assert len(_explained(orjson.dumps({"error": {"message": said}}))) <= TOLD_CHARS


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (Event("message", b'{"choices":[{"delta":{"content":"error"}}]}'), None),
        (Event("message", b'{"model":"error","choices":[]}'), None),
        (Event("message", b'{"error":null,"choices":[]}'), None),
        (Event("message", b'{"error":{"message":"no","code":503}}'), 503),
        (Event("message", b'{"error":"no"}'), 500),
        (Event("error", b'{"message":"no","code":429}'), 429),
        (Event("error", b"no"), 500),
    ],
)
def test_a_stream_that_begins_with_the_word_is_no_error(event: Event, status: int | None) -> None:
    """Only where the chunk has an error, or the event is one."""
    found = _leading_error(event)
    assert (found.status if found else None) == status
