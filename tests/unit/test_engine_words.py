"""What a caller may read of an engine's own words."""

import orjson
import pytest

from gateway.upstream.engines import _explained


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
